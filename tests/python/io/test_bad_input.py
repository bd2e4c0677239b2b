"""Wrong arguments: an error at the call that says which, and nothing is done."""

from __future__ import annotations

import array
import mmap
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from denied import DENIED

from millrace import EndOfStream, IoEngine, IoSettings, IoTimeout, ShortReadError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from io_engines import Engines
    from typing_extensions import Buffer

    Call = Callable[[Any, Any, Path], object]

HUGE = 2**63

CALLS: list[tuple[str, Call, type[Exception], str]] = [
    ("length of -1", lambda io, f, _: io.read_at(f, -1, 0), ValueError, "length"),
    ("length of 2**63", lambda io, f, _: io.read_at(f, HUGE, 0), ValueError, "length"),
    ("length of 2**64", lambda io, f, _: io.read_at(f, 2**64, 0), ValueError, "length"),
    ("length of True", lambda io, f, _: io.read_at(f, not 0, 0), TypeError, "not bool"),
    ("length of 1.0", lambda io, f, _: io.read_at(f, 1.0, 0), TypeError, "not float"),
    ("length of None", lambda io, f, _: io.read_at(f, None, 0), TypeError, "NoneType"),
    ("a timeout of True", lambda io, f, _: io.sync(f, timeout_s=not 0), TypeError, "not bool"),
    ("offset of -1", lambda io, f, _: io.read_at(f, 1, -1), ValueError, "offset"),
    ("offset of 2**63", lambda io, f, _: io.read_at(f, 1, HUGE), ValueError, "offset"),
    ("beyond any file", lambda io, f, _: io.read_at(f, 1 << 20, HUGE - 1), ValueError, "beyond"),
    ("a str for a file", lambda io, _f, _: io.read_at("f", 1, 0), TypeError, "File"),
    ("an int for a file", lambda io, _f, _: io.write_at(3, b"", 0), TypeError, "File"),
    ("None for a file", lambda io, _f, _: io.sync(None), TypeError, "File"),
    ("a str to write", lambda io, f, _: io.write_at(f, "x", 0), TypeError, "encode"),
    ("None to write", lambda io, f, _: io.write_at(f, None, 0), TypeError, "bytes-like"),
    ("an int to write", lambda io, f, _: io.write_at(f, 3, 0), TypeError, "bytes-like"),
    ("a list with a str", lambda io, f, _: io.write_at(f, [b"", "x"], 0), TypeError, "item 1"),
    (
        "a strided view",
        lambda io, f, _: io.write_at(f, memoryview(b"abcd")[::2], 0),
        BufferError,
        "contiguous",
    ),
    ("a generator", lambda io, f, _: io.write_at(f, (b for b in [b""]), 0), TypeError, "bytes"),
    ("sync of 1", lambda io, f, _: io.write_at(f, b"", 0, sync=1), TypeError, "sync"),
    ("read into bytes", lambda io, f, _: io.read_into(f, bytes(3), 0), BufferError, "read-only"),
    ("read into a str", lambda io, f, _: io.read_into(f, "abc", 0), TypeError, "bytes-like"),
    (
        "read into a strided view",
        lambda io, f, _: io.read_into(f, memoryview(bytearray(4))[::2], 0),
        BufferError,
        "contiguous",
    ),
    ("buffer of -1", lambda io, _f, _: io.buffer(-1), ValueError, "size"),
    ("buffer of everything", lambda io, _f, _: io.buffer(HUGE - 1), TooLargeError, "memory"),
    ("timeout of -1", lambda io, f, _: io.sync(f, timeout_s=-1), ValueError, "timeout_s"),
    ("timeout of NaN", lambda io, f, _: io.sync(f, timeout_s=float("nan")), ValueError, "NaN"),
    ("timeout of a str", lambda io, f, _: io.sync(f, timeout_s="1"), TypeError, "."),
    ("an empty path", lambda io, _f, _: io.unlink(""), ValueError, "path is empty"),
    ("a NUL in a path", lambda io, _f, _: io.unlink("a\0b"), ValueError, "NUL"),
    ("an int for a path", lambda io, _f, _: io.unlink(3), TypeError, "int"),
    ("a NUL in a target", lambda io, _f, d: io.rename(d, "a\0b"), ValueError, "target"),
    ("no mode", lambda io, _f, d: io.open(d / "x", ""), ValueError, "flags"),
    ("an unknown mode", lambda io, _f, d: io.open(d / "x", "rw"), ValueError, "rw"),
    ("appending", lambda io, _f, d: io.open(d / "x", "a"), ValueError, "offset"),
    ("flags of an int", lambda io, _f, d: io.open(d / "x", 0), TypeError, "."),
    (
        "negative permissions",
        lambda io, _f, d: io.open(d / "x", permissions=-1),
        ValueError,
        "permissions",
    ),
    (
        "permissions of 2**32",
        lambda io, _f, d: io.open(d / "x", permissions=2**32),
        ValueError,
        "permissions must lie between 0 and 0o7777",
    ),
    (
        "permissions of True",
        lambda io, _f, d: io.open(d / "x", permissions=not 0),
        TypeError,
        "permissions must be an int, not bool",
    ),
    (
        "timeout of more than a float holds",
        lambda io, f, _: io.sync(f, timeout_s=10**400),
        ValueError,
        "timeout_s",
    ),
    ("a length that raises", lambda io, f, _: io.read_at(f, _Raising(), 0), OSError, "mine"),
    ("allocating nothing", lambda io, f, _: io.fallocate(f, 0), ValueError, "length"),
    ("truncating to -1", lambda io, f, _: io.truncate(f, -1), ValueError, "length"),
    ("an int for a socket", lambda io, _f, _: io.recv(3, 1), TypeError, "socket.socket"),
    ("None for a socket", lambda io, _f, _: io.send(None, b"x"), TypeError, "socket.socket"),
    ("a file for a socket", lambda io, f, _: io.send(f, b"x"), TypeError, "socket.socket"),
    ("a closed socket", lambda io, _f, _: io.recv(_closed(), 1), ValueError, "closed"),
    ("no bytes to receive", lambda io, _f, _: io.recv(_open(), 0), ValueError, "at least 1"),
    ("a str to send", lambda io, _f, _: io.send(_open(), "x"), TypeError, "encode"),
]


class _Raising:
    """A number that does not say which."""

    def __index__(self) -> int:
        raise OSError("mine")


def _closed() -> socket.socket:
    with socket.socket() as one:
        pass
    return one


_kept: list[socket.socket] = []


def _open() -> socket.socket:
    if not _kept:
        _kept.extend(socket.socketpair())
    return _kept[0]


@pytest.fixture(autouse=True)
def _sockets_are_closed() -> Iterator[None]:
    yield
    while _kept:
        _kept.pop().close()


@pytest.mark.parametrize(
    ("call", "kind", "says"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS]
)
def test_bad_input(
    any_engine: Engines, tmp_path: Path, call: Call, kind: type[Exception], says: str
) -> None:
    # Raised by the call itself, nothing is submitted, and the engine goes on.
    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            before = io.statistics().submitted
            with pytest.raises(kind, match=says):
                call(io, file, tmp_path)
            assert io.statistics().submitted == before
            assert await io.write_at(file, b"fine", 0) == 4
        assert not (tmp_path / "x").exists()

    any_engine.run(main)


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": 40_000}, ValueError, "32768"),
        ({"size": True}, TypeError, "size"),
        ({"size": 1.5}, TypeError, "size"),
        ({"backend": "epoll"}, ValueError, "backend"),
        ({"backend": None}, TypeError, "backend"),
        ({"driver": "threads"}, ValueError, "driver"),
        ({"timeout_tick_s": 0}, ValueError, "timeout_tick_s"),
        ({"timeout_tick_s": -1.0}, ValueError, "timeout_tick_s"),
        ({"timeout_tick_s": float("inf")}, ValueError, "timeout_tick_s"),
        ({"shutdown_timeout_s": -1}, ValueError, "shutdown_timeout_s"),
        ({"shutdown_timeout_s": "1"}, TypeError, "shutdown_timeout_s"),
        ({"slow_after_s": 0.0}, ValueError, "slow_after_s"),
        ({"slow_after_s": 10**400}, ValueError, "slow_after_s"),
    ],
)
def test_bad_settings(settings: dict[str, Any], kind: type[Exception], says: str) -> None:
    # Settings are checked where they are written down.
    with pytest.raises(kind, match=says):
        IoSettings(**settings)


def test_more_memory_than_there_is(any_engine: Engines, tmp_path: Path) -> None:
    # What cannot be copied is an error of the call, and the program goes on.
    hole = tmp_path / "hole"
    hole.touch()
    os.truncate(hole, 1 << 43)
    with hole.open("rb") as source, mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as huge:

        async def main(io: IoEngine) -> None:
            left, right = socket.socketpair()
            with left, right:
                async with io.open(tmp_path / "f", "w+") as file:
                    several: list[Buffer | list[Buffer]] = [huge, [b"x", huge], [huge] * 3]
                    for data in several:
                        with pytest.raises(TooLargeError):
                            io.write_at(file, data, 0)
                        with pytest.raises(TooLargeError):
                            io.send(left, data)
                    assert await io.write_at(file, b"fits", 0) == 4

        any_engine.run(main)


def test_settings_of_another_kind() -> None:
    # Not a dictionary, not the settings of a log.
    with pytest.raises(TypeError, match="IoSettings"):
        IoEngine(settings={"size": 3})  # type: ignore[arg-type]


def test_buffers_of_other_items(any_engine: Engines, tmp_path: Path) -> None:
    # What exports bytes counts in bytes, whatever its items are.
    numbers = array.array("i", [1, 2, 3])

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f", "w+") as file:
            assert await io.write_at(file, numbers, 0) == 12
            other = array.array("i", [0, 0, 0])
            assert await io.read_into(file, other, 0) == 12
            assert other == numbers

    any_engine.run(main)


@pytest.mark.skipif(DENIED in os.environ, reason="forces what is denied")
def test_a_forced_backend_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable decides where settings say auto, and is checked.
    monkeypatch.setenv("MILLRACE_BACKEND", "threads")
    engine = IoEngine()
    assert engine.backend.name == "threads"
    engine._close_within(5)
    engine = IoEngine(settings=IoSettings(backend="uring-plain"))
    assert engine.backend.name == "uring-plain"
    engine._close_within(5)
    monkeypatch.setenv("MILLRACE_BACKEND", "magic")
    with pytest.raises(ValueError, match="MILLRACE_BACKEND"):
        IoEngine()


class _Number:
    """An int of another library."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


def test_a_number_may_say_itself_which_int_it_is(any_engine: Engines, tmp_path: Path) -> None:
    # As for `os.pread`; what says something else is refused.
    (tmp_path / "f").write_bytes(b"0123")

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            length, offset = _Number(2), _Number(1)
            assert await io.read_at(file, length, offset) == b"12"  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="_Number"):
                io.read_at(file, _Number("2"), 0)  # type: ignore[arg-type]

    any_engine.run(main)


def test_an_error_says_what_was_called_and_how_much_was_asked_for(
    engines: Engines, tmp_path: Path
) -> None:
    # Also one that no call of the kernel's gave.
    (tmp_path / "f").write_bytes(b"0123")

    async def main(io: IoEngine) -> None:
        async with io.open(tmp_path / "f") as file:
            with pytest.raises(ShortReadError) as short:
                await io.read_into(file, bytearray(9), 0)
            assert (short.value.operation, short.value.requested) == ("read", 9)
            assert (short.value.done, short.value.got) == (4, 4)
        left, right = socket.socketpair()
        with left, right:
            with pytest.raises(IoTimeout) as late:
                await io.recv(right, 7, timeout_s=0.01)
            assert (late.value.operation, late.value.requested) == ("recv", 7)
            left.close()
            with pytest.raises(EndOfStream) as end:
                await io.recv(right, 7)
            assert (end.value.operation, end.value.requested) == ("recv", 7)

    engines.run(main)
