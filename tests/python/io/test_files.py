"""Files: every operation does what it says, on every backend and driver."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import random
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from io_engines import is_open, leased, until

import millrace
from millrace import (
    ClosedError,
    EngineBuffer,
    File,
    IoEngine,
    IoError,
    IoTimeout,
    ShortReadError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from io_engines import Engines
    from typing_extensions import Buffer


def test_bytes_written_at_positions_are_read_back(engines: Engines, tmp_path: Path) -> None:
    # Hundreds of writes and reads in any order land where they were meant to.
    block = 1000

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            numbers = list(range(300))
            random.Random(1).shuffle(numbers)
            written = await asyncio.gather(
                *(io.write_at(file, bytes([n % 251]) * block, n * block) for n in numbers)
            )
            assert written == [block] * 300
            random.Random(2).shuffle(numbers)
            read = await asyncio.gather(*(io.read_at(file, block, n * block) for n in numbers))
            assert read == [bytes([n % 251]) * block for n in numbers]

    engines.run(main)


def test_a_list_of_buffers_is_one_write(engines: Engines, tmp_path: Path) -> None:
    # Buffers of any kind go out one after the other; more of them than the kernel takes at once.
    pieces: list[Buffer] = [b"ab", bytearray(b"cd"), memoryview(b"efgh")[::1], b""] * 700

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            assert await io.write_at(file, pieces, 3) == 700 * 8
            assert await io.write_at(file, (b"x", b"y"), 0, sync=True) == 2
            expected = b"xy\0" + b"abcdefgh" * 700
            assert await io.read_at(file, len(expected), 0) == expected

    engines.run(main)


def test_what_was_written_is_what_was_given(engines: Engines, tmp_path: Path) -> None:
    # Bytes are copied at the call: what the caller does to his buffer afterwards changes nothing.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            data = bytearray(b"a" * 100_000)
            writing = io.write_at(file, data, 0)
            data[:] = b"b" * 100_000
            data.clear()
            await writing
            assert await io.read_at(file, 100_000, 0) == b"a" * 100_000

    engines.run(main)


def test_large_transfers(engines: Engines, tmp_path: Path) -> None:
    # Sizes beyond what the page cache is asked for on the loop's thread.
    data = random.Random(3).randbytes(5 << 20)

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            assert await io.write_at(file, data, 1, sync=True) == len(data)
            assert await io.read_at(file, len(data), 1) == data

    engines.run(main)


def test_the_end_of_a_file(engines: Engines, tmp_path: Path) -> None:
    # Fewer bytes are an error that says how many there were, or an answer if that was allowed;
    # from the page cache and past it.
    async def main(io: IoEngine) -> None:
        (tmp_path / "f").write_bytes(b"0123456789")
        async with io.open(tmp_path / "f") as file:
            for length in (11, 200_000):
                with pytest.raises(ShortReadError) as caught:
                    await io.read_at(file, length, 4)
                error = caught.value
                assert (error.got, error.wanted) == (6, length)
                assert (error.path, error.offset) == (str(tmp_path / "f"), 4)
                assert await io.read_at(file, length, 4, partial=True) == b"456789"
            assert await io.read_at(file, 5, 10, partial=True) == b""
            assert await io.read_at(file, 0, 10) == b""

    engines.run(main)


def test_direct_files(engines: Engines, tmp_path: Path) -> None:
    # O_DIRECT works with aligned places, and says EINVAL for others.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+", direct=True) as file:
            data = os.urandom(8192)
            await io.write_at(file, data, 4096, sync=True)
            assert await io.read_at(file, 8192, 4096) == data
            with pytest.raises(IoError) as caught:
                await io.write_at(file, b"x" * 100, 1)
            assert caught.value.errno == errno.EINVAL
        assert io.statistics().cached_hits == 0

    engines.run(main)


def test_names_sizes_and_what_is_known(engines: Engines, tmp_path: Path) -> None:
    # Allocate, truncate, rename, unlink, stat and the sync of a directory, each seen from outside.
    async def main(io: IoEngine) -> None:
        path, other = tmp_path / "f", tmp_path / "g"
        async with io.open(path, "x+") as file:
            await io.fallocate(file, 10_000)
            assert path.stat().st_size == 10_000
            await io.truncate(file, 100)
            await io.sync(file)
            await io.sync(file, data_only=False)
            known, seen = await io.stat(file), path.stat()
            assert (known.length_bytes, known.inode) == (100, seen.st_ino)
            assert stat.S_IMODE(known.mode) == 0o600
            assert (known.modified_ns, known.links) == (seen.st_mtime_ns, 1)
            assert known.allocated_bytes == seen.st_blocks * 512
        await io.rename(path, os.fsencode(other))
        assert not path.exists()
        assert (await io.stat(str(other))).inode == known.inode
        await io.sync_directory(tmp_path)
        await io.unlink(other)
        assert not other.exists()

    engines.run(main)


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ("r+", b"old", b"new"),
        ("w", b"older", b"new"),
        ("w+b", None, b"new"),
        ("xb", None, b"new"),
        ("x+", None, b"new"),
    ],
)
def test_modes(
    any_engine: Engines, tmp_path: Path, flags: str, before: bytes | None, after: bytes
) -> None:
    # The modes of Python's own open, as far as they make sense with positions.
    path = tmp_path / "f"
    if before is not None:
        path.write_bytes(before)

    async def main(io: IoEngine) -> None:
        async with io.open(path, flags) as file:
            await io.write_at(file, b"new", 0)

    any_engine.run(main)
    assert path.read_bytes() == after


@pytest.mark.parametrize(
    ("call", "kind", "code"),
    [
        (lambda io, d: io.open(d / "missing"), FileNotFoundError, errno.ENOENT),
        (lambda io, d: io.open(d / "there", "x"), FileExistsError, errno.EEXIST),
        (lambda io, d: io.open(d, "r+"), IsADirectoryError, errno.EISDIR),
        (lambda io, d: io.rename(d / "missing", d / "x"), FileNotFoundError, errno.ENOENT),
        (lambda io, d: io.unlink(d / "missing"), FileNotFoundError, errno.ENOENT),
        (lambda io, d: io.stat(d / "missing"), FileNotFoundError, errno.ENOENT),
        (lambda io, d: io.sync_directory(d / "missing"), FileNotFoundError, errno.ENOENT),
        (lambda io, d: io.sync_directory(d / "there"), NotADirectoryError, errno.ENOTDIR),
    ],
)
def test_what_the_kernel_refuses(
    engines: Engines, tmp_path: Path, call: object, kind: type[OSError], code: int
) -> None:
    # Errors keep the errno and the path, and are what Python's own calls would have raised.
    (tmp_path / "there").touch()

    async def main(io: IoEngine) -> None:
        with pytest.raises(kind) as caught:
            await call(io, tmp_path)  # type: ignore[operator]
        error = caught.value
        assert isinstance(error, IoError)
        assert (error.errno, error.strerror) == (code, os.strerror(code))
        assert error.filename == error.path
        assert error.path is not None
        assert error.path.startswith(str(tmp_path))

    engines.run(main)


def test_an_error_of_a_file_names_the_place(engines: Engines, tmp_path: Path) -> None:
    # A write to a file opened for reading: EBADF with path, offset and length.
    (tmp_path / "f").touch()

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            with pytest.raises(IoError) as caught:
                await io.write_at(file, b"abc", 7)
            error = caught.value
            assert (error.errno, error.offset, error.requested) == (errno.EBADF, 7, 3)
            assert error.operation == "write"
            assert error.path == str(tmp_path / "f")

    engines.run(main)


def test_a_name_that_is_no_text_is_told_byte_for_byte(engines: Engines, tmp_path: Path) -> None:
    # Whichever operation fails, and wherever its path is told: `os.fsencode` gives the name back,
    # and the error can still be printed and pickled.
    folder = os.fsencode(tmp_path)
    missing, present, pipe = folder + b"/no \xff", folder + b"/yes \xff", folder + b"/pipe \xff"
    Path(os.fsdecode(present)).touch()
    os.mkfifo(pipe)

    async def main(io: IoEngine) -> None:
        file = await io.open(present)
        full = b"\x00" * 5000
        calls: list[tuple[bytes, Callable[[], Any]]] = [
            (missing, lambda: io.open(missing)),
            (missing, lambda: io.stat(missing)),
            (missing, lambda: io.unlink(missing)),
            (missing, lambda: io.rename(missing, present)),
            (missing, lambda: io.sync_directory(missing)),
            (pipe, lambda: io.open(pipe)),
            (present, lambda: io.open(present, "x")),
            (present, lambda: io.read_at(file, 3, 0)),
            (present, lambda: io.read_at(file, 100_000, 0)),
            (present, lambda: io.read_into(file, bytearray(3), 0)),
            (present, lambda: io.write_at(file, full, 0)),
            (present, lambda: io.write_at(file, full, 0, sync=True)),
            (present, lambda: io.truncate(file, 7)),
            (present, lambda: io.fallocate(file, 7)),
            (present, lambda: io.sync(file, timeout_s=0)),
        ]
        for name, call in calls:
            with pytest.raises(millrace.Error) as caught:
                await call()
            error = pickle.loads(pickle.dumps(caught.value))
            assert os.fsencode(error.path) == name
            assert str(error).encode()
            if isinstance(error, OSError) and error.errno is not None:
                assert os.fsencode(error.filename) == name
        await file.close()
        with pytest.raises(ClosedError) as caught:
            await io.sync(file)
        assert os.fsencode(str(caught.value.path)) == present

    engines.run(main)


@pytest.mark.parametrize("flags", ["r", "w", "r+"])
def test_a_pipe_is_refused_at_once(engines: Engines, tmp_path: Path, flags: str) -> None:
    # Its opening would wait for the other end, on a thread of the engine; and it has no positions.
    # However many are tried, the engine goes on and ends.
    os.mkfifo(tmp_path / "pipe")

    async def main(io: IoEngine) -> None:
        for _ in range(40):
            with pytest.raises(IoError) as caught:
                await io.open(tmp_path / "pipe", flags, timeout_s=10)
            assert (caught.value.errno, caught.value.operation) == (errno.ESPIPE, "open")
        async with io.open("/dev/zero") as zeros:
            assert await io.read_at(zeros, 3, 0) == bytes(3)

    engines.run(main)


def test_an_opening_waits_for_a_lease(engines: Engines, tmp_path: Path) -> None:
    # What ends by itself is waited for, though pipes are not.
    async def main(io: IoEngine) -> None:
        with leased(tmp_path / "f"):
            opening = asyncio.ensure_future(io.open(tmp_path / "f"))
            await until(lambda: io.statistics().in_flight == 1)
        await (await opening).close()

    engines.run(main)


def test_many_pieces_take_as_much_memory_as_their_bytes(engines: Engines, tmp_path: Path) -> None:
    # A page for each of a hundred thousand little ones would be four hundred megabytes.
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    pieces = [b"%6d" % n for n in range(100_000)]

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            before = peak()
            assert await io.write_at(file, pieces, 0) == 600_000
            assert peak() < before + (64 << 20)
        assert (tmp_path / "f").read_bytes() == b"".join(pieces)

    engines.run(main)


def test_a_closed_file_says_so(engines: Engines, tmp_path: Path) -> None:
    # Closing twice is fine; everything else on a closed file is a ClosedError with its path.
    async def main(io: IoEngine) -> None:
        file = await io.open(tmp_path / "f", "w+")
        assert "open" in repr(file)
        number = file.fileno()
        assert os.fstat(number).st_ino == (tmp_path / "f").stat().st_ino
        await file.close()
        await file.close()
        assert file.is_closed
        assert "closed" in repr(file)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)
        for call in (
            file.fileno,
            lambda: io.read_at(file, 1, 0),
            lambda: io.read_into(file, bytearray(1), 0),
            lambda: io.write_at(file, b"x", 0),
            lambda: io.write_at(file, b"", 0),
            lambda: io.sync(file),
            lambda: io.fallocate(file, 1),
            lambda: io.truncate(file, 1),
            lambda: io.stat(file),
        ):
            with pytest.raises(ClosedError, match="the file is closed") as caught:
                call()
            assert caught.value.path == str(tmp_path / "f")

    engines.run(main)


def test_closing_a_file_lets_what_is_under_way_finish(engines: Engines, tmp_path: Path) -> None:
    # A descriptor is not closed under a request: what was asked for before is answered.
    async def main(io: IoEngine) -> None:
        file = await io.open(tmp_path / "f", "w+")
        writes = [io.write_at(file, b"x" * 4096, n * 4096, sync=n % 50 == 0) for n in range(200)]
        await file.close()
        assert await asyncio.gather(*writes) == [4096] * 200
        assert (tmp_path / "f").stat().st_size == 200 * 4096

    engines.run(main)


def test_a_forgotten_file_is_closed_by_the_engine(engines: Engines, tmp_path: Path) -> None:
    # Dropping it warns, and the descriptor does not leak.
    path = tmp_path / "f"

    async def main(io: IoEngine) -> None:
        for _ in range(50):
            file = await io.open(path, "w")
            # The future that brought it lets go of it in the next iteration.
            await asyncio.sleep(0)
            with pytest.warns(ResourceWarning, match="unclosed file"):
                del file
        await until(lambda: not is_open(path))

    engines.run(main)


def test_an_open_that_nobody_waits_for_leaves_nothing_open(
    engines: Engines, tmp_path: Path
) -> None:
    # Cancelled while it opens: the file that opens all the same is closed.
    path = tmp_path / "f"
    path.touch()

    async def main(io: IoEngine) -> None:
        for _ in range(20):
            task = asyncio.ensure_future(io.open(path, "w"))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        await until(lambda: io.statistics().pending == 0 and not is_open(path))

    engines.run(main)


def test_reading_into_a_buffer_of_the_callers(engines: Engines, tmp_path: Path) -> None:
    # The copy is made in the drain: until then the buffer may be used, and if it shrank by then
    # that is an error and no byte is written beside it.
    (tmp_path / "f").write_bytes(bytes(range(100)))

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            whole = bytearray(b"\xff" * 30)
            assert await io.read_into(file, memoryview(whole)[10:20], 50) == 10
            assert whole == b"\xff" * 10 + bytes(range(50, 60)) + b"\xff" * 10
            shrinking = bytearray(20)
            reading = io.read_into(file, shrinking, 0)
            shrinking[:] = b"!!"
            with pytest.raises(BufferError, match="shrank to 2 bytes"):
                await reading
            assert shrinking == b"!!"
            short = bytearray(b"." * 10)
            with pytest.raises(ShortReadError):
                await io.read_into(file, short, 95)
            assert short == b"." * 10
            assert await io.read_into(file, short, 95, partial=True) == 5
            assert short == bytes(range(95, 100)) + b"." * 5

    engines.run(main)


def test_an_engine_buffer_takes_bytes_without_a_copy(engines: Engines, tmp_path: Path) -> None:
    # Views are read-only and pin the memory; a read never changes bytes that somebody looks at.
    (tmp_path / "f").write_bytes(bytes(range(200)))

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            buffer = io.buffer(100)
            assert isinstance(buffer, EngineBuffer)
            assert (len(buffer), bytes(buffer)) == (100, bytes(100))
            assert await io.read_into(file, buffer, 50) == 100
            with memoryview(buffer) as view:
                assert view.readonly
                assert bytes(view) == bytes(range(50, 150))
                assert io.statistics().pinned_bytes == 100
                assert buffer.is_pinned
                with pytest.raises(BufferError, match="a view of this buffer is alive"):
                    io.read_into(file, buffer, 0)
            assert io.statistics().pinned_bytes == 0
            reading = io.read_into(file, buffer, 150, partial=True)
            with pytest.raises(BufferError, match="under way"):
                memoryview(buffer)
            with pytest.raises(BufferError, match="another read"):
                io.read_into(file, buffer, 0)
            assert await reading == 50
            assert bytes(buffer) == bytes(range(150, 200))
            # One that fails leaves what was there, and the buffer free again.
            with pytest.raises(ShortReadError):
                await io.read_into(file, buffer, 150)
            assert bytes(buffer) == bytes(range(150, 200))

    engines.run(main)


def test_a_view_outlives_buffer_file_and_engine(engines: Engines, tmp_path: Path) -> None:
    # The memory belongs to whoever looks at it last.
    (tmp_path / "f").write_bytes(b"kept" * 100_000)

    async def main(io: IoEngine) -> memoryview:
        async with io.open(tmp_path / "f") as file:
            buffer = io.buffer(400_000)
            await io.read_into(file, buffer, 0)
            return memoryview(buffer)

    assert engines.run(main) == b"kept" * 100_000


def test_a_cached_read_does_not_suspend(engines: Engines, tmp_path: Path) -> None:
    # What the page cache has is there at the call: other tasks do not run in between.
    (tmp_path / "f").write_bytes(bytes(8192))

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            ran: list[int] = []
            asyncio.get_running_loop().call_soon(ran.append, 1)
            assert await io.read_at(file, 4096, 4096) == bytes(4096)
            assert not ran
            assert io.statistics().cached_hits == 1

    engines.run(main)


def test_cached_reads_are_fair(engines: Engines, tmp_path: Path) -> None:
    # A task that only hits the page cache lets others run every now and then.
    (tmp_path / "f").write_bytes(bytes(4096))

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            ran: list[int] = []
            asyncio.get_running_loop().call_soon(ran.append, 1)
            for _ in range(200):
                await io.read_at(file, 4096, 0)
            assert ran

    engines.run(main)


def test_a_past_deadline_is_not_even_tried(engines: Engines, tmp_path: Path) -> None:
    # Nothing is read or written, not even from the page cache.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            await io.write_at(file, b"old", 0)
            with pytest.raises(IoTimeout) as caught:
                await io.write_at(file, b"new", 0, timeout_s=0)
            assert not caught.value.indeterminate
            with pytest.raises(IoTimeout):
                await io.read_at(file, 3, 0, timeout_s=0)
            assert io.statistics().cached_hits == 0
            assert await io.read_at(file, 3, 0, timeout_s=float("inf")) == b"old"
            with pytest.raises(IoTimeout):
                await io.unlink(tmp_path / "f", timeout_s=0.0)
            assert (tmp_path / "f").exists()

    engines.run(main)


def test_the_types_are_public() -> None:
    # What calls return can be named in annotations.
    assert File is millrace.File
