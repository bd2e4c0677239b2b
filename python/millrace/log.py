"""The durable log: append, wait, read, follow, truncate."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import warnings
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from . import _core
from .errors import IoError, IoTimeout
from .opening import Opening
from .settings import LogSettings
from .types import (
    Damage,
    LogStatistics,
    RecoveryReport,
    RepairReport,
    SegmentReport,
    VerifyReport,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from ._core import Operation, Record

Location = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_LSN_MAX = 2**63 - 1


class Log(_core.Log):
    """
    A durable, replayable, followable log of records in one directory.

    Open it with `Log.open`. One process at a time owns a log; any number of event loops and
    threads of that process may use it.

    Examples:
        >>> import asyncio, tempfile
        >>> async def main(path):
        ...     async with Log.open(path) as log:
        ...         lsn = await log.append(b"order:1")
        ...         return [(record.lsn, record.data) async for record in log.read(lsn)]
        >>> with tempfile.TemporaryDirectory() as path:
        ...     asyncio.run(main(path))
        [(1, b'order:1')]
    """

    __slots__ = ("__weakref__", "_owner", "_settings")

    # The process that has to close it, until it has been told off for not doing so.
    _owner: int | None
    _settings: LogSettings | None

    def __init__(self, log: _core.Log) -> None:
        """Take over what `Log.open` opened."""
        del log
        self._owner = os.getpid()
        self._settings = None
        _open.add(self)

    @classmethod
    def open(
        cls,
        path: Location,
        *,
        settings: LogSettings | None = None,
        io: _core.IoEngine | None = None,
        read_only: bool = False,
    ) -> OpeningLog:
        """
        Open the log in the directory *path*, creating it if needed.

        Await the result for an open log, or use it with `async with`, which closes the log at
        the end. The work begins at once, on a thread of its own; *path* is resolved now.

        Cancelling stops the waiting; a log that opens all the same is closed again.

        Args:
            path: A directory of its own for the log.

            settings: How the log is laid out and how it writes.

            io: An `IoEngine` that the log runs beside: where *settings* say `auto`, its backend
                and driver are those of this engine. The log keeps a queue of its own, so that a
                commit never waits behind reads of the program.

            read_only: Look at a log beside its owner, or at one nobody owns. Changes nothing.

        Raises:
            LockedError: If another process, or this one, has it open already.

            CorruptionError: If bytes that were durable are wrong. Nothing was modified.

            IoTimeout: With *read_only*, if the owner dropped files for seconds, quicker than
                they could be looked at. Try again.

            FormatVersionError: If it was written by a version this one does not understand.

            ForkedError: Never here: opening in a child process is the remedy for it.
        """
        directory = _directory(path)
        if settings is None:
            settings = LogSettings()
        elif not isinstance(settings, LogSettings):
            raise TypeError(f"settings must be LogSettings, not {type(settings).__name__}")
        if io is not None:
            settings = _beside(io, settings)
        started = _core.open_log(directory, settings, bool(read_only))
        return OpeningLog(cls, started, settings)

    def read(self, start: int = 1, stop: int | None = None) -> AsyncGenerator[Record]:
        """
        Yield the records from LSN *start* up to, not including, *stop*.

        Sees everything that is durable when it begins, and ends there. Memory is bounded
        whatever the size of the log.

        Stopping early is free; close the generator, or let it go.

        Raises:
            ValueError: If the log was truncated above *start*, unless *start* is 1.
        """
        return _flatten(self.read_batches(start, stop))

    def read_batches(
        self,
        start: int = 1,
        stop: int | None = None,
        *,
        records_max: int = 4096,
    ) -> AsyncGenerator[list[Record]]:
        """
        Yield lists of at most *records_max* records; otherwise like `read`, and quicker.

        While one list is looked at, the next one is read from the disk.
        """
        _check_range(start, stop, records_max)
        durable = self.durable_lsn
        end = durable + 1 if stop is None else min(stop, durable + 1)
        return _batches(self, start, max(end, start), records_max)

    def follow(self, start: int | None = None) -> AsyncGenerator[Record]:
        """
        Yield the records from LSN *start* on, then wait for more, for ever.

        Without *start*, begins behind what is durable now. Never yields a record before it is
        durable. Ends with `ClosedError` when the log is closed.

        A log that was opened with `read_only` learns nothing from its owner, so it looks behind
        what it has seen: after 5 ms, and less and less often while nothing comes, down to ten
        times a second. Looking takes at most a twentieth of the time, until two seconds lie
        between two looks. A record is shown when its owner's next one, or its note 50 ms later,
        says that it is durable; if there is neither, its file is synced here first. It has no end
        but the caller's.

        Raises:
            ValueError: If the records from *start* on were truncated; with `read_only` also
                later, if that happened to some before they were seen.
        """
        if start is None:
            start = self.durable_lsn + 1
        _check_range(start, None, 1)
        if self._state == "read_only":
            return _watch(self, start)
        return _follow(self, start)

    def cursor(self, name: str, *, holds_truncation: bool = False) -> Cursor:  # type: ignore[override]
        """
        Return the durable position called *name*, so that a consumer restarts where it was.

        A cursor that nobody has committed stands at 0, before the first record.

        Args:
            name: Any text of at most 255 bytes in UTF-8.

            holds_truncation: Whether `truncate_before` shall keep what this cursor has not
                passed. Stored with the next `commit`.
        """
        super().cursor(name)
        return Cursor(self, name, holds_truncation=holds_truncation)

    @property
    def recovery(self) -> RecoveryReport:
        """What the open found in the directory."""
        report: dict[str, Any] = self._recovery_report()
        report["damage"] = _damage(report)
        return RecoveryReport(**report)

    def statistics(self) -> LogStatistics:
        """What the log did since it was opened."""
        return LogStatistics(**self._statistics_report())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return (
            f"<millrace.Log path={os.fspath(self.path)!r} state={self._state} "
            f"durable_lsn={self.durable_lsn}>"
        )

    def __reduce__(self) -> str:
        raise TypeError("a log cannot be pickled or copied; open its path where it is needed")

    def __del__(self) -> None:
        # A log whose opening failed half-way has no such attribute.
        if getattr(self, "_owner", None) == os.getpid() and self._state == "open":
            _warn_unclosed(self)


class OpeningLog(Opening[Log]):
    """A log being opened."""

    __slots__ = ("_kind", "_settings")

    def __init__(
        self,
        kind: type[Log],
        started: Operation[_core.Log],
        settings: LogSettings,
    ) -> None:
        super().__init__(started)
        self._kind = kind
        self._settings = settings

    async def _finish(self) -> Log:
        log = self._kind(await self._started)
        log._settings = self._settings
        return log


class Cursor:
    """
    A named place in a log that survives restarts.

    Examples:
        A consumer that does everything at least once:

            async for record in (cursor := log.cursor("shipper")):
                await ship(record)
                await cursor.commit(record.lsn)
    """

    __slots__ = ("_holds_truncation", "_log", "_name")

    def __init__(self, log: Log, name: str, *, holds_truncation: bool) -> None:
        self._log = log
        self._name = name
        self._holds_truncation = holds_truncation

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    @property
    def position(self) -> int:
        """LSN of the last record that was committed; 0 if none was."""
        position, _ = _core.Log.cursor(self._log, self._name)
        return position

    def commit(self, lsn: int) -> Operation[None]:
        """
        Make *lsn* the position: everything up to it has been dealt with.

        Returns when that is durable. Cancelling stops the waiting, not the write.

        Raises:
            ValueError: If *lsn* is above what is durable, or below the position.
        """
        return self._log._commit_cursor(self._name, lsn, self._holds_truncation)

    def __aiter__(self) -> AsyncGenerator[Record]:
        return self._log.follow(max(self.position + 1, self._log.first_lsn))

    def __repr__(self) -> str:
        return f"<millrace.Cursor {self._name!r} position={self.position}>"


async def verify(path: Location) -> VerifyReport:
    """
    Read every byte of the log in *path* and check it. Changes nothing.

    May run beside the owner of the log. Returns also when there is damage: look at `is_sound`.

    Cancelling ends the reading.

    Raises:
        ForkedError: In a child of a process that has verified or repaired a log itself.
    """
    report: dict[str, Any] = await _core.verify_log(_directory(path))
    rows = [row | {"damage": _damage(row)} for row in report["segments"]]
    segments = tuple(SegmentReport(**row) for row in rows)
    return VerifyReport(**report | {"damage": _damage(report), "segments": segments})


async def repair(path: Location, *, lock_timeout_s: float = 30.0) -> RepairReport:
    """
    Make the damaged log in *path* usable again: it ends at the last record before the damage.

    What is dropped is first copied aside, in the same directory. Without damage nothing is done.

    Cancelling ends it as long as nothing was changed, also while it waits for the lock; after
    that it goes on to its end, holding the lock, and only the waiting ends.

    Raises:
        LockedError: If somebody has the log open.

        CorruptionError: If no whole record is left. Nothing was changed.

        ForkedError: In a child of a process that has verified or repaired a log itself.
    """
    report: dict[str, Any] = await _core.repair_log(_directory(path), lock_timeout_s)
    report["damage"] = _damage(report)
    return RepairReport(**report)


def _directory(path: Location) -> str:
    directory = os.fsdecode(path)
    if not directory:
        raise ValueError("path is empty")
    if "\0" in directory:
        raise ValueError("path contains a NUL character")
    # Not `Path.resolve`: what a link points to is the engine's to judge.
    return os.path.abspath(directory)  # noqa: PTH100


def _beside(io: _core.IoEngine, settings: LogSettings) -> LogSettings:
    """Fill in what *settings* leave open with what *io* runs on."""
    if not isinstance(io, _core.IoEngine):
        raise TypeError(f"io must be an IoEngine, not {type(io).__name__}")
    backend, _, _ = io._backend_report
    driver = io._statistics_report()["driver"]
    if settings.backend == "auto":
        settings = replace(settings, backend=backend)
    # On threads no event loop could turn a log: it would have to wait for the disk.
    if settings.driver == "auto" and settings.backend != "threads":
        settings = replace(settings, driver=driver)
    return settings


def _damage(report: dict[str, Any]) -> tuple[Damage, ...]:
    return tuple(Damage(**row) for row in report["damage"])


async def _batches(
    log: Log,
    start: int,
    stop: int,
    records_max: int,
) -> AsyncGenerator[list[Record]]:
    reader = log._reader(start, stop, records_max)
    while (batch := await reader.batch()) is not None:
        yield batch


async def _flatten(batches: AsyncGenerator[list[Record]]) -> AsyncGenerator[Record]:
    async for batch in batches:
        for record in batch:
            yield record


async def _follow(log: Log, start: int) -> AsyncGenerator[Record]:
    if start > log.durable_lsn:
        await log._reached(start)
    reader = log._reader(start, None, 4096)
    while True:
        batch = await reader.batch()
        if batch is None:
            following = reader.next_lsn()
            if following is None:
                return
            await log._reached(following)
            continue
        for record in batch:
            yield record


async def _watch(log: Log, start: int) -> AsyncGenerator[Record]:
    """Follow a log that others write."""
    directory, settings = os.fspath(log.path), log._settings or LogSettings()
    reader = log._watch(start, settings.recovery, 4096)
    while True:
        try:
            batch = await reader.batch()
        except (IoError, IoTimeout) as error:
            if not _was_dropped(error, directory):
                raise
            batch = None
        if batch is None:
            await asyncio.sleep(reader.rest_s())
            continue
        for record in batch:
            yield record


def _was_dropped(error: IoError | IoTimeout, directory: str) -> bool:
    """Whether the owner dropped what was looked at: the next look shows what is left."""
    is_gone = isinstance(error, IoTimeout) or error.errno == errno.ENOENT
    return is_gone and os.path.isdir(directory)  # noqa: PTH112


def _check_range(start: int, stop: int | None, records_max: int) -> None:
    for name, value in (("start", start), ("stop", stop), ("records_max", records_max)):
        if value is None and name == "stop":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if not 1 <= value <= _LSN_MAX:
            raise ValueError(f"{name} must lie between 1 and {_LSN_MAX}, not {value}")


_open: weakref.WeakSet[Log] = weakref.WeakSet()


def _warn_unclosed(log: Log) -> None:
    warnings.warn(f"unclosed log {log!r}", ResourceWarning, stacklevel=2, source=log)


@atexit.register
def _complain_at_exit() -> None:
    """Say what was left open; the extension's own handler closes it afterwards."""
    # What a forked child inherited is its parent's to close.
    mine = [log for log in list(_open) if log._owner == os.getpid()]
    left = [log for log in mine if log._state == "open"]
    with contextlib.ExitStack() as exits:
        for log in left:
            # On a stack, so that a warning that is made an error does not hide the others.
            exits.callback(_warn_unclosed, log)
            log._owner = None  # it is being complained about
