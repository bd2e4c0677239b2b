"""
The collector of deferred cleanup: what it saves, what it costs, and what its peers cost.

Runs the cells of `benches/rust/benches/epoch.rs`, each in a process of its own; the contenders of
a cell take turns, in an order that changes from round to round. Instructions are counted by
callgrind, where valgrind is installed.

    python benches/python/epoch.py            nine rounds, about two minutes
    python benches/python/epoch.py --quick    three rounds, under one
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import millrace
from page import ROOT, Page, options, spawn
from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

BENCH = ("--locked", "--package", "millrace-benches", "--bench", "epoch")
CELLS = {
    "storm": ("inline", "millrace"),
    "load": ("behind", "ahead", "ahead, with pins"),
    "idle": ("pin", "pin for a turn"),
    "sustained": ("millrace", "millrace, two threads", "crossbeam-epoch", "seize"),
    "pin": ("millrace", "millrace, nested", "millrace, owned", "crossbeam-epoch", "seize"),
    "stall": ("millrace", "crossbeam-epoch", "seize"),
}
ROUNDS, QUICK_ROUNDS = 9, 3
COUNTED = 64 * 64
PYTHON_PINS = 100_000
CELL_TIMEOUT_S = 120
Line = tuple[str, str, str, str]


def build() -> Path:
    """Build the benchmark; return its program."""
    argv = ["cargo", "bench", *BENCH, "--no-run", "--message-format", "json"]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "epoch":
            return Path(message["executable"])
    raise SystemExit("cargo built no benchmark")


def measure(program: Path, rounds: int) -> list[dict[str, Any]]:
    """Run every cell in every round."""
    rows = []
    for number in range(rounds):
        for cell, contenders in CELLS.items():
            turns = list(contenders)
            random.Random(number).shuffle(turns)
            for contender in turns:
                found = spawn([str(program), cell, contender], CELL_TIMEOUT_S)
                row = {**found, "tasks": 0, "round": number}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
    return rows


def instructions(program: Path) -> dict[str, float]:
    """Count the instructions of an operation without a pin, and of one with."""
    if not shutil.which("valgrind"):
        return {}
    counted = {}
    for arm in CELLS["idle"]:
        for how in ("without", "with"):
            none, some = (executed(program, arm, how, count) for count in (0, COUNTED))
            counted[f"{arm}, {how}"] = (some - none) / COUNTED
    return counted


def executed(program: Path, arm: str, how: str, operations: int) -> int:
    """Return how many instructions the whole program executed."""
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    argv = [*tool, str(program), "count", arm, how, str(operations)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=CELL_TIMEOUT_S, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if not found:
        raise SystemExit(f"callgrind said nothing: {done.stderr}")
    return int(found[1])


def met(case: str, control: str, ours: str, *, is_met: bool, aim: str) -> Line:
    """Return a row of the first table."""
    return case, control, ours, f"{aim}: {'met' if is_met else '**missed**'}"


def aims(table: Table, counted: dict[str, float]) -> Iterator[Line]:
    """Yield the rows that have an aim."""

    def storm(field: str, contender: str) -> dict[int, float]:
        return table.by_round("storm", contender, 0, field)

    for name, field in (("warm", "p99_s"), ("first", "first_p99_s")):
        inline, deferred = storm(field, "inline"), storm(field, "millrace")
        found = ratio(deferred, inline) or Spread(1, 1, 1)
        lower = Spread(1 - found.median, 1 - found.high, 1 - found.low)
        yield met(
            f"p99 of a cancel, {name} storm of 100 000",
            shown(inline.values(), nanoseconds),
            f"{shown(deferred.values(), nanoseconds)}, {lower.show(percent)} lower",
            is_met=lower.median >= 0.8,
            aim="80 % lower",
        )
    efficiency = list(table.by_round("load", "behind", 0, "efficiency").values())
    yield met(
        "items of a batch / `max_batch`, two threads deferring, a queue that builds up",
        "",
        shown(efficiency, percent),
        is_met=min(efficiency, default=0) > 0.9,
        aim="above 90 %",
    )
    for arm, case in (
        ("ahead", "the same, a microsecond of work between two pieces"),
        ("ahead, with pins", "the same, that work under a pin"),
    ):
        found = list(table.by_round("load", arm, 0, "efficiency").values())
        yield case, "", shown(found, percent), "none: what comes is run before more is there"
    for arm in CELLS["idle"]:
        yield overhead(table, counted, arm)
    rate = list(table.by_round("sustained", "millrace", 0, "items_per_s").values())
    yield met(
        "defer and run, one thread, at most 10 000 items held",
        "",
        shown(rate, millions),
        is_met=median(rate or [0]) >= 5e6,
        aim="5 million/s",
    )


def overhead(table: Table, counted: dict[str, float], arm: str) -> Line:
    """Return what a pin adds to an operation that defers nothing."""
    case = "nothing deferred: a pin for each operation of a microsecond"
    if arm == "pin for a turn":
        case = "nothing deferred: a pin for each 64 operations of a microsecond"
    more = {
        field: median(table.by_round("idle", arm, 0, field).values() or [1.0])
        for field in ("overhead", "overhead_low", "overhead_high", "pairs")
    }
    timed = f"{more['overhead']:+.2%} ({more['overhead_low']:+.2%} to {more['overhead_high']:+.2%})"
    timed += f" of its time, 95 % interval of {more['pairs']:.0f} pairs"
    is_met, control = more["overhead_high"] < 0.01, ""
    if counted:
        plain = counted[f"{arm}, without"]
        added = counted[f"{arm}, with"] / plain - 1
        timed += f"; {added:+.2%} of its instructions"
        control = f"{plain:.0f} instructions"
        is_met = is_met or added < 0.01
    return met(case, control, timed, is_met=is_met, aim="below 1 %")


def from_python(rounds: int) -> list[float]:
    """Time `with gc.pin(): pass` beside the same block of a context manager that does nothing."""

    def took(make: Callable[[], AbstractContextManager[object]]) -> float:
        begun = perf_counter()
        for _ in range(PYTHON_PINS):
            with make():
                pass
        return (perf_counter() - begun) / PYTHON_PINS

    with millrace.EpochGC() as gc:
        return [took(gc.pin) - took(nullcontext) for _ in range(rounds)]


def peers(table: Table, pins: list[float]) -> Iterator[Line]:
    """Yield the rows that only compare."""
    forms: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("pin", "each_s", "a pin taken and let go", nanoseconds),
        ("sustained", "items_per_s", "defer and run", millions),
        ("stall", "held", "held under a stalled reader, 1 000 000 retired", "{:,.0f}".format),
    )
    for cell, field, case, form in forms:
        ours = table.by_round(cell, "millrace", 0, field)
        for contender in CELLS[cell]:
            theirs = table.by_round(cell, contender, 0, field)
            found = ratio(theirs, ours) or Spread(0, 0, 0)
            yield case, contender, shown(theirs.values(), form), f"{found.median:.2f} x"
    yield "a pin from Python, more than `nullcontext`", "millrace", shown(pins, nanoseconds), ""


def shown(values: Any, form: Callable[[float], str]) -> str:
    """Return median and range."""
    spread = Spread.of(values)
    return spread.show(form) if spread else "not measured"


def nanoseconds(value: float) -> str:
    """Return a time in nanoseconds."""
    return f"{value * 1e9:.1f} ns" if value < 1e-7 else f"{value * 1e9:,.0f} ns"


def millions(value: float) -> str:
    """Return a rate."""
    return f"{value / 1e6:.1f} M/s"


def percent(value: float) -> str:
    """Return a share."""
    return f"{value:.1%}"


def text(page: Page, rounds: int, raw: dict[str, Any]) -> str:
    """Return the page."""
    table, counted = Table(raw["cells"]), raw["instructions"]
    return f"""{page.head(rounds)}
{grid(("case", "inline, or without", "millrace", "aim"), aims(table, counted))}

A storm cancels 100 000 operations; each gives back a reservation, a timer, a pooled buffer of
4 KiB, which is wiped, and a place in an ordered index of all of them. Deferred, a cancel is a
push, and all the work is run afterwards. The *first* storm of a process finds memory that nobody
has touched: a page fault for every 80 pushes or so is then the p99. The *warm* ones that follow
find the trays of the first; the inline side's pool, wheel and index are warm then as well.
All of the work, deferred against inline: {total(table)}.

A batch is what is there when somebody collects. A queue builds up where a piece takes longer to
run than to defer; where it does not, each is run soon after it came, in small batches.

Against its peers; the ratio is theirs to that of `millrace` in the first row of the case.

{grid(("case", "who", "found", "ratio"), peers(table, raw["python_pins"]))}

A peer's work is a closure, or a pointer with a function; ours is a value with a kind, counted
against two limits, timed, and isolated from panics. What `millrace` does not hold under a stalled
reader it gave back to its caller: the limit is 10 000 pieces, and nothing is dropped.
"""


def total(table: Table) -> str:
    """Return how long a storm takes with everything that was deferred."""
    inline, deferred = (table.by_round("storm", who, 0, "total_s") for who in CELLS["storm"])
    found = ratio(deferred, inline)
    return found.show(lambda value: f"{value:.2f}") + " x its time" if found else "not measured"


def grid(head: Line, lines: Iterator[Line]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * 4, *lines))


def main() -> None:
    """Build, measure and report."""
    parser = options(__doc__, "three rounds")
    parser.add_argument("--program", type=Path, help="the benchmark, if it is built already")
    given = parser.parse_args()
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    page = Page("Deferred cleanup", __file__)
    program = given.program or build()
    rows = measure(program, rounds)
    counted = instructions(program)
    raw = {"instructions": counted, "cells": rows, "python_pins": from_python(rounds)}
    page.publish(given.out, "epoch", text(page, rounds, raw), {"rounds": rounds, **raw})


if __name__ == "__main__":
    main()
