"""
Scans of a store that was filled before, each in the quickest way its library documents.

Every loop does the same for every record: take its bytes and add up their length. It is timed
from the moment the first record is there.
"""

from __future__ import annotations

import sqlite3
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from contenders import Missing, portions
from millrace import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

_LENGTH = struct.Struct("<I")


class Scanned(NamedTuple):
    """What one pass saw, and when it began and ended."""

    first_at: float
    ended_at: float
    records: int
    bytes: int


class Reader:
    """A store opened for reading."""

    async def open(self, directory: Path) -> None:
        """Open the store; timed apart."""
        raise NotImplementedError

    async def read(self) -> Scanned:
        """Read every record once."""
        return count_all(self.values())

    def values(self) -> Iterator[bytes]:
        """Iterate over the records' bytes."""
        raise NotImplementedError

    async def portions(self) -> AsyncIterator[list[bytes]]:
        """Yield the records again, for the comparison of their content."""
        for portion in portions(self.values()):
            yield portion

    async def close(self) -> None:
        """Let go of everything."""


def count_all(values: Iterator[bytes]) -> Scanned:
    """Take every record of an iterator."""
    size = len(next(values))
    first_at = time.perf_counter()
    count = 1
    for value in values:
        count += 1
        size += len(value)
    return Scanned(first_at, time.perf_counter(), count, size)


class MillraceBatches(Reader):
    """`read_batches`: lists of records."""

    async def open(self, directory: Path) -> None:
        self._log = await Log.open(directory / "log")

    async def read(self) -> Scanned:
        count = size = 0
        first_at = 0.0
        async for batch in self._log.read_batches(1):
            first_at = first_at or time.perf_counter()
            for record in batch:
                count += 1
                size += len(record.data)
        return Scanned(first_at, time.perf_counter(), count, size)

    async def portions(self) -> AsyncIterator[list[bytes]]:
        async for batch in self._log.read_batches(1):
            yield [record.data for record in batch]

    async def close(self) -> None:
        await self._log.close()


class MillraceRecords(MillraceBatches):
    """`async for record in log.read()`: one record at a time."""

    async def read(self) -> Scanned:
        records = aiter(self._log.read(1))
        size = len((await anext(records)).data)
        first_at = time.perf_counter()
        count = 1
        async for record in records:
            count += 1
            size += len(record.data)
        return Scanned(first_at, time.perf_counter(), count, size)


class PlainFile(Reader):
    """A file of records with their lengths in front, read by Python's buffered reader."""

    async def open(self, directory: Path) -> None:
        self._path = directory / "records"

    def values(self) -> Iterator[bytes]:
        unpack = _LENGTH.unpack
        with open(self._path, "rb", buffering=1 << 20) as file:
            read = file.read
            while head := read(4):
                yield read(unpack(head)[0])


class LmdbCursor(Reader):
    """LMDB's cursor."""

    async def open(self, directory: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise Missing(str(error)) from error
        self._env = lmdb.open(str(directory / "lmdb"), map_size=8 << 30, readonly=True)

    def values(self) -> Iterator[bytes]:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor.iternext(keys=False, values=True)

    async def read(self) -> Scanned:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            return count_all(cursor.iternext(keys=False, values=True))

    async def close(self) -> None:
        self._env.close()


class RocksValues(Reader):
    """RocksDB's iterator."""

    async def open(self, directory: Path) -> None:
        try:
            import rocksdict
        except ImportError as error:
            raise Missing(str(error)) from error
        self._db: Any = rocksdict.Rdict(str(directory / "rocks"), rocksdict.Options(raw_mode=True))

    def values(self) -> Iterator[bytes]:
        return iter(self._db.values())

    async def close(self) -> None:
        self._db.close()


class SqliteRows(Reader):
    """A SELECT in key order."""

    async def open(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "records.db")

    def values(self) -> Iterator[bytes]:
        for (data,) in self._rows():
            yield data

    async def read(self) -> Scanned:
        rows = self._rows()
        size = len(next(rows)[0])
        first_at = time.perf_counter()
        count = 1
        for (data,) in rows:
            count += 1
            size += len(data)
        return Scanned(first_at, time.perf_counter(), count, size)

    def _rows(self) -> sqlite3.Cursor:
        return self._connection.execute("SELECT data FROM record ORDER BY lsn")

    async def close(self) -> None:
        self._connection.close()


READERS: dict[str, Callable[[], Reader]] = {
    "millrace read_batches": MillraceBatches,
    "millrace async for": MillraceRecords,
    "LMDB": LmdbCursor,
    "RocksDB": RocksValues,
    "SQLite": SqliteRows,
    "plain file": PlainFile,
}
#: Whose store each of them reads.
STORES = {
    "millrace read_batches": "millrace",
    "millrace async for": "millrace",
    "LMDB": "LMDB",
    "RocksDB": "RocksDB",
    "SQLite": "SQLite, batched",
    "plain file": "hand-written group commit",
}
