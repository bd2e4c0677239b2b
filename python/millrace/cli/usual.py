"""
The usual ways to make a record durable from asyncio, written with care.

Each gives the same promise as a durable append: when `append` returns, the record has been
synced. They are what the demonstration and the benchmarks compare with.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LENGTH = struct.Struct("<I")


class Appender(Protocol):
    """Something that makes records durable."""

    async def append(self, data: bytes) -> int:
        """Return the position of *data* once it is durable."""
        ...

    async def append_many(self, items: list[bytes]) -> int:
        """Return the last position once all *items* are durable."""
        ...

    async def close(self) -> None:
        """Let go of files and threads."""


class FileFsync:
    """One file, one `write` and one `fdatasync` for each record, in a thread."""

    def __init__(self, directory: Path) -> None:
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        self._fd = os.open(directory / "records", flags, 0o600)
        self._lock = threading.Lock()
        self._count = 0

    async def append(self, data: bytes) -> int:
        """Return the position of *data* once it is durable."""
        return await asyncio.to_thread(self._write, (data,))

    async def append_many(self, items: list[bytes]) -> int:
        """Return the last position once all *items* are durable."""
        return await asyncio.to_thread(self._write, items)

    async def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, items: list[bytes] | tuple[bytes, ...]) -> int:
        framed = b"".join(part for data in items for part in (_LENGTH.pack(len(data)), data))
        with self._lock:
            view = memoryview(framed)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
            self._count += len(items)
            return self._count

    @staticmethod
    def read_back(directory: Path) -> Iterator[bytes]:
        """Yield every record, in order."""
        with (directory / "records").open("rb") as file:
            while head := file.read(_LENGTH.size):
                yield file.read(_LENGTH.unpack(head)[0])


class _Sqlite:
    """A table of records in SQLite, in write-ahead mode, synced at every commit."""

    def __init__(self, directory: Path) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection = self._pool.submit(_connect, directory).result()

    async def append_many(self, items: list[bytes]) -> int:
        """Return the last position once all *items* are durable."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._commit, items)

    async def close(self) -> None:
        """Close the connection and its thread."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._connection.close)
        self._pool.shutdown()

    def _commit(self, items: list[bytes]) -> int:
        rows = [(data,) for data in items]
        with self._connection:
            self._connection.executemany("INSERT INTO record (data) VALUES (?)", rows)
        (last,) = self._connection.execute("SELECT max(lsn) FROM record").fetchone()
        return int(last)

    @staticmethod
    def read_back(directory: Path) -> Iterator[bytes]:
        """Yield every record, in order."""
        connection = sqlite3.connect(directory / "records.db")
        try:
            for (data,) in connection.execute("SELECT data FROM record ORDER BY lsn"):
                yield data
        finally:
            connection.close()


class SqliteEach(_Sqlite):
    """SQLite in its own thread, one commit for each record."""

    async def append(self, data: bytes) -> int:
        """Return the position of *data* once it is durable."""
        return await self.append_many([data])


class SqliteBatched(_Sqlite):
    """SQLite in its own thread, one commit for everything that waits."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, data: bytes) -> int:
        """Return the position of *data* once it is durable."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                last = await self.append_many([data for data, _ in group])
            except Exception as error:  # noqa: BLE001 - every waiter is told
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            first = last - len(group) + 1
            for position, (_, future) in enumerate(group, first):
                if not future.done():
                    future.set_result(position)
        self._flusher = None


def _connect(directory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / "records.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS record (lsn INTEGER PRIMARY KEY, data BLOB)")
    connection.commit()
    return connection


USUAL_WAYS: dict[str, type[FileFsync | SqliteEach | SqliteBatched]] = {
    "SQLite, batched": SqliteBatched,
    "SQLite, commit each": SqliteEach,
    "file, fsync each": FileFsync,
}
