"""
Ways back to an event loop: the port of the loop, and `pyo3-async-runtimes`.

Both arms call the extension, which lets another thread do nothing and comes back. So the figure is
what a way costs each operation, alone and with company, and nothing else. The arms take turns
within each round, in an order that changes, in one process for each round and loop.

    python benches/python/ways.py            nine rounds, about a minute
    python benches/python/ways.py --quick    three rounds of fewer calls
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from millrace import _core
from millrace.cli.machine import facts
from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
PORT, BRIDGE = "port", "bridge"
WAYS: dict[str, Callable[[], Awaitable[None]]] = {
    PORT: _core.come_back_by_port,
    BRIDGE: _core.come_back_by_bridge,
}
LOOPS = ("asyncio", "uvloop")
TASKS = (1, 16, 256)
ROUND_TIMEOUT_S = 300


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    rounds: int
    calls: int


FULL = Plan(rounds=9, calls=20_000)
QUICK = Plan(rounds=3, calls=4_000)


async def spend(way: Callable[[], Awaitable[None]], tasks: int, calls: int) -> float:
    """Call so often, from so many tasks, each waiting for its own; return seconds for each call."""
    each = calls // tasks

    async def one() -> None:
        for _ in range(each):
            await way()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
    return (time.perf_counter() - began) / (each * tasks)


async def one_round(number: int, plan: Plan, kind: str) -> list[dict[str, Any]]:
    """Measure each cell once, both arms in turn."""
    rows: list[dict[str, Any]] = []
    order = (PORT, BRIDGE) if number % 2 else (BRIDGE, PORT)
    for name in order:
        await spend(WAYS[name], 16, plan.calls // 10)
    for tasks in TASKS:
        for name in order:
            seconds = await spend(WAYS[name], tasks, plan.calls)
            rows.append(
                {
                    "workload": kind,
                    "contender": name,
                    "tasks": tasks,
                    "round": number,
                    "seconds": seconds,
                }
            )
    return rows


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Run every round in a process of its own."""
    rows: list[dict[str, Any]] = []
    for number in range(plan.rounds):
        for kind in LOOPS:
            job = json.dumps({"number": number, "plan": asdict(plan), "kind": kind})
            command = [sys.executable, __file__, "--round", job]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, timeout=ROUND_TIMEOUT_S
            )
            rows += json.loads(done.stdout)
    return rows


def us(seconds: float) -> str:
    """Write microseconds."""
    return f"{seconds * 1e6:.1f}"


def times(factor: float) -> str:
    """Write a ratio."""
    return f"{factor:.2f}"


def lines(table: Table) -> list[str]:
    """Return the rows of the report."""
    found = [
        "| loop | tasks | port, us | bridge, us | bridge / port |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in LOOPS:
        for tasks in TASKS:
            rounds = {name: table.by_round(kind, name, tasks, "seconds") for name in WAYS}
            cells = [
                spread.show(form)
                for spread, form in (
                    (Spread.of(rounds[PORT].values()), us),
                    (Spread.of(rounds[BRIDGE].values()), us),
                    (ratio(rounds[BRIDGE], rounds[PORT]), times),
                )
                if spread
            ]
            found.append(f"| {kind} | {tasks} | {' | '.join(cells)} |")
    return found


def main() -> None:
    """Measure and print, or run a single round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="three rounds of fewer calls")
    parser.add_argument("--round", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.round:
        job = json.loads(options.round)
        run = uvloop.run if job["kind"] == "uvloop" else asyncio.run
        print(json.dumps(run(one_round(job["number"], Plan(**job["plan"]), job["kind"]))))
        return
    plan = QUICK if options.quick else FULL
    load = os.getloadavg()[0]
    rows = measure(plan)
    machine = facts(ROOT)
    print(f"{plan.rounds} rounds; time for each call; median (range)")
    print(f"{machine['processors']} x {machine['processor']}, Python {machine['python']}, ", end="")
    print(f"load before {load:.1f}\n")
    print("\n".join(lines(Table(rows))))


if __name__ == "__main__":
    main()
