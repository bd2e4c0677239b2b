"""
Timers: `millrace.TimeoutWheel` against what an event loop has itself, on asyncio and uvloop.

Each cell runs in a fresh process; the contenders of a cell take turns, in an order that changes
from round to round. Every cell checks that what should run ran, and that nothing is left.

    python benches/python/timers.py            five rounds of a million timers, about ten minutes
    python benches/python/timers.py --quick    three rounds of fewer, about a minute
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from argparse import SUPPRESS
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import millrace
from millrace.testing import Heartbeat
from page import Page, micro, milli, options, spawn, times
from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS, THEIRS = "wheel", "loop"
LOOPS = ("asyncio", "uvloop")
DELAY_S = 30.0
CELL_TIMEOUT_S = 300

Job = dict[str, Any]


class Wrong(Exception):
    """A timer ran that should not have, or the other way round."""


@dataclass(frozen=True)
class Plan:
    """How large everything is."""

    rounds: int
    timers: int
    blocks: int
    expiring: int
    expire_s: float


FULL = Plan(rounds=5, timers=1_000_000, blocks=200_000, expiring=1_000_000, expire_s=10.0)
QUICK = Plan(rounds=3, timers=200_000, blocks=50_000, expiring=200_000, expire_s=2.0)
SMALL_TIMERS = 10_000


def nothing() -> None:
    """Be called."""


async def arm(job: Job) -> dict[str, float]:
    """Arm all timers, then cancel all of them, oldest first."""
    call_later, wheel = callers(job)
    count = job["count"]
    repeats = max(1, 200_000 // count)
    gc.collect()
    spent = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        handles = [call_later(DELAY_S, nothing) for _ in range(count)]
        for handle in handles:
            handle.cancel()
        spent += time.perf_counter() - began
    check_empty(wheel)
    return {"each_s": spent / repeats / count}


async def block(job: Job) -> dict[str, float]:
    """Enter and leave a block under a timeout that never expires."""
    _, wheel = callers(job)
    make = asyncio.timeout if wheel is None else wheel.timeout
    count = job["count"]
    began = time.perf_counter()
    for _ in range(count):
        async with make(DELAY_S):
            pass
    spent = time.perf_counter() - began
    check_empty(wheel)
    return {"each_s": spent / count}


async def memory(job: Job) -> dict[str, float]:
    """
    Hold all timers, and look at what the process holds more than before.

    Resident memory, because the wheel's own lies outside of what tracemalloc sees. The list that
    keeps the handles is made and touched before.
    """
    call_later, wheel = callers(job)
    count = job["count"]
    handles: list[Any] = [None] * count
    call_later(DELAY_S, nothing).cancel()
    gc.collect()
    before = resident_bytes()
    for index in range(count):
        handles[index] = call_later(DELAY_S, nothing)
    gc.collect()
    after = resident_bytes()
    for handle in handles:
        handle.cancel()
    check_empty(wheel)
    return {"bytes_each": (after - before) / count}


async def lag(job: Job) -> dict[str, float]:
    """Let all timers expire, evenly spread, while a heartbeat of 1 ms measures the loop."""
    call_later, wheel = callers(job)
    count, seconds = job["count"], job["seconds"]
    numbers = random.Random(1)
    ran = 0

    def expire() -> None:
        nonlocal ran
        ran += 1

    # Far enough ahead for all of them to be armed before the first one expires.
    ahead_s = 2.0 + count * 20e-6
    began = time.monotonic()
    delays = [numbers.uniform(0.0, seconds) for _ in range(count)]
    for delay_s in delays:
        call_later(ahead_s + began - time.monotonic() + delay_s, expire)
    if ran or time.monotonic() - began > ahead_s:
        raise Wrong("arming took longer than was foreseen")
    del delays
    gc.collect()
    gc.freeze()
    await asyncio.sleep(max(0.0, began + ahead_s - time.monotonic()))
    async with Heartbeat() as beat:
        while ran < count:
            await asyncio.sleep(0.05)
        elapsed_s = time.monotonic() - began - ahead_s
    check_empty(wheel)
    return {
        "lag_p50_s": beat.percentile_s(50),
        "lag_p99_s": beat.percentile_s(99),
        "lag_max_s": max(beat.lateness_s),
        "elapsed_s": elapsed_s,
    }


WORKLOADS = {"arm": arm, "block": block, "memory": memory, "lag": lag}


def callers(job: Job) -> tuple[Callable[..., Any], millrace.TimeoutWheel | None]:
    """Return the `call_later` of the contender, and its wheel if it is one."""
    if job["contender"] == OURS:
        wheel = millrace.TimeoutWheel()
        return wheel.call_later, wheel
    return asyncio.get_running_loop().call_later, None


def check_empty(wheel: millrace.TimeoutWheel | None) -> None:
    """Nothing may be left armed."""
    if wheel is not None and wheel.statistics().live:
        raise Wrong(f"{wheel.statistics().live} timers are left")


def resident_bytes() -> int:
    """Return the memory this process holds now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def run_cell(job: Job) -> dict[str, Any]:
    """Run one cell in this process."""
    main = WORKLOADS[job["workload"]](job)
    try:
        if job["loop"] == "uvloop":
            import uvloop

            return uvloop.run(main)
        return asyncio.run(main)
    except Wrong as wrong:
        return {"wrong": str(wrong)}


def cells(plan: Plan) -> Iterator[list[Job]]:
    """Yield the groups of cells that are compared with one another."""
    for loop in LOOPS:
        for workload, tasks, count in (
            ("arm", 1, plan.timers),
            ("arm", 0, SMALL_TIMERS),
            ("block", 0, plan.blocks),
            ("memory", 0, plan.timers),
            ("lag", 0, plan.expiring),
        ):
            common = {"workload": workload, "loop": loop, "tasks": tasks, "count": count}
            yield [{**common, "contender": who, "seconds": plan.expire_s} for who in (OURS, THEIRS)]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Run every cell in every round, each in a process of its own."""
    rows = []
    for number in range(plan.rounds):
        for group in cells(plan):
            random.Random(number).shuffle(group)
            for job in group:
                argv = [sys.executable, __file__, "--cell", json.dumps(job)]
                result = spawn(argv, CELL_TIMEOUT_S)
                if "wrong" in result:
                    raise SystemExit(f"a cell was wrong: {result['wrong']}")
                name = f"{job['workload']} on {job['loop']}"
                # The table looks cells up by workload: the loop is a part of its name there.
                rows.append({**job, **result, "workload": name, "round": number})
                shown = ", ".join(f"{key} {value:.3g}" for key, value in result.items())
                print(f"{number} {name:<18} {job['contender']:<6} {shown}", file=sys.stderr)
    return rows


def lines(table: Table, plan: Plan) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of the report."""
    whole = lambda value: f"{value:.0f}"  # noqa: E731

    def row(
        case: str, where: tuple[str, int, str], show: Callable[[float], str], aim: str, limit: float
    ) -> tuple[str, str, str, str, str]:
        workload, tasks, field = where
        ours = table.by_round(workload, OURS, tasks, field)
        theirs = table.by_round(workload, THEIRS, tasks, field)
        both = [Spread.of(values.values()) or Spread(0, 0, 0) for values in (ours, theirs)]
        if field == "lag_p99_s":
            is_met, verdict = both[0].median <= limit, show(both[0].median)
        else:
            found = ratio(theirs, ours) or Spread(0, 0, 0)
            is_met, verdict = found.median >= limit, found.show(times)
        word = "met" if is_met else "**missed**"
        return case, both[0].show(show), both[1].show(show), aim, f"{verdict}, {word}"

    for loop in LOOPS:
        five = "at least 5 x" if loop == "asyncio" else "reported"
        least = 5.0 if loop == "asyncio" else 0.0
        at = f"on {loop}"
        many, few = f"{plan.timers:,}", f"{SMALL_TIMERS:,}"
        yield row(
            f"arm + cancel, {many} timers, {at}", (f"arm {at}", 1, "each_s"), micro, five, least
        )
        yield row(
            f"arm + cancel, {few} timers, {at}", (f"arm {at}", 0, "each_s"), micro, "reported", 0
        )
        yield row(
            f"block under a timeout, {at}", (f"block {at}", 0, "each_s"), micro, "at least 2 x", 2
        )
        yield row(
            f"resident bytes for each timer, {at}",
            (f"memory {at}", 0, "bytes_each"),
            whole,
            "at least 2 x less",
            2,
        )
        yield row(
            f"loop lag p99 while {plan.expiring:,} expire over {plan.expire_s:g} s, {at}",
            (f"lag {at}", 0, "lag_p99_s"),
            milli,
            "at most 5 ms",
            0.005,
        )


def text(page: Page, plan: Plan, rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    head = ("case", "wheel", "the loop's own", "aim", "")
    table = (f"| {' | '.join(line)} |" for line in (head, ("---",) * 5, *lines(Table(rows), plan)))
    note = "The loop's own are `loop.call_later` and `asyncio.timeout`."
    return f"{page.head(plan.rounds, note)}\n{chr(10).join(table)}\n"


def main() -> None:
    """Measure and report, or run a single cell."""
    parser = options(__doc__, "fewer timers, about a minute")
    parser.add_argument("--cell", help=SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(run_cell(json.loads(given.cell))))
        return
    plan = QUICK if given.quick else FULL
    plan = replace(plan, rounds=given.rounds or plan.rounds)
    page = Page("Timers", __file__)
    rows = measure(plan)
    raw = {"plan": asdict(plan), "cells": rows}
    page.publish(given.out, "timers", text(page, plan, rows), raw)


if __name__ == "__main__":
    main()
