"""The ring offered alone."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest

from millrace import (
    AbandonedError,
    Backpressure,
    ClosedError,
    ForkedError,
    IoTimeout,
    OverloadedError,
    Ring,
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def _let_everything_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_entries_come_out_in_order_and_are_answered() -> None:
    # Positions are dense, a drain gives them in order, and an answer reaches the ticket.
    ring = Ring(8)
    tickets = [ring.try_append(b"%d" % number) for number in range(5)]
    assert [ticket.position for ticket in tickets] == [0, 1, 2, 3, 4]
    assert not any(ticket.done() for ticket in tickets)
    first, *rest = ring.drain(2) + ring.drain()
    assert [entry.data for entry in (first, *rest)] == [b"0", b"1", b"2", b"3", b"4"]
    assert ring.drain() == []
    for entry in (first, *rest):
        entry.complete()
    assert [await ticket for ticket in tickets] == [0, 1, 2, 3, 4]
    assert [await ticket for ticket in tickets] == [ticket.wait() for ticket in tickets]
    assert "done" in repr(tickets[0])


async def test_a_failure_is_the_waiters_exception() -> None:
    # Whoever waits gets the very exception; the first answer stays.
    ring = Ring(2)
    ticket = ring.try_append(b"x")
    waiting = asyncio.ensure_future(ticket)
    await _let_everything_run()
    [entry] = ring.drain()
    error = KeyError("no")
    entry.fail(error)
    entry.complete()
    entry.fail(ValueError("late"))
    with pytest.raises(KeyError) as caught:
        await waiting
    assert caught.value is error
    with pytest.raises(KeyError):
        ticket.wait()
    assert ring.statistics().late == 2
    with pytest.raises(TypeError, match="exception"):
        entry.fail("no exception")  # type: ignore[arg-type]


async def test_a_forgotten_entry_tells_its_waiter() -> None:
    # An entry that is dropped without an answer does not leave anybody waiting.
    ring = Ring(2)
    waiting = asyncio.ensure_future(ring.try_append(b"x"))
    await _let_everything_run()
    ring.drain()
    gc.collect()
    with pytest.raises(AbandonedError):
        await waiting
    assert ring.statistics().dropped == 1


async def test_full_means_full() -> None:
    # Nothing beyond the capacity enters, and nothing is lost by trying.
    ring = Ring(3)
    assert ring.capacity == 4
    tickets = [ring.try_append(b"x") for _ in range(4)]
    with pytest.raises(OverloadedError):
        ring.try_append(b"too many")
    with pytest.raises(IoTimeout):
        ring.append_blocking(b"too many", 0.01)
    assert len(ring) == 4
    for entry in ring.drain():
        entry.complete()
    assert all(ticket.done() for ticket in tickets)
    assert ring.try_append(b"room").position == 4
    assert ring.statistics().refused_full == 1


async def test_appends_in_line_keep_their_order() -> None:
    # While the ring is full, awaits queue first come first served, and nobody overtakes.
    ring = Ring(2)
    for _ in range(2):
        ring.try_append(b"")
    waiting = [asyncio.create_task(ring.append(b"%d" % number)) for number in range(4)]
    await _let_everything_run()
    assert not any(task.done() for task in waiting)
    with pytest.raises(OverloadedError):
        ring.try_append(b"overtaking")
    waiting[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]
    seen: list[bytes] = []
    while len(seen) < 5:
        assert await ring.wait()
        seen += [entry.data for entry in ring.drain()]
    assert seen == [b"", b"", b"0", b"2", b"3"]
    tickets = [await task for task in waiting if not task.cancelled()]
    assert [ticket.position for ticket in tickets] == [2, 3, 4]


async def test_cancelled_inside_a_task() -> None:
    # The same when the append is awaited by a coroutine rather than being the task.
    ring = Ring(2)
    for _ in range(2):
        ring.try_append(b"")

    async def inside() -> None:
        await ring.append(b"victim")

    task = asyncio.create_task(inside())
    await _let_everything_run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [entry.data for entry in ring.drain()] == [b"", b""]
    assert ring.drain() == []
    assert ring.statistics().cancelled == 1


async def test_the_consumer_sleeps_until_something_comes() -> None:
    # `wait` ends with the first append, from whatever thread it comes.
    ring = Ring(8)
    waiting = [asyncio.create_task(ring.wait()) for _ in range(2)]
    await _let_everything_run()
    assert not any(task.done() for task in waiting)
    thread = threading.Thread(target=ring.try_append, args=(b"x",))
    thread.start()
    assert await asyncio.gather(*waiting) == [True, True]
    thread.join()
    assert await ring.wait()
    assert len(ring.drain()) == 1


async def test_a_cancelled_wait_harms_nobody() -> None:
    # The consumer may give up waiting and come back.
    ring = Ring(8)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ring.wait(), 0.001)
    waiting = asyncio.create_task(ring.wait())
    await _let_everything_run()
    ring.try_append(b"x")
    assert await waiting


async def test_close_refuses_and_lets_drain() -> None:
    # After a close nothing enters, what is inside comes out, then `wait` says that it is over.
    ring = Ring(2)
    ring.try_append(b"1")
    ring.try_append(b"2")
    in_line = asyncio.create_task(ring.append(b"3"))
    await _let_everything_run()
    ring.close()
    ring.close()
    with pytest.raises(ClosedError):
        await in_line
    for call in (ring.try_append, ring.append, ring.append_blocking):
        with pytest.raises(ClosedError):
            call(b"4")
    assert await ring.wait()
    assert [entry.data for entry in ring.drain()] == [b"1", b"2"]
    assert not await ring.wait()
    assert "closed" in repr(ring)


async def test_close_wakes_the_consumer() -> None:
    # A consumer that sleeps learns of the end.
    ring = Ring(2)
    waiting = asyncio.create_task(ring.wait())
    await _let_everything_run()
    ring.close()
    assert not await waiting


def test_threads_and_a_loop(run: Run) -> None:
    # Threads block, a loop drains: everything arrives once, in each thread's order.
    ring = Ring(16, backpressure=Backpressure.high_throughput())
    count, threads = 500, 4

    def produce(name: int) -> None:
        for number in range(count):
            ring.append_blocking(b"%d:%d" % (name, number))

    async def consume() -> list[bytes]:
        seen: list[bytes] = []
        while await ring.wait():
            for entry in ring.drain():
                seen.append(entry.data)
                entry.complete()
        return seen

    producers = [threading.Thread(target=produce, args=(name,)) for name in range(threads)]

    def close_at_the_end() -> None:
        for producer in producers:
            producer.join()
        ring.close()

    closer = threading.Thread(target=close_at_the_end)
    for thread in (*producers, closer):
        thread.start()
    seen = run(consume())
    closer.join()
    for name in range(threads):
        mine = [data for data in seen if data.startswith(b"%d:" % name)]
        assert mine == [b"%d:%d" % (name, number) for number in range(count)]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0,), {}, ValueError),
        ((-1,), {}, ValueError),
        ((True,), {}, TypeError),
        ((1.0,), {}, TypeError),
        ((2**62,), {}, ValueError),
        ((4,), {"capacity_bytes": 0}, ValueError),
        ((4,), {"entry_bytes_max": "1"}, TypeError),
        ((4,), {"backpressure": 7}, TypeError),
        ((), {}, TypeError),
    ],
)
def test_rings_that_make_no_sense(
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    # Refused when it is made.
    with pytest.raises(error):
        Ring(*arguments, **options)


def test_no_memory_is_an_error_of_the_call() -> None:
    # For the ring itself, for an entry, and for the bytes that a drain shows: whoever appended that
    # one is told, and the ring goes on.
    script = """
        import mmap, resource
        from millrace import AbandonedError, Ring, TooLargeError
        MIB = 1 << 20
        large, half = mmap.mmap(-1, 128 * MIB), memoryview(mmap.mmap(-1, 40 * MIB))
        ring = Ring(8, capacity_bytes=1 << 30, entry_bytes_max=1 << 30)
        with open("/proc/self/statm") as sizes:
            used = int(sizes.read().split()[0]) * mmap.PAGESIZE
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MIB, hard))
        calls = [lambda: Ring(2**40)]
        calls += [lambda call=call: call(large) for call in (ring.try_append, ring.append)]
        calls += [lambda: ring.append_blocking(large)]
        for call in calls:
            try:
                call()
            except TooLargeError as refused:
                assert "no memory" in str(refused), refused
            else:
                raise AssertionError("taken")
        ticket = ring.try_append(half)
        try:
            ring.drain()
        except MemoryError:
            pass
        try:
            ticket.wait(60)
        except AbandonedError:
            pass
        assert ring.try_append(b"small").position == 1
        assert [entry.data for entry in ring.drain()] == [b"small"]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"initial_spins": 0}, ValueError),
        ({"max_spins": 5}, ValueError),
        ({"base_sleep_us": -1}, ValueError),
        ({"max_sleep_us": True}, TypeError),
        ({"max_sleep_us": 1.5}, TypeError),
    ],
)
def test_backpressure_that_makes_no_sense(
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    # Refused when it is made.
    with pytest.raises(error):
        Backpressure(**options)


def test_data_that_makes_no_sense() -> None:
    # As for the log: bytes-like and within the limits, else nothing enters.
    ring = Ring(4, capacity_bytes=100, entry_bytes_max=10)
    for call in (ring.try_append, ring.append, ring.append_blocking):
        with pytest.raises(TypeError, match="encode"):
            call("text")  # type: ignore[arg-type]
        with pytest.raises(TooLargeError, match="entry_bytes_max"):
            call(bytes(11))
    with pytest.raises(ValueError, match="timeout_s"):
        ring.append_blocking(b"x", -1)
    assert len(ring) == 0
    assert ring.statistics().refused_too_large == 3


def test_a_child_cannot_use_it() -> None:
    # A ring belongs to the process that made it.
    ring = Ring(4)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(ForkedError):
                ring.try_append(b"x")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
