"""
The cells of `files.py` about names: what an open, a stat and a close cost each contender.

The names are known to the kernel: what a disk would have to be asked for is measured by the disk.
Every file is as long as its number, so that every answer can be checked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from files_cells import Job, Missing, cpu_s
from millrace import IoEngine, IoSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Takes a path, gives the length of what is there.
Ask = Callable[[str], Awaitable[int]]

FILES = 256
#: How often the clock is looked at.
_EACH = 32


def fill_names(directory: Path) -> None:
    """Make the files."""
    directory.mkdir()
    for number in range(FILES):
        (directory / str(number)).write_bytes(b"x" * number)


@contextlib.asynccontextmanager
async def millrace(job: Job) -> AsyncIterator[Ask]:
    """Ask an engine."""
    who = job["contender"]
    settings = IoSettings(
        size=512,
        driver="loop" if who.endswith("loop driver") else "thread",
        backend="threads" if who.endswith("threads") else "auto",
    )
    async with IoEngine(settings=settings) as io:

        async def stat(path: str) -> int:
            return (await io.stat(path)).length_bytes

        async def opened(path: str) -> int:
            file = await io.open(path)
            status = await io.stat(file)
            await file.close()
            return status.length_bytes

        yield stat if job["workload"] == "stat" else opened


@contextlib.asynccontextmanager
async def aiofiles(job: Job) -> AsyncIterator[Ask]:
    """Ask through aiofiles."""
    if importlib.util.find_spec("aiofiles") is None:
        raise Missing("not installed")
    import aiofiles as library
    from aiofiles import os as names

    async def stat(path: str) -> int:
        return (await names.stat(path)).st_size

    async def opened(path: str) -> int:
        file = await library.open(path, "rb", buffering=0)
        status = await names.stat(file.fileno())
        await file.close()
        return status.st_size

    yield stat if job["workload"] == "stat" else opened


@contextlib.asynccontextmanager
async def threads(job: Job) -> AsyncIterator[Ask]:
    """Hop to a thread of the default kind of executor for each call."""
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:

        async def stat(path: str) -> int:
            return (await loop.run_in_executor(pool, os.stat, path)).st_size

        async def opened(path: str) -> int:
            fd = await loop.run_in_executor(pool, os.open, path, os.O_RDONLY)
            status = await loop.run_in_executor(pool, os.fstat, fd)
            await loop.run_in_executor(pool, os.close, fd)
            return status.st_size

        yield stat if job["workload"] == "stat" else opened


CONTENDERS = {
    "millrace": millrace,
    "millrace, loop driver": millrace,
    "millrace on threads": millrace,
    "aiofiles": aiofiles,
    "threads": threads,
}


def paths_of(job: Job) -> list[str]:
    """Return the paths, and make the kernel know the names."""
    paths = [Path(job["path"], str(number)) for number in range(FILES)]
    for path in paths:
        path.stat()
    return [str(path) for path in paths]


async def ask_many(job: Job) -> dict[str, Any]:
    """Ask from all tasks for the time given."""
    paths = paths_of(job)
    async with CONTENDERS[job["contender"]](job) as ask:
        done = 0
        end = time.perf_counter() + job["seconds"]

        async def task(first: int) -> None:
            nonlocal done
            number = first % FILES
            while time.perf_counter() < end:
                for _ in range(_EACH):
                    if await ask(paths[number]) != number:
                        raise SystemExit(f"the length of {number} was told wrong")
                    number = (number + 1) % FILES
                    done += 1

        began, spent = time.perf_counter(), cpu_s()
        await asyncio.gather(*(task(seed * 7) for seed in range(job["tasks"])))
        elapsed, spent = time.perf_counter() - began, cpu_s() - spent
    return {"per_s": done / elapsed, "cpu_s": spent / done, "each_s": elapsed / done}


def ask_plainly(job: Job) -> dict[str, Any]:
    """Call `os` in a plain loop, with no event loop at all."""
    if job["tasks"] > 1:
        raise Missing("a plain loop has no tasks")
    paths = paths_of(job)

    def opened(path: str) -> int:
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        os.close(fd)
        return size

    def stat(path: str) -> int:
        return os.stat(path).st_size  # noqa: PTH116 - what it is measured against

    ask = stat if job["workload"] == "stat" else opened
    done = 0
    began, spent = time.perf_counter(), cpu_s()
    end = began + job["seconds"]
    while time.perf_counter() < end:
        for number, path in enumerate(paths):
            if ask(path) != number:
                raise SystemExit(f"the length of {number} was told wrong")
            done += 1
    elapsed, spent = time.perf_counter() - began, cpu_s() - spent
    return {"per_s": done / elapsed, "cpu_s": spent / done, "each_s": elapsed / done}


def run_names(job: Job) -> dict[str, Any]:
    """Run one cell."""
    try:
        if job["contender"] == "os":
            return ask_plainly(job)
        return asyncio.run(ask_many(job))
    except Missing as why:
        return {"missing": str(why)}
