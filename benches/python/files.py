"""
Files and sockets: `millrace.IoEngine` against fio, caio, aiofiles, threads and plain calls.

Each cell runs in a fresh process; the contenders of a cell take turns, in an order that changes
from round to round. Every cell checks what it read. A contender that is not installed, or that
cannot do what is asked here, is a missing row.

    python benches/python/files.py            five rounds, about twelve minutes
    python benches/python/files.py --quick    three short rounds, about two minutes
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files_cells import fill, run_cell
from millrace.cli.machine import facts
from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
CELL_TIMEOUT_S = 120

Job = dict[str, Any]

COLD = ("millrace", "millrace, loop driver", "fio", "caio", "aiofiles", "threads")
CACHED = ("millrace", "millrace, loop driver", "os.pread", "caio", "aiofiles", "threads")
DEPTHS = (16, 64, 256)


@dataclass(frozen=True)
class Plan:
    """How large everything is."""

    rounds: int
    cold_bytes: int
    seconds: float
    idle_s: float


FULL = Plan(rounds=5, cold_bytes=4 << 30, seconds=4.0, idle_s=5.0)
QUICK = Plan(rounds=3, cold_bytes=512 << 20, seconds=1.0, idle_s=2.0)
CACHED_BYTES = 64 << 20


def cells(plan: Plan, work: Path) -> Iterator[list[Job]]:
    """Yield the groups of cells that are compared with one another."""
    common = {"seconds": plan.seconds}
    cold = {**common, "path": str(work / "cold"), "bytes": plan.cold_bytes}
    cached = {**common, "path": str(work / "cached"), "bytes": CACHED_BYTES}
    for depth in DEPTHS:
        yield [{**cold, "workload": "cold", "tasks": depth, "contender": who} for who in COLD]
    for tasks in (1, 16):
        yield [{**cached, "workload": "cached", "tasks": tasks, "contender": w} for w in CACHED]
    for who in COLD[:2]:
        yield [{"workload": "expire", "tasks": 10_000, "contender": who, "seconds": 2.0}]
        yield [{"workload": "idle", "tasks": 0, "contender": who, "seconds": plan.idle_s}]


def measure(plan: Plan, work: Path) -> list[dict[str, Any]]:
    """Run every cell in every round, each in a process of its own."""
    rows = []
    for number in range(plan.rounds):
        for group in cells(plan, work):
            random.Random(number).shuffle(group)
            for job in group:
                result = spawn(job)
                if "missing" in result and number:
                    continue
                rows.append({**job, **result, "round": number})
                shown = ", ".join(f"{key} {value}" for key, value in result.items())
                name = f"{job['workload']} {job['tasks']}"
                print(f"{number} {name:<12} {job['contender']:<22} {shown}", file=sys.stderr)
    return rows


def spawn(job: Job) -> dict[str, Any]:
    """Run a cell in a fresh process."""
    argv = [sys.executable, __file__, "--cell", json.dumps(job)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=CELL_TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"a cell failed: {job}\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def count(value: float) -> str:
    """Show a rate."""
    return f"{value:,.0f}"


def micro(value: float) -> str:
    """Show a short time."""
    return f"{value * 1e6:.2f} us"


def milli(value: float) -> str:
    """Show a longer time."""
    return f"{value * 1e3:.2f} ms"


def times(value: float) -> str:
    """Show a ratio."""
    return f"{value:.2f} x"


def figures(table: Table) -> Iterator[tuple[str, Spread | None, Callable[[float], str], str, bool]]:
    """Yield each figure that has an aim: case, value, form, aim, and whether it is met."""

    def by(workload: str, who: str, tasks: int, field: str) -> dict[int, float]:
        return table.by_round(workload, who, tasks, field)

    def least(found: Spread | None, limit: float) -> bool:
        return found is not None and found.median >= limit

    def most(found: Spread | None, limit: float) -> bool:
        return found is not None and found.median <= limit

    ours, loop = COLD[:2]
    for depth in DEPTHS:
        mine = by("cold", ours, depth, "per_s")
        for peer, aim in (("fio", 0.9), ("caio", 0.0)):
            found = ratio(mine, by("cold", peer, depth, "per_s"))
            text = f"at least {aim} x" if aim else "reported"
            yield (
                f"cold reads, {depth} in flight, against {peer}",
                found,
                times,
                text,
                (least(found, aim)),
            )
        found = ratio(by("cold", ours, depth, "cpu_s"), by("cold", "caio", depth, "cpu_s"))
        yield (
            f"CPU for each cold read, {depth} in flight, against caio",
            found,
            times,
            ("at most 0.5 x"),
            most(found, 0.5),
        )
    found = ratio(by("cached", ours, 16, "per_s"), by("cached", "caio", 16, "per_s"))
    yield "cached reads, 16 tasks, against caio", found, times, "at least 2 x", least(found, 2)
    for who in (ours, loop):
        found = ratio(by("cached", who, 1, "p50_s"), by("cached", "os.pread", 1, "p50_s"))
        yield (
            f"lone cached read, p50 against os.pread ({who})",
            found,
            times,
            "at most 3 x",
            (most(found, 3)),
        )
    found = Spread.of(by("cached", loop, 1, "each_s").values())
    yield (
        "lone cached read under the loop driver, each await",
        found,
        micro,
        "at most 4 us",
        (most(found, 4e-6)),
    )
    found = Spread.of(by("cached", loop, 1, "suspended").values())
    yield "of these, suspended beyond one in 128", found, count, "none", most(found, 0)
    for who in (ours, loop):
        found = Spread.of(by("expire", who, 10_000, "early").values())
        yield f"10,000 expiring receives, early ({who})", found, count, "none", most(found, 0)
        found = Spread.of(by("expire", who, 10_000, "late_max_s").values())
        # The engine's own bound is two ticks and 5 ms; in Python the loop's turn comes on top.
        yield f"the same, latest as Python sees it ({who})", found, milli, "reported", True
        found = Spread.of(by("expire", who, 10_000, "late_p99_s").values())
        yield f"the same, p99 as Python sees it ({who})", found, milli, "reported", True
        found = Spread.of(by("idle", who, 0, "cpu_share").values())
        yield (
            f"idle, share of a processor ({who})",
            found,
            lambda v: f"{v:.4%}",
            "0 %",
            (most(found, 0.0005)),
        )
        found = Spread.of(by("idle", who, 0, "wakes_per_s").values())
        yield (
            f"idle, wake-ups each second ({who})",
            found,
            lambda v: f"{v:.1f}",
            "none",
            (most(found, 1)),
        )


def aims(table: Table) -> Iterator[str]:
    """Yield the rows of the table of aims."""
    yield "| case | value | aim | |"
    yield "| --- | ---: | --- | --- |"
    for case, found, form, aim, is_met in figures(table):
        if found is None:
            yield f"| {case} | - | {aim} | not measured |"
            continue
        word = "" if aim == "reported" else ("met" if is_met else "**missed**")
        yield f"| {case} | {found.show(form)} | {aim} | {word} |"


def comparison(
    table: Table, workload: str, many: tuple[int, ...], names: tuple[str, ...]
) -> Iterator[str]:
    """Yield the rows of a table of all contenders."""
    yield "| reads/s (CPU for each) | " + " | ".join(f"{one} at once" for one in many) + " |"
    yield "| --- |" + " ---: |" * len(many)
    for name in names:
        cells_of = []
        for one in many:
            rate = table.spread(workload, name, one, "per_s")
            cpu = table.spread(workload, name, one, "cpu_s")
            shown = "-" if rate is None else count(rate.median)
            cells_of.append(shown if cpu is None else f"{shown} ({micro(cpu.median)})")
        yield f"| {name} | {' | '.join(cells_of)} |"


def absent(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Say who could not take part, and why."""
    seen = {(row["contender"], row["workload"], row["missing"]) for row in rows if "missing" in row}
    for who, workload, why in sorted(seen):
        yield f"- {who} ({workload}): {why}"


def write(plan: Plan, rows: list[dict[str, Any]], machine: dict[str, Any], out: Path) -> Path:
    """Write the page and its raw figures."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    table = Table(row for row in rows if "missing" not in row)
    missing = list(absent(rows)) or ["- nobody"]
    text = f"""# Files and sockets

Written by `python benches/python/files.py {" ".join(sys.argv[1:])}` at commit {commit} on {day}.
{plan.rounds} rounds, contenders interleaved, every cell in a fresh process, what was read is
compared. Medians over the rounds with the range in brackets; ratios are taken within a round.

- Machine: {machine["processors"]} x {machine["processor"]}, kernel {machine["kernel"]}, Python
  {machine["python"]}

## Aims

{chr(10).join(aims(table))}

## Cold: random reads of 4 KiB, O_DIRECT, of a file of {plan.cold_bytes >> 20} MiB

{chr(10).join(comparison(table, "cold", DEPTHS, COLD))}

## Cached: random reads of 4 KiB from the page cache

{chr(10).join(comparison(table, "cached", (1, 16), CACHED))}

## Missing

{chr(10).join(missing)}
"""
    out.mkdir(parents=True, exist_ok=True)
    document = {"plan": asdict(plan), "machine": machine, "commit": commit, "cells": rows}
    (out / "files.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = out / "files.md"
    page.write_text(text, encoding="utf-8")
    return page


def main() -> None:
    """Measure and report, or run a single cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="shorter cells, about two minutes")
    parser.add_argument("--rounds", type=int, help="at least three for a report to be believed")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "report")
    parser.add_argument("--work", type=Path, help="where the files lie; a disk, not a tmpfs")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run_cell(json.loads(options.cell))))
        return
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = Plan(**{**asdict(plan), "rounds": options.rounds})
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work or build) as name:
        work = Path(name)
        fill(work / "cold", plan.cold_bytes)
        fill(work / "cached", CACHED_BYTES)
        os.sync()
        machine = facts(work)
        rows = measure(plan, work)
    print(write(plan, rows, machine, options.out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
