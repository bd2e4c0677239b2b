"""
Processes that fork, exit without closing, are interrupted, or leave children behind.

Always: no exit takes longer than it should, and what was acknowledged is there.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from millrace import Log, LogSettings
from millrace.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A busy machine is slow, and a test stopped half way leaves mounts and children behind.
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("each_driver")]
_EXIT_S = 20.0
_PRELUDE = """
import asyncio, os, sys, signal, time, threading
import driven
from millrace import Log, LogSettings
PATH = sys.argv[1]
def say(text):
    print(text, flush=True)
"""


@contextmanager
def child(path: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that gets the log's path; it is gone at the end, one way or the other."""
    script = _PRELUDE + textwrap.dedent(body)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", script, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """Read one line the child says; fails, with what it complained about, if none comes."""
    assert process.stdout is not None
    assert process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], _EXIT_S)
    text = process.stdout.readline().strip() if ready else ""
    if not text:
        process.kill()
        process.wait(_EXIT_S)
        pytest.fail(f"the child said nothing: {process.stderr.read()}")
    return text


def read_all(path: Path, lock_timeout_s: float = 10.0) -> list[bytes]:
    async def read() -> list[bytes]:
        settings = LogSettings(lock_timeout_s=lock_timeout_s)
        async with Log.open(path, settings=settings) as log:
            return [record.data async for record in log.read(1)]

    return asyncio.run(read())


def test_killed_while_a_forked_child_sleeps(tmp_path: Path) -> None:
    # A forked child that only sleeps does not keep its dead parent's log locked.
    body = """
        async def main():
            log = await Log.open(PATH)
            await log.append(b"before the fork")
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            await log.append(b"after the fork")
            say(pid)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    with child(tmp_path / "log", body) as process:
        sleeper = int(line(process))
        try:
            process.kill()
            process.wait(_EXIT_S)
            # If the child had it, the open would wait for it, and fail.
            assert read_all(tmp_path / "log") == [b"before the fork", b"after the fork"]
            os.kill(sleeper, 0)
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_a_forked_child_that_exits_leaves_the_log_alone(tmp_path: Path) -> None:
    # A child of fork that ends normally neither unlocks nor closes its parent's log.
    body = """
        async def opened():
            return await Log.open(PATH)

        async def append(log, data):
            await log.append(data)

        runner = asyncio.Runner()
        log = runner.run(opened())
        runner.run(append(log, b"one"))
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        os.waitpid(pid, 0)
        runner.run(append(log, b"two"))
        say("ready")
        time.sleep(60)
    """
    with child(tmp_path / "log", body) as process:
        line(process)
        with pytest.raises(LockedError):
            read_all(tmp_path / "log", lock_timeout_s=0.5)
        process.kill()
        process.wait(_EXIT_S)
        assert read_all(tmp_path / "log") == [b"one", b"two"]


EXITS = {
    "the main function ends": "",
    "sys.exit": "sys.exit(0)",
    "an exception": "raise RuntimeError('on purpose')",
    "os._exit": "os._exit(0)",
    "with appends that nobody awaits": "[log.submit(b'later') for _ in range(1000)]",
    "with tasks in the middle": "[asyncio.create_task(put(log)) for _ in range(100)]; "
    "await asyncio.sleep(0)",
    "with a thread that appends": "threading.Thread(target=forever, args=(log,), daemon=True)"
    ".start(); await asyncio.sleep(0.05)",
}


@pytest.mark.parametrize("how", EXITS)
def test_exit_without_close(tmp_path: Path, how: str) -> None:
    # However a program ends without closing its log, it ends soon and keeps its promises.
    body = f"""
        async def put(log):
            while True:
                await log.append(b"later")

        def forever(log):
            while True:
                log.append_sync(b"later")

        async def main():
            log = await Log.open(PATH)
            globals()["kept"] = log
            await log.append(b"promised")
            say("promised")
            {EXITS[how]}

        asyncio.run(main())
    """
    with child(tmp_path / "log", body) as process:
        assert line(process) == "promised"
        began = time.monotonic()
        status = process.wait(_EXIT_S)
        assert time.monotonic() - began < _EXIT_S
        assert status == (1 if "exception" in how else 0)
        found = read_all(tmp_path / "log")
        assert found[0] == b"promised"
        assert set(found[1:]) <= {b"later"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle(tmp_path: Path, number: int) -> None:
    # A signal in the middle of the load ends the program soon; acknowledged records stay.
    body = """
        count = 0

        async def put(log):
            global count
            while True:
                lsn = await log.append(b"x" * 64)
                count = max(count, lsn)
                if lsn == 200:
                    say("running")

        async def main():
            async with Log.open(PATH) as log:
                await asyncio.gather(*(put(log) for _ in range(64)))

        try:
            asyncio.run(main())
        finally:
            say(count)
    """
    with child(tmp_path / "log", body) as process:
        assert line(process) == "running"
        process.send_signal(number)
        process.wait(_EXIT_S)
        assert process.stdout is not None
        told = process.stdout.read().strip()
        assert len(read_all(tmp_path / "log")) >= max(200, int(told or 0))


def test_stopped_and_continued(tmp_path: Path) -> None:
    # A process that is stopped keeps its lock, and goes on as if nothing had been.
    body = """
        async def main():
            async with Log.open(PATH) as log:
                say("ready")
                for _ in range(1000):
                    await log.append(b"x")
            say("done")
        asyncio.run(main())
    """
    with child(tmp_path / "log", body) as process:
        line(process)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LockedError, match=str(process.pid)):
            read_all(tmp_path / "log", lock_timeout_s=0.5)
        process.send_signal(signal.SIGCONT)
        assert line(process) == "done"
        process.wait(_EXIT_S)
        assert len(read_all(tmp_path / "log")) == 1000


@pytest.mark.parametrize("name", ["probe.tmp", "0000000000000002.prep", "cursors.tmp"])
def test_leftovers_of_an_open_that_was_killed(tmp_path: Path, name: str) -> None:
    # A kill while a log is opened leaves half-made files; the next open clears them away.
    #
    # Recovery listed `probe.tmp` as a leftover, the measurement of commit paths then used and
    # removed a file of that very name, and clearing up failed because it was gone: the log
    # could not be opened. A storm of kills found it.
    path = tmp_path / "log"
    assert read_all(path) == []
    (path / name).write_bytes(b"half-made")
    assert read_all(path) == []
    assert not (path / name).exists()
