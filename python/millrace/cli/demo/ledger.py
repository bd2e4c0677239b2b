"""
What workers were promised, kept by the parent, outside everything that gets killed.

Always true: an event counts as promised only if its acknowledgement came through the pipe.
"""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millrace.cli.demo.worker import FINISHED, LAG, STARTED
from millrace.testing import percentile, read_acks

if TYPE_CHECKING:
    from collections.abc import Callable

_ENTRY_BYTES = 16


@dataclass
class Figures:
    """What one way of writing achieved."""

    name: str
    records: int = 0
    bytes: int = 0
    elapsed_s: float = 0.0
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    lags_ns: array[int] = field(default_factory=lambda: array("q"))
    lost: int = 0

    def as_dict(self) -> dict[str, object]:
        """Return the row of the table as plain data."""
        seconds = max(self.elapsed_s, 1e-9)
        return {
            "name": self.name,
            "records": self.records,
            "bytes": self.bytes,
            "elapsed_s": self.elapsed_s,
            "records_per_s": self.records / seconds,
            "bytes_per_s": self.bytes / seconds,
            "p50_s": percentile(self.latencies_ns, 50) / 1e9,
            "p99_s": percentile(self.latencies_ns, 99) / 1e9,
            "loop_lag_p99_s": percentile(self.lags_ns, 99) / 1e9,
            "lost": self.lost,
        }


class Ledger:
    """
    Collect the entries of one worker, and tell when enough have come to kill it.

    Args:
        enough: After how many entries `has_enough` is set.

        show: Told how many entries have come.
    """

    def __init__(self, enough: int, show: Callable[[int], None]) -> None:
        self.entries = 0
        self.has_enough = threading.Event()
        self._parts: list[bytes] = []
        self._enough = enough
        self._show = show

    def add(self, part: bytes) -> None:
        """Take whole entries as they come out of the pipe."""
        self._parts.append(part)
        self.entries += len(part) // _ENTRY_BYTES
        if self.entries >= self._enough:
            self.has_enough.set()
        self._show(self.entries)

    def settle(
        self, promised: array[int], figures: Figures, sizes: Callable[[int], int], died_ns: int
    ) -> None:
        """
        Enter what was collected.

        Args:
            promised: LSN of each acknowledged event, 0 where there is none; filled in.

            figures: Counts and latencies; added to.

            sizes: Size of an event by its index.

            died_ns: When the worker was known dead, on the monotonic clock; the end of its
                work if it never said that it finished.
        """
        started = ended = 0
        for index, latency_ns, lsn in read_acks(b"".join(self._parts)):
            match index:
                case _ if index < FINISHED:
                    promised[index] = lsn
                    figures.records += 1
                    figures.bytes += sizes(index)
                    figures.latencies_ns.append(latency_ns)
                case _ if index == LAG:
                    figures.lags_ns.append(latency_ns)
                case _ if index == STARTED:
                    started = lsn
                case _:
                    ended = lsn
        if started:
            figures.elapsed_s += ((ended or died_ns) - started) / 1e9


def now_ns() -> int:
    """Return the monotonic clock, which parent and child share."""
    return time.monotonic_ns()
