"""
Files and sockets: `millrace.IoEngine` against fio, caio, aiofiles, threads and plain calls.

Each cell runs in a fresh process; the contenders of a cell take turns, in an order that changes
from round to round. Every cell checks what it read. A contender that is not installed, or that
cannot do what is asked here, is a missing row.

    python benches/python/files.py            five rounds, about twelve minutes
    python benches/python/files.py --quick    three short rounds, about three minutes
    python benches/python/files.py --names    only what is about names
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files_cells import fill, run_cell
from names_cells import fill_names, run_names
from page import ROOT, Page, micro, milli, options, spawn, times
from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

CELL_TIMEOUT_S = 120

Job = dict[str, Any]

OURS = ("millrace", "millrace, loop driver")
CAIO = ("caio", "caio, deferred")
COLD = (*OURS, "fio", *CAIO, "aiofiles", "threads")
CACHED = (*OURS, "os.pread", *CAIO, "aiofiles", "threads")
NAMES = (*OURS, "millrace on threads", "os", "aiofiles", "threads")
NAME_WORK = ("stat", "open")
DEPTHS = (16, 64, 256)
NAME_DEPTHS = (1, 16, 64)


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
    yield from name_cells(plan, work)
    for who in OURS:
        yield [{"workload": "late", "tasks": 10_000, "contender": who}]
        yield [{"workload": "expire", "tasks": 10_000, "contender": who, "seconds": 2.0}]
        yield [{"workload": "idle", "tasks": 0, "contender": who, "seconds": plan.idle_s}]


def name_cells(plan: Plan, work: Path) -> Iterator[list[Job]]:
    """Yield the groups of cells about names."""
    names = {"seconds": plan.seconds / 2, "path": str(work / "names")}
    for what in NAME_WORK:
        for tasks in NAME_DEPTHS:
            yield [{**names, "workload": what, "tasks": tasks, "contender": w} for w in NAMES]


def measure(plan: Plan, work: Path, *, only_names: bool) -> list[dict[str, Any]]:
    """Run every cell in every round, each in a process of its own."""
    rows = []
    for number in range(plan.rounds):
        for group in (name_cells if only_names else cells)(plan, work):
            random.Random(number).shuffle(group)
            for job in group:
                argv = [sys.executable, __file__, "--cell", json.dumps(job)]
                result = spawn(argv, CELL_TIMEOUT_S)
                if "missing" in result and number:
                    continue
                rows.append({**job, **result, "round": number})
                shown = ", ".join(f"{key} {value}" for key, value in result.items())
                name = f"{job['workload']} {job['tasks']}"
                print(f"{number} {name:<12} {job['contender']:<22} {shown}", file=sys.stderr)
    return rows


def count(value: float) -> str:
    """Show a rate."""
    return f"{value:,.0f}"


Figure = tuple[str, Spread | None, Callable[[float], str], str, bool]


def least(case: str, found: Spread | None, form: Callable[[float], str], limit: float) -> Figure:
    """Hold a figure to a lower limit."""
    return case, found, form, f"at least {form(limit)}", found is not None and found.median >= limit


def most(case: str, found: Spread | None, form: Callable[[float], str], limit: float) -> Figure:
    """Hold a figure to an upper limit."""
    return case, found, form, f"at most {form(limit)}", found is not None and found.median <= limit


def told(case: str, found: Spread | None, form: Callable[[float], str]) -> Figure:
    """Report a figure that has no aim of its own."""
    return case, found, form, "reported", True


def cold_figures(table: Table, who: str, depth: int) -> Iterator[Figure]:
    """Yield what cold reads are held to."""
    mine = table.by_round("cold", who, depth, "per_s")
    fio = table.by_round("cold", "fio", depth, "per_s")
    case = f"cold reads, {depth} in flight ({who})"
    yield least(f"{case}, reads/s against fio", ratio(mine, fio), times, 0.9)
    spent = table.by_round("cold", who, depth, "cpu_s")
    for peer, judge in zip(CAIO, (most, told), strict=True):
        peer_rate = table.by_round("cold", peer, depth, "per_s")
        peer_spent = table.by_round("cold", peer, depth, "cpu_s")
        yield told(f"{case}, reads/s against {peer}", ratio(mine, peer_rate), times)
        name = f"{case}, CPU for each against {peer}"
        found = ratio(spent, peer_spent)
        yield most(name, found, times, 0.5) if judge is most else told(name, found, times)


def cached_figures(table: Table, who: str) -> Iterator[Figure]:
    """Yield what reads from the page cache are held to."""
    for peer in CAIO:
        both = [table.by_round("cached", one, 16, "per_s") for one in (who, peer)]
        yield least(f"cached reads, 16 tasks ({who}), against {peer}", ratio(*both), times, 2)
    both = [table.by_round("cached", one, 1, "p50_s") for one in (who, "os.pread")]
    yield most(f"lone cached read ({who}), p50 against os.pread", ratio(*both), times, 3)
    each = table.spread("cached", who, 1, "each_s")
    case = f"lone cached read ({who}), each await"
    yield most(case, each, micro, 4e-6) if who == OURS[1] else told(case, each, micro)
    suspended = table.spread("cached", who, 1, "suspended")
    yield most("of 4096, suspended beyond one in 128", suspended, count, 0)


def name_figures(table: Table, who: str) -> Iterator[Figure]:
    """Yield what stats and openings cost against a hop to a thread, and against aiofiles."""
    for what, case in zip(NAME_WORK, ("stat of a path", "open, stat and close"), strict=True):
        for tasks in NAME_DEPTHS:
            mine = table.by_round(what, who, tasks, "per_s")
            for peer in ("millrace on threads", "aiofiles"):
                found = ratio(mine, table.by_round(what, peer, tasks, "per_s"))
                yield told(f"{case}, {tasks} at once ({who}), against {peer}", found, times)


def waiting_figures(table: Table, who: str) -> Iterator[Figure]:
    """Yield what deadlines and idling are held to."""
    for workload, place in (("late", "the engine"), ("expire", "Python")):
        case = f"10,000 expiring receives ({who}), as {place} sees it"
        early = table.spread(workload, who, 10_000, "early")
        yield most(f"{case}, early", early, count, 0)
        latest = table.spread(workload, who, 10_000, "late_max_s")
        p99 = table.spread(workload, who, 10_000, "late_p99_s")
        yield told(f"{case}, p99 of being late", p99, milli)
        if place == "the engine":
            # Two ticks of 5 ms, and 5 ms.
            yield most(f"{case}, latest", latest, milli, 0.015)
        else:
            yield told(f"{case}, latest", latest, milli)
    share = table.spread("idle", who, 0, "cpu_share")
    yield most(f"idle ({who}), share of a processor", share, lambda v: f"{v:.3%}", 0.0005)
    wakes = table.spread("idle", who, 0, "wakes_per_s")
    yield most(f"idle ({who}), wake-ups each second", wakes, lambda v: f"{v:.1f}", 0.5)


def figures(table: Table, *, only_names: bool) -> Iterator[Figure]:
    """Yield each figure: case, value, form, aim, and whether it is met."""
    for who in OURS:
        yield from name_figures(table, who)
    if only_names:
        return
    for depth in DEPTHS:
        for who in OURS:
            yield from cold_figures(table, who, depth)
    for who in OURS:
        yield from cached_figures(table, who)
    for who in OURS:
        yield from waiting_figures(table, who)


def aims(table: Table, *, only_names: bool) -> Iterator[str]:
    """Yield the rows of the table of aims."""
    yield "| case | value | aim | |"
    yield "| --- | ---: | --- | --- |"
    for case, found, form, aim, is_met in figures(table, only_names=only_names):
        if found is None:
            yield f"| {case} | - | {aim} | not measured |"
            continue
        word = "" if aim == "reported" else ("met" if is_met else "**missed**")
        yield f"| {case} | {found.show(form)} | {aim} | {word} |"


def comparison(
    table: Table, workload: str, many: tuple[int, ...], names: tuple[str, ...], unit: str = "reads"
) -> Iterator[str]:
    """Yield the rows of a table of all contenders."""
    yield f"| {unit}/s (CPU for each) | " + " | ".join(f"{one} at once" for one in many) + " |"
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


def text(page: Page, plan: Plan, rows: list[dict[str, Any]], *, only_names: bool) -> str:
    """Return the page."""
    table = Table(row for row in rows if "missing" not in row)
    missing = list(absent(rows)) or ["- nobody"]
    reads = "" if only_names else text_of_reads(table, plan)
    return f"""{page.head(plan.rounds, "What was read is compared.")}
## Aims

{chr(10).join(aims(table, only_names=only_names))}
{reads}
## Names: stat of a path that the kernel knows

{chr(10).join(comparison(table, "stat", NAME_DEPTHS, NAMES, "stats"))}

## Names: open to read, stat of what is open, and close

{chr(10).join(comparison(table, "open", NAME_DEPTHS, NAMES, "rounds"))}

`os` is a plain loop with no event loop; `threads` is a hop to a thread of a pool for each call.

## Missing

{chr(10).join(missing)}
"""


def text_of_reads(table: Table, plan: Plan) -> str:
    """Return what the page says about reads."""
    return f"""
## Cold: random reads of 4 KiB, O_DIRECT, of a file of {plan.cold_bytes >> 20} MiB

{chr(10).join(comparison(table, "cold", DEPTHS, COLD))}

## Cached: random reads of 4 KiB from the page cache

{chr(10).join(comparison(table, "cached", (1, 16), CACHED))}

CPU is that of the whole process, with the kernel's share. caio runs without its polling thread,
which makes it slower on two processors; `deferred` is its own way to submit once for many. Memory
of caio and aiofiles is not aligned, as O_DIRECT asks: their cold reads go through the page cache,
emptied of the file before, and so find some blocks there that they have read already.
"""


def main() -> None:
    """Measure and report, or run a single cell."""
    parser = options(__doc__, "shorter cells, about three minutes")
    parser.add_argument("--names", action="store_true", help="only the cells about names")
    parser.add_argument("--work", type=Path, help="where the files lie; a disk, not a tmpfs")
    parser.add_argument("--cell", help=SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        job = json.loads(given.cell)
        print(json.dumps((run_names if job["workload"] in NAME_WORK else run_cell)(job)))
        return
    plan = QUICK if given.quick else FULL
    plan = replace(plan, rounds=given.rounds or plan.rounds)
    page = Page("Files and sockets", __file__)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work or build) as name:
        work = Path(name)
        fill_names(work / "names")
        if not given.names:
            fill(work / "cold", plan.cold_bytes)
            fill(work / "cached", CACHED_BYTES)
        os.sync()
        rows = measure(plan, work, only_names=given.names)
    raw = {"plan": asdict(plan), "cells": rows}
    page.publish(given.out, "files", text(page, plan, rows, only_names=given.names), raw)


if __name__ == "__main__":
    main()
