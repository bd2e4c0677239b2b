"""Sockets: sending, receiving, deadlines, and who owns the descriptor."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from io_engines import descriptors, full, pair, until

from millrace import EndOfStream, IoEngine, IoError, IoTimeout

if TYPE_CHECKING:
    from io_engines import Engines


@pytest.mark.parametrize("wait_s", [None, 0])
def test_an_exact_receive_over_partial_progress(engines: Engines, wait_s: int | None) -> None:
    # Bytes that come in pieces are put together; also on the non-blocking sockets of asyncio.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.settimeout(wait_s)
            right.settimeout(wait_s)
            receiving = asyncio.ensure_future(io.recv(right, 10, exact=True))
            for piece in (b"012", b"3", [b"45", b"6789"]):
                await until(lambda: io.statistics().in_flight >= 1)
                assert not receiving.done()
                await io.send(left, piece)
            assert await receiving == b"0123456789"

    engines.run(main)


def test_a_receive_takes_what_comes_first(engines: Engines) -> None:
    # Without `exact` the first bytes are the answer, and the rest stays for the next one.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            assert await io.send(left, b"abcdef") == 6
            assert await io.recv(right, 4) == b"abcd"
            assert await io.recv(right, 100) == b"ef"

    engines.run(main)


def test_more_than_the_kernel_takes_at_once(engines: Engines) -> None:
    # A send is answered when all bytes are gone, a receive of as many when all have come.
    data = os.urandom(3 << 20)

    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.settimeout(0)
            sending = io.send(left, data)
            receiving = io.recv(right, len(data), exact=True)
            sent, received = await asyncio.gather(sending, receiving)
            assert (sent, received) == (len(data), data)

    engines.run(main)


def test_the_end_of_a_stream(engines: Engines) -> None:
    # The peer's end is an EndOfStream that says how much had come, which one that takes fewer gets;
    # a closed peer is EPIPE.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.sendall(b"abc")
            left.close()
            with pytest.raises(EndOfStream) as caught:
                await io.recv(right, 10, exact=True)
            assert (caught.value.got, caught.value.wanted) == (3, 10)
            assert await io.recv(right, 10) == b"abc"
            with pytest.raises(EndOfStream):
                await io.recv(right, 10)
            with pytest.raises(IoError) as refused:
                await io.send(right, b"x" * 100_000)
            assert isinstance(refused.value, OSError)

    engines.run(main)


def test_sends_on_one_socket_do_not_mix(engines: Engines) -> None:
    # However the kernel cuts them up, the bytes of one send are together, in the calls' order.
    length = 1 << 20

    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = io.recv(right, 3 * length, exact=True)
            sending = [io.send(left, bytes([65 + n]) * length) for n in range(3)]
            assert await asyncio.gather(*sending) == [length] * 3
            seen = await receiving
            assert seen == b"A" * length + b"B" * length + b"C" * length

    engines.run(main)


def test_receives_on_one_socket_take_whole_messages(engines: Engines) -> None:
    # The first receive has all of its bytes before the second has any, in whatever pieces they
    # come; one that is given up takes nothing from those behind it.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = [asyncio.ensure_future(io.recv(right, 10, exact=True)) for _ in range(4)]
            await until(lambda: io.statistics().in_flight == 4)
            receiving[1].cancel()
            for piece in b"aaaaa", b"aaaaabb", b"bbbbbbbbccccc", b"ccccc":
                await io.send(left, piece)
                for _ in range(20):
                    await asyncio.sleep(0)
            del receiving[1]
            expected = [b"a" * 10, b"b" * 10, b"c" * 10]
            assert await asyncio.gather(*receiving) == expected

    engines.run(main)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_that_keep_messages_apart_are_refused(any_engine: Engines, kind: int) -> None:
    # An engine of streams would glue messages together and cut them.
    async def main(io: IoEngine) -> None:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        with left, right:
            for call in (lambda: io.send(left, b"x"), lambda: io.recv(right, 1)):
                with pytest.raises(ValueError, match="only stream sockets"):
                    call()

    any_engine.run(main)


def test_a_receive_on_a_socket_that_listens_is_refused(engines: Engines) -> None:
    # Nothing will ever come there: an error at once, on every backend.
    async def main(io: IoEngine) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            with pytest.raises(IoError) as caught:
                await io.recv(server, 1)
            assert (caught.value.errno, caught.value.operation) == (errno.ENOTCONN, "recv")

    engines.run(main)


def test_a_receive_that_waits_takes_no_memory(engines: Engines) -> None:
    # A gigabyte may be asked for, and comes page by page with the bytes.
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            before = resident()
            receiving = asyncio.ensure_future(io.recv(right, 1 << 30))
            await until(lambda: io.statistics().in_flight == 1)
            await io.send(left, b"")
            assert resident() < before + (64 << 20)
            left.sendall(b"few")
            assert await receiving == b"few"

    engines.run(main)


def test_a_socket_closed_under_a_receive_lives_until_that_is_over(engines: Engines) -> None:
    # The receive goes on; a shutdown ends it, and with it the connection.
    async def main(io: IoEngine) -> None:
        left, right = socket.socketpair()
        with left:
            receiving = asyncio.ensure_future(io.recv(right, 1))
            await until(lambda: io.statistics().in_flight == 1)
            right.close()
            left.sendall(b"x")
            assert await receiving == b"x"
            assert left.recv(1) == b""
        left, right = socket.socketpair()
        with left, right:
            receiving = asyncio.ensure_future(io.recv(right, 1))
            await until(lambda: io.statistics().in_flight == 1)
            right.shutdown(socket.SHUT_RDWR)
            with pytest.raises(EndOfStream):
                await receiving

    engines.run(main)


def test_many_receives_on_few_sockets_in_order(engines: Engines) -> None:
    # Receives on one socket are served in the order of the calls, however the bytes come.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            receiving = [io.recv(right, 4, exact=True) for _ in range(50)]
            answers = asyncio.gather(*receiving)
            stream = b"".join(b"%4d" % n for n in range(50))
            for at in range(0, len(stream), 7):
                left.sendall(stream[at : at + 7])
                await asyncio.sleep(0)
            assert await answers == [b"%4d" % n for n in range(50)]

    engines.run(main)


def test_a_receive_times_out_in_flight(engines: Engines) -> None:
    # Not before the deadline, not much later, and no byte that comes afterwards is swallowed.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            begun = time.monotonic()
            with pytest.raises(IoTimeout) as caught:
                await io.recv(right, 4, timeout_s=0.05)
            assert time.monotonic() - begun >= 0.05
            assert isinstance(caught.value, TimeoutError)
            assert not caught.value.indeterminate
            await until(lambda: io.statistics().in_flight == 0)
            left.sendall(b"late")
            assert await io.recv(right, 4) == b"late"
            assert io.statistics().timed_out == 1

    engines.run(main)


def test_an_exact_receive_times_out_over_partial_progress(engines: Engines) -> None:
    # Half of it came: that is a timeout which says so (`done`), and the half is first in line for
    # the next receive.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            left.sendall(b"half")
            done = 0
            while not done:
                # On a busy machine the time may be over before anything was taken.
                with pytest.raises(IoTimeout) as caught:
                    await io.recv(right, 8, exact=True, timeout_s=0.05)
                done = caught.value.done or 0
            assert done == 4
            await until(lambda: io.statistics().in_flight == 0)
            left.sendall(b"new")
            assert await io.recv(right, 7, exact=True) == b"halfnew"

    engines.run(main)


def test_a_send_that_times_out_may_have_sent(engines: Engines) -> None:
    # The peer takes nothing: the timeout of something that changes the world is indeterminate.
    async def main(io: IoEngine) -> None:
        with pair() as (left, _right):
            with pytest.raises(IoTimeout) as caught:
                await io.send(left, bytes(8 << 20), timeout_s=0.05)
            assert caught.value.indeterminate

    engines.run(main)


def test_a_deadline_while_waiting_for_admission(engines: Engines) -> None:
    # The engine is full: the deadline ends the wait, nothing was submitted, nothing is lost.
    async def main(io: IoEngine) -> None:
        async with full(io):
            with pair() as (left, right):
                left.sendall(b"here")
                with pytest.raises(IoTimeout) as caught:
                    await io.send(right, b"never", timeout_s=0.02)
                assert not caught.value.indeterminate
                with pytest.raises(IoTimeout):
                    await io.recv(right, 4, timeout_s=0.02)
                assert io.statistics().cancelled_before == 2
                assert right.recv(4) == b"here"
                left.settimeout(0)
                with pytest.raises(BlockingIOError):
                    left.recv(1)

    engines.run(main, size=1)


def test_a_storm_of_deadlines_through_a_small_table(engines: Engines) -> None:
    # Many more timed receives than places: each times out, none early, and the engine is free
    # afterwards.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):

            async def one(after_s: float) -> float:
                begun = time.monotonic()
                with pytest.raises(IoTimeout):
                    await io.recv(right, 1, timeout_s=after_s)
                return time.monotonic() - begun - after_s

            late = await asyncio.gather(*(one(0.001 * n) for n in range(200)))
            assert min(late) >= 0
            assert io.statistics().timed_out == 200
            await until(lambda: io.statistics().pending == 0)
            await io.send(left, b"y")
            assert await io.recv(right, 1) == b"y"

    engines.run(main, size=8)


def test_closing_a_socket_closes_the_connection(engines: Engines) -> None:
    # Our duplicate lives only while something is under way: the peer sees the end at once.
    async def main(io: IoEngine) -> None:
        left, right = socket.socketpair()
        with right:
            await io.send(left, b"x")
            left.close()
            assert await io.recv(right, 1) == b"x"
            with pytest.raises(EndOfStream):
                await io.recv(right, 1, timeout_s=10)

    engines.run(main)


def test_a_number_that_is_reused_is_another_socket(engines: Engines) -> None:
    # A socket is closed while a receive on it is under way, and its number goes to another one:
    # requests on the new one reach the new one.
    async def main(io: IoEngine) -> None:
        first_left, first_right = socket.socketpair()
        pending = asyncio.ensure_future(io.recv(first_right, 1))
        await until(lambda: io.statistics().in_flight == 1)
        number = first_right.fileno()
        first_right.close()
        left, right = socket.socketpair()
        with left, right, first_left:
            reused = left if left.fileno() == number else right
            other = right if reused is left else left
            assert reused.fileno() == number
            other.sendall(b"new")
            assert await io.recv(reused, 3) == b"new"
            first_left.sendall(b"o")
            assert await pending == b"o"

    engines.run(main)


def test_thousands_of_receives_need_one_descriptor_each_socket(engines: Engines) -> None:
    # However many requests wait on a socket, it is duplicated once.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            before = descriptors()
            receiving = [asyncio.ensure_future(io.recv(right, 1)) for _ in range(2000)]
            await until(lambda: io.statistics().pending == 2000)
            assert descriptors() < before + 20
            left.sendall(b"z" * 2000)
            assert await asyncio.gather(*receiving) == [b"z"] * 2000

    engines.run(main, size=64)


def test_a_socket_that_speaks_tls_is_refused(any_engine: Engines) -> None:
    # Plain bytes on an encrypted connection would break it, silently.
    async def main(io: IoEngine) -> None:
        with pair() as (left, _right):
            left.settimeout(0)
            context = ssl.create_default_context()
            context.check_hostname = False
            wrapped = context.wrap_socket(left, do_handshake_on_connect=False)
            with wrapped, pytest.raises(TypeError, match="TLS"):
                io.send(wrapped, b"plain")

    any_engine.run(main)
