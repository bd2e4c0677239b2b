"""Checks of whole logs run beside the loop: where they start, how they are cancelled and ended."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forks import QUIET_FORK

from millrace import LockedError, Log, _core
from millrace.log import repair, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    Run = Callable[[Coroutine[Any, Any, Any]], Any]

_END_S = 20.0
_MIB = 1 << 20

_HEAD = """
    import asyncio, atexit, fcntl, os, sys, threading
    import millrace.log
    from millrace import ForkedError, _core
    from millrace.log import repair, verify

    def threads():
        names = (open(f"/proc/self/task/{id}/comm").read() for id in os.listdir("/proc/self/task"))
        return [name for name in names if name.startswith("millrace-bridge")]

    def in_child(child):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
"""


def _python(body: str, directory: Path) -> str:
    """Run a program in a fresh interpreter; return what it complained about."""
    script = textwrap.dedent(_HEAD) + textwrap.dedent(body)
    options = ["-X", "faulthandler", "-W", QUIET_FORK]
    command = [sys.executable, *options, "-c", script, os.fspath(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_END_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


async def _write(directory: Path, records: list[bytes]) -> None:
    async with Log.open(directory) as log:
        await log.append_many(records)


async def _damage(directory: Path) -> None:
    """Make a log of twenty records whose sixth is wrong."""
    async with Log.open(directory) as log:
        for number in range(20):
            await log.append(b"record %d" % number)
    segment = min(directory.glob("*.log"))
    image = bytearray(segment.read_bytes())
    image[image.index(b"record 5")] ^= 1
    segment.write_bytes(image)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a log without saying who does, so that a repair waits for it."""
    with (directory / "LOCK").open("r+b") as file:
        file.truncate(0)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_files(directory: Path) -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.fspath(entry.readlink()).startswith(os.fspath(directory))
    return found


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _END_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def test_checks_on_every_loop(directory: Path, run: Run) -> None:
    # asyncio and uvloop, one loop after the other, several at once, and several on one loop.
    async def check() -> None:
        report, again = await asyncio.gather(verify(directory), verify(directory))
        assert report.is_sound
        assert report.records == again.records == 2
        assert not (await asyncio.wait_for(repair(directory), _END_S)).damage

    async def check_only() -> None:
        assert (await verify(directory)).records == 2

    run(_write(directory, [b"a", b"b"]))
    run(check())
    run(check())
    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            run(check_only())
        except BaseException as error:  # noqa: BLE001 - shown below
            found.append(error)

    others = [threading.Thread(target=elsewhere) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert not found


def test_nothing_starts_at_import(directory: Path) -> None:
    # The threads of the bridge come with the first check, not with the package or a log.
    body = """
        async def main():
            async with millrace.log.Log.open(sys.argv[1]) as log:
                await log.append(b"x")
            assert not threads(), threads()
            await verify(sys.argv[1])
            assert threads()
        asyncio.run(main())
        """
    assert not _python(body, directory)


def test_a_child_of_a_process_that_checked_is_refused(directory: Path) -> None:
    # At once, for both calls, and the parent goes on; the child's exit waits for nobody.
    asyncio.run(_write(directory, [b"x"]))
    body = """
        async def refused():
            for call in (verify, repair):
                try:
                    await call(sys.argv[1])
                except ForkedError as error:
                    assert error.pid == os.getpid(), error.pid
                else:
                    raise AssertionError("not refused")

        asyncio.run(verify(sys.argv[1]))
        in_child(lambda: asyncio.run(refused()))
        in_child(lambda: _core.close_everything(3600.0))
        assert asyncio.run(verify(sys.argv[1])).is_sound
        if os.fork() == 0:
            sys.exit(0)
        assert os.wait()[1] == 0
        """
    assert not _python(body, directory)


def test_a_child_of_a_process_that_did_not_check_may(directory: Path) -> None:
    # It starts a bridge of its own; so does the parent afterwards, and another child is refused.
    asyncio.run(_write(directory, [b"x"]))
    body = """
        def check():
            assert asyncio.run(verify(sys.argv[1])).is_sound
            assert not asyncio.run(repair(sys.argv[1])).damage
        in_child(check)
        assert not threads()
        check()
        """
    assert not _python(body, directory)


@pytest.mark.parametrize("bound", [3600.0, 0.0])
def test_exit_while_a_check_runs(directory: Path, bound: float) -> None:
    # A repair that would wait for an hour is withdrawn: no bound is needed, and a short one is
    # kept. Nobody cancels it, for its loop is on a thread that the end of the program cuts off.
    asyncio.run(_damage(directory))
    body = f"""
        atexit.register(_core.close_everything, {bound})
        waiting = threading.Event()

        async def main():
            asyncio.get_running_loop().call_soon(waiting.set)
            await repair(sys.argv[1], lock_timeout_s=3600.0)

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        waiting.wait()
        """
    with _locked(directory):
        assert not _python(body, directory)
    assert not list(directory.glob("*.broken*"))


def test_a_check_after_the_end_is_refused(directory: Path) -> None:
    # An exit handler that runs late gets an error, and no thread is started behind its back.
    asyncio.run(_write(directory, [b"x"]))
    body = """
        async def refused():
            for call in (verify, repair):
                try:
                    await call(sys.argv[1])
                except millrace.ClosedError:
                    continue
                raise AssertionError("not refused")

        async def withdrawn():
            started = _core.come_back_by_bridge()
            _core.close_everything(10.0)
            await refused()

        asyncio.run(withdrawn())
        assert not threads()
        """
    assert not _python(body, directory)


def test_an_answer_for_a_closed_loop_is_dropped_in_silence(directory: Path) -> None:
    # A loop that closes without waiting leaves nothing to complain about.
    body = """
        async def leave():
            _core.come_back_by_bridge()
        for _ in range(500):
            asyncio.run(leave())
        """
    assert not _python(body, directory)


async def test_a_cancelled_repair_stops_waiting_for_the_lock(directory: Path) -> None:
    # The work behind the await ends as well, although the lock is never given up.
    await _damage(directory)
    with _locked(directory):
        task = asyncio.create_task(repair(directory, lock_timeout_s=3600.0))
        await _until(lambda: _open_files(directory) > 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _until(lambda: _open_files(directory) == 1)
    assert not list(directory.glob("*.broken*"))
    assert (await repair(directory)).damage


async def test_a_cancelled_verify_stops_reading(directory: Path) -> None:
    # It reads less than all; one that was already at its end when it was cancelled is tried again.
    await _write(directory, [bytes(_MIB)] * 24)

    def read_bytes() -> int:
        fields = Path("/proc/self/io").read_text(encoding="ascii").split()
        return int(fields[fields.index("rchar:") + 1])

    for _ in range(50):
        before = read_bytes()
        task = asyncio.create_task(verify(directory))
        await _until(lambda task=task: task.done() or _open_files(directory) > 0)  # type: ignore[misc]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await _until(lambda: _open_files(directory) == 0)
        if read_bytes() - before < 24 * _MIB:
            return
    pytest.fail("read everything, each time")


@pytest.mark.parametrize("when", ["at once", "started", "copied"])
async def test_a_cancelled_repair_leaves_a_log(directory: Path, when: str) -> None:
    # Whenever it is cancelled: untouched, or repaired to the end. Never in between.
    await _damage(directory)

    def copies() -> list[Path]:
        return list(directory.glob("*.broken*"))

    task = asyncio.create_task(repair(directory))
    if when != "at once":
        await asyncio.sleep(0)
    if when == "copied":
        await _until(lambda: bool(copies()))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    # The first one may hold the lock to its end, or not have begun at all; one of the two has done
    # everything.
    again = None
    while again is None:
        try:
            again = await repair(directory)
        except LockedError:
            await asyncio.sleep(0.01)
    assert len(copies()) == 1
    assert when != "copied" or not again.damage
    async with Log.open(directory) as log:
        kept = [record.data async for record in log.read()]
        assert kept == [b"record %d" % number for number in range(5)]


async def test_a_panic_is_an_error_like_any_other() -> None:
    # By either way, with the same words; the way works afterwards.
    for way in (_core.come_back_by_bridge, _core.come_back_by_port):
        with pytest.raises(RuntimeError, match="bug in millrace: a worker panicked"):
            await way(panics=True)
        assert await way() is None  # type: ignore[func-returns-value]


async def test_many_ways_back_at_once() -> None:
    # Each call gets its own answer, however many there are.
    for way in (_core.come_back_by_bridge, _core.come_back_by_port):
        answers = await asyncio.gather(*(way() for _ in range(1000)))
        assert answers == [None] * 1000
