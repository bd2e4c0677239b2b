"""The engine's parts, each usable alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from . import _core
from .types import RingStatistics

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
