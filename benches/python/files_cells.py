"""
The cells of `files.py`: what each contender does in a process of its own.

A block of the files holds its own number, so that every read can be checked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import mmap
import os
import random
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace import EndOfStream, IoEngine, IoSettings, IoTimeout
from millrace.testing import percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Job = dict[str, Any]
Read = Callable[[int], Awaitable[bytes]]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 4096
_NUMBER = struct.Struct("<Q")
_SOCKETS = 64
# Times kept of a single task; more than enough for a median.
_TIMES_MAX = 200_000
# A task that never has to wait yields once in so many awaits.
_FAIR = 128


class Missing(Exception):
    """This contender cannot take part here."""


def fill(path: Path, size: int) -> None:
    """Write a file in which each block holds its number."""
    rest = random.Random(1).randbytes(BLOCK - _NUMBER.size)
    each = (1 << 20) // BLOCK
    with path.open("wb") as file:
        for first in range(0, size // BLOCK, each):
            file.write(b"".join(_NUMBER.pack(first + n) + rest for n in range(each)))
        file.flush()
        os.fsync(file.fileno())


def check(data: bytes, number: int) -> None:
    """Raise unless *data* is the block with this number."""
    if len(data) != BLOCK or _NUMBER.unpack_from(data)[0] != number:
        raise SystemExit(f"block {number} was read wrong: {data[:16]!r}")


def settings(job: Job) -> IoSettings:
    """Return the settings of one of our own contenders."""
    is_loop = job["contender"].endswith("loop driver")
    size = 16_384 if job["workload"] == "expire" else 512
    return IoSettings(size=size, driver="loop" if is_loop else "thread")


@contextlib.asynccontextmanager
async def millrace(job: Job) -> AsyncIterator[Read]:
    """Read through an engine."""
    direct = job["workload"] == "cold"
    async with (
        IoEngine(settings=settings(job)) as io,
        io.open(job["path"], direct=direct) as file,
    ):
        yield lambda number: io.read_at(file, BLOCK, number * BLOCK)


@contextlib.asynccontextmanager
async def caio(job: Job) -> AsyncIterator[Read]:
    """Read through caio on io_uring, without the polling thread that makes it slower here."""
    if importlib.util.find_spec("caio") is None:
        raise Missing("not installed")
    from caio import linux_uring_asyncio

    fd = unaligned(job)
    context = linux_uring_asyncio.AsyncioContext(
        max_requests=512, sqpoll=False, deferred=job["contender"].endswith("deferred")
    )
    async with context:
        yield lambda number: context.read(BLOCK, fd, number * BLOCK)
    os.close(fd)


@contextlib.asynccontextmanager
async def aiofiles(job: Job) -> AsyncIterator[Read]:
    """Seek and read through aiofiles, with a file for each task."""
    if importlib.util.find_spec("aiofiles") is None:
        raise Missing("not installed")
    import aiofiles as library

    fds = [unaligned(job) for _ in range(job["tasks"])]
    files = [await library.open(fd, "rb", buffering=0) for fd in fds]
    free = list(files)

    async def read(number: int) -> bytes:
        file = free.pop()
        await file.seek(number * BLOCK)
        data: bytes = await file.read(BLOCK)
        free.append(file)
        return data

    yield read
    for file in files:
        await file.close()


@contextlib.asynccontextmanager
async def threads(job: Job) -> AsyncIterator[Read]:
    """Call preadv in the default kind of executor."""
    fd = opened(job)
    loop = asyncio.get_running_loop()
    free = [mmap.mmap(-1, BLOCK) for _ in range(job["tasks"])]

    def call(offset: int) -> bytes:
        buffer = free.pop()
        os.preadv(fd, [buffer], offset)
        data = buffer[:]
        free.append(buffer)
        return data

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        yield lambda number: loop.run_in_executor(pool, call, number * BLOCK)
    os.close(fd)


def opened(job: Job) -> int:
    """Open the file as the workload wants it."""
    direct = os.O_DIRECT if job["workload"] == "cold" else 0
    return os.open(job["path"], os.O_RDONLY | direct)


def unaligned(job: Job) -> int:
    """
    Open the file for a library whose memory is not aligned, which O_DIRECT asks for.

    Its cold reads go through the page cache, which is emptied of the file before, and told not to
    read ahead.
    """
    fd = os.open(job["path"], os.O_RDONLY)
    if job["workload"] == "cold":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


CONTENDERS = {
    "millrace": millrace,
    "millrace, loop driver": millrace,
    "caio": caio,
    "caio, deferred": caio,
    "aiofiles": aiofiles,
    "threads": threads,
}


async def read_many(job: Job) -> dict[str, Any]:
    """Read random blocks from all tasks for the time given."""
    blocks = job["bytes"] // BLOCK
    if job["workload"] == "cached":
        await asyncio.to_thread(Path(job["path"]).read_bytes)
    async with CONTENDERS[job["contender"]](job) as read:
        try:
            check(bytes(await read(1)), 1)
        except (OSError, SystemError) as refused:
            raise Missing(f"its reads are refused: {refused}") from None
        if job["tasks"] == 1:
            return await lone(read, blocks, job["seconds"])
        return await together(read, blocks, job)


async def together(read: Read, blocks: int, job: Job) -> dict[str, Any]:
    """Count the reads of many tasks."""
    done = 0
    end = time.perf_counter() + job["seconds"]

    async def task(seed: int) -> None:
        nonlocal done
        pick = random.Random(seed).randrange
        while time.perf_counter() < end:
            number = pick(blocks)
            check(await read(number), number)
            done += 1

    began, spent = time.perf_counter(), cpu_s()
    await asyncio.gather(*(task(seed) for seed in range(job["tasks"])))
    elapsed, spent = time.perf_counter() - began, cpu_s() - spent
    return {"per_s": done / elapsed, "cpu_s": spent / done}


async def lone(read: Read, blocks: int, seconds: float) -> dict[str, Any]:
    """Time each read of a single task, and count how often it was suspended."""
    loop = asyncio.get_running_loop()
    pick = random.Random(1).randrange
    turns = 0

    def turn() -> None:
        nonlocal turns, handle
        turns += 1
        handle = loop.call_soon(turn)

    times: list[float] = []
    numbers = [pick(blocks) for _ in range(4096)]
    spent = cpu_s()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(times) < _TIMES_MAX:
        for number in numbers:
            began = time.perf_counter()
            data = await read(number)
            times.append(time.perf_counter() - began)
            check(data, number)
    spent = cpu_s() - spent
    handle = loop.call_soon(turn)
    await asyncio.sleep(0)
    before = turns
    for number in numbers:
        await read(number)
    suspended = max(0, turns - before - len(numbers) // _FAIR - 1)
    handle.cancel()
    return {
        "per_s": len(times) / sum(times),
        "cpu_s": spent / len(times),
        "p50_s": percentile(times, 50),
        "p99_s": percentile(times, 99),
        "each_s": sum(times) / len(times),
        "suspended": suspended,
    }


def plain(job: Job) -> dict[str, Any]:
    """`os.pread` in a plain loop, with no event loop at all."""
    if job["tasks"] > 1:
        raise Missing("a plain loop has no tasks")
    blocks = job["bytes"] // BLOCK
    Path(job["path"]).read_bytes()
    fd = opened(job)
    pick = random.Random(1).randrange
    numbers = [pick(blocks) for _ in range(4096)]
    times: list[float] = []
    spent = cpu_s()
    end = time.perf_counter() + job["seconds"]
    while time.perf_counter() < end and len(times) < _TIMES_MAX:
        for number in numbers:
            began = time.perf_counter()
            data = os.pread(fd, BLOCK, number * BLOCK)
            times.append(time.perf_counter() - began)
            check(data, number)
    spent = cpu_s() - spent
    os.close(fd)
    return {
        "per_s": len(times) / sum(times),
        "cpu_s": spent / len(times),
        "p50_s": percentile(times, 50),
        "p99_s": percentile(times, 99),
        "each_s": sum(times) / len(times),
    }


def fio(job: Job) -> dict[str, Any]:
    """Fio with io_uring: what the disk gives to one thread that does nothing else."""
    program = shutil.which("fio")
    if program is None:
        raise Missing("not installed (Debian: apt install fio)")
    argv = [
        program,
        "--name=cold",
        f"--filename={job['path']}",
        "--ioengine=io_uring",
        "--rw=randread",
        "--bs=4k",
        "--direct=1",
        f"--iodepth={job['tasks']}",
        f"--size={job['bytes']}",
        f"--runtime={job['seconds']}",
        "--time_based",
        "--randrepeat=0",
        "--allow_file_create=0",
        "--output-format=json",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(done.stderr.strip().splitlines()[-1] if done.stderr else "refused")
    answer = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    reads = answer["read"]
    busy = (answer["usr_cpu"] + answer["sys_cpu"]) / 100 * answer["job_runtime"] / 1000
    return {"per_s": reads["iops"], "cpu_s": busy / reads["total_ios"]}


async def expire(job: Job) -> dict[str, Any]:
    """Ten thousand receives on few sockets, none of which will ever be fed."""
    pairs = [socket.socketpair() for _ in range(_SOCKETS)]
    pick = random.Random(1).uniform
    late: list[float] = []
    async with IoEngine(settings=settings(job)) as io:

        async def one(number: int, timeout_s: float) -> None:
            due = time.perf_counter() + timeout_s
            try:
                await io.recv(pairs[number % _SOCKETS][0], 1, timeout_s=timeout_s)
            except IoTimeout:
                late.append(time.perf_counter() - due)

        # Far enough ahead for all of them to wait before the first one expires.
        tasks = [
            asyncio.ensure_future(one(n, 1.0 + pick(0, job["seconds"])))
            for n in range(job["tasks"])
        ]
        spent = cpu_s()
        await asyncio.gather(*tasks)
        spent = cpu_s() - spent
        if io.statistics().timed_out != job["tasks"] or len(late) != job["tasks"]:
            raise SystemExit("not all receives timed out")
    for left, right in pairs:
        left.close()
        right.close()
    return {
        "early": sum(one < 0 for one in late),
        "late_p50_s": percentile(late, 50),
        "late_p99_s": percentile(late, 99),
        "late_max_s": max(late),
        "cpu_s": spent / len(late),
    }


def late(job: Job) -> dict[str, Any]:
    """The same receives asked of the engine alone, by `benches/rust/src/bin/expire.rs`."""
    program = ROOT / "target" / "release" / "expire"
    if not program.exists():
        raise Missing("not built (make bench-files builds it)")
    driver = "loop" if job["contender"].endswith("loop driver") else "thread"
    done = subprocess.run([program, driver], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def idle(job: Job) -> dict[str, Any]:
    """Look at an engine that has worked and has nothing to do now."""
    with socket.socketpair()[0] as one:
        async with IoEngine(settings=settings(job)) as io:
            await io.stat("/")
            with contextlib.suppress(EndOfStream, IoTimeout):
                await io.recv(one, 1, timeout_s=0.01)
            # What watches for slow operations looks once more.
            await asyncio.sleep(1.5)
            before, spent = switches(), cpu_s()
            await asyncio.sleep(job["seconds"])
            spent, woken = cpu_s() - spent, switches() - before
    # One of them is the end of our own sleep.
    return {
        "cpu_share": spent / job["seconds"],
        "wakes_per_s": max(0, woken - 1) / job["seconds"],
    }


def switches() -> int:
    """How often threads of this process went to sleep so far."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        found = re.search(r"\nvoluntary\D+(\d+)", (task / "status").read_text(encoding="ascii"))
        total += int(found[1]) if found else 0
    return total


def cpu_s() -> float:
    """Processor time of this process, in the kernel too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_cell(job: Job) -> dict[str, Any]:
    """Run one cell in this process."""
    try:
        if job["contender"] == "fio":
            return fio(job)
        if job["contender"] == "os.pread":
            return plain(job)
        if job["workload"] == "late":
            return late(job)
        main = {"cold": read_many, "cached": read_many, "expire": expire, "idle": idle}
        return asyncio.run(main[job["workload"]](job))
    except Missing as missing:
        return {"missing": str(missing)}
    except ImportError as missing:
        print(missing, file=sys.stderr)
        return {"missing": f"cannot be imported: {missing}"}
