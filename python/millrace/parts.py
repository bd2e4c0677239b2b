"""The engine's parts, each usable alone."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVarTuple

from . import _core
from .settings import GcSettings
from .types import GcStatistics, RingStatistics, WheelStatistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_Args = TypeVarTuple("_Args")

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Backpressure:
    """
    How `Ring.append_blocking` waits while the ring is full: it spins, yields, then sleeps.

    Args:
        initial_spins: Spins before the second look; doubled at each further look.

        max_spins: Most spins between two looks; past that the thread sleeps in line.

        base_sleep_us: First sleep in microseconds. Room ends it at once.

        max_sleep_us: Longest sleep in microseconds.

    Raises:
        ValueError: If a number is out of range.
    """

    initial_spins: int = 10
    max_spins: int = 1000
    base_sleep_us: int = 1
    max_sleep_us: int = 1000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if not 1 <= value < 2**32:
                raise ValueError(f"{name} must lie between 1 and {2**32 - 1}, not {value}")
        if self.max_spins < self.initial_spins:
            raise ValueError("max_spins must not be below initial_spins")

    @classmethod
    def low_latency(cls) -> Self:
        """Spin long before sleeping, and look often."""
        return cls(initial_spins=100, max_spins=10_000, base_sleep_us=1, max_sleep_us=100)

    @classmethod
    def high_throughput(cls) -> Self:
        """Leave the processor to others early."""
        return cls(initial_spins=5, max_spins=100, base_sleep_us=10, max_sleep_us=10_000)


class Ring(_core.Ring):
    """
    A bounded queue of records from many producers to one consumer, with an answer per record.

    Producers get a ticket for what they append; the consumer drains entries in the order of
    their positions and answers each. Nobody waits for a lock.

    Args:
        capacity: How many entries fit. Rounded up to a power of two, at least 2.

        capacity_bytes: How many bytes all of them may have.

        entry_bytes_max: How many bytes one of them may have.

        backpressure: How `append_blocking` waits.

    Examples:
        >>> import asyncio
        >>> async def main():
        ...     ring = Ring(8)
        ...     ticket = ring.try_append(b"work")
        ...     for entry in ring.drain():
        ...         entry.complete()
        ...     return await ticket
        >>> asyncio.run(main())
        0
    """

    __slots__ = ()

    def __new__(
        cls,
        capacity: int,
        *,
        capacity_bytes: int = 64 * _MIB,
        entry_bytes_max: int = 16 * _MIB,
        backpressure: Backpressure | None = None,
    ) -> Self:
        """Make the ring; the numbers are checked against each other."""
        numbers = {
            "capacity": capacity,
            "capacity_bytes": capacity_bytes,
            "entry_bytes_max": entry_bytes_max,
        }
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if not 1 <= value < 2**63:
                raise ValueError(f"{name} must lie between 1 and {2**63 - 1}, not {value}")
        if backpressure is None:
            backpressure = Backpressure()
        elif not isinstance(backpressure, Backpressure):
            raise TypeError(f"backpressure must be Backpressure, not {backpressure!r}")
        return super().__new__(cls, capacity, capacity_bytes, entry_bytes_max, backpressure)

    def statistics(self) -> RingStatistics:
        """What happened in the ring so far."""
        return RingStatistics(**self._statistics_report())

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<millrace.Ring entries={len(self)} capacity={self.capacity} state={state}>"


class TimeoutWheel(_core.TimeoutWheel):
    """
    Sleeps, timeouts and callbacks of an event loop, by the million, on one timer of the loop.

    Arming and cancelling take the same short time however many timers wait, and a cancelled one
    leaves nothing behind. Deadlines are rounded up to a tick: nothing is early. What is due is
    handed out in one batch for each tick, sooner deadlines first.

    A wheel belongs to the loop that uses it first, until that loop is closed; then another one
    may use it. Like the loop itself, it is used from the loop's own thread. A wheel on which
    nothing waits wakes nobody.

    Args:
        tick_s: How fine deadlines are, in seconds. A coarser tick means fewer wake-ups.

    Raises:
        ValueError: If *tick_s* is shorter than a microsecond or longer than an hour.

    Examples:
        >>> import asyncio
        >>> async def main():
        ...     async with TimeoutWheel() as wheel:
        ...         handle = wheel.call_later(60.0, print, "never")
        ...         assert handle.cancel()
        ...         try:
        ...             async with wheel.timeout(0.01):
        ...                 await wheel.sleep(60.0)
        ...         except TimeoutError:
        ...             return "in time"
        >>> asyncio.run(main())
        'in time'
    """

    __slots__ = ()

    def __new__(cls, *, tick_s: float = 0.001) -> Self:
        """Make a wheel; it gets to know its loop when it is used."""
        return super().__new__(cls, tick_s=tick_s)

    async def sleep(self, delay_s: float) -> None:
        """
        Wait for *delay_s* seconds, and not less.

        With 0, others get a turn and nothing is armed.

        Cancelling takes the timer back.

        Raises:
            ClosedError: If the wheel is closed, before or meanwhile.
        """
        future, handle = self.start_sleep(delay_s)
        if future is None or handle is None:
            await asyncio.sleep(0)
            return
        try:
            await future
        finally:
            handle.cancel()

    def statistics(self) -> WheelStatistics:
        """What happened in the wheel so far."""
        return WheelStatistics(**self.statistics_report())

    async def __aenter__(self) -> Self:
        """Use the wheel until the end of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the wheel."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        live = self.statistics().live
        return f"<millrace.TimeoutWheel timers={live} tick_s={self.tick_s:g} state={state}>"


class EpochGC(_core.EpochGC):
    """
    Cleanup that waits until nobody can be looking any more, and that nobody has to wait for.

    Whoever looks at something shared does so inside `pin()`. Whoever takes it away first removes
    it from where others find it, then calls `defer` with what is left to do: unmap a file, give
    a buffer back to its pool. That runs once every pin has gone that was held when `defer` was
    called, in batches, in the event loop that deferred it.

    Closed while somebody is pinned, it runs what is left when the last pin goes.

    Use it as a context manager, sync or async, or call `close`.

    Args:
        settings: Limits and batches; see `GcSettings`.

    Raises:
        TypeError: If *settings* is no `GcSettings`.

    Examples:
        >>> gc = EpochGC()
        >>> pool = []
        >>> with gc.pin("reader"):
        ...     gc.defer(pool.append, bytearray(8), cost_bytes=8)
        ...     gc.collect(100, 1000)  # somebody may still look
        0
        >>> gc.collect(100, 1000)
        1
        >>> len(pool)
        1
        >>> gc.close()
        0
    """

    __slots__ = ()

    def __new__(cls, *, settings: GcSettings | None = None) -> Self:
        """Make the collector."""
        if settings is None:
            settings = GcSettings()
        elif not isinstance(settings, GcSettings):
            raise TypeError(f"settings must be GcSettings, not {settings!r}")
        return super().__new__(cls, settings)

    async def defer_async(
        self,
        fn: Callable[[*_Args], object],
        /,
        *args: *_Args,
        cost_bytes: int = 0,
    ) -> None:
        """
        Do what `defer` does, waiting for room without holding up the event loop.

        Returns when the call is deferred. With the overflow policy `refuse` it does not wait.

        Do not await it inside a pin: if that pin holds back what fills the queue, it waits for
        itself.

        Cancelling while it waits means that the call was not deferred.

        Raises:
            OverloadedError: If the policy is `refuse`, or the collector is disabled.

            TooLargeError: If *cost_bytes* alone is more than `max_bytes`, and it cannot run now.

            ClosedError: If the collector is closed.
        """
        while not self._try_defer(fn, args, cost_bytes):
            await self.wait_room(cost_bytes)

    def statistics(self) -> GcStatistics:
        """What was done so far, and how it stands."""
        return GcStatistics(**self.statistics_report())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._is_orphaned:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<millrace.EpochGC items={len(self)} state={state}>"


def cleanup_statistics() -> GcStatistics:
    """
    Return what the engine's own cleanup has done in this process so far, and how it stands.

    What logs and loops leave behind is cleaned by a worker: records of appends that were cancelled
    in line (`obligation` in `done_by_kind`), ports of closed loops (`waker`), readers that were
    dropped (`channel`). Counted when it was done.

    Raises:
        RuntimeError: In a child of `fork` whose parent had used it.
    """
    return GcStatistics(**_core.cleanup_report())
