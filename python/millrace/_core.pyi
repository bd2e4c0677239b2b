"""What the extension module offers. Import `millrace` instead."""

from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from os import PathLike
from pathlib import Path
from socket import socket
from types import GenericAlias, TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar, TypeVarTuple, final

from typing_extensions import Buffer, disjoint_base

from .parts import Backpressure
from .settings import GcSettings, IoSettings, LogSettings
from .types import BackendName, Durability, IoState, LogState

__all__ = [
    "CloseReport",
    "EngineBuffer",
    "Entry",
    "EpochGC",
    "EpochPin",
    "File",
    "FileStatus",
    "Handle",
    "IoEngine",
    "Log",
    "Operation",
    "Reader",
    "Record",
    "Ring",
    "RingTicket",
    "Ticket",
    "Timeout",
    "TimeoutWheel",
    "TimerScope",
    "__version__",
    "backend_info",
    "check_settings",
    "cleanup_done",
    "cleanup_report",
    "close_everything",
    "come_back_by_bridge",
    "come_back_by_port",
    "open_log",
    "repair_log",
    "verify_log",
    "wait_for_insiders",
]

_T_co = TypeVar("_T_co", covariant=True)
_Ts = TypeVarTuple("_Ts")
_Location: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]

__version__: Final[str]

@final
class Operation(Coroutine[Any, Any, _T_co], Generic[_T_co]):
    """
    An operation under way: started by the call that returned it, awaited once.

    It is a coroutine as far as asyncio is concerned: await it, or give it to `create_task`,
    `TaskGroup`, `gather`, `wait_for` or `shield`. Dropping it does not stop what it started.
    """

    @property
    def __name__(self) -> str: ...  # pyright: ignore[reportIncompatibleVariableOverride]
    @property
    def __qualname__(self) -> str: ...  # pyright: ignore[reportIncompatibleVariableOverride]
    def __await__(self) -> Generator[Any, Any, _T_co]: ...
    def send(self, value: object, /) -> object:
        """Advance one step, as a task does; the result is what to wait for."""

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: object = None,
        traceback: TracebackType | None = None,
    ) -> object:
        """Stop waiting with an exception, as a cancelled task does."""

    def close(self) -> None:
        """Stop waiting. What can still be taken back is."""

    @classmethod
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...

@final
class Ticket:
    """A record that was submitted: look at it, wait for it, or await it as often as you like."""

    @property
    def lsn(self) -> int:
        """The LSN of the record."""

    def done(self) -> bool:
        """Whether it is durable, or will never be because the log failed."""

    def wait(self, timeout_s: float | None = None) -> int:
        """
        Wait on a plain thread until the record is durable; return its LSN.

        Raises:
            IoTimeout: If *timeout_s* passed first; the record is still being written.

            LogPoisonedError: If the log failed; the record may or may not be durable.
        """

    def __await__(self) -> Generator[Any, Any, int]: ...

@final
class Record:
    """One record of a log."""

    __match_args__ = ("lsn", "data", "timestamp")

    def __new__(cls, lsn: int, data: bytes, timestamp: int) -> Self: ...
    @property
    def lsn(self) -> int:
        """Its position in the log; the first record is 1."""

    @property
    def data(self) -> bytes:
        """Its bytes."""

    @property
    def timestamp(self) -> int:
        """When its group was written, in nanoseconds since 1970, UTC. May step back."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[Self], tuple[int, bytes, int]]: ...

@final
class Reader:
    """A place in a log, moving forward in batches."""

    def batch(self) -> Operation[list[Record] | None]:
        """Return the next records; `None` when there are none yet."""

    def next_lsn(self) -> int | None:
        """LSN of the record after the last batch; `None` at the stop."""

    def rest_s(self) -> float:
        """How long to wait before the next look, after `batch` gave `None`."""

@disjoint_base
class Log:
    """The handle behind `millrace.Log`."""

    def __new__(cls, log: Log) -> Self: ...
    def append(self, data: Buffer, *, durability: Durability | None = None) -> Operation[int]:
        """
        Append one record; the result of the await is its LSN.

        The record is copied and gets its LSN when this is called, so records are in the order
        of the calls. The await ends when the record is durable: it then survives the process,
        the kernel and the power supply. With *durability* `"committed"` it ends when the record
        is in the file, with `"appended"` when it is in memory. When as many records as the
        settings allow wait for the disk, the call joins a line, first come first served.

        Cancelling stops the waiting, not the write. Only a record that still stands in line is
        taken back and not written.

        Args:
            data: Any contiguous bytes-like object; empty is allowed.

            durability: How far the record must have come. Default: `"durable"`.

        Raises:
            TypeError: If *data* is a `str` (encode it first) or not bytes-like.

            TooLargeError: If it is larger than `record_bytes_max`.

            LogPoisonedError: If the log failed; the record may or may not be durable.

            ClosedError: If the log is closed.
        """

    def append_many(
        self,
        items: Iterable[Buffer],
        *,
        durability: Durability | None = None,
    ) -> Operation[range]:
        """
        Append several records as one; the result of the await is the range of their LSNs.

        They share a group, so after a crash either all of them are there or none. No items
        give an empty range, at once, if the log is open. Otherwise like `append`.

        Cancelling stops the waiting, not the write. Only a batch that still stands in line is
        taken back and not written.

        Raises:
            TooLargeError: If they are more or larger than one group may be.
        """

    def submit(self, data: Buffer) -> Ticket:
        """
        Append one record without waiting at all.

        Usable from any thread. The ticket tells the LSN at once and the outcome later.

        Raises:
            OverloadedError: If as many records as the settings allow wait for the disk, or
                others stand in line. Nothing was written.
        """

    def append_sync(self, data: Buffer, *, timeout_s: float | None = None) -> int:
        """
        Append one record from a plain thread and wait until it is durable.

        Other threads go on meanwhile. On the thread of an event loop it stops that loop for as
        long; await `append` there.

        Raises:
            IoTimeout: If *timeout_s* passed first. The message says whether the record is still
                being written or was not written at all.
        """

    def flush(self) -> Operation[int]:
        """
        Wait until everything appended before this call is durable; the result is the durable LSN.

        Cancelling stops the waiting and nothing else.
        """

    def _reached(self, lsn: int) -> Operation[int]:
        """Wait until *lsn* is durable, also if nobody has appended it yet."""

    def _watch(self, start: int, recovery: str, records_max: int) -> Reader:
        """Return a reader from *start* on of what another process writes to the directory."""

    def _reader(self, start: int, stop: int | None, records_max: int) -> Reader:
        """Return a reader from *start* up to, not including, *stop*."""

    def truncate_before(self, lsn: int) -> Operation[int]:
        """
        Drop whole segments below *lsn*; the result is the first LSN left.

        Never drops what a cursor holds back. The file of a segment goes when its last reader
        lets go, or at the close.

        Cancelling stops the waiting, not the truncation.
        """

    def cursor(self, name: str) -> tuple[int, bool]:
        """Return position and hold of a cursor; 0 if it was never committed."""

    def _commit_cursor(self, name: str, lsn: int, holds_truncation: bool) -> Operation[None]:
        """Make a cursor's position durable."""

    def close(self) -> Operation[None]:
        """
        Write what was appended, mark the end, and release the directory.

        Closing twice is fine. Cancelling stops the waiting, not the closing.

        Raises:
            LogPoisonedError: If the log had failed; the first cause is in `__cause__`.
        """

    def _close_within(self, timeout_s: float) -> bool:
        """Close from a plain thread; false if it is still closing after *timeout_s*."""

    @property
    def path(self) -> Path:
        """The directory."""

    @property
    def first_lsn(self) -> int:
        """LSN of the first record that can be read."""

    @property
    def last_lsn(self) -> int:
        """LSN of the last record that was appended, durable or not; 0 if there is none."""

    @property
    def durable_lsn(self) -> int:
        """LSN of the last record that survives power loss."""

    @property
    def _state(self) -> LogState:
        """`open`, `read_only`, `closed`, or `failed` after a failed write."""

    def _recovery_report(self) -> dict[str, Any]:
        """Return the fields of `RecoveryReport`."""

    def _statistics_report(self) -> dict[str, Any]:
        """Return the fields of `LogStatistics`."""

@disjoint_base
class Ring:
    """The ring behind `millrace.Ring`."""

    def __new__(
        cls,
        capacity: int,
        capacity_bytes: int,
        entry_bytes_max: int,
        backpressure: Backpressure,
    ) -> Self: ...
    def try_append(self, data: Buffer) -> RingTicket:
        """
        Append *data* without waiting.

        Raises:
            OverloadedError: If the ring is full, or others stand in line. Nothing was appended.

            TooLargeError: If waiting would not help.

            ClosedError: If the ring is closed.
        """

    def append(self, data: Buffer) -> Operation[RingTicket]:
        """
        Append *data*, waiting in line while the ring is full; the result is the ticket.

        The line is first come, first served, for all loops and threads together.

        Cancelling takes the entry back if it still stands in line; it is then never seen by the
        consumer.
        """

    def append_blocking(self, data: Buffer, timeout_s: float | None = None) -> RingTicket:
        """
        Append *data* from a plain thread, waiting while the ring is full.

        First spins, as the ring's `Backpressure` says, then waits in line. Other threads go on.

        Raises:
            IoTimeout: If there was no room for *timeout_s*. Nothing was appended.
        """

    def drain(self, max: int | None = None) -> list[Entry]:  # noqa: A002 - it is the public name
        """
        Take what is there, at most *max* entries, in the order of their positions.

        Never waits. Each entry wants an answer: `complete` or `fail`.

        Raises:
            RuntimeError: If another drain is under way; a ring has one consumer.
        """

    def wait(self) -> Operation[bool]:
        """
        Wait until there is something to drain; false once the ring is closed and empty.

        Cancelling stops the waiting and nothing else.
        """

    def close(self) -> None:
        """Refuse every later append, also those in line. What is inside stays to be drained."""

    @property
    def is_closed(self) -> bool:
        """Whether appends are refused for good."""

    @property
    def capacity(self) -> int:
        """How many entries fit; the requested capacity rounded up to a power of two."""

    def __len__(self) -> int: ...
    def _statistics_report(self) -> dict[str, int]:
        """Return the fields of `RingStatistics`."""

@final
class RingTicket:
    """An entry that was appended. Look at it, wait for its answer, or await it, repeatedly."""

    @property
    def position(self) -> int:
        """The position of the entry; the first one is 0."""

    def done(self) -> bool:
        """Whether the consumer has answered."""

    def wait(self, timeout_s: float | None = None) -> int:
        """
        Wait on a plain thread for the answer; return the position.

        Raises:
            IoTimeout: If *timeout_s* passed first.

            AbandonedError: If the consumer let go of the entry without an answer. An exception
                given to `Entry.fail` is raised as it is.
        """

    def __await__(self) -> Generator[Any, Any, int]: ...

@final
class Entry:
    """An entry that was drained and wants one answer."""

    @property
    def position(self) -> int:
        """Its position in the ring; the first one is 0."""

    @property
    def data(self) -> bytes:
        """Its bytes."""

    def complete(self) -> None:
        """Answer that it has been dealt with. Only the first answer counts."""

    def fail(self, exception: BaseException) -> None:
        """Answer with an exception, which whoever waits for the entry gets."""

@disjoint_base
class EpochGC:
    """The collector behind `millrace.EpochGC`."""

    def __new__(cls, settings: GcSettings) -> Self: ...
    def pin(self, label: str | None = None) -> EpochPin:
        """
        Make a pin: a context manager, sync or async, that may be entered again while it is held.

        While it is entered, nothing that is deferred after that runs. It may be held across
        awaits and left on another thread.
        """

    def defer(
        self,
        fn: Callable[[*_Ts], object],
        /,
        *args: *_Ts,
        cost_bytes: int = 0,
    ) -> None:
        """
        Call `fn(*args)` once nobody is pinned who was pinned when this was called.

        It runs in the context of this call: in the event loop that runs now, or, if none does,
        at the next `collect` or `close`, or in a loop that uses this collector. What it raises is
        logged and counted; `KeyboardInterrupt` and `SystemExit` go on to whoever ran it.
        *cost_bytes* is what it holds until then; it counts towards `max_bytes`.

        When there is no room it runs one batch of what is safe, then does what the overflow
        policy says. It never waits for itself: inside a call of this collector, and on a thread
        that has entered one of its pins, it raises instead of waiting.

        Raises:
            OverloadedError: If there is no room and the overflow policy found no way. Nothing
                was deferred; `defer_async` waits instead.

            TooLargeError: If *cost_bytes* alone is more than `max_bytes`, and it cannot run now:
                somebody is pinned, or the overflow policy is not `inline`.

            ClosedError: If the collector is closed.
        """

    def _try_defer(
        self,
        fn_: Callable[[*_Ts], object],
        args: tuple[*_Ts],
        cost_bytes: int,
    ) -> bool:
        """Do what `defer` does; false, and nothing is counted, if room may come."""

    def quiesce(self) -> Operation[None]:
        """
        Wait until everything that was deferred before this call has run.

        A pin that is held meanwhile holds this up too; do not await it inside one.

        Cancelling stops the waiting and nothing else.
        """

    def wait_room(self, cost_bytes: int) -> Operation[None]:
        """Wait until there may be room for a call of *cost_bytes*, or there will never be."""

    def collect(self, max_items: int, max_micros: int) -> int:
        """
        Run what is safe within a budget; return how many calls ran.

        At most *max_items* calls and *max_micros* microseconds. Runs calls that belong to no
        loop, or to the loop of this thread. Those of other loops are handed to them. The call
        that runs when the time is up is finished. Inside a call nothing runs: the run under way
        goes on when that has ended.
        """

    def disable(self) -> int:
        """
        Take no more calls; run what is safe. From then on `defer` runs what is safe at once.

        Returns how many calls are left: held back by a pin, or handed to another loop. They run
        there, or when the last pin is left.
        """

    def enable(self) -> None:
        """Take calls again after `disable`."""

    def close(self) -> int:
        """
        Take no more calls, for good; run what is safe.

        Returns how many calls are left: held back by a pin, or handed to another loop. They run
        there, or when the last pin is left.
        """

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused for good."""

    @property
    def _is_orphaned(self) -> bool:
        """Whether calls wait here, in this process, and nobody closed it."""

    def __len__(self) -> int: ...
    def statistics_report(self) -> dict[str, Any]:
        """Return the fields of `GcStatistics`."""

@final
class EpochPin:
    """While it is entered, nothing deferred after that runs. Made by `EpochGC.pin`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(self, *exc_info: object) -> Awaitable[None]: ...
    @property
    def label(self) -> str | None:
        """What `statistics()` calls it."""

    @property
    def depth(self) -> int:
        """How often it was entered and not yet left."""

@disjoint_base
class IoEngine:
    """The engine behind `millrace.IoEngine`."""

    def __new__(cls, settings: IoSettings) -> Self: ...
    def _open(
        self,
        path: _Location,
        flags: str,
        direct: bool,
        permissions: int,
        timeout_s: float | None,
    ) -> Operation[File]:
        """Open a file."""

    def read_at(
        self,
        file: File,
        length: int,
        offset: int,
        *,
        timeout_s: float | None = None,
        partial: bool = False,
    ) -> Operation[bytes]:
        """
        Read *length* bytes of *file* from *offset*.

        Up to 64 KiB that the page cache has are there when the call returns, as a rule, and
        awaiting them does not suspend.

        Cancelling gives the read up. Nothing is changed by it.

        Args:
            file: An open file.

            length: How much.

            offset: From where.

            timeout_s: When to give up.

            partial: Give what there is at the end of the file, instead of an error.

        Raises:
            ShortReadError: If the file ended before; `got` says where.

            IoTimeout: If the deadline passed.

            ClosedError: If the file or the engine is closed.
        """

    def read_into(
        self,
        file: File,
        buffer: Buffer | EngineBuffer,
        offset: int,
        *,
        timeout_s: float | None = None,
        partial: bool = False,
    ) -> Operation[int]:
        """
        Fill *buffer* from *offset*; the result is how many bytes were read.

        The kernel reads into memory of the engine. It is copied to *buffer* on the loop's own
        thread when the await ends, so the buffer may be used, resized or dropped in the meantime.
        An `EngineBuffer` takes the memory itself, without a copy.

        Cancelling gives the read up; *buffer* stays as it was, unless its bytes had come already.

        Raises:
            BufferError: If *buffer* is read-only, not contiguous, or an `EngineBuffer` with a
                view or another read; at the end, if it has become too small.

            ShortReadError: If the file ended before; *buffer* stays as it was.
        """

    def buffer(self, size: int, /) -> EngineBuffer:
        """
        Return a read-only buffer of *size* bytes in the engine's memory, for `read_into`.

        Raises:
            TooLargeError: If there is no memory for it.
        """

    def write_at(
        self,
        file: File,
        data: Buffer | Sequence[Buffer],
        offset: int,
        *,
        sync: bool = False,
        timeout_s: float | None = None,
    ) -> Operation[int]:
        """
        Write all of *data* at *offset*; the result is how many bytes that was.

        The bytes are copied at the call. A list or tuple of buffers is written one after the
        other, as one write. With *sync* they are durable when the await ends.

        Cancelling stops the waiting, not the write.

        Raises:
            IoTimeout: If the deadline passed. With `indeterminate` some or all of it may have
                been written.

            NoSpaceError: If the device or the quota is full.
        """

    def sync(
        self,
        file: File,
        *,
        data_only: bool = True,
        timeout_s: float | None = None,
    ) -> Operation[None]:
        """
        Make what was written to *file* durable.

        With *data_only* times and the like are left out, but never what is needed to read the
        data back. Writes that were not awaited before may not be covered. After a failed sync the
        kernel may have dropped what it could not write: do not try again, write again.

        Cancelling stops the waiting, not the sync.
        """

    def send(
        self,
        sock: socket,
        data: Buffer | Sequence[Buffer],
        *,
        timeout_s: float | None = None,
    ) -> Operation[int]:
        """
        Send all of *data* on a connected socket; the result is how many bytes that was.

        Cancelling stops the waiting, not the sending.

        Raises:
            TypeError: If *sock* is no `socket.socket`, or speaks TLS.

            ValueError: If it is no stream socket.

            IoTimeout: If the deadline passed; some of it may have been sent.
        """

    def recv(
        self,
        sock: socket,
        length: int,
        *,
        exact: bool = False,
        timeout_s: float | None = None,
    ) -> Operation[bytes]:
        """
        Receive up to *length* bytes from a connected socket, or with *exact* as many.

        Receives on one socket are served in the order of the calls, sends likewise.

        Cancelling gives the receive up. What had come to it, or is on its way, is not lost: the
        next receive on *sock* begins with it. So it is when the deadline passes.

        Raises:
            EndOfStream: If the peer ended the stream first; `got` says how many bytes had come,
                which a receive without *exact* still gets.

            IoTimeout: If the deadline passed; `done` says how many bytes had come, which the next
                receive begins with.
        """

    def fallocate(
        self,
        file: File,
        length: int,
        *,
        timeout_s: float | None = None,
    ) -> Operation[None]:
        """
        Reserve space for the first *length* bytes of *file*, which is as long afterwards at least.

        Cancelling stops the waiting, not the reservation.
        """

    def truncate(
        self,
        file: File,
        length: int,
        *,
        timeout_s: float | None = None,
    ) -> Operation[None]:
        """
        Cut or extend *file* to *length* bytes.

        Cancelling stops the waiting, not the change.
        """

    def rename(
        self,
        source: _Location,
        target: _Location,
        *,
        timeout_s: float | None = None,
    ) -> Operation[None]:
        """
        Rename *source* to *target*, replacing what was there. Durable after `sync_directory`.

        Cancelling stops the waiting, not the renaming.
        """

    def unlink(self, path: _Location, *, timeout_s: float | None = None) -> Operation[None]:
        """
        Remove the name of a file. Durable after `sync_directory`.

        Cancelling stops the waiting, not the removal.
        """

    def stat(
        self,
        target: File | _Location,
        *,
        timeout_s: float | None = None,
    ) -> Operation[FileStatus]:
        """
        Return what is known about an open file or a path; links are followed.

        Cancelling gives it up.
        """

    def sync_directory(self, path: _Location, *, timeout_s: float | None = None) -> Operation[None]:
        """
        Make the names in a directory durable.

        Cancelling stops the waiting, not the sync.
        """

    def close(self, *, timeout_s: float | None = None) -> Operation[CloseReport]:
        """
        Take no more, serve what was taken, and end; the result tells what was left behind.

        What is under way is waited for: as long as it takes, or for the shorter of *timeout_s*
        and `shutdown_timeout_s`. Then it is cancelled, and what the kernel still does not answer
        is left behind with its memory; whoever waits for it gets `AbandonedError`.

        Closing twice is fine; a second call can shorten the time. Cancelling stops the waiting,
        not the closing.
        """

    def _close_within(self, timeout_s: float) -> CloseReport:
        """Close from a plain thread, which waits; like `close` otherwise."""

    @property
    def _backend_report(self) -> tuple[BackendName, str, str]:
        """Name, reason and hint of the backend."""

    @property
    def _state(self) -> IoState | Literal["forked"]:
        """`open`, `closing`, `closed`, or `failed` after a defect; `forked` in a child."""

    def _statistics_report(self) -> dict[str, Any]:
        """Return the fields of `IoStatistics`."""

@final
class File:
    """
    A file opened by an engine, to be read and written at positions.

    Close it, or use it with `async with`. Operations under way keep it open until they are over.
    """

    @property
    def path(self) -> Path:
        """Where it was opened."""

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""

    def fileno(self) -> int:
        """
        Return the descriptor, for calls that only look, such as `os.posix_fadvise`.

        It stays the engine's: never close it, and do not keep it beyond the file.

        Raises:
            ClosedError: If the file is closed.
        """

    def close(self) -> Operation[None]:
        """
        Close the file; returns when the kernel has answered, for the last error may come then.

        What is under way goes on, and keeps the descriptor until it is over; then the await ends at
        once, and an error of the closing is lost. Closing twice is fine. Cancelling stops the
        waiting, not the closing.
        """

    def _hand_over(self) -> None:
        """Somebody has it now: dropping it without a close deserves a warning."""

    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Operation[None]: ...

@final
class EngineBuffer:
    """
    A read-only buffer over memory of the engine, to be filled by `read_into` without a copy.

    `memoryview(buffer)` shows what the last read brought. While such a view lives the memory is
    pinned: a read into the buffer is a `BufferError`.
    """

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def filled(self) -> int:
        """How many bytes a view shows: all, or what the last read brought."""

    @property
    def is_pinned(self) -> bool:
        """Whether a view of it lives."""

@final
class FileStatus:
    """What is known about a file."""

    @property
    def length_bytes(self) -> int:
        """Length in bytes."""

    @property
    def mode(self) -> int:
        """Kind and permissions, as in `os.stat_result.st_mode`."""

    @property
    def inode(self) -> int:
        """Number of the inode."""

    @property
    def device(self) -> int:
        """Device of the filesystem."""

    @property
    def links(self) -> int:
        """How many names it has."""

    @property
    def user(self) -> int:
        """Owner."""

    @property
    def group(self) -> int:
        """Group."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes that are allocated for it."""

    @property
    def accessed_ns(self) -> int:
        """Last read, in nanoseconds since 1970."""

    @property
    def modified_ns(self) -> int:
        """Last write, in nanoseconds since 1970."""

    @property
    def changed_ns(self) -> int:
        """Last change of any of this, in nanoseconds since 1970."""

@final
class CloseReport:
    """What an engine left behind when it ended."""

    @property
    def requests(self) -> int:
        """Requests the kernel did not answer in time; their memory is kept for ever."""

    @property
    def bytes(self) -> int:
        """The bytes of that memory."""

    def __eq__(self, other: object, /) -> bool: ...

def open_log(path: str, settings: LogSettings, read_only: bool) -> Operation[Log]:
    """Open the log in *path* on a thread of its own."""

def verify_log(path: str) -> Future[dict[str, Any]]:
    """Read every byte of a log; the result has the fields of `VerifyReport`."""

def repair_log(path: str, lock_timeout_s: float) -> Future[dict[str, Any]]:
    """Repair a log; the result has the fields of `RepairReport`."""

def close_everything(timeout_s: float) -> None:
    """
    Close every log and every I/O engine of this process that is not over, and end the bridge.

    Waits for them and for those that were dropped: *timeout_s* for all together, and a little for
    what is cancelled then.
    """

def wait_for_insiders() -> None:
    """
    Wait until no other thread calls into Python from here.

    Where other threads ever did, nobody loses the interpreter's lock while he does so later.
    """

def come_back_by_bridge(*, panics: bool = False) -> Future[None]:
    """Go to another thread and come back by the bridge."""

def come_back_by_port(*, panics: bool = False) -> Operation[None]:
    """Go to another thread and come back by the port of the loop."""

def cleanup_done() -> Operation[None]:
    """Wait until everything that was let go of before this call has been cleaned up."""

def cleanup_report() -> dict[str, Any]:
    """Return the fields of `GcStatistics` for what the engine itself cleans up in this process."""

def backend_info(name: str) -> tuple[str, str, str]:
    """Return the backend that would be used, why it is not the ring, and what helps."""

def check_settings(settings: LogSettings) -> None:
    """Check numbers against each other as an open would."""

@disjoint_base
class TimeoutWheel:
    """The wheel behind `millrace.TimeoutWheel`."""

    def __new__(cls, *, tick_s: float = 0.001) -> Self: ...
    def call_later(
        self, delay_s: float, callback: Callable[[*_Ts], object], /, *args: *_Ts
    ) -> Handle:
        """
        Call *callback* with *args* once *delay_s* seconds have passed, never earlier.

        It runs on the loop's thread, in the context of this call. If it raises, the loop's
        exception handler hears of it, and the others run all the same.

        Raises:
            ClosedError: If the wheel is closed.

            RuntimeError: If no loop runs here, or the wheel belongs to another one.
        """

    def scope(self) -> TimerScope:
        """
        Make a scope: callbacks that end together, all at once, however many they are.

        Use it as a context manager, or call `close`.
        """

    def timeout(self, delay_s: float | None) -> Timeout:
        """
        Limit how long a block may take: `async with wheel.timeout(5.0): ...`.

        When *delay_s* seconds have passed, the task inside is cancelled, and the block raises
        `TimeoutError` in place of that cancellation. `None` sets no limit; `reschedule` can.

        Raises:
            ClosedError: If the wheel is closed; also inside of the block, at its next wait, when
                it is closed there.
        """

    def start_sleep(self, delay_s: float) -> tuple[Future[None], Handle] | tuple[None, None]:
        """Arm a sleep; return the future to wait for and what takes the sleep back."""

    def close(self) -> None:
        """
        Stop the wheel.

        Sleeps fail with `ClosedError`, blocks under a timeout are cancelled and raise it,
        callbacks are dropped and counted.

        Raises:
            RuntimeError: If the wheel's loop is running in another thread.
        """

    @property
    def is_closed(self) -> bool:
        """Whether the wheel refuses everything."""

    @property
    def next_deadline(self) -> float | None:
        """
        The time of the loop at which the wheel looks next; `None` if nothing waits.

        Nothing is due before. It may be too early once the timer that was to be first has been
        cancelled.
        """

    @property
    def tick_s(self) -> float:
        """How long a tick lasts."""

    def statistics_report(self) -> dict[str, Any]:
        """Return the fields of `WheelStatistics`."""

@final
class Handle:
    """A callback that waits; `cancel` takes it back."""

    def cancel(self) -> bool:
        """
        Take the callback back; true if it would still have run.

        Its function and arguments are let go at once. Afterwards, and after it has run, this does
        nothing.
        """

@final
class TimerScope:
    """Callbacks of a wheel that end together; made by `TimeoutWheel.scope`."""

    def call_later(
        self, delay_s: float, callback: Callable[[*_Ts], object], /, *args: *_Ts
    ) -> Handle:
        """
        Call *callback* with *args* once *delay_s* seconds have passed, unless the scope ends first.

        Otherwise as `TimeoutWheel.call_later`.

        Raises:
            ClosedError: If the scope or the wheel is closed.

            RuntimeError: If no loop runs here, or the wheel belongs to another one.
        """

    def close(self) -> None:
        """
        End all callbacks that wait; from now on none of them runs.

        Takes the same short time for a few and for a hundred thousand: they are taken out of the
        wheel, and their functions and arguments let go of, in the loop's next iterations, for at
        most a millisecond in each. Where the wheel's loop does not run, that is done at once.
        """

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

@final
class Timeout:
    """A limit on how long the block under it may take; made by `TimeoutWheel.timeout`."""

    def when(self) -> float | None:
        """The deadline as a time of the loop; `None` if there is no limit."""

    def expired(self) -> bool:
        """Whether the time was up while the block was running."""

    def reschedule(self, when: float | None) -> None:
        """
        Move the deadline to *when*, a time of the loop; `None` takes the limit away.

        Raises:
            RuntimeError: Outside of the block, and once the time was up.
        """

    def __aenter__(self) -> Awaitable[Self]: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        thrown: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Awaitable[None]: ...
