"""What is recorded around every cell: time, event-loop lag, processor time, memory, wake-ups."""

from __future__ import annotations

import os
import resource
import time
from array import array
from typing import Any, Self

from millrace.testing import Heartbeat, percentile


class Meter:
    """Measures from `__aenter__` to `__aexit__`, heartbeat included."""

    def __init__(self) -> None:
        self.latencies_ns = array("q")
        self._beat = Heartbeat()

    async def __aenter__(self) -> Self:
        await self._beat.__aenter__()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._began = time.perf_counter()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.elapsed_s = time.perf_counter() - self._began
        usage, before = resource.getrusage(resource.RUSAGE_SELF), self._usage
        self.cpu_s = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
        self.switches = usage.ru_nvcsw - before.ru_nvcsw
        await self._beat.__aexit__(None, None, None)

    def result(self, records: int, size_bytes: int) -> dict[str, Any]:
        """Return the figures of the cell as plain data."""
        return {
            "records": records,
            "bytes": size_bytes,
            "elapsed_s": self.elapsed_s,
            "records_per_s": records / self.elapsed_s,
            "bytes_per_s": size_bytes / self.elapsed_s,
            "p50_s": percentile(self.latencies_ns, 50) / 1e9,
            "p99_s": percentile(self.latencies_ns, 99) / 1e9,
            "lag_p50_s": self._beat.percentile_s(50),
            "lag_p99_s": self._beat.percentile_s(99),
            "lag_max_s": max(self._beat.lateness_s, default=0.0),
            "cpu_s": self.cpu_s,
            "cpu_us_per_record": self.cpu_s / max(1, records) * 1e6,
            "voluntary_switches": self.switches,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def settle() -> None:
    """Let the device finish what earlier cells left, so that it is not charged to this one."""
    os.sync()
