"""Cancelling, at every stage: reads and receives are given up, writes and syncs go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import pytest
from io_engines import full, is_open, pair, until

if TYPE_CHECKING:
    from pathlib import Path

    from io_engines import Engines

    from millrace import IoEngine


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_receive_in_flight_is_given_up(engines: Engines) -> None:
    # The place is free again, and what comes next is for the next receive.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            for n in range(10):
                task = asyncio.ensure_future(io.recv(right, 100))
                await until(lambda: io.statistics().in_flight == 1)
                await _cancel(task)
                await until(lambda: io.statistics().pending == 0)
                assert io.statistics().orphaned == n + 1
            left.sendall(b"kept")
            assert await io.recv(right, 100) == b"kept"

    engines.run(main)


def test_a_receive_awaited_by_a_task_is_given_up(engines: Engines) -> None:
    # The same when the cancelled task is a coroutine around it, as in `wait_for`.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):

            async def receive() -> bytes:
                return await io.recv(right, 100)

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await io.recv(right, 100)
            await until(lambda: io.statistics().pending == 0)
            left.sendall(b"kept")
            assert await io.recv(right, 100) == b"kept"

    engines.run(main)


def test_a_receive_waiting_for_admission_is_taken_back(engines: Engines) -> None:
    # It never reaches the kernel.
    async def main(io: IoEngine) -> None:
        async with full(io):
            with pair() as (left, right):
                task = asyncio.ensure_future(io.recv(right, 100))
                await until(lambda: io.statistics().pending == 2)
                left.sendall(b"kept")
                await _cancel(task)
                await until(lambda: io.statistics().pending == 1)
                assert io.statistics().cancelled_before == 1
                assert right.recv(100) == b"kept"

    engines.run(main, size=1)


def test_a_receive_that_was_closed_before_it_was_awaited(engines: Engines) -> None:
    # `close()` on what the call returned gives it up too.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            io.recv(right, 100).close()
            await until(lambda: io.statistics().pending == 0)
            left.sendall(b"kept")
            assert await io.recv(right, 100) == b"kept"

    engines.run(main)


def test_a_receive_that_was_answered_and_not_yet_delivered(engines: Engines) -> None:
    # The answer is on its way to the loop: cancelling leaves it to the next receive.
    async def main(io: IoEngine) -> None:
        with pair() as (left, right):
            task = asyncio.ensure_future(io.recv(right, 3))
            await until(lambda: io.statistics().in_flight == 1)
            completed = io.statistics().completed
            left.sendall(b"one")
            if io.statistics().driver == "thread":
                # Not a turn of this loop: the engine's thread answers by itself.
                while io.statistics().completed == completed:
                    pass
            await _cancel(task)
            await until(lambda: io.statistics().pending == 0)
            left.sendall(b"two")
            assert await io.recv(right, 6, exact=True) == b"onetwo"

    engines.run(main)


def test_a_cancelled_read_changes_nothing(engines: Engines, tmp_path: Path) -> None:
    # Its memory stays with the engine until the kernel is done; buffers of the caller stay as
    # they were, and an engine buffer is free again.
    (tmp_path / "f").write_bytes(b"x" * (4 << 20))

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", direct=True) as file:
            target, mine = bytearray(1 << 20), io.buffer(1 << 20)
            for _ in range(20):
                for call in (
                    io.read_at(file, 1 << 20, 0),
                    io.read_into(file, target, 0),
                    io.read_into(file, mine, 0),
                ):
                    task = asyncio.ensure_future(call)
                    del call
                    await asyncio.sleep(0)
                    if not task.done():
                        await _cancel(task)
                    del task
            await until(lambda: io.statistics().pending == 0)
            assert target in (bytearray(1 << 20), b"x" * (1 << 20))
            assert await io.read_into(file, mine, 0) == 1 << 20
            assert io.statistics().leaked_requests == 0

    engines.run(main)


def test_a_cancelled_write_is_still_written(engines: Engines, tmp_path: Path) -> None:
    # In flight or waiting for admission: cancelling ends the wait, not the write.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            async with full(io):
                tasks = [
                    asyncio.ensure_future(io.write_at(file, b"data", 10 * n)) for n in range(20)
                ]
                syncing = asyncio.ensure_future(io.sync(file))
                await until(lambda: io.statistics().pending >= 20)
                for task in [*tasks, syncing]:
                    await _cancel(task)
            await until(lambda: io.statistics().pending == 0)
            assert await io.read_at(file, 194, 0) == (b"data" + bytes(6)) * 19 + b"data"

    engines.run(main, size=1)


def test_a_cancelled_write_in_flight_is_still_written(engines: Engines, tmp_path: Path) -> None:
    # The same without a queue before it.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            task = asyncio.ensure_future(io.write_at(file, b"d" * 100_000, 0, sync=True))
            await asyncio.sleep(0)
            # On a fast device it may be over already.
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await until(lambda: io.statistics().pending == 0)
            assert (tmp_path / "f").stat().st_size == 100_000

    engines.run(main)


def test_operations_work_with_everything_asyncio_offers(engines: Engines, tmp_path: Path) -> None:
    # gather, TaskGroup, shield, wait_for and as_completed all take what the calls return.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            await asyncio.gather(*(io.write_at(file, b"%d" % n, n) for n in range(10)))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(io.read_at(file, 1, n)) for n in range(10)]
            assert b"".join(task.result() for task in tasks) == b"0123456789"
            assert await asyncio.shield(io.read_at(file, 2, 3)) == b"34"
            assert await asyncio.wait_for(io.read_at(file, 2, 5), 10) == b"56"
            reading = io.read_at(file, 1, 0)
            await reading
            with pytest.raises(RuntimeError, match="cannot reuse"):
                await reading
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(io.open(tmp_path / "f")) for _ in range(3)]
        opened = [task.result() for task in opening]
        opened += await asyncio.gather(io.open(tmp_path / "f"), io.open(tmp_path / "f"))
        opened.append(await asyncio.wait_for(io.open(tmp_path / "f"), 10))
        for file in opened:
            assert await io.read_at(file, 2, 3) == b"34"
            await file.close()

    engines.run(main)


def test_a_task_that_opens_is_cancelled_before_its_first_step(
    engines: Engines, tmp_path: Path
) -> None:
    # The open goes on, and what it opened is closed: nobody else could.
    async def main(io: IoEngine) -> None:
        (tmp_path / "f").touch()
        for steps in range(3):
            task = asyncio.get_running_loop().create_task(io.open(tmp_path / "f"))
            for _ in range(steps - 1):
                await asyncio.sleep(0)
            if not task.cancel():
                await (await task).close()
            else:
                with contextlib.suppress(asyncio.CancelledError):
                    await (await task).close()
            del task
            await until(lambda: io.statistics().pending == 0)
        gc.collect()
        await until(lambda: not is_open(tmp_path / "f"))

    engines.run(main)
