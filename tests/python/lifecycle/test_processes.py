"""A log across the lives of processes and interpreters: fork, exit, garbage, subinterpreters."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from forks import QUIET_FORK, in_child

from millrace import ForkedError, Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("each_driver")

_EXIT_S = 20.0


def _open(directory: Path, settings: LogSettings | None = None) -> Log:
    async def main() -> Log:
        return await Log.open(directory, settings=settings)

    return asyncio.run(main())


def _python(script: str, *arguments: str, expect: int = 0) -> str:
    """Run a program in a fresh interpreter; return what it complained about."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "always",
            "-W",
            QUIET_FORK,
            "-X",
            "faulthandler",
            "-c",
            "import driven\n" + textwrap.dedent(script),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=_EXIT_S,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stderr


def _last_lsn(directory: Path) -> int:
    log = _open(directory)
    last = log.last_lsn
    assert log._close_within(10.0)
    return last


def test_a_child_cannot_use_what_it_inherited(directory: Path) -> None:
    # Every call in the child raises at once; the parent's log lives on untouched.
    log = _open(directory)
    log.append_sync(b"before")
    ticket = log.submit(b"ticket")

    def child() -> None:
        calls: list[Callable[[], object]] = [
            lambda: log.append(b"x"),
            lambda: log.append_many([b"x"]),
            lambda: log.submit(b"x"),
            lambda: log.append_sync(b"x"),
            log.flush,
            log.close,
            lambda: log._close_within(1.0),
            lambda: log.cursor("c"),
            lambda: log.truncate_before(1),
            lambda: log._reader(1, None, 1),
        ]
        for call in calls:
            with pytest.raises(ForkedError):
                call()

    in_child(child)
    assert ticket.wait(10) == 2
    assert log.append_sync(b"after") == 3
    assert log._close_within(10.0)
    assert _last_lsn(directory) == 3


def test_a_child_opens_its_own(directory: Path, tmp_path: Path) -> None:
    # A fresh log in the child works, with loop, workers and all, beside the inherited one.
    log = _open(directory)
    log.append_sync(b"x")

    def child() -> None:
        async def main() -> list[int]:
            async with Log.open(tmp_path / "other") as other:
                await other.append_many([b"a", b"b"])
                return [record.lsn async for record in other.read()]

        assert asyncio.run(main()) == [1, 2]

    in_child(child)
    assert log.append_sync(b"y") == 2
    assert log._close_within(10.0)


def test_a_child_that_ends_normally_harms_nothing(directory: Path) -> None:
    # The child's own exit handlers and destructors leave the parent's log alone.
    script = """
        import asyncio, os, sys
        from millrace import Log
        async def main():
            log = await Log.open(sys.argv[1])
            await log.append(b"before")
            pid = os.fork()
            if pid == 0:
                return None
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            await log.append(b"after")
            await log.close()
            return log
        asyncio.run(main())
    """
    assert _python(script, os.fspath(directory)) == ""
    assert _last_lsn(directory) == 2


@pytest.mark.parametrize("how", ["falls off the end", "sys.exit", "raise", "a grandchild"])
def test_a_child_that_exits_says_nothing_of_its_parents_log(directory: Path, how: str) -> None:
    # At exit a child keeps silent about logs, opens and operations that it only inherited.
    script = """
        import asyncio, os, sys
        from millrace import Log, LogSettings
        async def main():
            return await Log.open(sys.argv[1], settings=LogSettings(linger_s=3600.0))
        how = sys.argv[2]
        log = asyncio.run(main())
        opening = Log.open(sys.argv[1] + "-other", read_only=True)
        operation, ticket = log.append(b"operation"), log.submit(b"ticket")
        reader = log.read()
        held = [log, opening, operation, ticket, reader]
        held.append(held)
        parent = os.getpid()
        if os.fork() == 0:
            if how == "a grandchild" and os.fork() != 0:
                os.wait()
            if how == "sys.exit":
                sys.exit(0)
            if how == "raise":
                raise SystemExit(0)
        if os.getpid() == parent:
            _, status = os.wait()
            assert status == 0, status
            async def finish():
                await log.close()
                await operation
                try:
                    await opening
                except OSError:
                    pass
            asyncio.run(finish())
    """
    assert _python(script, os.fspath(directory), how) == ""
    assert _last_lsn(directory) == 2


@pytest.mark.parametrize("how", ["falls off the end", "sys.exit", "raise"])
def test_exit_without_close(directory: Path, how: str) -> None:
    # The interpreter closes the log within a bound, warns, and what was appended is there.
    script = """
        import asyncio, sys
        from millrace import Log
        async def main():
            log = await Log.open(sys.argv[1])
            log.submit(b"x")
            return log
        log = asyncio.run(main())
        if sys.argv[2] == "sys.exit":
            sys.exit(0)
        if sys.argv[2] == "raise":
            raise SystemExit(0)
    """
    started = time.monotonic()
    complaint = _python(script, os.fspath(directory), how)
    assert time.monotonic() - started < _EXIT_S
    assert "ResourceWarning: unclosed log" in complaint
    assert _last_lsn(directory) == 1


def test_exit_in_the_middle_of_a_task(directory: Path) -> None:
    # Leaving the program out of a task, with appends under way, neither hangs nor crashes.
    script = """
        import asyncio, sys
        from millrace import Log, LogSettings
        async def main():
            log = await Log.open(sys.argv[1], settings=LogSettings(linger_s=3600.0))
            tasks = [asyncio.create_task(log.append(b"x")) for _ in range(100)]
            await asyncio.sleep(0)
            sys.exit(0)
        asyncio.run(main())
    """
    complaint = _python(script, os.fspath(directory))
    assert "Fatal" not in complaint
    assert _last_lsn(directory) == 100


def test_exit_while_a_daemon_thread_appends(directory: Path) -> None:
    # A thread that is still appending when the interpreter ends is no obstacle.
    script = """
        import asyncio, sys, threading
        from millrace import ClosedError, Log
        async def main():
            return await Log.open(sys.argv[1])
        log = asyncio.run(main())
        started = threading.Event()
        def forever():
            try:
                while True:
                    log.append_sync(b"x")
                    started.set()
            except ClosedError:
                pass
        threading.Thread(target=forever, daemon=True).start()
        started.wait()
    """
    complaint = _python(script, os.fspath(directory))
    assert "Fatal" not in complaint
    assert _last_lsn(directory) >= 1


async def test_an_unclosed_log_warns_when_it_is_collected(directory: Path) -> None:
    # A forgotten close is a ResourceWarning, and the log closes itself all the same.
    log = await Log.open(directory)
    lsn = await log.append(b"x")
    with pytest.warns(ResourceWarning, match="unclosed log"):  # noqa: PT031
        del log
        gc.collect()
    while True:
        try:
            again = await Log.open(directory)
            break
        except BlockingIOError:
            continue
    assert again.last_lsn == lsn
    await again.close()


async def test_an_unclosed_log_in_a_cycle(directory: Path) -> None:
    # The same when only the collector can find it.
    log = await Log.open(directory)
    cycle: list[object] = [log]
    cycle.append(cycle)
    with pytest.warns(ResourceWarning, match="unclosed log"):  # noqa: PT031
        del log, cycle
        gc.collect()


async def test_a_closed_log_goes_quietly(directory: Path) -> None:
    # No warning, and no object is left.
    log = await Log.open(directory)
    await log.close()
    del log
    gc.collect()


async def test_a_log_is_not_a_value(directory: Path) -> None:
    # A handle can be neither pickled nor copied.
    async with Log.open(directory) as log:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pickle"):
                attempt(log)
        with pytest.raises(TypeError):
            Log()  # type: ignore[call-arg]


def test_a_second_interpreter_is_refused() -> None:
    # A subinterpreter gets an ImportError that says so, instead of a crash later.
    script = """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import millrace
        other = interpreters.create()
        code = '''
        try:
            import millrace
        except ImportError as refused:
            assert "interpreter" in str(refused), refused
        else:
            raise AssertionError("imported")
        '''
        import textwrap
        found = interpreters.run_string(other, textwrap.dedent(code))
        assert found is None, found
        interpreters.destroy(other)
    """
    _python(script)


def test_many_appends_leave_no_garbage(directory: Path) -> None:
    # Memory does not grow with the number of appends.
    script = """
        import asyncio, gc, resource, sys
        from millrace import Log
        def used():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        async def main():
            async with Log.open(sys.argv[1]) as log:
                async def one(count):
                    for _ in range(count):
                        await log.append(b"x" * 100)
                await asyncio.gather(*(one(200) for _ in range(100)))
                before = used()
                await asyncio.gather(*(one(600) for _ in range(100)))
                grown = used() - before
                assert grown < 8 << 20, grown
        asyncio.run(main())
    """
    _python(script, os.fspath(directory))
