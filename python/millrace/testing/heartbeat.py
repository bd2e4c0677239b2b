"""How late an event loop runs, measured by a timer that should fire every millisecond."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


def percentile(values: Sequence[float], percent: float) -> float:
    """
    Return the nearest-rank percentile of *values*, or 0.0 when there are none.

    Examples:
        >>> percentile([5.0, 1.0, 3.0], 50)
        3.0
        >>> percentile([], 99)
        0.0
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return float(ordered[min(len(ordered), max(1, int(rank))) - 1])


class Heartbeat:
    """
    Fire a timer every *interval_s* on the running loop and keep how late each beat was.

    The beat is due one interval after the one before it *ran*, so a stall is counted once and
    not again for every beat it swallowed. Epoll's own resolution is part of every figure.

    Args:
        interval_s: Time between beats, in seconds.

        on_beat: Called with the lateness of each beat, in seconds.
    """

    def __init__(
        self, interval_s: float = 0.001, *, on_beat: Callable[[float], None] | None = None
    ) -> None:
        self.interval_s = interval_s
        self.lateness_s = array("d")
        self._on_beat = on_beat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def percentile_s(self, percent: float) -> float:
        """Return how late the loop was at *percent*, in seconds."""
        return percentile(self.lateness_s, percent)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._arm(self._loop)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self.interval_s
        self._timer = loop.call_at(self._due, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        late_s = max(0.0, loop.time() - self._due)
        self.lateness_s.append(late_s)
        if self._on_beat is not None:
            self._on_beat(late_s)
        self._arm(loop)
