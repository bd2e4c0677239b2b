"""
The figures the log is held to, each a ratio within one run on one machine.

A figure compares two cells of the same round, so a slow minute weighs on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from table import Spread, Table, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS = "millrace"
ON_LOOP = "millrace driver=loop"
ON_THREAD = "millrace driver=thread"
LIMIT = "asyncio limit"
HAND = "hand-written group commit"
RAW = "pwrite + fdatasync"
DEVICE = "1 MiB write + sync"
_LAG_FLOOR_S = 0.005


@dataclass(frozen=True)
class Figure:
    """One aim and what was measured."""

    case: str
    aim: str
    measured: Spread
    is_met: bool
    unit: str = " x"

    @property
    def verdict(self) -> str:
        """Say whether the aim was met."""
        if self.aim == "reported":
            return ""
        return "met" if self.is_met else "**missed**"

    def text(self) -> str:
        """Return what was measured."""
        return self.measured.show(lambda value: f"{value:,.2f}") + self.unit


def _at_most(aim: float) -> Callable[[Spread], bool]:
    return lambda found: found.median <= aim


def _at_least(aim: float) -> Callable[[Spread], bool]:
    return lambda found: found.median >= aim


class Figures:
    """
    Compute the figures that the cells of a run allow.

    Args:
        table: The results.

        ours: Which of our variants to hold against them.
    """

    def __init__(self, table: Table, ours: str = OURS) -> None:
        self._table = table
        self._ours = ours

    def all(self) -> Iterator[Figure]:
        """Yield every figure for which both sides were measured."""
        yield from self._one_task()
        yield from self._many_tasks()
        yield from self._drivers()
        yield from self._bulk()
        yield from self._lag()
        yield from self._scan()
        yield from self._idle()

    def _append(self, who: str, tasks: int, field: str) -> dict[int, float]:
        return self._table.by_round("append", who, tasks, field)

    def _raw(self, field: str) -> dict[int, float]:
        return self._table.by_round("raw", RAW, 0, field)

    def _one_task(self) -> Iterator[Figure]:
        ours = self._append(self._ours, 1, "p50_s")
        case = "one task, p50 against raw pwrite + fdatasync"
        yield from _figure(case, "at most 1.25 x", ratio(ours, self._raw("p50_s")), _at_most(1.25))
        for peer in self._peers(1):
            found = ratio(ours, self._append(peer, 1, "p50_s"))
            yield from _figure(f"one task, p50 against {peer}", "below 1 x", found, _at_most(1.0))

    def _peers(self, tasks: int) -> list[str]:
        names = self._table.contenders("append", tasks)
        return [n for n in names if n != LIMIT and not n.startswith("millrace")]

    def _many_tasks(self) -> Iterator[Figure]:
        for tasks in (256, 4096):
            ours = self._append(self._ours, tasks, "records_per_s")
            found = ratio(ours, self._append(LIMIT, tasks, "records_per_s"))
            case = f"{tasks} tasks, records/s against asyncio's own limit"
            yield from _figure(case, "at least 0.8 x", found, _at_least(0.8))
        found = ratio(self._append(self._ours, 256, "p99_s"), self._raw("p99_s"))
        yield from _figure("256 tasks, p99 against raw p99", "reported", found, lambda _: True)
        for tasks, aim in ((16, 2.0), (256, 2.5), (4096, 1.5)):
            ours = self._append(self._ours, tasks, "records_per_s")
            found = ratio(ours, self._append(HAND, tasks, "records_per_s"))
            case = f"{tasks} tasks, records/s against a {HAND}"
            yield from _figure(case, f"at least {aim} x", found, _at_least(aim))
            found = ratio(
                self._append(self._ours, tasks, "p99_s"), self._append(HAND, tasks, "p99_s")
            )
            case = f"{tasks} tasks, p99 against a {HAND}"
            yield from _figure(case, "below 1 x", found, _at_most(1.0))

    def _drivers(self) -> Iterator[Figure]:
        ours = self._append(ON_LOOP, 1, "p50_s")
        case = "driver 'loop', one task, p50 against raw pwrite + fdatasync"
        yield from _figure(case, "at most 1.25 x", ratio(ours, self._raw("p50_s")), _at_most(1.25))
        for tasks in (1, 16, 256, 4096):
            ours = self._append(ON_LOOP, tasks, "records_per_s")
            found = ratio(ours, self._append(ON_THREAD, tasks, "records_per_s"))
            case = f"driver 'loop', {tasks} task(s), records/s against driver 'thread'"
            yield from _figure(case, "reported", found, lambda _: True)
            thread = self._append(ON_THREAD, tasks, "records_per_s")
            best = {number: max(ours[number], thread[number]) for number in {*ours} & {*thread}}
            found = ratio(self._append(OURS, tasks, "records_per_s"), best)
            case = f"driver 'auto', {tasks} task(s), records/s against the better of both"
            yield from _figure(case, "reported", found, lambda _: True)

    def _bulk(self) -> Iterator[Figure]:
        device = self._table.by_round("sequential", DEVICE, 0, "bytes_per_s")
        for tasks in (1, 4):
            ours = self._table.by_round("bulk", self._ours, tasks, "bytes_per_s")
            case = f"batches of 1000 x 1 KiB from {tasks} task(s), bytes/s against {DEVICE}"
            yield from _figure(case, "at least 0.8 x", ratio(ours, device), _at_least(0.8))
            behind = self._table.by_round("recycled", self._ours, tasks, "bytes_per_s")
            case = f"the same from {tasks} task(s) while a consumer truncates behind"
            yield from _figure(case, "at least 0.8 x", ratio(behind, device), _at_least(0.8))

    def _lag(self) -> Iterator[Figure]:
        for tasks in (1, 16, 256, 4096):
            ours = self._append(self._ours, tasks, "lag_p99_s")
            limit = self._append(LIMIT, tasks, "lag_p99_s")
            allowed = {number: max(_LAG_FLOOR_S, 1.5 * value) for number, value in limit.items()}
            found = ratio(ours, allowed)
            case = f"loop lag p99 with {tasks} tasks, against max(5 ms, 1.5 x the limit's lag)"
            yield from _figure(case, "at most 1 x", found, _at_most(1.0))

    def _scan(self) -> Iterator[Figure]:
        one = self._table.spread("scan", "millrace async for", 0, "records_per_s")
        case, aim = "read, one record at a time with async for", "at least 2 million records/s"
        if one is not None:
            million = Spread(one.median / 1e6, one.low / 1e6, one.high / 1e6)
            yield Figure(case, aim, million, one.median >= 2e6, " million/s")
        batches = self._table.by_round("scan", "millrace read_batches", 0, "records_per_s")
        cursor = self._table.by_round("scan", "LMDB", 0, "records_per_s")
        case = "read in batches, records/s against LMDB's cursor"
        yield from _figure(case, "at least 1 x", ratio(batches, cursor), _at_least(1.0))

    def _idle(self) -> Iterator[Figure]:
        ours = self._table.spread("idle", self._ours, 0, "cpu_s")
        elapsed = self._table.spread("idle", self._ours, 0, "elapsed_s")
        if ours is None or elapsed is None:
            return
        share = [100 * value / elapsed.median for value in (ours.median, ours.low, ours.high)]
        case = "idle with the log open, share of one processor"
        yield Figure(case, "0 %", Spread(*share), share[0] < 0.1, " %")
        switches = self._table.spread("idle", self._ours, 0, "voluntary_switches")
        if switches is not None:
            # The sleep of the measurement itself is one; a second may be its timer.
            case, is_met = "idle with the log open, wake-ups", switches.median <= 2
            yield Figure(case, "none but the measurement's own", switches, is_met, "")


def _figure(
    case: str, aim: str, found: Spread | None, is_met: Callable[[Spread], bool]
) -> Iterator[Figure]:
    if found is not None:
        yield Figure(case, aim, found, is_met(found))
