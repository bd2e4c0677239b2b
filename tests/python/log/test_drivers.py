"""Who turns a log: its own thread, its callers, or whichever fits the load."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from millrace import Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.mark.usefixtures("needs_loop_driver")
def test_who_turns_follows_the_load(directory: Path, run: Run) -> None:
    # A crowd of tasks is soon led by the log's thread, a lone one soon turns by itself again, and
    # nobody is forgotten or answered out of order at any change.
    async def main() -> None:
        count = 0

        async def append(tasks: int) -> None:
            nonlocal count
            first, count = count, count + tasks
            lsns = await asyncio.gather(*(log.append(b"%d" % (first + i)) for i in range(tasks)))
            assert lsns == list(range(first + 1, count + 1))

        async def until(driver: str, tasks: int) -> None:
            async with asyncio.timeout(30):
                while log.statistics().driver != driver:
                    await append(tasks)

        async with Log.open(directory, settings=LogSettings(commit_path="direct")) as log:
            for _ in range(3):
                await until("thread", 300)
                await until("loop", 1)
            await until("thread", 300)
            found = [record.data async for record in log.read()]
            assert found == [b"%d" % number for number in range(count)]

    run(main())


def test_the_thread_turns_where_a_loop_could_not(directory: Path, run: Run) -> None:
    # A path or a backend that would block leaves it to the thread, without an error.
    async def main(settings: LogSettings) -> str | None:
        async with Log.open(directory, settings=settings) as log:
            await asyncio.gather(*(log.append(b"x") for _ in range(10)))
            return log.statistics().driver

    assert run(main(LogSettings(commit_path="pwrite"))) == "thread"
    assert run(main(LogSettings(backend="threads"))) == "thread"
