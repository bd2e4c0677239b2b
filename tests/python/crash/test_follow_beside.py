"""
A follower in this process beside an owner in another one, which storms.

The owner appends, rotates, truncates, uses its files again, and is killed. Every record that the
follower is shown is the right one, in line, once; and none is missing that was not dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from follow_owner import record

from millrace import Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import Callable

OWNER = Path(__file__).with_name("follow_owner.py")
SMALL = {
    "segment_bytes": 64 << 10,
    "segment_first_bytes": 64 << 10,
    "record_bytes_max": 16 << 10,
    "group_bytes_max": 32 << 10,
}
VARIANTS = [
    {"commit_path": "pwrite", "backend": "threads"},
    {"commit_path": "auto", "backend": "auto"},
]
_PATIENCE_S = 60.0


class Owner:
    """The owner's process."""

    def __init__(self, directory: Path, variant: dict[str, str], mode: str) -> None:
        settings = json.dumps(SMALL | variant)
        self._child = subprocess.Popen(
            [sys.executable, str(OWNER), str(directory), settings, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._child.returncode is None:
            self.kill()

    def tell(self, line: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{line}\n")
        self._child.stdin.flush()

    def kill(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()

    def stop(self) -> int:
        """Have it close its log; return the last LSN it was acknowledged."""
        out, _ = self._child.communicate("stop\n", timeout=_PATIENCE_S)
        assert self._child.returncode == 0
        return int(out)


class Follower:
    """Follows from `start`, checks every record, and says how far it is."""

    def __init__(self, directory: Path, start: int = 1) -> None:
        self.directory = directory
        self.next = start
        self.skips = 0
        self.on_seen: Callable[[int], None] = lambda _: None
        self._moved = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            async with Log.open(self.directory, read_only=True) as log:
                if self.next < log.first_lsn:
                    # Dropped before it was seen.
                    self.skips += 1
                    self.next = log.first_lsn
                try:
                    await self._follow(log)
                except ValueError as gone:
                    assert "truncated" in str(gone) or "removed" in str(gone)  # noqa: PT017

    async def _follow(self, log: Log) -> None:
        async for shown in log.follow(self.next):
            assert shown.lsn == self.next
            assert shown.data == record(shown.lsn)
            self.next += 1
            self._moved.set()
            if shown.lsn % 64 == 0:
                self.on_seen(shown.lsn)

    async def wait_for(self, lsn: int) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while self.next <= lsn and not self.task.done():
                self._moved.clear()
                moved = asyncio.create_task(self._moved.wait())
                await asyncio.wait([moved, self.task], return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def _until_there(directory: Path) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not list(directory.glob("*.log")):
            await asyncio.sleep(0.01)


async def storm(directory: Path, variant: dict[str, str], mode: str, seconds: float) -> Follower:
    """One owner that storms so long, and a follower that must have come to its end."""
    with Owner(directory, variant, mode) as owner:
        await _until_there(directory)
        follower = Follower(directory)
        if mode == "seen":
            follower.on_seen = owner.tell
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await follower.wait_for(follower.next)
        follower.on_seen = lambda _: None
        last = await asyncio.to_thread(owner.stop)
    await follower.wait_for(last)
    assert follower.next == last + 1
    await follower.end()
    return follower


async def killings(directory: Path, variant: dict[str, str], seconds: float) -> None:
    """Owners that are killed, one after the other; what was shown is what is there at last."""
    follower = None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with Owner(directory, variant, "keep"):
            await _until_there(directory)
            follower = follower or Follower(directory)
            await follower.wait_for(follower.next + 100)
    assert follower is not None
    async with Log.open(directory) as log:
        assert follower.next <= log.last_lsn + 1
        async for shown in log.read():
            assert shown.data == record(shown.lsn)
        await follower.wait_for(log.last_lsn)
        await follower.end()


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_shown_once(tmp_path: Path, variant: dict[str, str]) -> None:
    # An owner that drops only what was seen: nothing is ever missing.
    follower = asyncio.run(storm(tmp_path / "log", variant, "seen", 2.0))
    assert follower.skips == 0


def test_what_is_dropped_unseen_is_said(tmp_path: Path) -> None:
    # An owner that drops nearly everything: what is missing was said to be dropped.
    asyncio.run(storm(tmp_path / "log", VARIANTS[0], "blind", 2.0))


def test_killed_owners(tmp_path: Path) -> None:
    # Nothing shown is taken back by a kill, and the follower goes on with the next owner.
    asyncio.run(killings(tmp_path / "log", VARIANTS[0], 2.0))


@pytest.mark.torture
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["seen", "blind", "kill"])
def test_long(tmp_path: Path, variant: dict[str, str], mode: str) -> None:
    # The same for as long as was asked for.
    seconds = float(os.environ.get("MILLRACE_TORTURE_SECONDS") or 600) / 48
    if mode == "kill":
        asyncio.run(killings(tmp_path / "log", variant, seconds))
    else:
        follower = asyncio.run(storm(tmp_path / "log", variant, mode, seconds))
        assert mode == "blind" or follower.skips == 0


def test_waiting_costs_nothing(tmp_path: Path) -> None:
    # A follower of a log where nothing happens takes next to no time of the processor, however
    # full the segment is.
    async def follow() -> float:
        async with Log.open(tmp_path / "log", settings=LogSettings()) as log:
            await log.append_many([bytes(1000)] * 3000)
            follower = asyncio.create_task(_drain(tmp_path / "log"))
            await asyncio.sleep(1.0)
            before = time.process_time()
            await asyncio.sleep(2.0)
            spent = time.process_time() - before
            follower.cancel()
        return spent

    assert asyncio.run(follow()) < 0.04


async def _drain(directory: Path) -> None:
    async with Log.open(directory, read_only=True) as log:
        async for _ in log.follow(1):
            pass
