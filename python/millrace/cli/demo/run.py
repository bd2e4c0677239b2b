"""
The demonstration itself: append, kill, reopen, verify, resume, finish, compare.

Always true: a record counts as kept only if it was read back from the log at the LSN that was
promised and is byte for byte what the files say today.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millrace import Log
from millrace.cli.demo.ledger import Figures, Ledger, now_ns
from millrace.cli.demo.worker import Job, save_todo
from millrace.cli.output import describe_fields
from millrace.cli.usual import USUAL_WAYS
from millrace.testing import Victim

if TYPE_CHECKING:
    from pathlib import Path

    from millrace.cli.demo.events import Plan

ShowProgress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
_GRACE_S = 60.0


class DemoError(RuntimeError):
    """The demonstration could not be carried out; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    tasks: int
    kills: int
    seconds_max: float
    sample_seconds: float
    seed: int


@dataclass
class Checked:
    """What reading a log back showed."""

    records: int = 0
    lost: int = 0
    wrong: int = 0
    invented: int = 0
    open_s: float = 0.0
    verify_s: float = 0.0
    recovery: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_right(self) -> bool:
        """Nothing lost, nothing changed, nothing made up."""
        return not (self.lost or self.wrong or self.invented)


@dataclass
class Outcome:
    """Everything the demonstration found."""

    log: Figures
    usual: list[Figures] = field(default_factory=list[Figures])
    checks: list[Checked] = field(default_factory=list[Checked])
    statistics: dict[str, Any] = field(default_factory=dict[str, Any])
    finished: int = 0

    @property
    def is_right(self) -> bool:
        """Nothing was lost by anyone's log."""
        return all(c.is_right for c in self.checks) and not any(f.lost for f in self.usual)


class Demo:
    """
    Carry out the demonstration in *work*, a directory of its own.

    Args:
        plan: The events.

        work: Where the stores go.

        options: What the user chose.

        progress: Opens a progress bar.
    """

    def __init__(self, plan: Plan, work: Path, options: Options, progress: ShowProgress) -> None:
        self.plan = plan
        self.work = work
        self.options = options
        self.outcome = Outcome(Figures("millrace"))
        self._progress = progress
        self._random = random.Random(options.seed)  # noqa: S311 - picks a moment, hides nothing
        self._sizes = array("I", (len(event) for event in plan.events()))
        self._promised = array("Q", bytes(8 * plan.count))
        self._kept = bytearray(plan.count)
        plan.save(work / "plan.json")

    async def run(self) -> Outcome:
        """Do all of it; the outcome says whether anything was lost."""
        store = self.work / "log"
        for killing in [True] * self.options.kills + [False]:
            todo = self._missing()
            self._work_once("millrace", store, todo, self._promised, killing=killing)
            self.outcome.checks.append(await self._check(store))
        self.outcome.finished = sum(self._kept)
        self._compare()
        return self.outcome

    def _missing(self) -> list[int]:
        return [index for index, kept in enumerate(self._kept) if not kept]

    def _work_once(
        self, way: str, store: Path, todo: list[int], promised: array[int], *, killing: bool
    ) -> Figures:
        figures = self.outcome.log if way == "millrace" else Figures(way)
        save_todo(self.work / "todo", iter(todo))
        seconds = self.options.seconds_max if way == "millrace" else self.options.sample_seconds
        job = Job(
            way=way,
            store=str(store),
            plan=str(self.work / "plan.json"),
            todo=str(self.work / "todo"),
            tasks=self.options.tasks,
            seconds_max=seconds,
        )
        # Somewhere between a third and two thirds of the way, with hundreds in flight.
        enough = int(len(todo) * self._random.uniform(0.33, 0.67)) if killing else 0
        title = "appending, to be killed" if killing else f"appending: {way}"
        with self._progress(title, len(todo)) as show:
            ledger = Ledger(enough, show)
            victim = Victim(job.argv(), on_entries=ledger.add)
            if killing:
                _wait_until_half_way(victim, ledger, self.options.seconds_max)
                victim.kill()
            status = _wait(victim, _GRACE_S + self.options.seconds_max)
        died_ns = now_ns()
        if status not in (0, -signal.SIGKILL):
            raise DemoError(f"the worker for {way} ended with status {status}")
        ledger.settle(promised, figures, self._sizes.__getitem__, died_ns)
        return figures

    async def _check(self, store: Path) -> Checked:
        """Reopen the log and hold every record against its file."""
        checked = Checked()
        began = time.perf_counter()
        async with Log.open(store) as log:
            checked.open_s = time.perf_counter() - began
            checked.recovery = describe_fields(log.recovery)
            self.outcome.statistics = describe_fields(log.statistics())
            began = time.perf_counter()
            found = array("Q", bytes(8 * self.plan.count))
            with self._progress("verifying", log.last_lsn) as show:
                expected = 1
                async for batch in log.read_batches(1):
                    for record in batch:
                        self._check_record(record.lsn, record.data, expected, found, checked)
                        expected += 1
                    show(batch[-1].lsn)
            checked.verify_s = time.perf_counter() - began
        pairs = zip(self._promised, found, strict=True)
        checked.lost = sum(1 for promised, lsn in pairs if promised and promised != lsn)
        self._kept = bytearray(1 if lsn else 0 for lsn in found)
        return checked

    def _check_record(
        self, lsn: int, data: bytes, expected: int, found: array[int], checked: Checked
    ) -> None:
        checked.records += 1
        index = self.plan.index_of(data)
        if lsn != expected or not 0 <= index < self.plan.count or found[index]:
            checked.invented += 1
        elif data != self.plan.event(index):
            checked.wrong += 1
        else:
            found[index] = lsn

    def _compare(self) -> None:
        """Write a sample of the same events the usual ways, for a bounded time each."""
        if self.options.sample_seconds <= 0:
            return
        for number, (name, way) in enumerate(USUAL_WAYS.items()):
            store = self.work / f"usual-{number}"
            store.mkdir()
            promised = array("Q", bytes(8 * self.plan.count))
            todo = list(range(self.plan.count))
            figures = self._work_once(name, store, todo, promised, killing=False)
            figures.lost = self._lost(promised, way.read_back(store))
            self.outcome.usual.append(figures)

    def _lost(self, promised: array[int], records: Iterator[bytes]) -> int:
        kept = bytearray(self.plan.count)
        for data in records:
            index = self.plan.index_of(data)
            if 0 <= index < self.plan.count and data == self.plan.event(index):
                kept[index] = 1
        return sum(1 for index, lsn in enumerate(promised) if lsn and not kept[index])


def _wait_until_half_way(victim: Victim, ledger: Ledger, seconds: float) -> None:
    """Wait for the moment of the kill; on a slow disk the clock decides."""
    end = time.monotonic() + seconds
    while not ledger.has_enough.wait(0.01):
        if time.monotonic() > end or victim.process.poll() is not None:
            return


def _wait(victim: Victim, seconds: float) -> int:
    try:
        return victim.wait(seconds)
    except subprocess.TimeoutExpired:
        victim.kill()
        victim.wait()
        raise DemoError(f"the worker did not end within {seconds:.0f} s") from None
