"""
Everything that is compared, behind one face: open, append, append_many, scan, close.

Each contender promises the same: what `append` returned for has been synced to the device. A
peer that is not installed raises `Missing`, and becomes a missing row.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from millrace import Log, LogSettings
from millrace.cli.usual import FileFsync, SqliteBatched, SqliteEach

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

_LENGTH = struct.Struct("<I")
_KEY = struct.Struct(">Q")
_ZERO_BYTES = 1 << 20


class Missing(Exception):
    """This contender cannot run here; the message says why."""


class Contender:
    """What a cell needs of a contender."""

    #: Does it make anything durable? The limits do not, and have nothing to read back.
    is_durable: ClassVar[bool] = True

    async def open(self, directory: Path, expected_bytes: int) -> None:
        """Open in *directory*; *expected_bytes* is how much a cell may write."""
        raise NotImplementedError

    async def append(self, data: bytes) -> int:
        """Return once *data* is durable."""
        raise NotImplementedError

    async def append_many(self, items: list[bytes]) -> int:
        """Return once all *items* are durable."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything."""

    async def scan(self) -> AsyncIterator[list[Any]]:
        """Yield portions of what was appended, in order; see `data_of`."""
        nothing: list[list[Any]] = []
        for portion in nothing:
            yield portion

    async def truncate_before(self, lsn: int) -> None:
        """Give up what lies below *lsn*."""
        raise Missing("it is never truncated")

    async def left(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what was not truncated, with its numbers, in order."""
        nothing: list[tuple[int, bytes]] = []
        for record in nothing:
            yield record

    def facts(self) -> dict[str, Any]:
        """Return what a report should say about how it ran."""
        return {}


class Millrace(Contender):
    """The log, with its settings."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    async def open(self, directory: Path, expected_bytes: int) -> None:
        try:
            self._log = await Log.open(directory / "log", settings=LogSettings(**self._settings))
        except Exception as error:
            raise Missing(f"{type(error).__name__}: {error}") from error
        self.append = self._log.append  # type: ignore[method-assign]

    async def append_many(self, items: list[bytes]) -> int:
        return (await self._log.append_many(items)).stop - 1

    async def close(self) -> None:
        await self._log.close()

    def facts(self) -> dict[str, Any]:
        from millrace.cli.output import describe

        found = describe(self._log.statistics())
        return found if isinstance(found, dict) else {}

    async def scan(self) -> AsyncIterator[list[Any]]:
        async for batch in self._log.read_batches(1):
            yield [record.data for record in batch]

    async def truncate_before(self, lsn: int) -> None:
        await self._log.truncate_before(lsn)

    async def left(self) -> AsyncIterator[tuple[int, bytes]]:
        async for batch in self._log.read_batches(self._log.first_lsn):
            for record in batch:
                yield record.lsn, record.data


class AsyncioLimit(Contender):
    """What asyncio itself can do: complete futures in batches, with no disk at all."""

    is_durable = False

    async def open(self, directory: Path, expected_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[int]] = []

    async def append(self, data: bytes) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._drain)
        self._waiting.append(future)
        return await future

    def _drain(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_result(0)


class GroupCommit(Contender):
    """
    Group commit as a careful asyncio programmer writes it.

    One flusher thread, a file filled with zeros ahead, one write and one `fdatasync` for
    everything that waits, one `call_soon_threadsafe` for all its futures.
    """

    async def open(self, directory: Path, expected_bytes: int) -> None:
        self._path = directory / "records"
        self._loop = asyncio.get_running_loop()
        self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        self._end = self._zeroed = 0
        self._fill(expected_bytes + (64 << 20))
        self._waiting: list[tuple[tuple[bytes, ...], int, asyncio.Future[int]]] = []
        self._changed = threading.Condition(threading.Lock())
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def append(self, data: bytes) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        with self._changed:
            self._waiting.append(((_LENGTH.pack(len(data)), data), 1, future))
            if len(self._waiting) == 1:
                self._changed.notify()
        return await future

    async def append_many(self, items: list[bytes]) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        parts = tuple(part for data in items for part in (_LENGTH.pack(len(data)), data))
        with self._changed:
            self._waiting.append((parts, len(items), future))
            self._changed.notify()
        return await future

    async def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        os.ftruncate(self._fd, self._end)
        os.close(self._fd)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closing:
                    self._changed.wait()
                group, self._waiting = self._waiting, []
            if not group:
                return
            data = b"".join([part for parts, _, _ in group for part in parts])
            if self._end + len(data) > self._zeroed:
                self._fill(self._end + len(data) + (64 << 20))
            view = memoryview(data)
            while view:
                written = os.pwrite(self._fd, view, self._end)
                self._end += written
                view = view[written:]
            os.fdatasync(self._fd)
            self._loop.call_soon_threadsafe(_resolve, group)

    def _fill(self, until: int) -> None:
        zeros = bytes(_ZERO_BYTES)
        while self._zeroed < until:
            self._zeroed += os.pwrite(self._fd, zeros, self._zeroed)
        os.fsync(self._fd)

    async def scan(self) -> AsyncIterator[list[Any]]:
        for portion in portions(self._records()):
            yield portion

    def _records(self) -> Iterator[bytes]:
        left = self._end
        with open(self._path, "rb", buffering=1 << 20) as file:
            while left:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                yield file.read(length)
                left -= _LENGTH.size + length


def _resolve(group: list[tuple[tuple[bytes, ...], int, asyncio.Future[int]]]) -> None:
    for _, count, future in group:
        if not future.done():
            future.set_result(count)


class Usual(Contender):
    """One of the usual ways that the demonstration shows, too."""

    way: ClassVar[Any]

    async def open(self, directory: Path, expected_bytes: int) -> None:
        self._directory = directory
        self._way = type(self).way(directory)
        self.append = self._way.append  # type: ignore[method-assign]
        self.append_many = self._way.append_many  # type: ignore[method-assign]

    async def close(self) -> None:
        await self._way.close()

    async def scan(self) -> AsyncIterator[list[Any]]:
        for portion in portions(self._way.read_back(self._directory)):
            yield portion


class FileEach(Usual):
    """A write and a sync in a thread for every record."""

    way = FileFsync


class SqliteEachCommit(Usual):
    """SQLite with a commit for every record."""

    way = SqliteEach


class SqliteGroups(Usual):
    """SQLite with one commit for everything that waits."""

    way = SqliteBatched


class Batched(Contender):
    """A store that is written in batches by one thread, everything that waits at a time."""

    def _write(self, items: list[bytes]) -> int:
        raise NotImplementedError

    def _start(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._count = 0

    async def append(self, data: bytes) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((data, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def append_many(self, items: list[bytes]) -> int:
        return await self._loop.run_in_executor(self._pool, self._write, items)

    async def _flush(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            last = await self.append_many([data for data, _ in group])
            for _, future in group:
                if not future.done():
                    future.set_result(last)
        self._flusher = None


class Lmdb(Batched):
    """LMDB with its default full sync, one transaction for everything that waits."""

    async def open(self, directory: Path, expected_bytes: int) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise Missing(str(error)) from error
        self._env = lmdb.open(str(directory / "lmdb"), map_size=8 << 30)
        self._start()

    def _write(self, items: list[bytes]) -> int:
        with self._env.begin(write=True) as transaction:
            for data in items:
                self._count += 1
                transaction.put(_KEY.pack(self._count), data, append=True)
        return self._count

    async def close(self) -> None:
        self._pool.shutdown()
        self._env.close()

    async def scan(self) -> AsyncIterator[list[Any]]:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            for portion in portions(cursor.iternext(keys=False, values=True)):
                yield portion


class RocksDb(Batched):
    """RocksDB through rocksdict, a synced write batch for everything that waits."""

    async def open(self, directory: Path, expected_bytes: int) -> None:
        try:
            import rocksdict
        except ImportError as error:
            raise Missing(str(error)) from error
        self._rocksdict = rocksdict
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self._db = rocksdict.Rdict(str(directory / "rocks"), options)
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True
        self._start()

    def _write(self, items: list[bytes]) -> int:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for data in items:
            self._count += 1
            batch.put(_KEY.pack(self._count), data)
        self._db.write(batch, self._synced)
        return self._count

    async def close(self) -> None:
        self._pool.shutdown()
        self._db.close()

    async def scan(self) -> AsyncIterator[list[Any]]:
        for portion in portions(self._db.values()):
            yield portion


def portions(values: Iterator[bytes], size: int = 4096) -> Iterator[list[bytes]]:
    """Cut an iterator of records into lists."""
    portion = []
    for value in values:
        portion.append(value)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "millrace": Millrace,
    "millrace pwrite": lambda: Millrace(commit_path="pwrite", driver="thread"),
    "millrace ring_dsync": lambda: Millrace(commit_path="ring_dsync", driver="thread"),
    "millrace direct": lambda: Millrace(commit_path="direct", driver="thread"),
    "millrace driver=thread": lambda: Millrace(driver="thread"),
    "millrace driver=loop": lambda: Millrace(driver="loop"),
    "asyncio limit": AsyncioLimit,
    "hand-written group commit": GroupCommit,
    "LMDB": Lmdb,
    "RocksDB": RocksDb,
    "SQLite, batched": SqliteGroups,
    "SQLite, commit each": SqliteEachCommit,
    "file, fsync each": FileEach,
}
