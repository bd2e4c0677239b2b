"""
The exceptions of Millrace, one tree under `Error`.

A class says what to do next. Where something happened stands in attributes, which are `None`
when they do not apply: `errno`, `operation`, `path`, `offset`, `done`, `requested`, `segment`,
`lsn`, `pid`, `limit`. Whatever else the engine knew is in `facts`. An error that only reports an
earlier one carries that as `__cause__`.

Where the operating system gave an error number, the exception is an `OSError` with `errno`,
`strerror` and `filename`, and what Python itself would have raised for that number:
`except FileNotFoundError` catches an `IoError` about a missing file.

Wrong arguments are Python's own `TypeError` and `ValueError`: nothing was done, fix the call.
"""

from __future__ import annotations

import os
from typing import Any, Self


class Error(Exception):
    """
    Base of everything Millrace raises for reasons outside the calling code.

    Catch it to handle any failure of the store in one place.
    """

    def __init__(self, message: str = "", /, **facts: int | str) -> None:
        super().__init__(message)
        self.facts: dict[str, int | str] = facts
        # What the operating system said, here or in the error that came first.
        self.errno: int | None = self._number("errno")
        _fill_in(self, self.errno, self._text("path"))

    def __reduce__(self) -> tuple[Any, ...]:
        # What `OSError` keeps outside of the dictionary is made again from the facts.
        return _remade, (type(self), self.args, self.facts), self.__dict__

    @property
    def message(self) -> str:
        """The sentence, without the facts."""
        return str(self.args[0]) if self.args else ""

    def _number(self, key: str) -> int | None:
        value = self.facts.get(key)
        return value if isinstance(value, int) else None

    def _text(self, key: str) -> str | None:
        value = self.facts.get(key)
        return value if isinstance(value, str) else None

    @property
    def operation(self) -> str | None:
        """The call that failed."""
        return self._text("operation")

    @property
    def path(self) -> str | None:
        """The file or directory it was about; `os.fsencode` gives its bytes back."""
        return self._text("path")

    @property
    def offset(self) -> int | None:
        """Where in the file, in bytes."""
        return self._number("offset")

    @property
    def done(self) -> int | None:
        """How many bytes were done before it failed."""
        return self._number("done")

    @property
    def requested(self) -> int | None:
        """How many bytes were asked for."""
        return self._number("requested")

    @property
    def segment(self) -> int | None:
        """The number of the segment file."""
        return self._number("segment")

    @property
    def lsn(self) -> int | None:
        """The record it was about."""
        return self._number("lsn")

    @property
    def pid(self) -> int | None:
        """The process it was about."""
        return self._number("pid")

    @property
    def limit(self) -> str | None:
        """The setting that was exceeded."""
        return self._text("limit")

    def __str__(self) -> str:
        if not self.facts:
            return self.message
        facts = ", ".join(f"{key}={value}" for key, value in self.facts.items())
        # A path need not be text: what cannot be printed is shown with a backslash.
        return f"{self.message} [{facts}]".encode(errors="backslashreplace").decode()


class ClosedError(Error):
    """The object was closed. Open it again; nothing of this call was done."""


class PoisonedError(Error):
    """
    Something failed for good; every later call fails with the same first cause.

    Close it and open it again: recovery then says what survived. The first cause is in
    `__cause__`.
    """


class LogPoisonedError(PoisonedError):
    """
    A write or sync of the log failed, and nothing was acknowledged after it.

    Whether the records that were in flight are durable is unknown. Close the log, open it again,
    and look which of them are there.
    """


class CorruptionError(Error):
    """
    Bytes that were durable are wrong.

    Nothing was modified. Restore a backup, or look at `millrace log verify` and
    `millrace log repair`.
    """


class ShortReadError(Error):
    """
    The file ended before the bytes that were asked for.

    Ask for less, or allow it with `partial=True`. `got` and `wanted` are byte counts.
    """

    @property
    def got(self) -> int | None:
        """How many bytes there were."""
        return self._number("got")

    @property
    def done(self) -> int | None:
        """The same."""
        return self.got

    @property
    def wanted(self) -> int | None:
        """How many were asked for."""
        return self._number("wanted")


class EndOfStream(Error):  # noqa: N818 - an end, not an error
    """
    The peer ended the stream. Stop reading.

    `got` bytes of the `wanted` had come. On a socket they are kept for a receive that takes fewer.
    """

    @property
    def got(self) -> int | None:
        """How many bytes had come."""
        return self._number("got")

    @property
    def wanted(self) -> int | None:
        """How many were asked for."""
        return self._number("wanted")


class NoSpaceError(Error, OSError):
    """The device, the quota or the file size limit is full. Make room, then open again."""


class TooLargeError(Error, ValueError):
    """Larger than a limit that waiting will not change. Split it, or raise the limit."""


class OverloadedError(Error, BlockingIOError):
    """Full right now; nothing was done. Wait and try again, or use a call that waits."""


class IoTimeout(Error, TimeoutError):  # noqa: N818 - named like the built-in it refines
    """
    The deadline passed.

    Ask `indeterminate` before doing it again.
    """

    @property
    def indeterminate(self) -> bool:
        """Whether something may have been changed: a write or sync that was under way."""
        return self._number("indeterminate") == 1


class IoError(Error, OSError):
    """
    The operating system refused. Look at `errno`, `operation` and `path`.

    It is raised as the class that Python has for the error number, where it has one, so that
    `FileNotFoundError`, `PermissionError`, `BrokenPipeError` and their like catch it too.
    """

    def __new__(cls, message: str = "", /, **facts: int | str) -> Self:
        """Choose the class by the error number."""
        errno = facts.get("errno")
        if cls is IoError and isinstance(errno, int):
            # The built-in class knows which of its children stands for a number.
            chosen = _BY_BUILTIN.get(type(OSError(errno, "")), cls)
            return super().__new__(chosen, message)  # type: ignore[return-value]
        return super().__new__(cls, message)


class IoFileNotFoundError(IoError, FileNotFoundError):
    """An `IoError`: there is no such file or directory."""


class IoFileExistsError(IoError, FileExistsError):
    """An `IoError`: it is there already."""


class IoPermissionError(IoError, PermissionError):
    """An `IoError`: not allowed."""


class IoIsADirectoryError(IoError, IsADirectoryError):
    """An `IoError`: it is a directory."""


class IoNotADirectoryError(IoError, NotADirectoryError):
    """An `IoError`: part of the path is no directory."""


class IoBrokenPipeError(IoError, BrokenPipeError):
    """An `IoError`: the peer takes no more."""


class IoConnectionResetError(IoError, ConnectionResetError):
    """An `IoError`: the peer ended the connection abruptly."""


class IoConnectionAbortedError(IoError, ConnectionAbortedError):
    """An `IoError`: the connection was given up."""


class IoConnectionRefusedError(IoError, ConnectionRefusedError):
    """An `IoError`: nobody listens there."""


class IoConnectionTimeoutError(IoError, TimeoutError):
    """An `IoError`: the network gave up the connection; no deadline of the call has passed."""


class IoInterruptedError(IoError, InterruptedError):
    """An `IoError`: interrupted more often than is believable."""


class IoBlockingError(IoError, BlockingIOError):
    """An `IoError`: told to try again more often than is sensible."""


_BY_BUILTIN: dict[type[OSError], type[IoError]] = {
    FileNotFoundError: IoFileNotFoundError,
    FileExistsError: IoFileExistsError,
    PermissionError: IoPermissionError,
    IsADirectoryError: IoIsADirectoryError,
    NotADirectoryError: IoNotADirectoryError,
    BrokenPipeError: IoBrokenPipeError,
    ConnectionResetError: IoConnectionResetError,
    ConnectionAbortedError: IoConnectionAbortedError,
    ConnectionRefusedError: IoConnectionRefusedError,
    TimeoutError: IoConnectionTimeoutError,
    InterruptedError: IoInterruptedError,
    BlockingIOError: IoBlockingError,
}


class VersionMismatch(Error):  # noqa: N818 - an ordinary outcome of a conditional put
    """Somebody else was faster. Read the current version and decide again."""


class NamespaceLimitError(Error):
    """No further namespace fits. Drop one, or raise the limit."""


class FormatVersionError(Error):
    """Written by a version this one does not understand. Nothing was touched; upgrade."""


class LockedError(Error, BlockingIOError):
    """Somebody else has it open; `pid` says who, if that is known. Wait, or open read-only."""


class ForkedError(Error, RuntimeError):
    """Opened before a fork and used in the child. Open it again in the child."""


class BackendUnavailable(Error):  # noqa: N818 - a state of the machine
    """Not offered by this kernel, file system or build. The message says what is missing."""


class AbandonedError(Error):
    """
    The engine was shut down, or gave up waiting for the kernel, before this was finished.

    Ask `indeterminate` whether something may have been changed; `done` bytes are known to be.
    """

    @property
    def indeterminate(self) -> bool:
        """Whether something may have been changed: a write or sync that was under way."""
        return self._number("indeterminate") == 1


def _fill_in(error: Exception, errno: int | None, path: str | None) -> None:
    """Tell what code looks at that was written for Python's own files."""
    if isinstance(error, OSError) and errno is not None:
        error.strerror = os.strerror(errno)
        error.filename = path


def _remade(kind: type[Error], args: tuple[str, ...], facts: dict[str, int | str]) -> Error:
    """Make an exception again from its parts, for pickle and copy."""
    return kind(*args, **facts)
