"""The exit of a program with logs that are still open: one bound for all, and who is inside."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from millrace import LockedError, Log, LogSettings

if TYPE_CHECKING:
    from pathlib import Path

_CRASH = os.path.join(os.path.dirname(os.path.dirname(__file__)), "crash")  # noqa: PTH118, PTH120
_NO_SUPERVISOR = 77
_PATIENCE_S = 50.0

_HEAD = f"""
    import asyncio, atexit, os, sys, threading
    from pathlib import Path
    late = lambda: None
    atexit.register(lambda: late())
    from millrace import Log, LogSettings, _core
    sys.path.append({_CRASH!r})
    from stuck import descriptors_below, stick

    base = Path(sys.argv[1])
    settings = LogSettings(commit_path="pwrite", backend="threads", driver="thread")

    def opened(*names):
        async def main():
            return [await Log.open(base / name, settings=settings) for name in names]
        return asyncio.run(main())

    def stuck(*names):
        try:
            return stick([fd for name in names for fd in descriptors_below(base / name)])
        except (OSError, NotImplementedError):
            os._exit({_NO_SUPERVISOR})
"""


def _start(script: str, base: Path) -> subprocess.Popen[str]:
    program = textwrap.dedent(_HEAD) + textwrap.dedent(script)
    command = [sys.executable, "-W", "always", "-X", "faulthandler", "-c", program]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, os.fspath(base)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def _end(child: subprocess.Popen[str]) -> tuple[str, str]:
    out, complaint = child.communicate(timeout=_PATIENCE_S)
    if child.returncode == _NO_SUPERVISOR:
        pytest.skip("this kernel has no supervisor for system calls")
    assert child.returncode == 0, complaint
    return out, complaint


async def _once_free(path: Path) -> int:
    """The last LSN of a log, as soon as nobody has it open."""
    while True:
        try:
            async with Log.open(path, settings=LogSettings(lock_timeout_s=0.0)) as log:
                return log.last_lsn
        except LockedError:
            await asyncio.sleep(0.01)


def test_a_stuck_disk_holds_back_no_other_log(tmp_path: Path) -> None:
    # All logs that were left open are closed at the same time: those whose disk answers are closed
    # and free while the others still wait, however long their bound is.
    script = """
        names = [f"{kind}-{number}" for number in range(3) for kind in ("stuck", "free")]
        logs = opened(*names)
        listener = stuck(*names[::2])
        for log in logs:
            log.submit(b"x")
        atexit.register(_core.close_everything, 3600.0)
        print("ready", flush=True)
    """
    child = _start(script, tmp_path)
    try:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            _end(child)

        async def all_free() -> list[int]:
            async with asyncio.timeout(_PATIENCE_S):
                return [await _once_free(tmp_path / f"free-{number}") for number in range(3)]

        assert asyncio.run(all_free()) == [1, 1, 1]
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


def test_an_exit_ends_although_no_disk_answers(tmp_path: Path) -> None:
    # When the bound has passed the program ends, and has said what it left open.
    script = """
        names = [f"stuck-{number}" for number in range(5)]
        logs = opened(*names)
        listener = stuck(*names)
        for log in logs:
            log.submit(b"x")
        atexit.register(_core.close_everything, 0.1)
    """
    _, complaint = _end(_start(script, tmp_path))
    assert complaint.count("ResourceWarning: unclosed log") == 5


def test_the_exit_waits_for_a_log_that_was_dropped(tmp_path: Path) -> None:
    # What was submitted is written, also if nobody holds the log any more; handlers of the exit
    # that run after ours find it closed.
    script = """
        late = lambda: print("late", flush=True)
        (log,) = opened("stuck")
        listener = stuck("stuck")
        log.submit(b"x")
        del log
        atexit.register(_core.close_everything, 3600.0)

        def release():
            sys.stdin.readline()
            print("released", flush=True)
            os.close(listener)

        threading.Thread(target=release, daemon=True).start()
        print("dropped", flush=True)
    """
    child = _start(script, tmp_path)
    assert child.stdout is not None
    # Nothing comes before the disk answers, however long one waits.
    if child.stdout.readline() == "dropped\n":
        assert select.select([child.stdout], [], [], 0.5)[0] == []
        out, _ = _end_after(child, "\n")
        assert out == "released\nlate\n"
    else:
        _end(child)


def _end_after(child: subprocess.Popen[str], line: str) -> tuple[str, str]:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()
    return _end(child)


def test_the_exit_waits_for_a_thread_that_learns_of_the_close(tmp_path: Path) -> None:
    # A daemon thread that waits for its append is told by the exit that the log is closed. While it
    # makes the exception it is inside of us, and before CPython 3.14 the interpreter would end it
    # there by unwinding its stack, which ends the process. It takes a thread that wakes late,
    # as the planted bug has it; the rare failure of a test of such exits led here.
    script = """
        import time
        import millrace.errors

        entered, is_late, over = threading.Event(), threading.Event(), threading.Event()
        Closed = millrace.errors.ClosedError

        class Slow(Closed):
            def __init__(self, *args, **facts):
                super().__init__(*args, **facts)
                entered.set()
                if is_late.is_set():
                    # Nobody has waited for us. Stay until the interpreter is going.
                    over.wait()

        class Last:
            def __del__(self, over=over, sleep=time.sleep):
                over.set()
                sleep(0.5)

        # In a module that goes last; the daemon thread keeps the names of this one.
        sys.last_one = Last()

        def late():
            is_late.set()
            entered.wait()

        millrace.errors.ClosedError = Slow
        settings = LogSettings(linger_s=3600.0)
        (log,) = opened("log")
        waiting = threading.Event()

        def forever():
            try:
                while True:
                    waiting.set()
                    log.append_sync(b"x")
            except Closed:
                pass

        threading.Thread(target=forever, daemon=True).start()
        waiting.wait()
        # So that nobody takes the interpreter from the exit while it runs.
        sys.setswitchinterval(10.0)
    """
    _, complaint = _end(_start(script, tmp_path))
    assert "Fatal" not in complaint


@pytest.mark.parametrize(("where", "kept"), [("here", "0.005"), ("on a thread", "0.1")])
def test_threads_keep_the_interpreter_only_if_one_ever_came(
    tmp_path: Path, where: str, kept: str
) -> None:
    # A program whose loop is on the thread that exits has handlers of the exit as quick as ever;
    # one with loops on other threads has theirs protected.
    script = f"""
        late = lambda: print(round(sys.getswitchinterval(), 3))

        def use():
            for log in opened("log"):
                asyncio.run(log.close())

        if {where!r} == "here":
            use()
        else:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
    """
    out, _ = _end(_start(script, tmp_path))
    assert out.strip() == kept
