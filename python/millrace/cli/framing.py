"""
Records in a stream of bytes: lines, NDJSON, or each with its length in front.

A splitter is fed whatever arrived and gives back the records that are complete, so a pipe that
trickles is appended as it trickles.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

Format = Literal["lines", "ndjson", "length"]
FORMATS: tuple[Format, ...] = ("lines", "ndjson", "length")
_LENGTH = struct.Struct("<I")


class FramingError(ValueError):
    """
    The input is not what its format says; the message names the record.

    Args:
        message: What is wrong, and with which record.

        before: Records of the same portion that were complete and right before it.
    """

    def __init__(self, message: str, before: Sequence[bytes] = ()) -> None:
        super().__init__(message)
        self.before = list(before)


class Splitter(Protocol):
    """Turns bytes as they arrive into records."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the records that *data* completes."""
        ...

    def finish(self) -> list[bytes]:
        """Return what the end of input completes."""
        ...


class LineSplitter:
    """One record per line, without its newline; a last line may lack one."""

    def __init__(self, record_bytes_max: int) -> None:
        self._record_bytes_max = record_bytes_max
        self._tail = b""
        self._count = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that *data* completes."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        if len(self._tail) > self._record_bytes_max:
            number = self._count + len(lines) + 1
            raise FramingError(
                f"line {number} is longer than the limit of {self._record_bytes_max} bytes",
                self._checked(lines),
            )
        return self._checked(lines)

    def finish(self) -> list[bytes]:
        """Return the last line if the input did not end with a newline."""
        tail, self._tail = self._tail, b""
        return self._checked([tail]) if tail else []

    def _checked(self, lines: list[bytes]) -> list[bytes]:
        self._count += len(lines)
        return lines


class JsonSplitter(LineSplitter):
    """One JSON value per line, stored as it was written; blank lines are passed over."""

    def _checked(self, lines: list[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        for line in lines:
            self._count += 1
            if not line.strip():
                continue
            try:
                json.loads(line)
            except ValueError as error:
                message = f"line {self._count} is not JSON: {error}"
                raise FramingError(message, kept) from None
            kept.append(line)
        return kept


class LengthSplitter:
    """Each record after its length as four bytes, little endian."""

    def __init__(self, record_bytes_max: int) -> None:
        self._record_bytes_max = record_bytes_max
        self._waiting = bytearray()
        self._count = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the records that *data* completes."""
        self._waiting += data
        records: list[bytes] = []
        offset = 0
        while offset + _LENGTH.size <= len(self._waiting):
            (length,) = _LENGTH.unpack_from(self._waiting, offset)
            if length > self._record_bytes_max:
                raise FramingError(
                    f"record {self._count + 1} says it has {length} bytes; "
                    f"the limit is {self._record_bytes_max}",
                    records,
                )
            start = offset + _LENGTH.size
            if start + length > len(self._waiting):
                break
            records.append(bytes(self._waiting[start : start + length]))
            offset = start + length
            self._count += 1
        del self._waiting[:offset]
        return records

    def finish(self) -> list[bytes]:
        """Refuse an input that ended inside a record."""
        if self._waiting:
            raise FramingError(f"the input ends inside record {self._count + 1}")
        return []


def splitter_for(form: Format, record_bytes_max: int) -> Splitter:
    """Return the splitter of a format."""
    match form:
        case "lines":
            return LineSplitter(record_bytes_max)
        case "ndjson":
            return JsonSplitter(record_bytes_max)
        case "length":
            return LengthSplitter(record_bytes_max)


def frame(form: Format, data: bytes) -> bytes:
    """Return *data* as it stands in a stream of this format."""
    if form == "length":
        return _LENGTH.pack(len(data)) + data
    return data + b"\n"


def as_json(lsn: int, timestamp: int, data: bytes) -> dict[str, Any]:
    """Describe a record: its bytes as text where they are text, else in base64."""
    try:
        content = {"data": data.decode("utf-8")}
    except UnicodeDecodeError:
        content = {"data_base64": base64.b64encode(data).decode("ascii")}
    return {"lsn": lsn, "timestamp": timestamp, **content}
