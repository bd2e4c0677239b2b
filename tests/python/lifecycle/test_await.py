"""An operation as asyncio sees it: every way to await it, and to stop awaiting it."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import gc
import inspect
import time
import weakref
from typing import TYPE_CHECKING

import pytest
from bystander import Bystander

from millrace import Log, LogSettings, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    Run = Callable[[Coroutine[Any, Any, Any]], Any]


pytestmark = pytest.mark.usefixtures("each_driver")


async def _contents(directory: Path) -> list[bytes]:
    async with Log.open(directory) as log:
        return [record.data async for record in log.read()]


async def _let_everything_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_every_way_to_await(directory: Path, run: Run) -> None:
    # asyncio and uvloop take an operation wherever they take a coroutine.
    async def main() -> None:
        async with Log.open(directory) as log:
            assert await log.append(b"1") == 1
            assert await asyncio.create_task(log.append(b"2")) == 2
            assert await asyncio.gather(*(log.append(b"x") for _ in "34")) == [3, 4]
            assert await asyncio.wait_for(log.append(b"5"), 30) == 5
            assert await asyncio.shield(log.append(b"6")) == 6
            async with asyncio.TaskGroup() as group:
                task = group.create_task(log.append_many([b"7", b"8"]))
            assert task.result() == range(7, 9)
            async with asyncio.timeout(30):
                assert await log.append(b"9") == 9
            assert await asyncio.ensure_future(log.submit(b"10")) == 10
            done, _ = await asyncio.wait([asyncio.create_task(log.flush())])
            assert [task.result() for task in done] == [10]

    run(main())


async def test_it_looks_like_a_coroutine(directory: Path, held: LogSettings) -> None:
    # Structurally a coroutine, with a name that shows in the representation of a task.
    log = await Log.open(directory, settings=held)
    operation = log.append(b"x")
    assert isinstance(operation, collections.abc.Coroutine)
    assert inspect.isawaitable(operation)
    assert asyncio.iscoroutine(operation)
    assert "append() not awaited" in repr(operation)
    task = asyncio.create_task(operation)
    assert "append" in repr(task)
    await asyncio.sleep(0)
    assert "append() awaited" in repr(operation)
    await log.close()
    assert await task == 1
    assert "append() spent" in repr(operation)


async def test_it_is_awaited_once(directory: Path, held: LogSettings) -> None:
    # A second await fails at once and does not harm the first, over or not.
    log = await Log.open(directory, settings=held)
    over = log.append(b"x", durability="appended")
    await over
    waiting = log.append(b"y")
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0)
    for operation in (over, waiting):
        with pytest.raises(RuntimeError, match="already awaited"):
            await operation
    await log.close()
    with pytest.raises(RuntimeError, match="already awaited"):
        over.send(None)
    assert await task == 2
    assert await _contents(directory) == [b"x", b"y"]


async def test_cancelled_before_the_first_step(directory: Path, held: LogSettings) -> None:
    # The task never ran, but the call was made: the record is written.
    log = await Log.open(directory, settings=held)
    task = asyncio.create_task(log.append(b"x"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.close()
    assert await _contents(directory) == [b"x"]


@pytest.mark.parametrize("how", ["task", "inside a task"])
async def test_cancelled_in_the_ring(directory: Path, held: LogSettings, how: str) -> None:
    # Waiting stops, the write does not, and the late completion is passed over in silence.
    log = await Log.open(directory, settings=held)

    async def inside() -> None:
        await log.append(b"x")

    task = asyncio.create_task(log.append(b"x") if how == "task" else inside())
    other = asyncio.create_task(log.append(b"other"))
    await _let_everything_run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.close()
    assert await other in (1, 2)
    assert sorted(await _contents(directory)) == [b"other", b"x"]


@pytest.mark.parametrize("how", ["task", "inside a task"])
async def test_cancelled_in_line(directory: Path, held: LogSettings, how: str) -> None:
    # An append that stands in line is taken back: it is not written, those behind it move up.
    log = await Log.open(directory, settings=held)
    ticket = log.submit(b"1")

    async def inside(*batch: bytes) -> Any:
        return await log.append_many(batch)

    def start(*batch: bytes) -> asyncio.Task[Any]:
        many = how == "inside a task"
        return asyncio.create_task(inside(*batch) if many else log.append_many(batch))

    # One place is left: the pair waits for a second one, and who comes later waits behind it.
    victim, next_one = start(b"victim", b"and its second"), start(b"next")
    await _let_everything_run()
    assert log.last_lsn == 1
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    assert log.last_lsn == 2
    assert not next_one.done()
    await log.close()
    assert await next_one == range(2, 3)
    assert ticket.done()
    assert await _contents(directory) == [b"1", b"next"]


async def test_cancelled_in_line_before_the_first_step(
    directory: Path,
    held: LogSettings,
) -> None:
    # The same when the task has not even begun, and when nobody has awaited it at all.
    log = await Log.open(directory, settings=held)
    log.submit(b"1")
    task = asyncio.create_task(log.append_many([b"victim", b"and its second"]))
    by_hand = log.append_many([b"closed", b"by hand"])
    next_one = log.append(b"next")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.last_lsn == 1
    by_hand.close()
    assert log.last_lsn == 2
    await log.close()
    assert await next_one == 2
    assert await _contents(directory) == [b"1", b"next"]


async def test_the_line_moves_in_the_order_of_the_calls(
    directory: Path,
    held: LogSettings,
) -> None:
    # Awaited the other way round, what was called first still gets in and hears of it first.
    log = await Log.open(directory, settings=held)
    log.submit(b"1")
    head = asyncio.create_task(log.append_many([b"2", b"3"]))
    first = log.append(b"first", durability="appended")
    behind = asyncio.create_task(log.append_many([b"4", b"5"]))
    await _let_everything_run()
    before = asyncio.create_task(first)
    await _let_everything_run()
    head.cancel()
    assert await asyncio.wait_for(before, 10) == 2
    behind.cancel()
    await asyncio.gather(head, behind, return_exceptions=True)
    await log.close()
    assert await _contents(directory) == [b"1", b"first"]


async def test_cancelled_when_completed_and_not_delivered(directory: Path) -> None:
    # Durable already, the task not yet told: the cancel wins, and the record is there.
    async with Log.open(directory) as log:
        task = asyncio.create_task(log.append(b"x"))
        await asyncio.sleep(0)
        log.submit(b"y").wait()
        # A disk that answered within one turn of the loop has told the task already.
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await log.append(b"z") == 3
    assert await _contents(directory) == [b"x", b"y", b"z"]


async def test_a_timeout_is_a_cancel(directory: Path, held: LogSettings) -> None:
    # `wait_for` gives up; the completion that comes later harms nobody.
    log = await Log.open(directory, settings=held)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(log.append(b"x"), 0.001)
    await log.close()
    await _let_everything_run()
    assert await _contents(directory) == [b"x"]


async def test_a_shield_keeps_waiting(directory: Path, held: LogSettings) -> None:
    # The outer await is cancelled, the inner one gets its LSN.
    log = await Log.open(directory, settings=held)
    inner = asyncio.create_task(log.append(b"x"))
    outer = asyncio.ensure_future(asyncio.shield(inner))
    await asyncio.sleep(0)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    await log.close()
    assert await inner == 1


async def test_a_group_cancels_its_siblings(directory: Path, held: LogSettings) -> None:
    # One task fails, the others are cancelled in whatever stage they are.
    log = await Log.open(directory, settings=held)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(log.append(b"%d" % number)) for number in range(4)]
            group.create_task(fail())
    assert caught.group_contains(ZeroDivisionError)
    assert all(task.cancelled() for task in tasks)
    await log.close()
    assert await _contents(directory) == [b"0", b"1"]


async def test_cancelling_a_close_does_not_stop_it(directory: Path) -> None:
    # The log is closed all the same, and everything that waited is answered.
    log = await Log.open(directory)
    append = asyncio.create_task(log.append(b"x"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(log.close())
    await asyncio.sleep(0)
    closing.cancel()
    # Where others keep this thread from running for long, the close is over before its await.
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await log.close()
    assert await append == 1
    assert await _contents(directory) == [b"x"]


async def test_cancelling_an_open_leaves_the_directory_free(directory: Path) -> None:
    # Nobody got the log, so it closes itself and the next open has it.
    opening = asyncio.ensure_future(Log.open(directory))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gc.collect()
    while True:
        try:
            log = await Log.open(directory)
            break
        except BlockingIOError:
            continue
    await log.close()


async def test_nobody_awaits(directory: Path) -> None:
    # A forgotten await is warned about; the record is written all the same.
    async with Log.open(directory) as log:
        with pytest.warns(RuntimeWarning, match=r"append\(\) was never awaited"):
            log.append(b"x")
        with pytest.warns(RuntimeWarning, match=r"append_many\(\) was never awaited"):
            log.append_many([b"y"])
        with pytest.warns(RuntimeWarning, match=r"flush\(\) was never awaited"):
            log.flush()
    assert await _contents(directory) == [b"x", b"y"]


async def test_a_warning_in_a_destructor_spares_the_exception(directory: Path) -> None:
    # An operation that dies while an exception is on its way does not swallow it.
    async with Log.open(directory) as log:
        with (
            pytest.warns(RuntimeWarning, match="never awaited"),
            pytest.raises(ZeroDivisionError),
        ):
            _ = [log.append(b"x"), 1 // 0]


async def test_awaits_without_waiting_are_fair(directory: Path) -> None:
    # A task whose awaits are all done at once still lets the others run.
    settings = LogSettings(linger_s=3600.0)
    async with Log.open(directory, settings=settings) as log, Bystander() as other:
        begun = time.perf_counter()
        for _ in range(1280):
            await log.append(b"x", durability="appended")
        # A row also ends by time; on a slow machine that makes more of them.
        ended_by_time = (time.perf_counter() - begun) / 0.001
        assert 8 <= other.turns <= 12 + ended_by_time
        for _ in range(20):
            await asyncio.gather(*(log.append(b"x", durability="appended") for _ in range(64)))


async def test_slow_awaits_without_waiting_are_fair(directory: Path) -> None:
    # The same by time: who takes long between awaits that are all done at once yields well before
    # there were 128 of them.
    settings = LogSettings(linger_s=3600.0)
    async with Log.open(directory, settings=settings) as log, Bystander() as other:
        for _ in range(60):
            until = time.perf_counter() + 0.0005
            while time.perf_counter() < until:
                pass
            await log.append(b"x", durability="appended")
        assert other.turns >= 10


async def test_nothing_is_kept(directory: Path) -> None:
    # Futures, tasks and results of finished operations are not held by anybody.
    async with Log.open(directory) as log:
        tasks = [asyncio.create_task(log.append(b"x")) for _ in range(50)]
        await asyncio.gather(*tasks)
        references = [weakref.ref(task) for task in tasks]
        del tasks
        await _let_everything_run()
        gc.collect()
        assert not any(reference() for reference in references)


async def test_awaiting_by_hand(directory: Path, held: LogSettings) -> None:
    # The coroutine protocol, step by step, as a scheduler of one's own would use it.
    log = await Log.open(directory, settings=held)
    operation = log.append(b"x")
    future = operation.send(None)
    assert asyncio.isfuture(future)
    with pytest.raises(RuntimeError, match="wasn't used with future"):
        operation.send(None)
    assert not future.done()
    thrown = log.append(b"y")
    thrown.send(None)
    with pytest.raises(KeyError, match="thrown"):
        thrown.throw(KeyError("thrown"))
    with pytest.raises(TypeError, match="can't send"):
        thrown.send(1)
    done = log.append_many([], durability="appended")
    with pytest.raises(StopIteration) as stop:
        done.send(None)
    assert stop.value.value == range(3, 3)
    await log.close()
    assert isinstance(operation, Operation)
