"""Receives that are given up: what had come to them is for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from io_engines import pair, until

from millrace import EndOfStream, IoEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from io_engines import Engines

COUNT = 4000


async def _timeout(receive: Callable[[], Awaitable[bytes]]) -> bytes:
    async with asyncio.timeout(0.0005):
        return await receive()


async def _wait_for(receive: Callable[[], Awaitable[bytes]]) -> bytes:
    return await asyncio.wait_for(receive(), 0.0005)


async def _cancel_soon(receive: Callable[[], Awaitable[bytes]]) -> bytes:
    async def whole() -> bytes:
        return await receive()

    task = asyncio.ensure_future(whole())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        raise TimeoutError from None


def _send_numbers(to: socket.socket) -> None:
    for n in range(COUNT):
        to.sendall(b"%04d" % n)
        if n % 50 == 0:
            os.sched_yield()
    to.close()


@pytest.mark.parametrize("bound", [_timeout, _wait_for, _cancel_soon])
@pytest.mark.parametrize("length", [4096, 16])
def test_no_byte_of_a_stream_is_lost(engines: Engines, bound: Any, length: int) -> None:
    # A peer that never pauses, and receives that are cancelled at every stage all the time: the
    # bytes that come out are the bytes that went in, in their order.
    exact = length == 16

    async def main(io: IoEngine) -> None:
        left, right = socket.socketpair()
        with right:
            sending = threading.Thread(target=_send_numbers, args=(left,))
            sending.start()
            seen, has_ended = bytearray(), False
            while not has_ended:
                try:
                    seen += await bound(lambda: io.recv(right, length, exact=exact))
                except TimeoutError:
                    pass
                except EndOfStream as end:
                    has_ended = end.got == 0
            sending.join()
            assert seen == b"".join(b"%04d" % n for n in range(COUNT))

    engines.run(main)


def _is_taken(sock: socket.socket) -> bool:
    """Whether the kernel has nothing left for *sock*."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    return False


async def _give_up(task: asyncio.Future[bytes]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_part_of_an_exact_receive_is_first_in_line(engines: Engines) -> None:
    # Half of it had come: the next receive begins with that half, and asks the kernel for the rest.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.sendall(b"half")
            first = asyncio.ensure_future(io.recv(right, 8, exact=True))
            await until(lambda: _is_taken(right))
            await _give_up(first)
            assert await io.recv(right, 3) == b"hal"
            left.sendall(b" and half")
            assert await io.recv(right, 10, exact=True) == b"f and half"

    engines.run(main)


def test_one_that_stands_in_line_takes_over(engines: Engines) -> None:
    # It waits behind the one that is given up, and gets what that had, though nothing else comes.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.sendall(b"half")
            first = asyncio.ensure_future(io.recv(right, 8, exact=True))
            await until(lambda: _is_taken(right))
            second = asyncio.ensure_future(io.recv(right, 2))
            third = asyncio.ensure_future(io.recv(right, 8))
            await until(lambda: io.statistics().pending == 3)
            await _give_up(first)
            assert await asyncio.wait_for(second, 10) == b"ha"
            assert await asyncio.wait_for(third, 10) == b"lf"

    engines.run(main)


def test_an_answer_that_found_its_task_cancelled(engines: Engines) -> None:
    # It was handed to the loop already, and the task is cancelled before it runs again.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = io.recv(right, 100)
            future: Any = receiving.send(None)
            future._asyncio_future_blocking = False
            left.sendall(b"kept")
            await asyncio.wait([future])
            with pytest.raises(asyncio.CancelledError):
                receiving.throw(asyncio.CancelledError())
            assert await io.recv(right, 100) == b"kept"

    engines.run(main)


def test_an_answer_that_nobody_fetched(engines: Engines) -> None:
    # The engine had answered, and the loop had not looked yet, when the task was cancelled: the
    # bytes are not lost between the two.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            for n in range(20):
                before = io.statistics().completed
                receiving = asyncio.ensure_future(io.recv(right, 100))
                await until(lambda: io.statistics().in_flight == 1)
                left.sendall(b"%d" % n)
                # Nothing of the loop runs in here.
                while io.statistics().completed == before:
                    os.sched_yield()
                await _give_up(receiving)
                assert await io.recv(right, 100, timeout_s=10) == b"%d" % n

    engines.run(main)


def test_a_receive_that_is_dropped_takes_nothing(engines: Engines) -> None:
    # Nobody ever awaited it: there is a warning, and the bytes are there for the next one. Nothing
    # was under way in between.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            with pytest.warns(RuntimeWarning, match="never awaited"):
                io.recv(right, 100)
            left.sendall(b"kept")
            await until(lambda: io.statistics().pending == 0)
            await asyncio.sleep(0)
            assert await io.recv(right, 100) == b"kept"

    engines.run(main)


def test_one_that_is_dropped_leaves_what_comes_later_to_the_next(engines: Engines) -> None:
    # It was under way already when it was dropped, and the next one was asked for before the peer
    # sent anything: that one gets the first bytes, not those behind them.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = io.recv(right, 100)
            await until(lambda: io.statistics().in_flight == 1)
            with pytest.warns(RuntimeWarning, match="never awaited"):
                del receiving
            following = asyncio.ensure_future(io.recv(right, 100))
            await asyncio.sleep(0.01)
            left.sendall(b"one")
            assert await asyncio.wait_for(following, 10) == b"one"

    engines.run(main)


def test_two_that_are_cancelled_together_leave_all_they_had(engines: Engines) -> None:
    # The end of a task group: the second stands in line behind the first, which has a part.
    async def cancel_both(io: IoEngine, left: socket.socket, right: socket.socket) -> None:
        left.sendall(b"part")
        asked = [io.recv(right, 100, exact=exact) for exact in (True, False)]
        tasks = [asyncio.ensure_future(one) for one in asked]
        await until(lambda: _is_taken(right))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def main(io: IoEngine) -> None:
        for _ in range(50):
            with pair() as (left, right):
                await cancel_both(io, left, right)
                left.sendall(b"rest")
                assert await asyncio.wait_for(io.recv(right, 8, exact=True), 10) == b"partrest"

    engines.run(main)


def test_the_end_of_a_stream_takes_nothing_with_it(engines: Engines) -> None:
    # An exact receive that the peer cannot fill any more says so, as often as it is asked for; the
    # bytes are for one that takes fewer.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.sendall(b"part")
            left.shutdown(socket.SHUT_WR)
            for _ in range(2):
                with pytest.raises(EndOfStream) as caught:
                    await io.recv(right, 8, exact=True)
                assert (caught.value.got, caught.value.wanted) == (4, 8)
            assert await io.recv(right, 8) == b"part"
            with pytest.raises(EndOfStream) as caught:
                await io.recv(right, 8)
            assert caught.value.got == 0

    engines.run(main)


async def _leave_part(io: IoEngine, left: socket.socket, right: socket.socket) -> None:
    left.sendall(bytes(100_000))
    task = asyncio.ensure_future(io.recv(right, 200_000, exact=True))
    await until(lambda: _is_taken(right))
    await _give_up(task)
    await until(lambda: io.statistics().pending == 0)


def test_bytes_of_closed_sockets_are_let_go(engines: Engines) -> None:
    # However many sockets came and went, not much more is held than what waits on open ones, though
    # they are fewer than a sweep for the sake of their number takes; and nothing once the engine is
    # closed.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            await _leave_part(io, left, right)
            assert io.statistics().kept_bytes == 100_000
            most = 0
            for _ in range(60):
                with pair() as (other, closed):
                    await _leave_part(io, other, closed)
                    most = max(most, io.statistics().kept_bytes)
            assert 200_000 <= most <= 2_000_000
            assert io.statistics().kept_bytes >= 100_000
            assert await io.recv(right, 100_000, exact=True) == bytes(100_000)
            await _leave_part(io, left, right)
            await io.close()
            # A thread of the engine may just be letting go of the socket.
            await until(lambda: io.statistics().kept_bytes == 0)

    engines.run(main)


def test_what_is_kept_goes_with_its_socket(engines: Engines) -> None:
    # Another socket under the same number sees nothing of it; and a thousand sockets that came and
    # went do not hide what a living one still has.
    async def main(io: IoEngine) -> None:
        async def leave_a_part(left: socket.socket, right: socket.socket) -> None:
            left.sendall(b"part")
            task = asyncio.ensure_future(io.recv(right, 8, exact=True))
            await until(lambda: _is_taken(right))
            await _give_up(task)
            await until(lambda: io.statistics().pending == 0)

        with pair() as (kept_left, kept_right):
            await leave_a_part(kept_left, kept_right)
            for _ in range(200):
                with pair() as (left, right):
                    await leave_a_part(left, right)
                with pair() as (left, right):
                    left.sendall(b"new")
                    assert await io.recv(right, 8) == b"new"
            with contextlib.closing(kept_left):
                assert await io.recv(kept_right, 8) == b"part"

    engines.run(main)
