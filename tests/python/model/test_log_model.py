"""A log against a list: whatever is called in whatever order, the two agree.

The machine drives a real log on a real disk. A crash is a copy of the directory, taken while the
log is open and resting, and opened elsewhere: what a killed process would have left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

import millrace

SETTINGS = millrace.LogSettings(
    driver="thread",
    segment_bytes=256 * 1024,
    segment_first_bytes=64 * 1024,
    record_bytes_max=32 * 1024,
    group_bytes_max=64 * 1024,
    ring_entries=64,
    ring_bytes=256 * 1024,
)

RECORDS = st.one_of(
    st.binary(max_size=64),
    st.integers(0, 20_000).map(lambda n: b"\xa5" * n),
)

SHARES = st.floats(0, 1)


def scale(share: float, low: int, high: int) -> int:
    """Return the integer that lies at *share* of the way from *low* to *high*."""
    return low + round(share * (high - low))


class LogModel(RuleBasedStateMachine):
    """One log, one list of records, one event loop for all rules."""

    settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="millrace-model-"))
        self.records: list[bytes] = []
        self.acknowledged = 0
        self.first = 1
        self.cursor = 0
        self.copies = 0
        self.log: millrace.Log

    def run(self, awaitable: Any) -> Any:
        async def step() -> Any:
            return await awaitable

        return self.loop.run_until_complete(step())

    async def _open(self, path: Path) -> millrace.Log:
        return await millrace.Log.open(path, settings=self.settings)

    async def _read(self, log: millrace.Log, start: int, stop: int | None) -> list[Any]:
        return [record async for record in log.read(start, stop)]

    def _copy(self) -> Path:
        """Copy the directory; a file that is renamed meanwhile means to copy again."""
        while True:
            self.copies += 1
            place = self.root / f"copy-{self.copies}"
            try:
                shutil.copytree(self.root / "log", place)
            except shutil.Error:
                continue
            return place

    def agree(self, found: list[Any], start: int) -> None:
        for lsn, record in enumerate(found, start):
            assert record.lsn == lsn
            assert record.data == self.records[lsn - 1]

    @initialize()
    def begin(self) -> None:
        self.log = self.run(self._open(self.root / "log"))

    @rule(data=RECORDS)
    def append(self, data: bytes) -> None:
        lsn = self.run(self.log.append(data))
        self.records.append(data)
        assert lsn == len(self.records)
        self.acknowledged = lsn

    @rule(batch=st.lists(RECORDS, max_size=3))
    def append_many(self, batch: list[bytes]) -> None:
        lsns = self.run(self.log.append_many(batch))
        start = len(self.records) + 1
        assert list(lsns) == list(range(start, start + len(batch)))
        self.records.extend(batch)
        if batch:
            # An empty batch waits for nothing, not even for what was submitted before it.
            self.acknowledged = len(self.records)

    @rule(data=RECORDS)
    def submit_without_waiting(self, data: bytes) -> None:
        async def submit() -> int:
            return self.log.submit(data).lsn

        self.records.append(data)
        assert self.run(submit()) == len(self.records)

    @rule(data=RECORDS)
    def cancel_an_append(self, data: bytes) -> None:
        async def cancel() -> None:
            task = asyncio.ensure_future(self.log.append(data))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.run(cancel())
        # The ring was not full, so the record was claimed: cancelling stops the wait only.
        self.records.append(data)

    @rule()
    def flush(self) -> None:
        assert self.run(self.log.flush()) == len(self.records)
        self.acknowledged = len(self.records)

    # Where a segment ends depends on which records shared a frame, and that on time: so shares are
    # drawn, not LSNs.
    @rule(begin=SHARES, end=st.none() | SHARES)
    def read_a_part(self, begin: float, end: float | None) -> None:
        self.flush()
        start = scale(begin, self.first, len(self.records) + 1)
        stop = None if end is None else scale(end, start, len(self.records) + 2)
        found = self.run(self._read(self.log, start, stop))
        last = len(self.records) if stop is None else min(stop - 1, len(self.records))
        assert len(found) == max(0, last - start + 1)
        self.agree(found, start)

    @rule(share=SHARES)
    def truncate(self, share: float) -> None:
        self.flush()
        lsn = scale(share, 1, len(self.records) + 1)
        first = self.run(self.log.truncate_before(lsn))
        assert self.first <= first <= max(lsn, self.first)
        assert first == self.log.first_lsn
        self.first = first

    @rule(share=SHARES)
    def commit_a_cursor(self, share: float) -> None:
        lsn = scale(share, self.cursor, self.acknowledged)
        self.run(self.log.cursor("consumer").commit(lsn))
        self.cursor = lsn

    @rule()
    def reopen(self) -> None:
        self.run(self.log.close())
        self.log = self.run(self._open(self.root / "log"))
        assert self.log.last_lsn == len(self.records)
        assert self.log.cursor("consumer").position == self.cursor
        self.acknowledged = len(self.records)

    @rule()
    def crash(self) -> None:
        self.flush()
        place = self._copy()
        copy = self.run(self._open(place))
        assert copy.last_lsn == len(self.records)
        self.agree(self.run(self._read(copy, copy.first_lsn, None)), copy.first_lsn)
        self.run(copy.close())
        shutil.rmtree(place)

    @invariant()
    def marks_do_not_cross(self) -> None:
        if hasattr(self, "log"):
            assert self.acknowledged <= self.log.durable_lsn <= len(self.records)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.run(self.log.close())
        self.loop.close()
        shutil.rmtree(self.root)


class LoopDrivenModel(LogModel):
    """The same, turned by that one event loop, which stands still between the rules."""

    settings = dataclasses.replace(SETTINGS, driver="loop")


class EitherDrivenModel(LogModel):
    """The same, turned by that loop while few records are under way."""

    settings = dataclasses.replace(SETTINGS, driver="auto", commit_path="direct")


LogModel.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
TestLogModel = LogModel.TestCase

LoopDrivenModel.TestCase.settings = LogModel.TestCase.settings
TestLoopDrivenModel = pytest.mark.usefixtures("needs_loop_driver")(LoopDrivenModel.TestCase)

EitherDrivenModel.TestCase.settings = LogModel.TestCase.settings
TestEitherDrivenModel = pytest.mark.usefixtures("needs_loop_driver")(EitherDrivenModel.TestCase)
