"""
The events a directory stands for: one for each file, one for each batch of its lines.

An event can be derived again from the files at any time, so what comes back from the log is
compared with the source and not with a copy of what was sent.

Always true:

1. The same plan and the same files give the same bytes for the same index.
2. Every event begins with its index, so a record says which event it claims to be.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Encoding = Literal["compact", "json"]
_HEAD = struct.Struct("<IBI")
_FILE = struct.Struct("<Q32s")
_LINES = struct.Struct("<I")
_KIND_FILE = 1
_KIND_LINES = 2
_JSON_HEAD = b'{"event": '
_SNIFF_BYTES = 8192
_LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", ".git", "node_modules"}


@dataclass(frozen=True)
class SourceFile:
    """One file: where it is, its first event, and how many events it makes."""

    path: str
    first: int
    events: int
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """Which files make which events."""

    root: str
    encoding: Encoding
    lines_per_event: int
    files: tuple[SourceFile, ...]

    @property
    def count(self) -> int:
        """How many events there are."""
        return self.files[-1].first + self.files[-1].events if self.files else 0

    @property
    def size_bytes(self) -> int:
        """How many bytes the files hold."""
        return sum(file.size_bytes for file in self.files)

    def event(self, index: int) -> bytes:
        """Derive one event from its file."""
        number = bisect_right(self._starts, index) - 1
        return self._events_of(number)[index - self.files[number].first]

    def events(self) -> Iterator[bytes]:
        """Derive all events, in order."""
        for number in range(len(self.files)):
            yield from self._events_of(number)

    def index_of(self, record: bytes) -> int:
        """Read which event a record claims to be; -1 if it claims none."""
        try:
            if self.encoding == "json":
                head, _, _ = record.partition(b",")
                return int(head.removeprefix(_JSON_HEAD))
            return int(_HEAD.unpack_from(record)[0])
        except (ValueError, struct.error):
            return -1

    def save(self, path: Path) -> None:
        """Write the plan for another process."""
        files = [[f.path, f.first, f.events, f.size_bytes] for f in self.files]
        head = [self.root, self.encoding, self.lines_per_event]
        path.write_text(json.dumps([*head, files]), encoding="ascii")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan that another process wrote."""
        root, encoding, lines, files = json.loads(path.read_text(encoding="ascii"))
        return cls(root, encoding, lines, tuple(SourceFile(*file) for file in files))

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [file.first for file in self.files]

    @functools.cached_property
    def _events_of(self) -> Callable[[int], list[bytes]]:
        return functools.lru_cache(maxsize=64)(self._derive)

    def _derive(self, number: int) -> list[bytes]:
        file = self.files[number]
        data = Path(self.root, file.path).read_bytes()
        encode = _Json if self.encoding == "json" else _Compact
        name = os.fsencode(file.path)
        events = [encode.file(file.first, number, name, data)]
        for index, (line, text) in enumerate(_batches(data, self.lines_per_event), 1):
            events.append(encode.lines(file.first + index, number, name, line, text))
        if len(events) != file.events:
            raise SourceChangedError(f"{Path(self.root, file.path)} changed while the demo ran")
        return events


class SourceChangedError(RuntimeError):
    """A file is not what it was when the plan was made, so nothing can be compared with it."""


class _Compact:
    """Fixed fields, then the bytes themselves."""

    @staticmethod
    def file(index: int, number: int, name: bytes, data: bytes) -> bytes:
        head = _HEAD.pack(index, _KIND_FILE, number)
        return head + _FILE.pack(len(data), hashlib.sha256(data).digest()) + name

    @staticmethod
    def lines(index: int, number: int, _name: bytes, line: int, text: bytes) -> bytes:
        return _HEAD.pack(index, _KIND_LINES, number) + _LINES.pack(line) + text


class _Json:
    """One JSON object; bytes that are not UTF-8 are carried as lone surrogates."""

    @staticmethod
    def file(index: int, _number: int, name: bytes, data: bytes) -> bytes:
        digest = hashlib.sha256(data).hexdigest()
        fields = {"path": _text(name), "bytes": len(data), "sha256": digest}
        return json.dumps({"event": index, **fields}).encode("ascii")

    @staticmethod
    def lines(index: int, _number: int, name: bytes, line: int, text: bytes) -> bytes:
        fields = {"path": _text(name), "line": line, "text": _text(text)}
        return json.dumps({"event": index, **fields}).encode("ascii")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _batches(data: bytes, lines_per_event: int) -> Iterator[tuple[int, bytes]]:
    if b"\0" in data[:_SNIFF_BYTES]:
        return
    lines = data.splitlines(keepends=True)
    for start in range(0, len(lines), lines_per_event):
        yield start + 1, b"".join(lines[start : start + lines_per_event])


def survey(
    root: Path,
    *,
    encoding: Encoding,
    lines_per_event: int,
    bytes_max: int,
    show: Callable[[int], None] = lambda _done: None,
) -> Plan:
    """
    Read a directory and plan its events; stops before *bytes_max* of text would be exceeded.

    Files that cannot be read are left out, and so are caches and installed packages. Binary
    files give their one event and no lines.
    """
    files: list[SourceFile] = []
    first = total = 0
    for path in _regular_files(root):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        batches = sum(1 for _ in _batches(data, lines_per_event))
        text_bytes = len(data) if batches else 0
        if total + text_bytes > bytes_max:
            break
        files.append(SourceFile(str(path.relative_to(root)), first, 1 + batches, len(data)))
        first += 1 + batches
        total += text_bytes
        show(len(files))
    return Plan(str(root), encoding, lines_per_event, tuple(files))


def _regular_files(root: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path
