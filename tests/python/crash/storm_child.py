"""
A child that is killed at any moment: two event loops and a thread append to one log.

Run as `python storm_child.py JOB`. It says OPENING before and OPENED after opening the log,
then an entry for every acknowledged operation, and goes on until it is killed or has made
enough calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

from storm_records import OPENED, OPENING, Operation

from millrace import Log, LogSettings
from millrace.errors import BackendUnavailable, OverloadedError
from millrace.testing import AckWriter

EXIT_UNAVAILABLE = 3


class Stream:
    """The calls of one loop or thread, numbered in the order they are made."""

    def __init__(self, log: Log, stream: int, life: int, calls_max: int) -> None:
        self._log = log
        self._head = (stream, life)
        self._counter = iter(range(calls_max))

    def next(self) -> Operation | None:
        """Take the next number, or None when enough calls were made."""
        count = next(self._counter, None)
        return None if count is None else Operation(*self._head, count)

    async def work(self, acks: AckWriter) -> None:
        """Make calls until there are no more, each in the way its number says."""
        while (operation := self.next()) is not None:
            lsn = await self._call(operation)
            if lsn is not None:
                acks.note(operation.number, 0, lsn)

    async def _call(self, operation: Operation) -> int | None:
        log, records = self._log, operation.records()
        if operation.parts > 1:
            return (await log.append_many(records)).start
        if operation.is_cancellable:
            return await _cancelled_soon(log, records[0], operation.call)
        if operation.call % 5 == 0:
            try:
                ticket = log.submit(records[0])
            except OverloadedError:
                return await log.append(records[0])
            return await ticket
        if operation.call % 13 == 0:
            lsn = await log.append(records[0], durability="appended")
            await log.flush()
            return lsn
        return await log.append(records[0])

    def work_in_thread(self, acks: AckWriter, loop: asyncio.AbstractEventLoop) -> None:
        """The same from a plain thread, where only single records can be appended."""
        while (operation := self.next()) is not None:
            if operation.parts == 1:
                lsn = self._log.append_sync(operation.records()[0])
            else:
                future = asyncio.run_coroutine_threadsafe(self._call(operation), loop)
                lsn = future.result() or 0
            loop.call_soon_threadsafe(acks.note, operation.number, 0, lsn)


async def _cancelled_soon(log: Log, data: bytes, count: int) -> int | None:
    """Give up waiting after a moment; the record may be there or not, and it was not promised."""

    try:
        return await asyncio.wait_for(log.append(data), count % 4 * 0.0003)
    except TimeoutError:
        return None


async def _load(log: Log, job: dict[str, Any], fd: int) -> None:
    loop = asyncio.get_running_loop()
    acks = AckWriter(fd)
    streams = [Stream(log, n, job["life"], job["calls_max"]) for n in range(3)]
    other = threading.Thread(target=_other_loop, args=(streams[1], fd, job["tasks"]), daemon=True)
    plain = threading.Thread(
        target=streams[2].work_in_thread, args=(acks, loop), name="plain", daemon=True
    )
    other.start()
    plain.start()
    await asyncio.gather(*(streams[0].work(acks) for _ in range(job["tasks"])))
    await asyncio.to_thread(other.join)
    await asyncio.to_thread(plain.join)
    await asyncio.sleep(0)
    acks.flush()


def _other_loop(stream: Stream, fd: int, tasks: int) -> None:
    async def load() -> None:
        acks = AckWriter(fd)
        await asyncio.gather(*(stream.work(acks) for _ in range(tasks // 4 + 1)))
        acks.flush()

    asyncio.run(load())


async def main() -> int:
    """Open, load, close."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    fd = int(os.environ["MILLRACE_ACK_FD"])
    acks = AckWriter(fd)
    acks.note(OPENING, 0, os.getpid())
    acks.flush()
    try:
        log = await Log.open(job["path"], settings=LogSettings(**job["settings"]))
    except BackendUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNAVAILABLE
    acks.note(OPENED, 0, 0)
    acks.flush()
    async with log:
        await _load(log, job, fd)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
