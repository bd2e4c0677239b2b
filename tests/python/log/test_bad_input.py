"""
Wrong arguments and odd directories: the exact error, nothing changed, usable after.

The tables of this file are the catalogue; a new row is a new line.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from millrace import (
    BackendUnavailable,
    CorruptionError,
    Error,
    FormatVersionError,
    IoError,
    LockedError,
    Log,
    LogSettings,
)
from millrace.log import repair, verify

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1 << 20


def _released() -> memoryview:
    view = memoryview(b"data")
    view.release()
    return view


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("text", TypeError, "not 'str'; encode it first"),
        (7, TypeError, "bytes-like object is required, not 'int'"),
        (None, TypeError, "not 'NoneType'"),
        ([b"x"], TypeError, "not 'list'"),
        (object(), TypeError, "not 'object'"),
        (memoryview(b"abcdef")[::2], BufferError, "not contiguous"),
        (memoryview(b"abcdef")[::-1], BufferError, "not contiguous"),
        (_released(), ValueError, "released"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_not_a_record(
    directory: Path,
    data: Any,
    error: type[Exception],
    message: str,
) -> None:
    # Whatever call it is given to: the same error, no record.
    async with Log.open(directory) as log:
        for call in (log.append, log.submit, log.append_sync):
            with pytest.raises(error, match=message):
                call(data)
        with pytest.raises(error, match=f"item 0: .*{message}"):
            log.append_many([data])
        assert log.last_lsn == 0
        assert await log.append(b"usable") == 1


async def test_odd_buffers_are_records(directory: Path) -> None:
    # A map of a file and a subclass of bytes are bytes.
    class Odd(bytes):
        __slots__ = ()

        def __hash__(self) -> int:
            raise ZeroDivisionError

    with mmap.mmap(-1, 8) as mapped:
        mapped[:] = b"mmapped!"
        async with Log.open(directory) as log:
            assert await log.append_many([mapped, Odd(b"odd")]) == range(1, 3)
            found = [record.data async for record in log.read()]
    assert found == [b"mmapped!", b"odd"]
    assert {type(data) for data in found} == {bytes}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"durability": "paper"}, ValueError, "durability must be"),
        ({"durability": 1}, TypeError, "str"),
        ({"durable": True}, TypeError, "unexpected keyword"),
    ],
)
async def test_options_of_an_append(
    directory: Path,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    # An option that does not exist is refused before anything is written.
    async with Log.open(directory) as log:
        with pytest.raises(error, match=message):
            log.append(b"x", **arguments)
        assert log.last_lsn == 0


@pytest.mark.parametrize("timeout_s", [-1, -0.001, math.nan, -math.inf])
async def test_timeouts_that_make_no_sense(directory: Path, timeout_s: float) -> None:
    # Negative or no number at all; nothing is written.
    async with Log.open(directory) as log:
        with pytest.raises(ValueError, match="timeout_s"):
            log.append_sync(b"x", timeout_s=timeout_s)
        assert await log.append(b"x") == 1
        ticket = log.submit(b"y")
        with pytest.raises(ValueError, match="timeout_s"):
            ticket.wait(timeout_s)
        assert ticket.wait(math.inf) == 2


@pytest.mark.parametrize(
    ("start", "stop", "records_max", "error"),
    [
        (0, None, 1, ValueError),
        (-1, None, 1, ValueError),
        (2**63, None, 1, ValueError),
        (True, None, 1, TypeError),
        (1.0, None, 1, TypeError),
        ("1", None, 1, TypeError),
        (1, 0, 1, ValueError),
        (1, 2.5, 1, TypeError),
        (1, None, 0, ValueError),
        (1, None, False, TypeError),
    ],
)
async def test_ranges_that_make_no_sense(
    directory: Path,
    start: Any,
    stop: Any,
    records_max: Any,
    error: type[Exception],
) -> None:
    # Refused at the call, not at the first record.
    async with Log.open(directory) as log:
        with pytest.raises(error):
            log.read_batches(start, stop, records_max=records_max)
        if records_max == 1 and records_max is not True:
            with pytest.raises(error):
                log.read(start, stop)


async def test_a_length_is_only_a_hint(directory: Path) -> None:
    # No memory is asked for before the first item has been seen.
    async with Log.open(directory) as log:
        with pytest.raises(TypeError, match="item 0"):
            log.append_many(range(2**62))  # type: ignore[arg-type]


@pytest.mark.parametrize("lsn", [-1, 2**64, "1", None, 1.5, True])
async def test_lsns_that_make_no_sense(directory: Path, lsn: Any) -> None:
    # Truncation and cursors take an LSN or nothing.
    async with Log.open(directory) as log:
        for call in (log.truncate_before, log.cursor("c").commit):
            with pytest.raises((TypeError, ValueError)):
                await call(lsn)
        with pytest.raises((TypeError, ValueError)):
            log.follow(lsn or "none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ring_entries": 0}, ValueError, "ring_entries"),
        ({"ring_entries": -1}, ValueError, "ring_entries"),
        ({"ring_entries": True}, TypeError, "ring_entries"),
        ({"ring_entries": 1.0}, TypeError, "ring_entries"),
        ({"ring_entries": "1"}, TypeError, "ring_entries"),
        ({"ring_entries": None}, TypeError, "ring_entries"),
        ({"ring_entries": 2**63}, ValueError, "ring_entries"),
        ({"linger_s": -1}, ValueError, "linger_s"),
        ({"linger_s": math.nan}, ValueError, "linger_s"),
        ({"linger_s": math.inf}, ValueError, "linger_s"),
        ({"linger_s": False}, TypeError, "linger_s"),
        ({"lock_timeout_s": "1"}, TypeError, "lock_timeout_s"),
        ({"min_sync_interval_s": 1e30}, ValueError, "min_sync_interval_s"),
        ({"recovery": "hope"}, ValueError, "recovery must be one of 'tail'"),
        ({"recovery": None}, TypeError, "recovery"),
        ({"commit_path": "fsync"}, ValueError, "commit_path"),
        ({"driver": "bus"}, ValueError, "driver"),
        ({"backend": "aio"}, ValueError, "backend"),
        ({"record_bytes_max": 64 * _MIB}, ValueError, "record_bytes_max .* group_bytes_max"),
        ({"group_bytes_max": 64 * _MIB}, ValueError, "group_bytes_max .* segment_bytes"),
        ({"segment_first_bytes": 65 * _MIB}, ValueError, "segment_first_bytes"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_settings_check_themselves(
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    # A wrong number is refused where it is written down, and the message names it.
    with pytest.raises(error, match=message):
        LogSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_bytes": 3000}, "block_bytes"),
        ({"block_bytes": 256}, "block_bytes"),
        ({"ring_bytes": 1 * _MIB}, "ring_bytes"),
        ({"segment_bytes": 64 * _MIB + 1}, "multiples of block_bytes"),
        ({"segment_bytes": 8 << 30}, "segment_bytes"),
    ],
)
async def test_settings_the_engine_refuses(
    directory: Path,
    settings: dict[str, Any],
    message: str,
) -> None:
    # What only the engine knows is refused before the directory is touched.
    with pytest.raises(ValueError, match=message):
        await Log.open(directory, settings=LogSettings(**settings))
    assert not directory.exists()


@pytest.mark.parametrize(
    "contradiction",
    [{"commit_path": "pwrite"}, {"commit_path": "ring_dsync"}, {"backend": "threads"}],
)
def test_a_loop_driver_that_could_block(contradiction: dict[str, Any]) -> None:
    # What a loop's thread must not do is refused where it is written down.
    with pytest.raises(ValueError, match=r"driver 'loop' and .* contradict"):
        LogSettings(driver="loop", **contradiction)


async def test_a_loop_driver_without_direct_writes() -> None:
    # A filesystem in memory has no direct I/O: an error that says what helps, and no log.
    shared = Path("/dev/shm")
    if not os.path.ismount(shared):
        pytest.skip("no filesystem in memory at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared) as base:
        path = Path(base) / "log"
        with pytest.raises(BackendUnavailable, match="driver 'thread' works without"):
            await Log.open(path, settings=LogSettings(driver="loop"))
        async with Log.open(path) as log:
            assert await log.append(b"x") == 1


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", ValueError),
        ("a\0b", ValueError),
        (None, TypeError),
        (7, TypeError),
        (b"", ValueError),
    ],
)
async def test_paths_that_make_no_sense(path: Any, error: type[Exception]) -> None:
    # Refused at the call.
    with pytest.raises(error):
        Log.open(path)
    with pytest.raises(error):
        await verify(path)


async def test_arguments_of_open(directory: Path) -> None:
    # Settings of another kind and engines of others are refused at the call.
    with pytest.raises(TypeError, match="LogSettings"):
        Log.open(directory, settings={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="io"):
        Log.open(directory, io=object())  # type: ignore[arg-type]
    assert not directory.exists()


async def test_paths_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # str, bytes that are no text, and a path that was relative when it was given.
    monkeypatch.chdir(tmp_path)
    odd = os.fsencode(tmp_path) + b"/log \xff\n"
    opened = [Log.open("here"), Log.open(odd), Log.open(Path("there"))]
    monkeypatch.chdir("/")
    for opening in opened:
        async with opening as log:
            assert await log.append(b"x") == 1
    names = {os.fsencode(path.name) for path in tmp_path.iterdir()}
    assert names == {b"here", b"log \xff\n", b"there"}


def _file(path: Path) -> None:
    path.write_bytes(b"I am a file")


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere") / "deeper")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_file, _dangling, _fifo])
async def test_something_else_is_in_the_place(
    directory: Path,
    make: Callable[[Path], None],
) -> None:
    # What is no directory is refused with an errno, and left as it is.
    make(directory)
    before = directory.lstat()
    with pytest.raises(Error) as caught:
        await Log.open(directory)
    assert isinstance(caught.value, IoError)
    assert caught.value.errno is not None
    assert directory.lstat().st_ino == before.st_ino


async def test_a_missing_parent(tmp_path: Path) -> None:
    # Parents are not invented.
    with pytest.raises(IoError) as caught:
        await Log.open(tmp_path / "missing" / "log")
    assert caught.value.errno is not None
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_that_is_no_text_is_told_byte_for_byte(tmp_path: Path) -> None:
    # An error about a log's place has it, and `os.fsencode` gives the name back.
    missing = os.fsencode(tmp_path) + b"/missing \xff/log"
    a_file = os.fsencode(tmp_path) + b"/file \xff"
    Path(os.fsdecode(a_file)).touch()
    calls: list[Callable[[bytes], Any]] = [
        Log.open,
        lambda path: Log.open(path, read_only=True),
        verify,
        repair,
    ]
    for path in (missing, a_file):
        for call in calls:
            with pytest.raises(IoError) as caught:
                await call(path)
            assert os.fsencode(str(caught.value.path)) == path
            assert os.fsencode(caught.value.filename) == path
            assert str(caught.value).encode()


async def test_looking_at_what_is_not_there(directory: Path) -> None:
    # Reading, verifying and repairing create nothing.
    for attempt in (Log.open(directory, read_only=True), verify(directory), repair(directory)):
        with pytest.raises(Error):
            await attempt
    assert not directory.exists()


async def test_strangers_in_the_directory(directory: Path) -> None:
    # Files that are not ours are neither read nor removed.
    directory.mkdir()
    stranger = directory / "notes.txt"
    stranger.write_text("mine")
    async with Log.open(directory) as log:
        await log.append(b"x")
    async with Log.open(directory) as log:
        assert log.last_lsn == 1
    assert stranger.read_text() == "mine"


async def test_the_directory_is_private(directory: Path) -> None:
    # Nobody else may read a log.
    async with Log.open(directory) as log:
        await log.append(b"x")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        modes = {stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()}
    assert modes == {0o600}


async def test_opened_twice(directory: Path) -> None:
    # The second open fails at once and names the owner; the first one is not disturbed.
    async with Log.open(directory) as log:
        with pytest.raises(LockedError) as caught:
            await Log.open(directory)
        assert caught.value.pid == os.getpid()
        assert isinstance(caught.value, BlockingIOError)
        async with Log.open(directory, read_only=True) as reader:
            assert reader.statistics().state == "read_only"
        assert await log.append(b"x") == 1


async def test_a_read_only_log_only_reads(directory: Path) -> None:
    # It shows what is durable and refuses everything else.
    async with Log.open(directory) as log:
        await log.append_many([b"a", b"b"])
    async with Log.open(directory, read_only=True) as log:
        assert [record.data async for record in log.read()] == [b"a", b"b"]
        for attempt in (
            lambda: log.append(b"x"),
            lambda: log.submit(b"x"),
            lambda: log.truncate_before(1),
            lambda: log.cursor("c").commit(1),
        ):
            with pytest.raises((Error, ValueError)):
                await attempt()
        assert "state=read_only" in repr(log)


async def test_damage_is_reported_and_nothing_is_touched(directory: Path) -> None:
    # A flipped bit in what was durable: an error with file and offset, and the same bytes after.
    async with Log.open(directory) as log:
        for number in range(20):
            await log.append(b"record %d" % number)
    [segment] = [path for path in sorted(directory.iterdir()) if path.suffix == ".log"][:1]
    image = bytearray(segment.read_bytes())
    position = image.index(b"record 5")
    image[position] ^= 1
    segment.write_bytes(image)
    report = await verify(directory)
    assert not report.is_sound
    assert report.damage[0].first_lsn <= 6
    with pytest.raises(CorruptionError) as caught:
        await Log.open(directory)
    assert caught.value.segment == report.damage[0].segment
    assert caught.value.offset is not None
    assert segment.read_bytes() == bytes(image)


async def test_damage_is_repaired_with_a_copy(directory: Path) -> None:
    # After a repair the log ends before the damage, takes records, and the old bytes are beside.
    async with Log.open(directory) as log:
        for number in range(20):
            await log.append(b"record %d" % number)
    segment = min(path for path in directory.iterdir() if path.suffix == ".log")
    image = bytearray(segment.read_bytes())
    image[image.index(b"record 5")] ^= 1
    segment.write_bytes(image)
    report = await repair(directory)
    assert report.damage
    assert report.copies
    assert any((directory / copy).read_bytes() == bytes(image) for copy in report.copies)
    async with Log.open(directory) as log:
        kept = [record.data async for record in log.read()]
        assert kept == [b"record %d" % number for number in range(len(kept))]
        assert len(kept) == report.records
        assert await log.append(b"goes on") == report.last_lsn + 1


async def test_a_newer_format(directory: Path) -> None:
    # A version from the future is refused with both versions named, and left alone.
    async with Log.open(directory) as log:
        await log.append(b"x")
    for segment in directory.glob("*.log"):
        image = bytearray(segment.read_bytes())
        assert image[:8] == b"MILLRACE"
        image[8:12] = (9).to_bytes(4, "little")
        segment.write_bytes(image)
    before = {path.name: path.read_bytes() for path in directory.glob("*.log")}
    with pytest.raises((FormatVersionError, CorruptionError)):
        await Log.open(directory)
    assert {path.name: path.read_bytes() for path in directory.glob("*.log")} == before
