"""
SIGKILL storms: children are killed at seeded random moments, also while they open and recover.

What they were promised came out through a pipe before they died. After each crash the log must
show a prefix of what was appended that has every promise in it, and nothing else.

A run is repeated by its seed: `MILLRACE_STORM_SEED=N pytest tests/python/crash/test_storm.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from storm_child import EXIT_UNAVAILABLE
from storm_records import (
    OPENED,
    OPENING,
    Book,
    BrokenPromiseError,
    Found,
    Operation,
    identify,
    record,
)

from millrace import Log, LogSettings
from millrace.testing import Victim, read_acks

if TYPE_CHECKING:
    from collections.abc import Iterable

CHILD = Path(__file__).with_name("storm_child.py")
LIVES = 40
LIVES_PER_LOG = 120
_PATIENCE_S = 100
VARIANTS = (
    {"commit_path": "auto"},
    {"commit_path": "pwrite"},
    {"commit_path": "ring_dsync"},
    {"commit_path": "direct"},
    {"commit_path": "direct", "driver": "thread"},
    {"driver": "loop"},
)
SMALL: dict[str, Any] = {
    "segment_bytes": 1 << 20,
    "segment_first_bytes": 256 << 10,
    "group_bytes_max": 512 << 10,
    "record_bytes_max": 64 << 10,
}


class Life:
    """
    One child, from its start to the kill.

    Args:
        argv: Command that runs it.

        book: Where its promises are entered once it is dead.
    """

    def __init__(self, argv: list[str], book: Book) -> None:
        self._parts: list[bytes] = []
        self._book = book
        self._count = 0
        self._enough = 1 << 62
        self.opening = threading.Event()
        self._reached = threading.Event()
        self.victim = Victim(argv, on_entries=self._take)

    def _take(self, part: bytes) -> None:
        self._parts.append(part)
        self._count += len(part) // 16
        self.opening.set()
        if self._count >= self._enough:
            self._reached.set()

    def wait_acks(self, count: int, limit_s: float) -> None:
        """Wait until *count* entries have come, the child has ended, or time is up."""
        self._enough = count
        if self._count >= count:
            return
        end = time.monotonic() + limit_s
        while not self._reached.wait(0.02):
            if time.monotonic() > end or self.victim.process.poll() is not None:
                return

    def end(self) -> tuple[int, bool]:
        """Enter the promises; returns the exit status and whether the log had been opened."""
        status = self.victim.wait(_PATIENCE_S)
        acks = list(read_acks(b"".join(self._parts)))
        self._book.promise(acks)
        return status, any(ack.number == OPENED for ack in acks)


class Storm:
    """
    Many lives of one log.

    Args:
        base: Directory for the logs.

        seed: Chooses everything that is chosen.
    """

    def __init__(self, base: Path, seed: int) -> None:
        self.tally: Counter[str] = Counter()
        self._base = base
        self._random = random.Random(seed)
        self._variants = list(VARIANTS)
        self._path = base / "log-0"
        self._book = Book()
        self._life = 0

    def live_once(self) -> None:
        """Start a child, kill it, and usually look at what it left."""
        if self._life == LIVES_PER_LOG:
            self._look(full=True)
            self._path = self._base / f"log-{self.tally['lives']}"
            self._book, self._life = Book(), 0
        variant = self._random.choice(self._variants)
        life = Life(self._argv(variant), self._book)
        how = self._kill(life)
        status, was_opened = life.end()
        if status == EXIT_UNAVAILABLE:
            self._variants.remove(variant)
            self.tally[f"unavailable: {variant}"] += 1
            return
        if status not in (0, -signal.SIGKILL):
            raise BrokenPromiseError(f"the child ended with status {status}")
        self._life += 1
        self.tally["lives"] += 1
        self.tally[how if status else "ended by itself"] += 1
        self.tally["killed while opening"] += not was_opened
        # Now and then the next child has to recover what this one left, and may be killed
        # while it does.
        if self._random.random() < 0.7:
            self._look(full=self._life % 10 == 0)
        else:
            self.tally["left to the next child"] += 1

    def finish(self) -> Counter[str]:
        """Check everything once more and return what happened how often."""
        self._look(full=True)
        self.tally["records"] += len(self._book.seen)
        self.tally["promises"] += len(self._book.promised)
        return self.tally

    def _argv(self, variant: dict[str, str]) -> list[str]:
        job = {
            "path": str(self._path),
            "settings": {**SMALL, **variant},
            "life": self._life,
            "tasks": self._random.choice((1, 16, 200, 400)),
            "calls_max": 2500,
        }
        return [sys.executable, str(CHILD), json.dumps(job)]

    def _kill(self, life: Life) -> str:
        choice = self._random.random()
        if choice < 0.3:
            # Around the opening: the log is being created, recovered, or just taken up.
            life.opening.wait(_PATIENCE_S)
            time.sleep(self._random.uniform(0, 0.015))
            life.victim.kill()
            return "killed around the opening"
        life.wait_acks(self._random.randint(3, 4000), 10)
        if choice > 0.9:
            life.victim.kill(signal.SIGSTOP)
            time.sleep(0.01)
            if choice > 0.95:
                life.victim.kill(signal.SIGCONT)
                time.sleep(self._random.uniform(0, 0.01))
        life.victim.kill()
        return "killed under load"

    def _look(self, *, full: bool) -> None:
        start = 1 if full else self._book.resume_point(200)
        self._book.check(iter(asyncio.run(read_back(self._path, start))), start=start)
        self.tally["looked at"] += 1


async def read_back(path: Path, start: int) -> list[Found]:
    """Reopen a log and identify every record from *start* on."""
    async with Log.open(path, settings=LogSettings(**SMALL)) as log:
        assert log.first_lsn == 1
        found = []
        async for batch in log.read_batches(start):
            found += [identify(item.lsn, item.data) for item in batch]
        assert not log.recovery.damage
        return found


def run_storm(base: Path, lives: int, seconds: float) -> Counter[str]:
    """Live until there were *lives*, or *seconds* have passed, whichever comes first."""
    seed = int(os.environ.get("MILLRACE_STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    storm = Storm(base, seed)
    began = time.monotonic()
    end = began + seconds
    try:
        while storm.tally["lives"] < lives and time.monotonic() < end:
            storm.live_once()
            if storm.tally["lives"] % 50 == 0:
                left_s = max(0.0, end - time.monotonic())
                print(f"storm: {storm.tally['lives']} lives, {left_s:.0f} s left", flush=True)
        tally = storm.finish()
    except Exception as error:  # noqa: BLE001 - whatever it was, the seed repeats it
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        pytest.fail(
            f"T13 storm, seed {seed}, commit {commit.stdout.strip()}, life {storm.tally['lives']}: "
            f"{error}; MILLRACE_STORM_SEED={seed} pytest tests/python/crash/test_storm.py"
        )
    took_s = time.monotonic() - began
    print(f"storm: seed {seed}, {tally['lives']} lives in {took_s:.0f} s: {dict(tally)}")
    return tally


@pytest.mark.timeout(900)
def test_sigkill_storm(tmp_path: Path) -> None:
    # Killed at any moment, a log keeps every promise, invents nothing and takes nothing back. The
    # number of lives is what is promised; the time is only there to end a run that hangs.
    tally = run_storm(tmp_path, LIVES, 800)
    assert tally["lives"] == LIVES
    assert tally["killed under load"] >= 5
    assert tally["promises"] > 100


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_sigkill_storm_for_long(tmp_path: Path) -> None:
    # The same, for as long as there is time. What is only likely is asked of many lives.
    given = float(os.environ.get("MILLRACE_TORTURE_SECONDS") or 600)
    tally = run_storm(tmp_path, 1 << 30, given / 8)
    assert tally["lives"] < 200 or tally["killed while opening"] > 0


def _founds(numbers: Iterable[tuple[int, int]]) -> list[Found]:
    return [Found(lsn, number, part) for lsn, (number, part) in enumerate(numbers, 1)]


def _calls(*counts: int) -> list[tuple[int, int]]:
    calls = [Operation(0, 0, count) for count in counts]
    return [(call.number, part) for call in calls for part in range(call.parts)]


def test_the_book_accepts_what_is_right() -> None:
    # A prefix with every promise in it is accepted, also when more follows later.
    book = Book()
    book.promise([(Operation(0, 0, 1).number, 0, 3)])
    book.check(iter(_founds(_calls(0, 1, 2))))
    book.check(iter(_founds(_calls(0, 1, 2, 3))))
    more = _founds(_calls(0, 1, 2, 3, 4))
    start = book.resume_point(1)
    book.check(iter(more[start - 1 :]), start=start)
    assert len(book.seen) == len(more)


@pytest.mark.parametrize(
    ("what", "records", "promised"),
    [
        ("lost", _calls(1), {2: 2}),
        ("lost", _calls(1, 2), {2: 1}),
        ("hole", _calls(1, 3), {}),
        ("order", _calls(1, 2, 1), {}),
        ("torn batch", _calls(7)[:-1], {}),
        ("torn batch", _calls(1, 7)[:3], {}),
    ],
)
def test_the_book_refuses_what_is_wrong(
    what: str, records: list[tuple[int, int]], promised: dict[int, int]
) -> None:
    # A checker that cannot fail proves nothing: each broken promise is called by its name.
    book = Book()
    book.promise((Operation(0, 0, count).number, 0, lsn) for count, lsn in promised.items())
    head = _calls(0)
    moved = {number: lsn + len(head) for number, lsn in book.promised.items()}
    book.promised = moved
    with pytest.raises(BrokenPromiseError, match=what):
        book.check(iter(_founds([*head, *records])))


def test_the_book_remembers() -> None:
    # What one recovery showed, no later one may take back or change.
    book = Book()
    book.check(iter(_founds(_calls(0, 1, 2))))
    with pytest.raises(BrokenPromiseError, match="taken back"):
        book.check(iter(_founds(_calls(0, 1))))
    other = [(Operation(1, 0, 1).number, 0)]
    with pytest.raises(BrokenPromiseError, match="changed"):
        book.check(iter(_founds([*_calls(0, 1), *other])))


def test_a_made_up_record_is_recognised() -> None:
    # One wrong byte is enough for a record to be called invented.
    data = record(Operation(0, 3, 5).number, 0)
    assert identify(1, data) == (1, Operation(0, 3, 5).number, 0)
    with pytest.raises(BrokenPromiseError, match="invented"):
        identify(1, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BrokenPromiseError, match="invented"):
        identify(1, b"short")
    assert OPENING > OPENED
