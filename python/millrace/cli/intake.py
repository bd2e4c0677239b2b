"""
Standard input into a log, many batches in flight.

A thread reads and waits in the queue when the log is behind, so memory stays bounded and the
event loop never blocks on the input.

Always true:

1. Batches claim their LSNs in the order of the input.
2. `last_lsn` names a record that is durable, and so is everything of the input before it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from millrace.cli.framing import FramingError, Splitter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from millrace import Log

_CHUNK_BYTES = 256 << 10
_CHUNKS_WAITING = 8
_BATCHES_IN_FLIGHT = 16
_BATCH_RECORDS = 1000
_BATCH_BYTES = 4 << 20


async def read_stdin() -> AsyncIterator[bytes]:
    """Yield what arrives on standard input until it ends."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(_CHUNKS_WAITING)

    def pump() -> None:
        fd = sys.stdin.fileno()
        while True:
            chunk: bytes | OSError
            try:
                chunk = os.read(fd, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            try:
                asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
            except (RuntimeError, asyncio.CancelledError):
                return
            if not chunk or isinstance(chunk, OSError):
                return

    # A daemon, because a read from a terminal cannot be called off.
    threading.Thread(target=pump, name="stdin", daemon=True).start()
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise chunk
        yield chunk


class Intake:
    """Append what a splitter finds, and keep count of what became durable."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.first_lsn = 0
        self.last_lsn = 0
        self.elapsed_s = 0.0
        self._in_flight: deque[asyncio.Task[range]] = deque()
        self._sizes: deque[int] = deque()

    async def run(
        self,
        log: Log,
        chunks: AsyncIterator[bytes],
        splitter: Splitter,
        show: Callable[[int], None],
    ) -> None:
        """Append until *chunks* end; on an error what was already submitted is still waited for."""
        began = time.monotonic()
        try:
            async for chunk in chunks:
                await self._submit(log, splitter.feed(chunk), show)
            await self._submit(log, splitter.finish(), show)
        except FramingError as error:
            await self._submit(log, error.before, show)
            raise
        finally:
            await self._drain(show)
            self.elapsed_s = time.monotonic() - began

    def summary(self) -> dict[str, object]:
        """Return the counts as plain data."""
        names = ("records", "bytes", "first_lsn", "last_lsn", "elapsed_s")
        return {name: getattr(self, name) for name in names}

    async def _submit(self, log: Log, records: list[bytes], show: Callable[[int], None]) -> None:
        for batch in _batches(records):
            if len(self._in_flight) >= _BATCHES_IN_FLIGHT:
                await self._settle(show)
            self._in_flight.append(asyncio.create_task(_append(log, batch)))
            self._sizes.append(sum(map(len, batch)))

    async def _drain(self, show: Callable[[int], None]) -> None:
        """Wait for everything in flight, then raise the first failure, if there was one."""
        failure: Exception | None = None
        while self._in_flight:
            try:
                await self._settle(show)
            except Exception as error:  # noqa: BLE001 - the first one is raised below
                failure = failure or error
        if failure is not None:
            raise failure

    async def _settle(self, show: Callable[[int], None]) -> None:
        size = self._sizes.popleft()
        lsns = await self._in_flight.popleft()
        self.records += len(lsns)
        self.bytes += size
        self.first_lsn = self.first_lsn or lsns.start
        self.last_lsn = lsns.stop - 1
        show(self.records)


async def _append(log: Log, batch: list[bytes]) -> range:
    return await log.append_many(batch)


def _batches(records: list[bytes]) -> list[list[bytes]]:
    """Cut *records* into batches that stay well below the limits of a group."""
    batches: list[list[bytes]] = []
    batch: list[bytes] = []
    size = 0
    for record in records:
        if batch and (size + len(record) > _BATCH_BYTES or len(batch) == _BATCH_RECORDS):
            batches.append(batch)
            batch, size = [], 0
        batch.append(record)
        size += len(record)
    return [*batches, batch] if batch else batches
