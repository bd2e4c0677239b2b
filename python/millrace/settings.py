"""Numbers a user may tune, checked where they are written down."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Recovery = Literal["tail", "strict", "salvage"]
CommitPath = Literal["auto", "pwrite", "ring_dsync", "direct"]
Driver = Literal["auto", "thread", "loop"]
Backend = Literal["auto", "uring", "uring-plain", "threads"]
Overflow = Literal["inline", "wait", "refuse"]

_KIB = 1024
_MIB = 1024 * _KIB
_CHOICES: dict[str, tuple[str, ...]] = {
    "recovery": ("tail", "strict", "salvage"),
    "commit_path": ("auto", "pwrite", "ring_dsync", "direct"),
    "driver": ("auto", "thread", "loop"),
    "backend": ("auto", "uring", "uring-plain", "threads"),
    "overflow": ("inline", "wait", "refuse"),
}
_LARGEST = 2**63 - 1
# What the kernel's ring takes.
_SIZE_MAX = 32_768
_NANOSECOND = 1e-9
# Those of the engine, which checks them again.
_BLOCKS = range(512, 65_536 + 1)
_MOST = {
    "segment_bytes": 4 * _KIB * _MIB - 1,
    "group_bytes_max": _KIB * _MIB,
    "ring_entries": 2**24,
}
# In front of a group's bytes on disk.
_HEADER_BYTES = 64 + 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """
    How a log is laid out and how it writes.

    The defaults suit a service that appends small records. Sizes are bytes, durations seconds.

    Args:
        segment_bytes: Length of a segment file. Old segments are what truncation frees.

        segment_first_bytes: Length of the first segment after an open; small, so that opening
            is quick.

        record_bytes_max: Largest record. At most *group_bytes_max*.

        group_bytes_max: Largest group of records that share one sync, and so the largest
            `append_many`. Smaller than *segment_bytes*.

        ring_entries: Records that may wait for the disk. Beyond that `submit` raises
            `OverloadedError` and `append` waits in line.

        ring_bytes: The same in bytes; at least *record_bytes_max*.

        block_bytes: Padding of a group on disk: a power of two, not below the device's block.

        linger_s: How long a group waits for company. Zero: groups form while the previous one
            syncs, which needs no tuning.

        min_sync_interval_s: Least time between two syncs.

        lock_timeout_s: How long an open waits for the lock of an owner that died.

        recovery: What an open does with a tail that a crash cut short: `tail` cuts and reports
            it, `strict` refuses, where it can tell: in a segment whose file was used before, a
            last group that is lost altogether leaves no trace. `salvage` shows what is whole and
            reports the rest, and is only for `read_only=True`.

        commit_path: How a group reaches the disk. `auto` measures, for some milliseconds and in
            turns. It takes `direct`, which keeps several groups in flight, unless another way is
            quicker by a third so often that chance does not explain it; then the quickest.

        driver: Who turns the engine. `thread`: a thread of the log's own, which goes on while
            loops are busy. `loop`: the event loops and threads that append and wait do it
            themselves, without a hand-over between threads; a lone task waits least with it.
            Needs io_uring and a filesystem with direct I/O, else `Log.open` raises
            `BackendUnavailable`. `auto`: they do it while they are few, and the thread while they
            are many, append large groups, or are a thread beside a loop; only the thread where
            `loop` is not available or `commit_path` or `backend` ask for something else.

            Two limits come with `loop`, and with `auto` while a loop turns. The kernel finishes a
            write on the thread that submitted it: while that thread is stuck in the kernel (a
            blocking `os.fsync`, a file server that does not answer), everybody who waits for this
            write waits too. And system calls of such a thread may be interrupted (`EINTR`) without
            a signal; Python repeats its own, a C library may not.

        backend: How the kernel is asked: `auto` takes io_uring where the kernel allows it; the
            environment variable `MILLRACE_BACKEND` decides where this is `auto`.
            `uring-plain` is io_uring without what only newer kernels have.

    Raises:
        TypeError: If a value is of the wrong type; `True` is not a number here.

        ValueError: If a value is out of range, or two contradict each other.
    """

    segment_bytes: int = 64 * _MIB
    segment_first_bytes: int = 4 * _MIB
    record_bytes_max: int = 16 * _MIB
    group_bytes_max: int = 32 * _MIB
    ring_entries: int = 65_536
    ring_bytes: int = 64 * _MIB
    block_bytes: int = 4 * _KIB
    linger_s: float = 0.0
    min_sync_interval_s: float = 0.0
    lock_timeout_s: float = 30.0
    recovery: Recovery = "tail"
    commit_path: CommitPath = "auto"
    driver: Driver = "auto"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))
        _check_limits(self)
        _check_order(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class IoSettings:
    """
    How an I/O engine asks the kernel, and how much at once.

    Args:
        backend: `auto` takes io_uring where the kernel allows it, else threads; the environment
            variable `MILLRACE_BACKEND` decides where this is `auto`. `uring-plain` is io_uring
            without what only newer kernels have.

        size: Requests in flight at most; rounded up to a power of two. The others wait their
            turn and hold no memory but their own arguments.

        driver: Who turns the engine: a `thread` of its own, or the event `loop` that asks. `auto`
            is a thread.

        timeout_tick_s: The unit of deadlines. None fires early; each may fire that much late.

        shutdown_timeout_s: How long `close` serves what was accepted before it gives up; `None`
            waits for everything.

        slow_after_s: From when on a storage operation is reported as slow, by `statistics()`
            and to the logger `millrace.io`.

    Raises:
        TypeError: If a value is of the wrong type; `True` is not a number here.

        ValueError: If a value is out of range.
    """

    backend: Backend = "auto"
    size: int = 128
    driver: Driver = "auto"
    timeout_tick_s: float = 0.005
    shutdown_timeout_s: float | None = None
    slow_after_s: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("backend", self.backend)
        _check_choice("driver", self.driver)
        _check_count("size", self.size)
        if self.size > _SIZE_MAX:
            raise ValueError(f"size must lie between 1 and {_SIZE_MAX}, not {self.size}")
        for name in ("timeout_tick_s", "slow_after_s"):
            value = getattr(self, name)
            _check_seconds(name, value)
            if value < _NANOSECOND:
                raise ValueError(f"{name} must be more than 0, not {value}")
        if self.shutdown_timeout_s is not None:
            _check_seconds("shutdown_timeout_s", self.shutdown_timeout_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class GcSettings:
    """
    How much an `EpochGC` may defer, and how it runs it.

    Args:
        max_items: Most calls deferred at once, from `defer` to the end of their run. At most
            2 097 151.

        max_bytes: Most bytes that their *cost_bytes* may add up to. At most 1 TiB - 1.

        min_batch: Leaving a pin runs what it held back if at least so many calls wait; fewer
            are left to the tick.

        max_batch: Most calls run in one go before the event loop gets its turn. At most
            2 097 151.

        max_batch_time_us: Longest such a go, in microseconds; the call that runs then is
            finished.

        advance_interval_ms: How long, in milliseconds, the tick rests while calls are held back
            by a pin. While nothing is deferred, nothing ticks.

        overflow: What `defer` does when there is no room. `inline` runs the call at once if
            nobody is pinned, else it goes on like `wait`. `wait` waits for room on a plain
            thread, and raises `OverloadedError` on an event loop, which must not wait, and where
            it would wait for itself. `refuse` raises at once.

        stall_after_s: A pin held longer is logged as a warning, once, by the tick while something
            is deferred, or by who collects, closes or waits for room.

    Raises:
        TypeError: If a value is of the wrong type; `True` is not a number here.

        ValueError: If a value is out of range, or two contradict each other.
    """

    max_items: int = 10_000
    max_bytes: int = 64 * _MIB
    min_batch: int = 10
    max_batch: int = 100
    max_batch_time_us: int = 5000
    advance_interval_ms: int = 100
    overflow: Overflow = "inline"
    stall_after_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))
        most_items = 2**21 - 1
        for name, most in (
            ("max_items", most_items),
            ("max_batch", most_items),
            ("max_bytes", 2**40 - 1),
        ):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")
        if self.min_batch > self.max_batch:
            raise ValueError(
                f"min_batch ({self.min_batch}) must not be larger than max_batch "
                f"({self.max_batch})",
            )


def _check(name: str, value: object) -> None:
    if name in _CHOICES:
        _check_choice(name, value)
    elif name.endswith("_s"):
        _check_seconds(name, value)
    else:
        _check_count(name, value)


def _check_choice(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if value not in _CHOICES[name]:
        choices = ", ".join(repr(choice) for choice in _CHOICES[name])
        raise ValueError(f"{name} must be one of {choices}, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    # Not `math.isfinite`, which cannot tell of an int that no float holds.
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {value}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 1 <= value <= _LARGEST:
        raise ValueError(f"{name} must lie between 1 and {_LARGEST}, not {value}")


def _check_limits(settings: LogSettings) -> None:
    for name, most in _MOST.items():
        value = getattr(settings, name)
        if value > most:
            raise ValueError(f"{name} must be at most {most}, not {value}")
    block = settings.block_bytes
    if block not in _BLOCKS or block & (block - 1):
        raise ValueError(f"block_bytes must be a power of two from 512 to 65536, not {block}")
    for name in ("segment_bytes", "segment_first_bytes"):
        value = getattr(settings, name)
        if value % block:
            raise ValueError(f"{name} ({value}) must be a multiple of block_bytes ({block})")
    if settings.segment_first_bytes < 4 * block:
        raise ValueError(
            f"segment_first_bytes ({settings.segment_first_bytes}) must be at least four blocks "
            f"({4 * block})",
        )


def _check_order(settings: LogSettings) -> None:
    if settings.record_bytes_max > settings.group_bytes_max:
        raise ValueError(
            f"record_bytes_max ({settings.record_bytes_max}) must not be larger than "
            f"group_bytes_max ({settings.group_bytes_max}): a record lies in one group",
        )
    if settings.group_bytes_max >= settings.segment_bytes:
        raise ValueError(
            f"group_bytes_max ({settings.group_bytes_max}) must be smaller than "
            f"segment_bytes ({settings.segment_bytes}): a group lies in one segment",
        )
    # The largest frame, and a block on each side of it.
    blocks = -(-(settings.group_bytes_max + _HEADER_BYTES) // settings.block_bytes) + 2
    if blocks * settings.block_bytes > settings.segment_bytes:
        raise ValueError(
            f"group_bytes_max ({settings.group_bytes_max}) must be smaller than segment_bytes "
            f"({settings.segment_bytes}) by a few blocks, for headers",
        )
    if settings.ring_bytes < settings.record_bytes_max:
        raise ValueError(
            f"ring_bytes ({settings.ring_bytes}) must not be smaller than record_bytes_max "
            f"({settings.record_bytes_max}): the largest record waits there",
        )
    _check_driver(settings)
    if settings.segment_first_bytes > settings.segment_bytes:
        raise ValueError(
            f"segment_first_bytes ({settings.segment_first_bytes}) must not be larger than "
            f"segment_bytes ({settings.segment_bytes})",
        )


def _check_driver(settings: LogSettings) -> None:
    if settings.commit_path == "ring_dsync" and settings.backend == "threads":
        raise ValueError(
            "commit_path 'ring_dsync' and backend 'threads' contradict each other: it needs "
            "io_uring",
        )
    if settings.commit_path == "pwrite" and settings.backend in {"uring", "uring-plain"}:
        raise ValueError(
            f"commit_path 'pwrite' and backend {settings.backend!r} contradict each other: it "
            "needs threads",
        )
    if settings.driver != "loop":
        return
    if settings.commit_path in {"pwrite", "ring_dsync"}:
        raise ValueError(
            f"driver 'loop' and commit_path {settings.commit_path!r} contradict each other: on "
            "the thread of an event loop only direct writes never block",
        )
    if settings.backend == "threads":
        raise ValueError(
            "driver 'loop' and backend 'threads' contradict each other: an event loop can only "
            "be told of completions by io_uring",
        )
