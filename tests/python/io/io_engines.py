"""Engines on every backend and driver, and ways to hold an operation at a stage."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from denied import DENIED

from millrace import IoEngine, IoSettings

# Python names it from 3.13 on.
_F_SETSIG = 10

Main = Callable[[IoEngine], Coroutine[Any, Any, Any]]

_ALL = {
    "uring": IoSettings(backend="uring"),
    "uring-plain": IoSettings(backend="uring-plain"),
    "threads": IoSettings(backend="threads"),
    "uring-loop": IoSettings(backend="uring-plain", driver="loop"),
    "threads-loop": IoSettings(backend="threads", driver="loop"),
}
_DENIED = {"auto": IoSettings(), "auto-loop": IoSettings(driver="loop")}
WAYS = _DENIED if DENIED in os.environ else _ALL


class Engines:
    """Makes engines of one kind, and runs a coroutine with one."""

    def __init__(self, settings: IoSettings) -> None:
        self.settings = settings

    def make(self, **changes: Any) -> IoEngine:
        """Return an engine of this kind with some settings changed."""
        return IoEngine(settings=replace(self.settings, **changes))

    def run(self, main: Main, **changes: Any) -> Any:
        """Run *main* with an engine that is closed behind it, on a loop of its own."""

        async def around() -> Any:
            async with self.make(**changes) as io:
                return await main(io)

        return asyncio.run(around())


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* holds; the test's own timeout is the bound."""
    while not condition():
        await asyncio.sleep(0)


@asynccontextmanager
async def full(io: IoEngine) -> AsyncIterator[socket.socket]:
    """Fill an engine of size 1 with a receive; what is asked for then waits for admission."""
    with pair() as (left, right):
        holder = asyncio.ensure_future(io.recv(right, 1))
        await until(lambda: io.statistics().in_flight == 1)
        try:
            yield left
        finally:
            left.sendall(b"x")
            await holder


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold up whoever opens the file at *path*: its opening waits for a lease to be given back."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        # The signal that asks for the lease is one that nobody minds.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(fd)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def is_open(path: Path) -> bool:
    """Whether this process has a descriptor of the file at *path*."""
    known = path.stat()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.path.samestat(entry.stat(), known):
                return True
    return False
