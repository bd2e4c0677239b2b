"""Loops that come and go: many in turn, several at once, closed too early, of another kind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
import uvloop

from millrace import Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    Run = Callable[[Coroutine[Any, Any, Any]], Any]


pytestmark = pytest.mark.usefixtures("each_driver")


def _open(directory: Path, settings: LogSettings | None = None) -> Log:
    async def main() -> Log:
        return await Log.open(directory, settings=settings)

    return asyncio.run(main())


def test_one_log_many_loops_in_turn(directory: Path) -> None:
    # A log is not bound to the loop it was opened on, nor to the kind of loop.
    log = _open(directory)

    async def append() -> int:
        return await log.append(b"x")

    runs = [asyncio.run, uvloop.run] * 5
    assert [one(append()) for one in runs] == list(range(1, 11))
    asyncio.run(_close(log))


async def _close(log: Log) -> None:
    await log.close()


def test_two_loops_taking_turns_on_one_thread(directory: Path) -> None:
    # Each await is resolved on the loop that runs it, also when loops alternate.
    log = _open(directory)
    loops = [asyncio.new_event_loop(), uvloop.new_event_loop(), asyncio.new_event_loop()]

    async def append() -> int:
        return await log.append(b"x")

    given = [loop.run_until_complete(append()) for _ in range(10) for loop in loops]
    assert given == list(range(1, 31))
    for loop in loops:
        loop.close()
    assert log._close_within(10.0)


def test_several_loops_in_several_threads(directory: Path, run: Run) -> None:
    # Loops in four threads share a log; each task gets its own LSN, and all records are there.
    log = _open(directory)
    given: list[int] = []

    async def main() -> None:
        async def one() -> None:
            given.extend([await log.append(b"x") for _ in range(20)])

        await asyncio.gather(*(one() for _ in range(10)))

    threads = [threading.Thread(target=lambda: run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 801))
    assert log._close_within(10.0)


def test_a_loop_that_closes_with_appends_under_way(
    directory: Path,
    held: LogSettings,
    run: Run,
) -> None:
    # Nothing raises, nothing blocks, the records are written.
    log = _open(directory, held)

    async def leave() -> None:
        for _ in range(2):
            task = asyncio.create_task(log.append(b"x"))
            task.add_done_callback(lambda _: None)
        await asyncio.sleep(0)

    run(leave())
    assert log._close_within(10.0)

    async def count() -> int:
        async with Log.open(directory) as log:
            return log.last_lsn

    assert run(count()) == 2


def test_a_loop_that_is_stopped_and_goes_on(directory: Path, held: LogSettings) -> None:
    # What becomes durable while the loop stands still is delivered when it runs again.
    log = _open(directory, held)
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Task[int]:
        task = asyncio.create_task(log.append(b"x"))
        await asyncio.sleep(0)
        return task

    async def finish(task: asyncio.Task[int]) -> int:
        return await task

    task = loop.run_until_complete(start())
    assert log._close_within(10.0)
    assert not task.done()
    assert loop.run_until_complete(finish(task)) == 1
    loop.close()


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_closed_loop_is_let_go(
    directory: Path,
    make: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    # Nobody holds a loop after its close, although the log lives on.
    log = _open(directory)

    async def append() -> int:
        return await log.append(b"x")

    loop = make()
    loop.run_until_complete(append())
    loop.close()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
    assert log._close_within(10.0)


def test_a_loop_dropped_with_appends_under_way(directory: Path, held: LogSettings) -> None:
    # A loop that is closed while tasks wait is garbage, with its futures and tasks.
    log = _open(directory, held)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    left: list[weakref.ref[Any]] = []

    async def inside() -> None:
        await log.append(b"x")

    async def leave() -> None:
        tasks = (asyncio.create_task(log.append(b"x")), asyncio.create_task(inside()))
        left.extend(weakref.ref(task) for task in tasks)
        await asyncio.sleep(0)

    loop.run_until_complete(leave())
    loop.close()
    left.append(weakref.ref(loop))
    del loop
    gc.collect()
    assert [reference() for reference in left] == [None, None, None]
    assert log._close_within(10.0)


def test_a_task_of_a_closed_loop_is_garbage(directory: Path, held: LogSettings) -> None:
    # A task that steps an operation is held by it, by way of the future: the collector sees that.
    log = _open(directory, held)
    loop = asyncio.new_event_loop()

    async def leave() -> weakref.ref[asyncio.Task[int]]:
        task = asyncio.create_task(log.append(b"x"))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return weakref.ref(task)

    task = loop.run_until_complete(leave())
    assert task() is not None
    loop.close()
    del loop
    gc.collect()
    assert task() is None
    assert log._close_within(10.0)


def test_without_a_loop(directory: Path, held: LogSettings) -> None:
    # Calls need no loop; an await that must wait says that there is none.
    log = _open(directory, held)
    operation = log.append(b"x")
    with pytest.raises(RuntimeError, match="no running event loop"):
        operation.send(None)
    assert log._close_within(10.0)
    assert log.durable_lsn == 1


def test_a_loop_in_debug_mode(directory: Path) -> None:
    # asyncio's own checks find nothing to complain about, and no callback takes long.
    async def main() -> list[int]:
        asyncio.get_running_loop().slow_callback_duration = 1.0
        async with Log.open(directory) as log:
            return await asyncio.gather(*(log.append(b"x") for _ in range(3000)))

    assert asyncio.run(main(), debug=True) == list(range(1, 3001))


def test_a_subclass_with_its_own_futures(directory: Path, held: LogSettings) -> None:
    # A loop that makes its own kind of future is asked for one.
    made = []

    class Future(asyncio.Future):  # type: ignore[type-arg]
        pass

    class Loop(asyncio.SelectorEventLoop):
        def create_future(self) -> Any:
            made.append(Future(loop=self))
            return made[-1]

    log = _open(directory, held)

    async def main() -> int:
        task = asyncio.ensure_future(log.append(b"x"))
        await asyncio.sleep(0)
        closing = log.close()
        await closing
        return await task

    loop = Loop()
    assert loop.run_until_complete(main()) == 1
    assert made
    made.clear()
    loop.close()


def test_a_busy_log_starves_no_other(tmp_path: Path) -> None:
    # Many await a busy log, one awaits each quiet one, and all become durable at once: the quiet
    # ones are among the first to hear of it, whoever awaited first.
    async def main() -> None:
        held = LogSettings(linger_s=3600.0)
        busy = await Log.open(tmp_path / "busy", settings=held)
        quiet = [await Log.open(tmp_path / f"quiet-{n}", settings=held) for n in range(5)]
        heard: list[str] = []

        async def one(log: Log, name: str) -> None:
            await log.append(b"x")
            heard.append(name)

        async with asyncio.TaskGroup() as group:
            for _ in range(20_000):
                group.create_task(one(busy, "busy"))
            for log in quiet:
                group.create_task(one(log, "quiet"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for log in (busy, *quiet):
                assert log._close_within(30.0)
        assert len(heard) == 20_005
        first = heard[: heard.index("busy") + 2 * 1024]
        assert first.count("quiet") == len(quiet)

    asyncio.run(main())


def test_an_idle_log_wakes_nobody(directory: Path) -> None:
    # After the last append the loop is not woken again.
    async def main() -> int:
        async with Log.open(directory) as log:
            await asyncio.gather(*(log.append(b"x") for _ in range(100)))
            loop = asyncio.get_running_loop()
            turns = 0
            real = loop._selector.select  # type: ignore[attr-defined]

            def select(timeout: float | None) -> Any:
                nonlocal turns
                turns += 1
                return real(timeout)

            loop._selector.select = select  # type: ignore[attr-defined]
            await asyncio.sleep(0.3)
            return turns

    assert asyncio.run(main()) <= 3
