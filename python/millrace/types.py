"""Plain data that calls return."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Durability = Literal["durable", "committed", "appended"]
LogState = Literal["open", "read_only", "closed", "failed"]
IoState = Literal["open", "closing", "closed", "failed"]
BackendName = Literal["uring", "uring-plain", "threads"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """
    Records that were durable and cannot be read any more.

    Args:
        segment: Number of the segment file.

        offset: Where in it the damage begins.

        first_lsn: The first record that is lost.

        last_lsn: The last one, or `None` if nobody can tell.

        what: What is wrong with the bytes.
    """

    segment: int
    offset: int
    first_lsn: int
    last_lsn: int | None
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryReport:
    """
    What an open found in the directory.

    Args:
        records: Records that can be read.

        bytes: Bytes of the log they lie in.

        segments: Segment files.

        cut_bytes: Bytes of a torn tail that was dropped. They were never acknowledged.

        is_clean: Whether the previous owner closed the log.

        elapsed_s: How long recovery took.

        damage: Records that were lost; only ever filled by `recovery="salvage"`.
    """

    records: int
    bytes: int
    segments: int
    cut_bytes: int
    is_clean: bool
    elapsed_s: float
    damage: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentReport:
    """
    One segment, as `verify` found it.

    Args:
        segment: Its number.

        file: Its file name.

        first_lsn: LSN of its first whole record, or the next one if it has none.

        records: Whole records in it.

        bytes: The bytes they lie in.

        damage: What is wrong with it.
    """

    segment: int
    file: str
    first_lsn: int
    records: int
    bytes: int
    damage: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """
    What `verify` found in a directory.

    Args:
        is_sound: Whether everything that was durable can be read.

        store: Identity of the log; `None` if no segment says.

        first_lsn: The first record that can be read.

        last_lsn: The last one; 0 if there is none.

        records: How many there are.

        bytes: The bytes they lie in.

        torn_bytes: Bytes of a tail that was never acknowledged. No damage.

        elapsed_s: How long it took.

        damage: Records that were durable and cannot be read.

        segments: The segments, oldest first.
    """

    is_sound: bool
    store: str | None
    first_lsn: int
    last_lsn: int
    records: int
    bytes: int
    torn_bytes: int
    elapsed_s: float
    damage: tuple[Damage, ...]
    segments: tuple[SegmentReport, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """
    What `repair` did.

    Args:
        damage: The damage that was there; empty if nothing had to be done.

        copies: Files that hold what was there before, beside the log.

        first_lsn: The first record left.

        last_lsn: The last one; 0 if there is none.

        records: How many are left.

        dropped: Whole records that were dropped because they lie behind the damage. They are in
            the copies.
    """

    damage: tuple[Damage, ...]
    copies: tuple[str, ...]
    first_lsn: int
    last_lsn: int
    records: int
    dropped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LogStatistics:
    """
    What a log did since it was opened.

    Args:
        state: `open`, `read_only`, `closed`, or `failed` after a failed write.

        records: Records written.

        bytes: Their bytes, headers included.

        groups: Groups written; `records / groups` is what one sync was worth.

        group_records_max: Records of the largest group.

        syncs: Synchronous writes.

        rotations: Segments begun, the first one not counted.

        first_lsn: The first record that can be read.

        appended_lsn: The last one in memory.

        committed_lsn: The last one in the file.

        durable_lsn: The last one that survives power loss.

        commit_path: How groups reach the disk; `None` if opened read-only.

        commit_paths: What each way cost in seconds when it was measured at the open, or why it
            was refused.

        driver: Who turns the engine at the moment, `thread` or `loop`; `None` if opened
            read-only.

        readers: Readers and followers that are open.

        oldest_reader_age_s: How long the oldest of them has held back what is truncated, in
            seconds; `None` if there is none.

        segments_held: Truncated segments whose files wait for a reader, or for the next
            truncation.

        segments_released: Truncated segments that no reader held any more.
    """

    state: LogState
    records: int
    bytes: int
    groups: int
    group_records_max: int
    syncs: int
    rotations: int
    first_lsn: int
    appended_lsn: int
    committed_lsn: int
    durable_lsn: int
    commit_path: str | None
    commit_paths: Mapping[str, float | str]
    driver: str | None
    readers: int
    oldest_reader_age_s: float | None
    segments_held: int
    segments_released: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RingStatistics:
    """
    What happened in a ring so far. The numbers are read one after the other.

    Args:
        appended: Entries that entered.

        drained: Entries that were taken out.

        entries: Entries inside.

        waiting: Appends in line now.

        refused_full: Appends refused for want of room.

        refused_closed: Appends refused because the ring was closed.

        refused_too_large: Appends refused for a limit that waiting does not change.

        refused_timed_out: Appends whose time ran out.

        queued: Appends that had to stand in line.

        cancelled: Appends that were taken back.

        wakes: Times the consumer was woken.

        dropped: Entries let go of without an answer.

        late: Answers that came after the first one and were ignored.
    """

    appended: int
    drained: int
    entries: int
    waiting: int
    refused_full: int
    refused_closed: int
    refused_too_large: int
    refused_timed_out: int
    queued: int
    cancelled: int
    wakes: int
    dropped: int
    late: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendInfo:
    """
    What an I/O engine runs on.

    Args:
        name: `uring`, `uring-plain` or `threads`.

        reason: Why not a better one; empty if there is none, or if this one was asked for.

        hint: What helps against that.
    """

    name: BackendName
    reason: str
    hint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """
    How long something took, counted in buckets an eighth wide.

    Args:
        count: How many there were.

        sum_s: All of them together.

        max_s: The longest.

        buckets: Longest duration of a bucket and how many fell into it, ascending, without empty
            ones.
    """

    count: int
    sum_s: float
    max_s: float
    buckets: tuple[tuple[float, int], ...]

    def quantile_s(self, share: float) -> float:
        """Return what *share* (0 to 1) of all do not exceed, at most an eighth too long."""
        wanted = max(1, math.ceil(self.count * share))
        seen = 0
        for upper, count in self.buckets:
            seen += count
            if seen >= wanted:
                return min(upper, self.max_s)
        return 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class IoStatistics:
    """
    What an I/O engine did so far.

    Args:
        state: `open`, `closing` while what was accepted is served, `closed`, or `failed` after a
            defect.

        backend: What it runs on.

        driver: Who turns it.

        pending: Requests accepted and not over.

        in_flight: Of these, with the kernel or a worker.

        submitted: Requests accepted so far.

        completed: Over, with success or an error.

        failed: Of these, with an error.

        retried: Submissions and calls repeated because the kernel said "interrupted" or "try
            again". Waiting for a socket is not one.

        short: Answers of the kernel that moved less than was asked for, and were followed by
            another try.

        cancelled_before: Requests taken back before the kernel knew them.

        cancelled_stopped: Cancels that stopped the operation.

        cancelled_late: Cancels that came too late.

        timed_out: Waiters answered with `IoTimeout`.

        orphaned: Requests whose waiter was cancelled.

        abandoned: Waiters answered with `AbandonedError`.

        cached_hits: Reads the page cache answered at the call.

        cached_misses: Tries of such reads that had to ask the device after all.

        enters: System calls that entered the ring; none on threads.

        wakes_rung: Times the sleeping engine was woken.

        wakes_coalesced: Wakes that found it awake, or woken already.

        overflows: Times completions found no room in the kernel's queue; on threads there is
            no such queue.

        leaked_requests: Requests left behind for good because the kernel did not answer.

        leaked_bytes: The bytes of their buffers.

        pinned_bytes: Bytes of buffers that a view holds now.

        kept_bytes: Bytes of streams that came for receives which were given up, and wait for the
            next receive on their socket; for each socket at most what the largest of those
            receives asked for.

        slow: Storage operations that took longer than `slow_after_s`.

        slow_now: Of these, still under way.

        oldest_s: Age of the oldest storage operation in flight.

        queue_wait: Time between asking and going into flight, by kind.

        device_time: Time in flight, by kind.
    """

    state: IoState
    backend: BackendName
    driver: Literal["thread", "loop"]
    pending: int
    in_flight: int
    submitted: int
    completed: int
    failed: int
    retried: int
    short: int
    cancelled_before: int
    cancelled_stopped: int
    cancelled_late: int
    timed_out: int
    orphaned: int
    abandoned: int
    cached_hits: int
    cached_misses: int
    enters: int
    wakes_rung: int
    wakes_coalesced: int
    overflows: int
    leaked_requests: int
    leaked_bytes: int
    pinned_bytes: int
    kept_bytes: int
    slow: int
    slow_now: int
    oldest_s: float
    queue_wait: Mapping[str, Histogram]
    device_time: Mapping[str, Histogram]


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelStatistics:
    """
    What happened in a timeout wheel so far: armed = cancelled + expired + dropped + live.

    Args:
        armed: Timers armed: callbacks, sleeps and timeouts.

        cancelled: Timers taken back before they were due.

        expired: Timers whose time came.

        dropped: Timers that were left when the wheel was closed, or its loop.

        failed: Callbacks that raised; the loop's exception handler heard of each.

        live: Timers that wait now.

        turns: Times the loop called the wheel.

        rearmed: Times the wheel asked the loop to be called. What one timer each would have
            cost is `armed`.

        memory_bytes: Memory of the wheel itself, without the Python objects it holds.

        swept: Timers taken out after their scope was closed; they are among the cancelled ones.

        sweeps: Goes in which that was done.

        sweep_time_max_s: How long the longest took, in seconds.

        to_sweep: Timers of closed scopes that are still to be taken out, and do not run; at most
            that many, since some may have been due or cancelled before.
    """

    armed: int
    cancelled: int
    expired: int
    dropped: int
    failed: int
    live: int
    turns: int
    rearmed: int
    memory_bytes: int
    swept: int
    sweeps: int
    sweep_time_max_s: float
    to_sweep: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GcStatistics:
    """
    What an `EpochGC` has done so far, counted when it was done, and how it stands.

    Args:
        enqueued: Calls that were deferred.

        processed: Deferred calls that ran and returned.

        failed: Calls that raised.

        refused: Tries that were given back: no room, or disabled or closed. `defer_async` tries
            each time there may be room.

        ran_inline: Calls that `defer` ran at once.

        batches: Goes in which deferred calls were run.

        batch_items_max: Calls in the largest of them.

        batch_time_s: How long all of them took, in seconds.

        batch_time_max_s: How long the longest took, in seconds.

        items: Calls deferred now.

        items_peak: The most there ever were.

        bytes: What they said they hold, in bytes.

        bytes_peak: The most that ever was.

        is_near_capacity: Whether four fifths of a limit are taken.

        epoch: The global epoch; starts at 1.

        safe_epoch: The oldest epoch that a pin may have seen. What was deferred before may run.

        pins: Pins held now.

        oldest_pin_age_s: How long the oldest of them has been held, in seconds.

        oldest_pin_label: What it is called.

        last_failure: What the last call that failed raised.

        done_by_kind: What ran, failures included, by kind: `call` is a caller's own function. The
            others belong to the engine; see `cleanup_statistics`.
    """

    enqueued: int
    processed: int
    failed: int
    refused: int
    ran_inline: int
    batches: int
    batch_items_max: int
    batch_time_s: float
    batch_time_max_s: float
    items: int
    items_peak: int
    bytes: int
    bytes_peak: int
    is_near_capacity: bool
    epoch: int
    safe_epoch: int
    pins: int
    oldest_pin_age_s: float | None
    oldest_pin_label: str | None
    last_failure: str | None
    done_by_kind: Mapping[str, int]
