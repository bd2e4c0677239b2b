"""Opens that wait for the lock: in nobody's way, and over when nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from millrace import Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

_WAITERS = 8


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the log's lock as an owner that died and left no note: nobody knows who it was."""
    directory.mkdir()
    with (directory / "LOCK").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opening_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text().strip())
    return names.count("millrace-open")


async def _until_no_open_is_under_way() -> None:
    while _opening_threads():
        await asyncio.sleep(0.01)


async def test_opens_that_wait_keep_nobody_waiting(tmp_path: Path) -> None:
    # Logs whose dead owners hold their locks are waited for; reads of another log go on, and so
    # does the open of one that nobody holds.
    with contextlib.ExitStack() as locks:
        paths = [tmp_path / f"held-{number}" for number in range(_WAITERS)]
        for path in paths:
            locks.enter_context(_held(path))
        opens = [asyncio.ensure_future(Log.open(path)) for path in paths]
        async with asyncio.timeout(15):
            async with Log.open(tmp_path / "free") as log:
                await log.append_many([b"%d" % number for number in range(100)])
                assert len([record async for record in log.read()]) == 100
        assert not any(task.done() for task in opens)
        for task in opens:
            task.cancel()
        await asyncio.gather(*opens, return_exceptions=True)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_cancelled_open_stops_waiting_for_the_lock(directory: Path, how: str) -> None:
    # Its thread ends long before the lock's own timeout, although the lock is still taken, and
    # what was waited for belongs to whoever comes next.
    settings = LogSettings(lock_timeout_s=600.0)
    with _held(directory):
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(Log.open(directory, settings=settings), 0.05)
        else:
            task = asyncio.ensure_future(Log.open(directory, settings=settings))
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                # A thread names itself a moment after it began.
                while not _opening_threads():
                    await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(20):
            await _until_no_open_is_under_way()
    with (directory / "LOCK").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    async with Log.open(directory) as log:
        assert await log.append(b"x") == 1


async def test_an_open_cancelled_at_any_moment_leaves_nothing_locked(tmp_path: Path) -> None:
    # Early, late, or when it was done already: soon the next open has the log.
    for step in range(30):
        path = tmp_path / str(step)
        task = asyncio.ensure_future(Log.open(path))
        await asyncio.sleep(0)
        # A pause on purpose: each round cancels a little later in the life of an open.
        until = time.monotonic() + step * 0.0005
        while time.monotonic() < until:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).close()
        async with asyncio.timeout(20):
            await _until_no_open_is_under_way()
            while True:
                try:
                    log = await Log.open(path)
                    break
                except BlockingIOError:
                    continue
        await log.close()


async def test_cancelled_before_its_first_step(directory: Path, tmp_path: Path) -> None:
    # However a task is made of an open: cancelled at once it ends, in silence, also the wait for a
    # lock. One that is forgotten is still warned about.
    makers = (asyncio.ensure_future, asyncio.create_task, asyncio.shield, asyncio.gather)
    with _held(directory), warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        for make in makers:
            task = make(Log.open(directory, settings=LogSettings(lock_timeout_s=3600.0)))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if make is asyncio.shield:
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for other in others:
                    other.cancel()
            del task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Log.open(directory), 0)
        await _until_no_open_is_under_way()
        gc.collect()
    assert not [str(complaint.message) for complaint in complaints]
    with pytest.warns(RuntimeWarning, match=r"open\(\) was never awaited"):
        Log.open(tmp_path / "other")
    await _until_no_open_is_under_way()


async def test_a_task_of_an_open_gives_the_log(directory: Path) -> None:
    # An open is a coroutine for a task; closed before its first step, it ends.
    log = await asyncio.create_task(Log.open(directory))
    assert await log.append(b"x") == 1
    await log.close()
    opening = Log.open(directory)
    opening.close()
    await _until_no_open_is_under_way()
    async with Log.open(directory) as log:
        assert log.last_lsn == 1
