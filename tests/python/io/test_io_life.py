"""Engines across loops, threads, processes and interpreters; their end, orderly and not."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from forks import in_child
from io_engines import WAYS, descriptors, full, leased, pair, until

from millrace import (
    AbandonedError,
    ClosedError,
    File,
    FileStatus,
    ForkedError,
    IoEngine,
    IoSettings,
    IoTimeout,
    Log,
    Operation,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from io_engines import Engines

_EXIT_S = 30.0


def test_many_loops_in_turn_and_at_once(engines: Engines, tmp_path: Path) -> None:
    # An engine is not bound to a loop, a kind of loop, or a thread.
    io = engines.make()

    async def work(name: str) -> None:
        async with io.open(tmp_path / name, "w+") as file:
            await asyncio.gather(*(io.write_at(file, b"x" * 100, 100 * n) for n in range(50)))
            with pair() as (left, right):
                receiving = io.recv(right, 5, exact=True)
                await io.send(left, b"hello")
                assert await receiving == b"hello"
            assert await io.read_at(file, 5000, 0) == b"x" * 5000

    for n in range(4):
        (asyncio.run, uvloop.run)[n % 2](work(f"turn{n}"))
    failures: list[BaseException] = []

    def thread(n: int) -> None:
        try:
            (asyncio.run, uvloop.run)[n % 2](work(f"thread{n}"))
        except BaseException as failure:  # noqa: BLE001 - shown below
            failures.append(failure)

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures
    asyncio.run(_close(io))


async def _close(io: IoEngine) -> None:
    assert (await io.close()).requests == 0


def test_a_loop_that_closes_with_operations_under_way(engines: Engines, tmp_path: Path) -> None:
    # The receive is given up, the write goes on, the engine serves the next loop.
    io = engines.make()
    with pair() as (left, right):
        loop = asyncio.new_event_loop()
        kept: list[weakref.ref[object]] = []

        async def both(file: File) -> None:
            writing = io.write_at(file, b"w" * 1000, 0)
            await io.recv(right, 1)
            await writing

        async def leave() -> None:
            task = asyncio.ensure_future(both(await io.open(tmp_path / "f", "w+")))
            await until(lambda: io.statistics().in_flight >= 1)
            kept.append(weakref.ref(task))

        loop.run_until_complete(leave())
        with warnings.catch_warnings():
            # Of the destroyed task, of the coroutine in it, of the write nobody awaits.
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            loop.close()
            del loop
            gc.collect()
            logging.disable(logging.NOTSET)

        async def next_loop() -> None:
            await until(lambda: io.statistics().pending == 0)
            assert (tmp_path / "f").read_bytes() == b"w" * 1000
            left.sendall(b"!")
            assert await io.recv(right, 1) == b"!"
            await io.close()

        asyncio.run(next_loop())
        assert kept[0]() is None


def test_closing_refuses_what_comes_later(engines: Engines, tmp_path: Path) -> None:
    # Every method of a closed engine is a ClosedError; statistics and repr still work.
    async def main() -> None:
        io = engines.make()
        file = await io.open(tmp_path / "f", "w+")
        assert "open" in repr(io)
        report = await io.close()
        assert (report.requests, report.bytes) == (0, 0)
        assert repr(report) == "CloseReport(requests=0, bytes=0)"
        assert await io.close() == report
        assert "closed" in repr(io)
        assert io.statistics().state == "closed"
        with pair() as (left, _):
            for call in (
                lambda: io.open(tmp_path / "g"),
                lambda: io.read_at(file, 0, 0),
                lambda: io.read_into(file, bytearray(1), 0),
                lambda: io.buffer(1),
                lambda: io.write_at(file, b"", 0),
                lambda: io.sync(file),
                lambda: io.send(left, b"x"),
                lambda: io.recv(left, 1),
                lambda: io.fallocate(file, 1),
                lambda: io.truncate(file, 1),
                lambda: io.rename("a", "b"),
                lambda: io.unlink("a"),
                lambda: io.stat(file),
                lambda: io.stat("a"),
                lambda: io.sync_directory("."),
            ):
                with pytest.raises(ClosedError):
                    call()
        await file.close()
        assert file.is_closed

    asyncio.run(main())


def test_closing_serves_what_was_accepted(engines: Engines, tmp_path: Path) -> None:
    # Writes accepted before are done, and a receive gets its bytes, before the end is told.
    async def main() -> None:
        io = engines.make(size=4)
        file = await io.open(tmp_path / "f", "w+")
        with pair() as (left, right):
            receiving = asyncio.ensure_future(io.recv(right, 3))
            writes = [io.write_at(file, b"x" * 4096, 4096 * n) for n in range(100)]
            closing = asyncio.ensure_future(io.close())
            assert await asyncio.gather(*writes) == [4096] * 100
            assert not closing.done()
            left.sendall(b"end")
            assert await receiving == b"end"
            assert (await closing).requests == 0
        await file.close()

    asyncio.run(main())


def test_closing_with_a_budget_gives_up_what_waits_for_a_peer(engines: Engines) -> None:
    # A receive that nobody feeds is cancelled when the budget is spent; its waiter is told.
    async def main() -> None:
        io = engines.make(size=1)
        with pair() as (_left, right):
            flying = asyncio.ensure_future(io.recv(right, 3))
            await until(lambda: io.statistics().in_flight == 1)
            waiting = asyncio.ensure_future(io.recv(right, 3))
            begun = time.monotonic()
            report = await io.close(timeout_s=0.05)
            assert 0.05 <= time.monotonic() - begun < 5
            assert (report.requests, report.bytes) == (0, 0)
            with pytest.raises(AbandonedError):
                await waiting
            with pytest.raises((AbandonedError, OSError)):
                await flying

    asyncio.run(main())


def test_closing_with_deadlines_under_way(engines: Engines) -> None:
    # Deadlines are still served while the engine ends.
    async def main() -> None:
        io = engines.make()
        with pair() as (_left, right):
            receiving = [asyncio.ensure_future(io.recv(right, 1, timeout_s=0.05)) for _ in range(5)]
            await until(lambda: io.statistics().pending == 5)
            assert (await io.close()).requests == 0
            for one in receiving:
                with pytest.raises(IoTimeout):
                    await one

    asyncio.run(main())


def test_closing_from_a_thread(engines: Engines) -> None:
    # Without any loop.
    io = engines.make()
    assert io._close_within(5.0).requests == 0
    assert io._state == "closed"


def test_an_engine_that_was_dropped_warns_and_ends(engines: Engines) -> None:
    # Its thread and its descriptors go; nobody waits for that.
    def engine_threads() -> int:
        tasks = Path("/proc/self/task").iterdir()
        names = [(task / "comm").read_text().strip() for task in tasks]
        return sum(name == "millrace-loop" for name in names)

    before = engine_threads()
    io = engines.make()
    with pytest.warns(ResourceWarning, match="unclosed I/O engine"):
        del io
    while True:
        # A thread may end between being listed and being looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if engine_threads() == before:
                break


def test_engines_come_and_go_without_leaving_anything(engines: Engines, tmp_path: Path) -> None:
    # Memory and descriptors stay flat over many lives, also on one loop.
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def life() -> None:
        async with engines.make() as io, io.open(tmp_path / "f", "w+") as file:
            await io.write_at(file, b"x" * 10_000, 0)
            await io.read_at(file, 10_000, 0)
            with pair() as (left, right):
                await io.send(left, b"x")
                await io.recv(right, 1)

    async def lives(count: int) -> None:
        for _ in range(count):
            await life()

    async def main() -> None:
        await lives(15)
        gc.collect()
        opened, memory = descriptors(), resident()
        await lives(30)
        gc.collect()
        # Engines end on a worker: the last one may still be at it.
        await until(lambda: descriptors() <= opened)
        assert resident() < memory + (16 << 20)

    asyncio.run(main())


def test_operations_leave_no_memory_behind(engines: Engines, tmp_path: Path) -> None:
    # Answered, failed, cancelled and timed out operations alike.
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+", direct=True) as file:
            await io.write_at(file, bytes(1 << 16), 0)
            with pair() as (_left, right):

                async def round_of() -> None:
                    for _ in range(100):
                        await asyncio.gather(*(io.read_at(file, 4096, 0) for _ in range(20)))
                        with contextlib.suppress(Exception):
                            await io.read_at(file, 4096, 1 << 20)
                        task = asyncio.ensure_future(io.recv(right, 4096))
                        await asyncio.sleep(0)
                        task.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await task
                        with contextlib.suppress(IoTimeout):
                            await io.recv(right, 4096, timeout_s=0)

                await round_of()
                gc.collect()
                before, objects = resident(), len(gc.get_objects())
                for _ in range(3):
                    await round_of()
                gc.collect()
                assert resident() < before + (8 << 20)
                assert len(gc.get_objects()) < objects + 1000

    engines.run(main)


def test_what_was_begun_elsewhere_ends_where_it_is_awaited(
    engines: Engines, tmp_path: Path
) -> None:
    # Begun without a loop, on a loop that is gone, on a thread; answered, and out of time.
    io = engines.make()
    path = tmp_path / "f"
    path.write_bytes(b"x" * 300_000)

    async def begun(make: Callable[[], Operation[object]]) -> Operation[object]:
        return make()

    def on_a_thread(make: Callable[[], Operation[object]]) -> Operation[object]:
        made: list[Operation[object]] = []
        thread = threading.Thread(target=lambda: made.append(make()))
        thread.start()
        thread.join()
        return made[0]

    async def ended(one: Operation[object], feed: Callable[[], object]) -> object:
        waiting = asyncio.ensure_future(one)
        await asyncio.sleep(0)
        feed()
        return await waiting

    ways: list[Callable[[Callable[[], Operation[object]]], Operation[object]]] = [
        lambda make: make(),
        lambda make: asyncio.run(begun(make)),
        on_a_thread,
    ]
    with pair() as (left, right):
        for begin in ways:
            for feed_first in (True, False):
                receiving = begin(lambda: io.recv(right, 5, exact=True))
                if feed_first:
                    left.sendall(b"hello")
                feed = (lambda: None) if feed_first else (lambda: left.sendall(b"hello"))
                assert asyncio.run(ended(receiving, feed)) == b"hello"
            assert isinstance(asyncio.run(ended(begin(lambda: io.stat(path)), int)), FileStatus)
            late = begin(lambda: io.recv(right, 5, timeout_s=0.05))
            with pytest.raises(IoTimeout):
                asyncio.run(ended(late, int))
    asyncio.run(_close(io))


def test_a_loop_that_closes_is_freed(engines: Engines, tmp_path: Path) -> None:
    # Right after a storage operation, while the engine has a timer for slow ones: the loop and its
    # descriptors go with it.
    io = engines.make()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def once() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await io.stat(tmp_path)

    asyncio.run(once())
    gc.collect()
    before = descriptors()
    for _ in range(10):
        asyncio.run(once())
    gc.collect()
    # The last one is what its thread remembers.
    assert sum(one() is not None for one in loops) <= 1
    assert descriptors() <= before
    io._close_within(5)


class _Own(bytearray):
    """A buffer that can be seen to go, and that keeps what fills it."""

    operation: object


def test_a_buffer_that_keeps_its_own_read_is_collected(engines: Engines, tmp_path: Path) -> None:
    # The operation holds the buffer, and the buffer the operation: a ring that the collector sees.
    (tmp_path / "f").write_bytes(bytes(100_000))
    left: list[weakref.ref[_Own]] = []

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:

            def leave_one() -> None:
                buffer = _Own(100_000)
                buffer.operation = io.read_into(file, buffer, 0)
                left.append(weakref.ref(buffer))

            for _ in range(5):
                leave_one()
            await until(lambda: io.statistics().pending == 0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                gc.collect()
            assert [one() for one in left] == [None] * 5

    engines.run(main)


@pytest.mark.parametrize("way", WAYS)
def test_no_memory_for_the_bytes_of_an_answer(way: str, tmp_path: Path) -> None:
    # The engine had memory for the read and Python has none for its bytes: a MemoryError of that
    # one, in a drain as at an await that finds the answer.
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 64 << 20)
    script = """
        import asyncio, resource, sys
        from pathlib import Path
        from millrace import IoEngine, IoSettings

        async def main():
            settings = IoSettings(backend=sys.argv[1], driver=sys.argv[2])
            async with IoEngine(settings=settings) as io, io.open(sys.argv[3]) as file:
                await io.read_at(file, 10, 0)
                used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
                resource.setrlimit(resource.RLIMIT_AS, (used + (13 << 20),) * 2)
                for wait_first in True, False:
                    reading = io.read_at(file, 8 << 20, 0)
                    while wait_first and io.statistics().pending:
                        await asyncio.sleep(0)
                    try:
                        await reading
                    except MemoryError:
                        print("none")
                    del reading
                assert await io.read_at(file, 10, 0) == bytes(10)

        asyncio.run(main())
    """
    settings = WAYS[way]
    done = _python(script, settings.backend, settings.driver, str(tmp_path / "f"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["none", "none"]


def test_closing_is_told_from_closed(engines: Engines) -> None:
    # While what was accepted is served, the engine says so.
    async def main() -> None:
        io = engines.make()
        with pair() as (left, right):
            receiving = asyncio.ensure_future(io.recv(right, 1))
            await until(lambda: io.statistics().in_flight == 1)
            closing = asyncio.ensure_future(io.close())
            await until(lambda: io.statistics().state != "open")
            assert io.statistics().state == "closing"
            assert "closing" in repr(io)
            left.sendall(b"x")
            assert await receiving == b"x"
            await closing
            assert io.statistics().state == "closed"

    asyncio.run(main())


def test_dropped_engines_hold_up_nobody(engines: Engines, tmp_path: Path) -> None:
    # Each has a receive that nobody feeds, so each takes its bound to end; a log does not notice.
    async def dropped(right: socket.socket) -> None:
        io = engines.make()
        receiving = io.recv(right, 1)
        await until(lambda: io.statistics().in_flight == 1)
        del receiving

    async def main() -> None:
        sockets = [socket.socketpair() for _ in range(6)]
        async with Log.open(tmp_path / "log") as log:
            await log.append(b"x")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _, right in sockets:
                    await dropped(right)
                gc.collect()
            begun = time.monotonic()
            assert [record.data async for record in log.read()] == [b"x"]
            assert time.monotonic() - begun < 4
        for left, right in sockets:
            left.close()
            right.close()

    asyncio.run(main())


def test_a_forked_child_cannot_use_what_it_inherited(engines: Engines, tmp_path: Path) -> None:
    # Every call raises; the child makes its own engine; the parent's lives on, also when the child
    # drops its copy.
    async def opened() -> tuple[IoEngine, File]:
        io = engines.make()
        return io, await io.open(tmp_path / "f", "w+")

    io, file = asyncio.run(opened())
    left, right = socket.socketpair()
    inherited: list[Operation[object]] = [io.recv(right, 4), io.send(left, b"sent")]

    def child() -> None:
        calls: list[Callable[[], object]] = [
            lambda: io.open(tmp_path / "g"),
            lambda: io.read_at(file, 1, 0),
            lambda: io.read_into(file, bytearray(1), 0),
            lambda: io.write_at(file, b"x", 0),
            lambda: io.sync(file),
            lambda: io.buffer(1),
            lambda: io.send(left, b"x"),
            lambda: io.recv(right, 1),
            lambda: io.unlink("x"),
            io.close,
            lambda: io._close_within(1),
            io.statistics,
            file.close,
        ]
        assert "forked" in repr(io)

        async def waits() -> None:
            for one in inherited:
                with pytest.raises(ForkedError):
                    await one

        asyncio.run(waits())
        for call in calls:
            with pytest.raises(ForkedError):
                call()

        async def own() -> bytes:
            async with engines.make() as mine, mine.open(tmp_path / "f", "r+") as again:
                await mine.write_at(again, b"child", 0)
                return await mine.read_at(again, 5, 0)

        assert asyncio.run(own()) == b"child"

    in_child(child)

    async def after() -> None:
        assert [await one for one in inherited] == [b"sent", 4]
        assert await io.read_at(file, 5, 0) == b"child"
        await io.send(left, b"parent")
        assert await io.recv(right, 6, exact=True) == b"parent"
        await file.close()
        await io.close()

    asyncio.run(after())
    left.close()
    right.close()


def _python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=_EXIT_S,
        check=False,
    )


_LEFT_OPEN = """
    import asyncio, socket, sys
    from millrace import IoEngine, IoSettings

    io = IoEngine(settings=IoSettings(backend=sys.argv[1], driver=sys.argv[2]))

    async def main():
        global file
        file = await io.open(sys.argv[3], "w+")
        await io.write_at(file, b"x" * 100, 0)

    asyncio.run(main())
    print("end")
"""


@pytest.mark.parametrize("way", WAYS)
def test_an_exit_with_an_engine_left_open(way: str, tmp_path: Path) -> None:
    # It is closed with a warning, within a bound, and the exit code is that of the program.
    settings = WAYS[way]
    done = _python(_LEFT_OPEN, settings.backend, settings.driver, str(tmp_path / "f"))
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert "unclosed I/O engine" in done.stderr
    assert "Fatal" not in done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_an_exit_with_a_receive_under_way(way: str) -> None:
    # Nobody will ever feed it: the exit takes its own bound, and not for ever.
    script = """
        import asyncio, socket, sys, threading
        from millrace import IoEngine, IoSettings

        io = IoEngine(settings=IoSettings(
            backend=sys.argv[1], driver=sys.argv[2], shutdown_timeout_s=0.1))
        left, right = socket.socketpair()

        async def main():
            task = asyncio.ensure_future(io.recv(right, 1))
            while io.statistics().in_flight == 0:
                await asyncio.sleep(0)
            print("flying", flush=True)
            loop.stop()

        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        loop.run_forever()
    """
    settings = WAYS[way]
    done = _python(script, settings.backend, settings.driver)
    assert (done.returncode, done.stdout) == (0, "flying\n"), done.stderr
    assert "Fatal" not in done.stderr


_ACCEPTED = """
    import asyncio, sys
    from millrace import IoEngine, IoSettings

    io = IoEngine(settings=IoSettings(backend=sys.argv[1], driver=sys.argv[2]))

    async def main():
        global file
        file = await io.open(sys.argv[3], "w+")
        writes = [io.write_at(file, b"x" * (1 << 20), n << 20, sync=True) for n in range(16)]
        if sys.argv[4] == "closing":
            closing = asyncio.ensure_future(io.close())
            await asyncio.sleep(0)
        return writes

    writes = asyncio.run(main())
    if sys.argv[4] == "kept":
        del io
    if sys.argv[4] == "dropped":
        del io, file
    del writes
"""


@pytest.mark.parametrize("how", ["closing", "dropped", "kept"])
@pytest.mark.parametrize("way", WAYS)
def test_an_exit_loses_no_write_that_was_accepted(way: str, how: str, tmp_path: Path) -> None:
    # Whether a close had begun, the engine was dropped with its file, or only the file is left.
    settings = WAYS[way]
    path = tmp_path / "f"
    done = _python(_ACCEPTED, settings.backend, settings.driver, str(path), how)
    assert done.returncode == 0, done.stderr
    assert "Fatal" not in done.stderr
    assert path.read_bytes() == b"x" * (16 << 20)


@pytest.mark.parametrize("way", WAYS)
def test_an_exit_with_many_engines_has_one_bound(way: str) -> None:
    # Each has a receive that nobody feeds; together they take what one of them takes.
    script = """
        import asyncio, atexit, socket, sys
        from millrace import IoEngine, IoSettings, _core

        atexit.register(_core.close_everything, 1.0)
        settings = IoSettings(backend=sys.argv[1], driver=sys.argv[2])
        engines = [IoEngine(settings=settings) for _ in range(24)]
        pairs = [socket.socketpair() for _ in engines]

        async def main():
            return [io.recv(right, 1) for io, (_, right) in zip(engines, pairs)]

        receives = asyncio.run(main())
    """
    settings = WAYS[way]
    begun = time.monotonic()
    done = _python(script, settings.backend, settings.driver)
    assert done.returncode == 0, done.stderr
    # One after the other they would take 24.
    assert time.monotonic() - begun < 20


def test_control_c_reaches_the_program(engines: Engines) -> None:
    # KeyboardInterrupt comes out of the loop, and the engine can still be closed.
    io = engines.make()
    with pair() as (_left, right):

        async def main() -> None:
            receiving = asyncio.ensure_future(io.recv(right, 1))
            await until(lambda: io.statistics().in_flight == 1)
            os.kill(os.getpid(), signal.SIGINT)
            await receiving

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())

    async def after() -> None:
        await until(lambda: io.statistics().pending == 0)
        await io.close()

    asyncio.run(after())


def test_an_engine_is_not_copied(any_engine: Engines) -> None:
    # Neither by pickle nor by copy.
    io = any_engine.make()
    for call in (lambda: pickle.dumps(io), lambda: copy.copy(io)):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            call()
    io._close_within(5)


def test_guard_bytes_around_everything(engines: Engines, tmp_path: Path) -> None:
    # An engine closed without patience while direct reads are in flight: what Python sees is
    # either untouched or right, and what it holds around it is never written.
    size, count = 1 << 18, 32
    data = bytes(range(256)) * (size // 256)
    (tmp_path / "f").write_bytes(data)

    async def main() -> None:
        io = engines.make()
        file = await io.open(tmp_path / "f", direct=True)
        whole = bytearray(b"\xee" * (size + 128) * count)
        view = memoryview(whole)
        spots = [(size + 128) * n + 64 for n in range(count)]
        reads = [asyncio.ensure_future(io.read_into(file, view[at : at + size], 0)) for at in spots]
        closing = asyncio.ensure_future(io.close(timeout_s=0))
        answers = await asyncio.gather(*reads, return_exceptions=True)
        await closing
        await file.close()
        for at, answer in zip(spots, answers, strict=True):
            assert whole[at - 64 : at] == b"\xee" * 64
            assert whole[at + size : at + size + 64] == b"\xee" * 64
            inside = bytes(whole[at : at + size])
            assert inside == (data if answer == size else b"\xee" * size)

    asyncio.run(main())


def test_liveness_of_a_full_table(engines: Engines) -> None:
    # Two receives fill a table of two, and the sends that would feed them wait behind: only a
    # deadline frees it, as the documentation says.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = [
                asyncio.ensure_future(io.recv(right, 1, timeout_s=0.1)),
                asyncio.ensure_future(io.recv(right, 1, timeout_s=0.1)),
            ]
            await until(lambda: io.statistics().pending == 2)
            assert await io.send(left, b"x") == 1
            outcomes = await asyncio.gather(*receiving, return_exceptions=True)
            assert sum(isinstance(one, IoTimeout) for one in outcomes) >= 1

    engines.run(main, size=2)


def test_slow_operations_are_told(engines: Engines, tmp_path: Path) -> None:
    # A storage operation that hangs is logged while it hangs, and once more when it is over, with
    # its file, byte for byte.
    path = os.fsencode(tmp_path) + b"/f \xff"

    async def main(io: IoEngine, records: list[logging.LogRecord]) -> None:
        with leased(Path(os.fsdecode(path))):
            opening = asyncio.ensure_future(io.open(path))
            await until(lambda: len(records) >= 1)
            await until(lambda: io.statistics().slow_now == 1)
        await (await opening).close()
        await until(lambda: io.statistics().slow_now == 0)

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("millrace.io"), Kept()
    logger.addHandler(handler)
    try:
        engines.run(lambda io: main(io, records), slow_after_s=0.02)
    finally:
        logger.removeHandler(handler)
    texts = [record.getMessage() for record in records]
    where = re.escape(repr(os.fsdecode(path)))
    assert re.fullmatch(rf"slow name on {where}: \d+\.\d+ s, and it goes on", texts[0])
    assert re.fullmatch(rf"slow name on {where}: \d+\.\d+ s, and it is over", texts[-1])
    for record in records:
        told = vars(record)
        assert (told["operation"], os.fsencode(told["path"]), told["offset"]) == (
            "name",
            path,
            None,
        )
        assert told["age_s"] >= 0.02
    assert [vars(records[at])["is_over"] for at in (0, -1)] == [False, True]
    assert {record.levelno for record in records} == {logging.WARNING}


def test_a_slow_one_that_nobody_waits_for_is_told(engines: Engines, tmp_path: Path) -> None:
    # Its task was cancelled while it hung: whoever looks at the numbers has it logged, with its
    # file.
    async def main(io: IoEngine, records: list[logging.LogRecord]) -> None:
        with leased(tmp_path / "f"):
            opening = asyncio.ensure_future(io.open(tmp_path / "f"))
            await until(lambda: io.statistics().in_flight == 1)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await until(lambda: io.statistics().slow == 1)
        await until(lambda: io.statistics().slow_now == 0 and len(records) >= 2)
        told = [vars(record) for record in records]
        assert [one["is_over"] for one in told] == [False, True]
        assert {one["path"] for one in told} == {str(tmp_path / "f")}

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("millrace.io"), Kept()
    logger.addHandler(handler)
    try:
        engines.run(lambda io: main(io, records), slow_after_s=0.2)
    finally:
        logger.removeHandler(handler)


def test_statistics_add_up(engines: Engines, tmp_path: Path) -> None:
    # Plain numbers: what was submitted is over, times are counted for each kind.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            for n in range(10):
                await io.write_at(file, b"x", n)
            await io.sync(file)
        # The last answer is given before the numbers are told.
        await until(lambda: io.statistics().pending == 0)
        seen = io.statistics()
        assert (seen.submitted, seen.completed, seen.failed) == (13, 13, 0)
        assert (seen.pending, seen.in_flight, seen.state) == (0, 0, "open")
        assert (seen.backend, seen.driver) == (
            io.backend.name,
            "loop" if engines.settings.driver == "loop" else "thread",
        )
        assert seen.device_time["write"].count == 10
        assert seen.device_time["sync"].count == seen.queue_wait["sync"].count == 1
        times = seen.device_time["write"]
        assert 0 < times.quantile_s(0.5) <= times.quantile_s(1.0) == times.max_s
        assert sum(count for _, count in times.buckets) == 10
        with pytest.raises(AttributeError):
            seen.pending = 3  # type: ignore[misc]

    engines.run(main)


def test_an_idle_engine_sleeps(engines: Engines, tmp_path: Path) -> None:
    # No wake-ups and no processor time, also after a deadline and a storage operation.
    async def main(io: IoEngine) -> None:
        with pair() as (_left, right):
            with pytest.raises(IoTimeout):
                await io.recv(right, 1, timeout_s=0.01)
            await io.stat(tmp_path)
            await until(lambda: io.statistics().pending == 0)

            def switches() -> int:
                total = 0
                for task in Path("/proc/self/task").iterdir():
                    found = re.search(r"\nvoluntary\D+(\d+)", (task / "status").read_text())
                    total += int(found[1]) if found else 0
                return total

            # What watches for slow operations looks once more a second after the last one.
            await asyncio.sleep(1.2)
            before = switches()
            await asyncio.sleep(0.5)
            assert switches() - before <= 4

    engines.run(main)


def test_a_waiting_program_can_be_made_full(engines: Engines) -> None:
    # The helper that other tests lean on: with size 1, one receive keeps all others out.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            async with full(io):
                waiting = asyncio.ensure_future(io.send(left, b"x"))
                await until(lambda: io.statistics().pending == 2)
                assert io.statistics().in_flight == 1
                right.settimeout(0)
                with pytest.raises(BlockingIOError):
                    right.recv(1)
            assert await waiting == 1

    engines.run(main, size=1)


def test_the_default_is_a_thread() -> None:
    # `auto` starts as a thread.
    io = IoEngine(settings=IoSettings())
    assert io.statistics().driver == "thread"
    io._close_within(5)
