"""
Run the comparison and write one report.

Each cell runs in a fresh process; within a round the contenders of a cell follow one another in
an order that changes from round to round, so that a slow minute of the machine hits them all.
The report gives medians over the rounds and their ranges, and ratios taken round by round.

    python benches/python/run.py            everything, about half an hour
    python benches/python/run.py --quick    the same cells, shorter, under five minutes
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contenders import CONTENDERS
from millrace.cli.machine import facts
from page import commit
from readers import READERS, STORES
from report import write_report

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CELL_TIMEOUT_S = 180
APPEND_BYTES = 128
TASKS = (1, 16, 256, 4096)
LIMIT = "asyncio limit"
ON_LOOP = "millrace driver=loop"
#: A commit each: what they do with many tasks is what they do with one, only later.
OURS = ("millrace", "millrace direct")
SLOW = ("SQLite, commit each", "file, fsync each")
PACKAGES = ("lmdb", "rocksdict", "uvloop")


@dataclass(frozen=True)
class Plan:
    """How long everything lasts."""

    rounds: int
    seconds: float
    bulk_bytes: int
    scan_records: int
    idle_seconds: float
    slow_tasks: tuple[int, ...]
    bulk_tasks: tuple[int, ...]


FULL = Plan(5, 3.0, 384_000_000, 1_000_000, 5.0, TASKS, (1, 4))
QUICK = Plan(3, 0.4, 288_000_000, 250_000, 1.0, (1, 256), (4,))


@dataclass(frozen=True)
class Cell:
    """One measurement: what is done, by whom, with how many tasks."""

    workload: str
    contender: str
    tasks: int = 0

    def job(self, plan: Plan, directory: Path) -> dict[str, Any]:
        """Return what the cell's process needs to know."""
        seconds = plan.idle_seconds if self.workload == "idle" else plan.seconds
        return {
            **asdict(self),
            "directory": str(directory),
            "seconds": seconds,
            "size": APPEND_BYTES,
            "bytes": plan.bulk_bytes,
            "records": plan.scan_records,
        }


def cells(plan: Plan) -> list[list[Cell]]:
    """Return the groups of cells that are compared with one another."""
    groups: list[list[Cell]] = []
    for tasks in TASKS:
        names = [n for n in CONTENDERS if n not in SLOW or tasks in plan.slow_tasks]
        group = [Cell("append", name, tasks) for name in names]
        groups.append([*group, Cell("raw", "pwrite + fdatasync")])
    durable = [name for name in CONTENDERS if name not in (LIMIT, "SQLite, commit each")]
    for tasks in plan.bulk_tasks:
        group = [Cell("bulk", name, tasks) for name in durable]
        group.extend(Cell("recycled", name, tasks) for name in durable if name in OURS)
        group.append(Cell("sequential", "1 MiB write + sync"))
        group.append(Cell("unwritten", "1 MiB write + sync, unwritten extents"))
        groups.append(group)
    groups.append([Cell("scan", name) for name in READERS])
    groups.append([Cell("idle", name) for name in (LIMIT, "millrace", ON_LOOP)])
    return groups


class Runner:
    """
    Runs cells and keeps their results.

    Args:
        plan: How long everything lasts.

        base: Where the stores go; on the disk to be measured.

        only: Run only cells whose workload or contender contains one of these words.
    """

    def __init__(self, plan: Plan, base: Path, only: list[str]) -> None:
        self.results: list[dict[str, Any]] = []
        self.missing: dict[str, str] = {}
        self._plan = plan
        self._base = base
        self._only = only
        self._filled: dict[str, Path] = {}

    def run(self) -> None:
        """Run every cell in every round."""
        groups = [[c for c in group if self._is_wanted(c)] for group in cells(self._plan)]
        total = sum(map(len, groups)) * self._plan.rounds
        done = 0
        for number in range(self._plan.rounds):
            for group in groups:
                for cell in _shuffled(group, number):
                    done += 1
                    self._one(cell, number, f"{done}/{total}")

    def _is_wanted(self, cell: Cell) -> bool:
        text = f"{cell.workload} {cell.contender} {cell.tasks}"
        return not self._only or any(word in text for word in self._only)

    def _one(self, cell: Cell, number: int, where: str) -> None:
        if cell.contender in self.missing and cell.workload != "scan":
            return
        began = time.monotonic()
        result = self._measure(cell)
        if "missing" in result:
            self.missing[cell.contender] = result["missing"]
        else:
            self.results.append({**asdict(cell), "round": number, **result})
        _say(f"{where:>9}  {_summary(cell, result)}  ({time.monotonic() - began:.1f} s)")

    def _measure(self, cell: Cell) -> dict[str, Any]:
        if cell.workload == "scan":
            directory = self._filled_store(cell.contender)
            return self._spawn(cell.job(self._plan, directory))
        with tempfile.TemporaryDirectory(prefix="cell-", dir=self._base) as name:
            return self._spawn(cell.job(self._plan, Path(name)))

    def _filled_store(self, reader: str) -> Path:
        store = STORES[reader]
        if store not in self._filled:
            directory = self._base / f"scan-{len(self._filled)}"
            directory.mkdir()
            self._filled[store] = directory
            self._spawn(Cell("fill", store).job(self._plan, directory))
        return self._filled[store]

    def _spawn(self, job: dict[str, Any]) -> dict[str, Any]:
        argv = [sys.executable, str(HERE / "cell.py"), json.dumps(job)]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=CELL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"wrong": f"no end after {CELL_TIMEOUT_S} s"}
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            return {"wrong": f"exit status {done.returncode}: {last[0]}"}
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer


def _shuffled(group: list[Cell], number: int) -> Iterator[Cell]:
    order = list(group)
    random.Random(number).shuffle(order)
    yield from order


def _summary(cell: Cell, result: dict[str, Any]) -> str:
    name = f"{cell.workload:<10} {cell.tasks or '':>4} {cell.contender:<38}"
    if "missing" in result:
        return f"{name} missing: {result['missing'][:60]}"
    if "wrong" in result:
        return f"{name} WRONG: {result['wrong']}"
    if "records_per_s" not in result:
        return f"{name} {result['cpu_s'] * 1e3:.1f} ms of CPU"
    return f"{name} {result['records_per_s']:>12,.0f}/s  p50 {result['p50_s'] * 1e6:>9,.0f} us"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    import sqlite3

    import millrace

    found["sqlite"] = sqlite3.sqlite_version
    found["millrace"] = getattr(millrace, "__version__", "unknown")
    return found


def main() -> int:
    """Run what the command line asks for; exit code 1 if any result was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="shorter cells, under five minutes")
    parser.add_argument("--rounds", type=int, help="at least three for a report to be believed")
    parser.add_argument("--only", action="append", default=[], help="word in a cell's name")
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="disk to measure")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "report")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = Plan(**{**asdict(plan), "rounds": options.rounds})
    options.directory.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        runner = Runner(plan, Path(name), options.only)
        machine = facts(Path(name))
        runner.run()
    document = {
        "began": began,
        "elapsed_s": time.time() - began,
        "command": "python benches/python/run.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "plan": asdict(plan),
        "machine": machine,
        "versions": _versions(),
        "missing": runner.missing,
        "cells": runner.results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    report = write_report(document, options.out)
    _say(f"report: {report}")
    return 1 if any("wrong" in result for result in runner.results) else 0


if __name__ == "__main__":
    sys.exit(main())
