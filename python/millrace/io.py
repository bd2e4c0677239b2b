"""The I/O engine: files and sockets for asyncio, with positions, deadlines and no thread hops."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Self

from . import _core
from .opening import Opening
from .settings import IoSettings
from .types import BackendInfo, Histogram, IoStatistics

if TYPE_CHECKING:
    from types import TracebackType

    from ._core import File

Location = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class IoEngine(_core.IoEngine):
    """
    File and socket operations that can be awaited, cancelled, and bounded by deadlines.

    On io_uring where the kernel allows it, on threads where it does not, with the same results;
    `backend` tells which, and why. Every operation begins at the call; the await ends with its
    answer. Any number of event loops and threads of a process may use one engine.

    Args:
        settings: How it asks the kernel, and how much at once.

    Raises:
        BackendUnavailable: If `settings` or `MILLRACE_BACKEND` force what this kernel refuses.

    Examples:
        >>> import asyncio, tempfile
        >>> async def main(path):
        ...     async with IoEngine() as io, io.open(path, "w+") as file:
        ...         await io.write_at(file, b"hello, world", 0)
        ...         return await io.read_at(file, 5, 7)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     asyncio.run(main(directory + "/greeting"))
        b'world'
    """

    __slots__ = ("__weakref__", "_owner")

    # The process that has to close it, until it has been told off for not doing so.
    _owner: int | None

    def __new__(cls, *, settings: IoSettings | None = None) -> Self:
        """Probe the kernel and start the engine."""
        if settings is None:
            settings = IoSettings()
        elif not isinstance(settings, IoSettings):
            raise TypeError(f"settings must be IoSettings, not {type(settings).__name__}")
        engine = super().__new__(cls, settings)
        engine._owner = os.getpid()
        _open.add(engine)
        return engine

    @property
    def backend(self) -> BackendInfo:
        """What it runs on, why not on something better, and what helps against that."""
        name, reason, hint = self._backend_report
        return BackendInfo(name=name, reason=reason, hint=hint)

    def open(
        self,
        path: Location,
        flags: str = "r",
        *,
        direct: bool = False,
        permissions: int = 0o600,
        timeout_s: float | None = None,
    ) -> OpeningFile:
        """
        Open a file.

        Await the result for an open file, or use it with `async with`, which closes the file at
        the end. A relative *path* is resolved now.

        Cancelling stops the waiting; a file that opens all the same is closed again.

        Args:
            path: Where it is.

            flags: As for Python's own `open`: `"r"`, `"r+"`, `"w"`, `"w+"`, `"x"`, `"x+"`. Bytes
                only, so a `"b"` in it changes nothing. `"a"` is refused: the kernel would ignore
                the offset of every write.

            direct: Bypass the page cache (`O_DIRECT`). Offsets and lengths must then be multiples
                of the device's block; memory is aligned anyway.

            permissions: Those of a file that is made, less the umask.

            timeout_s: When to give up.

        Raises:
            IoError: If the kernel refused; `errno` and `path` say what, and Python's own classes,
                such as `FileNotFoundError`, catch it. A pipe or a terminal has no positions: it is
                refused with `ESPIPE`.

            IoTimeout: If the deadline passed; a file may have been made.
        """
        started = self._open(path, flags, bool(direct), permissions, timeout_s)
        return OpeningFile(started)

    def statistics(self) -> IoStatistics:
        """What the engine did so far."""
        report: dict[str, Any] = self._statistics_report()
        for name in ("queue_wait", "device_time"):
            report[name] = {kind: Histogram(**row) for kind, row in report[name].items()}
        return IoStatistics(**report)

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
        return f"<millrace.IoEngine backend={self._backend_report[0]} state={self._state}>"

    def __reduce__(self) -> str:
        raise TypeError("an I/O engine cannot be pickled or copied; make one where it is needed")

    def __del__(self) -> None:
        # One whose making failed half-way has no such attribute.
        if getattr(self, "_owner", None) == os.getpid() and self._state == "open":
            _warn_unclosed(self)


class OpeningFile(Opening["File"]):
    """A file being opened."""

    __slots__ = ()

    async def _finish(self) -> File:
        file: File = await self._started
        # From here on somebody has it, and has to close it.
        file._hand_over()  # noqa: SLF001
        return file


_open: weakref.WeakSet[IoEngine] = weakref.WeakSet()


def _warn_unclosed(engine: IoEngine) -> None:
    warnings.warn(f"unclosed I/O engine {engine!r}", ResourceWarning, stacklevel=2, source=engine)


@atexit.register
def _complain_at_exit() -> None:
    """Say what was left open; the extension's own handler closes it afterwards."""
    # What a forked child inherited is its parent's to close.
    mine = [engine for engine in list(_open) if engine._owner == os.getpid()]  # noqa: SLF001
    left = [engine for engine in mine if engine._state == "open"]  # noqa: SLF001
    with contextlib.ExitStack() as exits:
        for engine in left:
            # On a stack, so that a warning that is made an error does not hide the others.
            exits.callback(_warn_unclosed, engine)
            engine._owner = None  # noqa: SLF001 - it is being complained about
