"""
Acknowledgements carried out of a process that may be killed at any moment.

What was written to the pipe before the kill stays readable after it, so the parent knows what
the child had been promised, whatever became of the child.

Always true:

1. An entry leaves the child only after the operation it names was acknowledged.
2. Entries are written whole, also when several loops of the child share the pipe.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = struct.Struct("<IIQ")
_LATENCY_MAX = 0xFFFF_FFFF
# PIPE_BUF on Linux: a write of at most this much is never mixed with another writer's.
_ATOMIC_BYTES = 4096


class Ack(NamedTuple):
    """One acknowledged operation: which it was, what it was answered, how long that took."""

    number: int
    latency_ns: int
    lsn: int


class AckWriter:
    """
    Write acknowledgements to a pipe, in one `write` for each iteration of the event loop.

    Args:
        fd: Write end of the pipe.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._is_scheduled = False

    def note(self, number: int, latency_ns: int, lsn: int) -> None:
        """Note one acknowledged operation; it leaves the process when the loop comes round."""
        self._waiting += _ENTRY.pack(number, min(latency_ns, _LATENCY_MAX), lsn)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write everything noted so far."""
        self._is_scheduled = False
        waiting, self._waiting = self._waiting, bytearray()
        view = memoryview(waiting)
        while view:
            view = view[os.write(self._fd, view[:_ATOMIC_BYTES]) :]


def read_acks(data: bytes | bytearray | memoryview) -> Iterator[Ack]:
    """Yield the whole entries of *data*; a last one that was cut short is left out."""
    whole = len(data) - len(data) % _ENTRY.size
    for entry in _ENTRY.iter_unpack(memoryview(data)[:whole]):
        yield Ack(*entry)


def whole_bytes(length: int) -> int:
    """Return how many of *length* bytes are whole entries."""
    return length - length % _ENTRY.size
