"""
Records that prove where they come from, and the book kept about them outside every child.

An operation has a number made of its stream (a loop or a thread of the child), the life of the
child it was made in, and a counter. Everything about it follows from that number: how many
records it has, how long they are, what they hold, whether it may be cancelled. So a record read
back can be checked without trusting anything the dead process left behind.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD = struct.Struct("<IHHI")
STREAMS = 3
LIVES_MAX = 1 << 10
OPENING = 0xFFFF_FFFF
OPENED = 0xFFFF_FFFE
_BATCH_EVERY = 7
_CANCEL_EVERY = 11
_BATCH_MAX = 23
_LARGE_EVERY = 97
_LARGE_BYTES = 20_000


class Operation(NamedTuple):
    """One call of the child: its number taken apart."""

    stream: int
    life: int
    call: int

    @property
    def number(self) -> int:
        """The operation's number, 32 bits."""
        return self.stream << 30 | self.life << 20 | self.call

    @classmethod
    def of(cls, number: int) -> Operation:
        """Take a number apart."""
        return cls(number >> 30, number >> 20 & (LIVES_MAX - 1), number & 0xF_FFFF)

    @property
    def parts(self) -> int:
        """How many records it has: most have one, some are batches."""
        return 1 if self.call % _BATCH_EVERY else 2 + self.call % (_BATCH_MAX - 1)

    @property
    def is_cancellable(self) -> bool:
        """The child may give up waiting for it."""
        return self.parts == 1 and self.call % _CANCEL_EVERY == 0

    def records(self) -> list[bytes]:
        """Return its records."""
        return [record(self.number, part) for part in range(self.parts)]


def record(number: int, part: int) -> bytes:
    """Return one record of an operation."""
    operation = Operation.of(number)
    digest = hashlib.blake2b(_HEAD.pack(number, part, operation.parts, 0)).digest()
    length = digest[0] % 200
    if operation.call % _LARGE_EVERY == 0:
        length = _LARGE_BYTES + digest[1]
    body = (digest * (length // len(digest) + 1))[:length]
    return _HEAD.pack(number, part, operation.parts, length) + body


class Found(NamedTuple):
    """A record read back."""

    lsn: int
    number: int
    part: int


class BrokenPromiseError(AssertionError):
    """A promise was broken; the message says which, where, and with which operation."""


def identify(lsn: int, data: bytes) -> Found:
    """Tell which record this is; raises if no operation ever made such a record."""
    if len(data) < _HEAD.size:
        raise BrokenPromiseError(
            f"invented: LSN {lsn} holds {len(data)} bytes that no operation made"
        )
    number, part, _, _ = _HEAD.unpack_from(data)
    if part >= Operation.of(number).parts or data != record(number, part):
        raise BrokenPromiseError(
            f"invented: LSN {lsn} claims to be part {part} of {number:#x} and is not"
        )
    return Found(lsn, number, part)


class Book:
    """
    What the children were promised, and what was seen after each crash.

    Always true: whatever `check` accepted once must be there, unchanged, for ever.
    """

    def __init__(self) -> None:
        self.promised: dict[int, int] = {}
        self.seen: list[tuple[int, int]] = []

    def promise(self, acks: Iterable[tuple[int, int, int]]) -> int:
        """Enter acknowledgements as (number, latency, first LSN); returns how many."""
        count = 0
        for number, _, lsn in acks:
            if number < OPENED:
                self.promised[number] = lsn
                count += 1
        return count

    def resume_point(self, back: int) -> int:
        """Return an LSN at most *back* and a batch before the end, where an operation begins."""
        position = max(0, len(self.seen) - back)
        while 0 < position < len(self.seen) and self.seen[position][1]:
            position -= 1
        return position + 1

    def check(self, records: Iterator[Found], *, start: int = 1) -> None:
        """
        Hold what a reopened log shows from LSN *start* on against the book.

        Raises `BrokenPromiseError` for anything lost, invented, out of order, out of place, cut
        in the middle of a batch, missing from the middle, or taken back.
        """
        new = self._dense(records, start)
        self._unchanged(new, start)
        self._batches_whole(new)
        del self.seen[start - 1 :]
        self.seen.extend((found.number, found.part) for found in new)
        self._promises_kept()
        self._no_hole()

    def _dense(self, records: Iterator[Found], start: int) -> list[Found]:
        new = []
        for expected, found in enumerate(records, start):
            if found.lsn != expected:
                raise BrokenPromiseError(f"hole: LSN {expected} is missing, {found.lsn} follows")
            new.append(found)
        return new

    def _unchanged(self, new: list[Found], start: int) -> None:
        before = self.seen[start - 1 :]
        if len(new) < len(before):
            raise BrokenPromiseError(
                f"taken back: {len(before) - len(new)} records that were seen before"
            )
        for found, (number, part) in zip(new, before, strict=False):
            if (found.number, found.part) != (number, part):
                raise BrokenPromiseError(
                    f"changed: LSN {found.lsn} was {number:#x} part {part} before"
                )

    @staticmethod
    def _batches_whole(new: list[Found]) -> None:
        position = 0
        while position < len(new):
            first = new[position]
            parts = Operation.of(first.number).parts
            batch = [(f.number, f.part) for f in new[position : position + parts]]
            if batch != [(first.number, part) for part in range(parts)]:
                raise BrokenPromiseError(
                    f"torn batch: {first.number:#x} at LSN {first.lsn} is not whole"
                )
            position += parts

    def _promises_kept(self) -> None:
        for number, lsn in self.promised.items():
            here = self.seen[lsn - 1] if 0 < lsn <= len(self.seen) else None
            if here != (number, 0):
                raise BrokenPromiseError(
                    f"lost: {number:#x} was acknowledged at LSN {lsn}; there is {here}"
                )

    def _no_hole(self) -> None:
        """A stream's operations are there in the order of its calls, none left out."""
        last: dict[tuple[int, int], int] = {}
        for number, part in self.seen:
            if part:
                continue
            stream, life, count = Operation.of(number)
            after = last.get((stream, life), -1)
            if count <= after:
                raise BrokenPromiseError(
                    f"order: {number:#x} stands after a later call of its stream"
                )
            for skipped in range(after + 1, count):
                if not Operation(stream, life, skipped).is_cancellable:
                    raise BrokenPromiseError(
                        f"hole: call {skipped} of stream {stream}, life {life}"
                    )
            last[stream, life] = count
