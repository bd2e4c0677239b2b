"""
One cell of the comparison, in a process of its own.

Run as `python cell.py JOB` with a JSON object; prints one JSON object. Every workload reads
back what it wrote and compares count and content, outside the time that is measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender, Missing
from measure import Meter, peak_bytes, settle
from millrace.testing import percentile
from readers import READERS

_HEAD = struct.Struct("<Q")
_BATCH_RECORDS = 1000
_BATCH_RECORD_BYTES = 1024
_BATCHES_DISTINCT = 8
_TRUNCATE_EVERY = 16
_WARM_BYTES = 320 << 20
_RAW_BYTES = 4096
_MIB = 1 << 20

Job = dict[str, Any]


class Wrong(Exception):
    """What was read back is not what was acknowledged."""


def payload_body(size: int) -> bytes:
    """Return bytes that do not compress, the same in every run."""
    return random.Random(size).randbytes(size - _HEAD.size)


async def append(job: Job, contender: Contender, directory: Path) -> dict[str, Any]:
    """Durable appends of small records, awaited one by one by many tasks."""
    tasks, seconds = job["tasks"], job["seconds"]
    body, pack, clock = payload_body(job["size"]), _HEAD.pack, time.perf_counter_ns
    await contender.open(directory, int(500_000 * (seconds + 1) * (job["size"] + 8)))
    meter = Meter()
    acked: list[int] = []
    following = iter(range(1 << 62))

    async def work(deadline: int, latencies: Any, done: list[int]) -> None:
        put = contender.append
        for index in following:
            began = clock()
            await put(pack(index) + body)
            ended = clock()
            latencies.append(ended - began)
            done.append(index)
            if ended > deadline:
                return

    async def all_tasks(limit_s: float, latencies: Any, done: list[int]) -> None:
        deadline = clock() + int(limit_s * 1e9)
        await asyncio.gather(*(work(deadline, latencies, done) for _ in range(tasks)))

    warm: list[int] = []
    await all_tasks(min(0.3, seconds / 3), [], warm)
    gc.collect()
    gc.freeze()
    async with meter:
        await all_tasks(seconds, meter.latencies_ns, acked)
    result = meter.result(len(acked), len(acked) * job["size"])
    result["facts"] = contender.facts()
    if contender.is_durable:
        await _verify_appends(contender, body, {*warm, *acked})
    await contender.close()
    return result


async def _verify_appends(contender: Contender, body: bytes, acked: set[int]) -> None:
    count = 0
    async for portion in contender.scan():
        for value in portion:
            (index,) = _HEAD.unpack_from(value)
            if bytes(value[_HEAD.size :]) != body:
                raise Wrong(f"record {index} reads back changed")
            acked.discard(index)
            count += 1
    if acked:
        raise Wrong(f"{len(acked)} acknowledged records are missing of {count}")


def _batches() -> list[list[bytes]]:
    body = payload_body(_BATCH_RECORD_BYTES)
    return [
        [_HEAD.pack(number * _BATCH_RECORDS + i) + body for i in range(_BATCH_RECORDS)]
        for number in range(_BATCHES_DISTINCT)
    ]


async def bulk(job: Job, contender: Contender, directory: Path) -> dict[str, Any]:
    """Batches of a thousand records of 1 KiB, durable as wholes."""
    batches = _batches()
    batch_bytes = _BATCH_RECORDS * _BATCH_RECORD_BYTES
    count = max(1, job["bytes"] // batch_bytes)
    await contender.open(directory, job["bytes"])
    meter = Meter()
    written: Counter[int] = Counter()
    following = iter(range(count))

    async def work() -> None:
        for number in following:
            began = time.perf_counter_ns()
            await contender.append_many(batches[number % _BATCHES_DISTINCT])
            meter.latencies_ns.append(time.perf_counter_ns() - began)
            written[number % _BATCHES_DISTINCT] += 1

    gc.collect()
    gc.freeze()
    async with meter:
        await asyncio.gather(*(work() for _ in range(job["tasks"])))
    result = meter.result(count * _BATCH_RECORDS, count * batch_bytes)
    result["facts"] = contender.facts()
    found: Counter[int] = Counter()
    async for portion in contender.scan():
        for value in portion:
            (index,) = _HEAD.unpack_from(value)
            if bytes(value) != batches[index // _BATCH_RECORDS][index % _BATCH_RECORDS]:
                raise Wrong(f"record {index} reads back changed")
            found[index] += 1
    expected = {
        number * _BATCH_RECORDS + i: times
        for number, times in written.items()
        for i in range(_BATCH_RECORDS)
    }
    if found != expected:
        raise Wrong("the records read back are not the records appended")
    await contender.close()
    return result


async def recycled(job: Job, contender: Contender, directory: Path) -> dict[str, Any]:
    """The same while a consumer truncates behind: files are written again, not made anew."""
    batches = _batches()
    batch_bytes = _BATCH_RECORDS * _BATCH_RECORD_BYTES
    await contender.open(directory, job["bytes"])
    meter = Meter()
    lsns: dict[int, int] = {}

    async def write(count: int, latencies: Any) -> None:
        following = iter(range(count))

        async def work() -> None:
            for number in following:
                began = time.perf_counter_ns()
                last = await contender.append_many(batches[number % _BATCHES_DISTINCT])
                latencies.append(time.perf_counter_ns() - began)
                lsns[last] = number % _BATCHES_DISTINCT
                if number % _TRUNCATE_EVERY == 0:
                    await contender.truncate_before(last)

        await asyncio.gather(*(work() for _ in range(job["tasks"])))

    # Until the first files have come back: their number is the same from then on.
    await write(max(1, _WARM_BYTES // batch_bytes), [])
    gc.collect()
    gc.freeze()
    count = max(1, job["bytes"] // batch_bytes)
    async with meter:
        await write(count, meter.latencies_ns)
    result = meter.result(count * _BATCH_RECORDS, count * batch_bytes)
    result["facts"] = contender.facts()
    expected = [
        (last - _BATCH_RECORDS + 1 + i, batches[number][i])
        for last, number in sorted(lsns.items())
        for i in range(_BATCH_RECORDS)
    ]
    left = [(lsn, bytes(value)) async for lsn, value in contender.left()]
    if not left or left != expected[-len(left) :]:
        raise Wrong("the records read back are not the last ones appended")
    await contender.close()
    return result


async def fill(job: Job, contender: Contender, directory: Path) -> dict[str, Any]:
    """Write the store that the scans read; not a measurement."""
    body, count = payload_body(job["size"]), job["records"]
    await contender.open(directory, count * (job["size"] + 8))
    for first in range(0, count, 1000):
        last = min(count, first + 1000)
        await contender.append_many([_HEAD.pack(index) + body for index in range(first, last)])
    await contender.close()
    return {"records": count}


async def scan(job: Job, directory: Path) -> dict[str, Any]:
    """Read a million records, warm, timed from the first; opening is reported apart."""
    _warm(directory)
    body, total = payload_body(job["size"]), job["records"]
    reader = READERS[job["contender"]]()
    began = time.perf_counter()
    await reader.open(directory)
    open_s = time.perf_counter() - began
    gc.collect()
    gc.freeze()
    async with Meter() as meter:
        seen = await reader.read()
    if (seen.records, seen.bytes) != (total, total * job["size"]):
        raise Wrong(f"read {seen.records} records of {total}")
    elapsed_s = seen.ended_at - seen.first_at
    result = meter.result(seen.records, seen.bytes) | {
        "open_s": open_s,
        "elapsed_s": elapsed_s,
        "records_per_s": (seen.records - 1) / elapsed_s,
        "bytes_per_s": seen.bytes / elapsed_s,
    }
    expected = 0
    async for portion in reader.portions():
        for value in portion:
            if bytes(value) != _HEAD.pack(expected) + body:
                raise Wrong(f"record {expected} reads back changed")
            expected += 1
    await reader.close()
    return result


def _warm(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(_MIB):
                    pass


async def idle(job: Job, contender: Contender, directory: Path) -> dict[str, Any]:
    """Do nothing for a while with the store open, and count processor time and wake-ups."""
    await contender.open(directory, 0)
    if contender.is_durable:
        await contender.append(b"one record, so that there is something to be idle about")
    # Longer than the pause after which an idle log marks its end.
    await asyncio.sleep(0.5)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(job["seconds"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    await contender.close()
    return {
        "elapsed_s": job["seconds"],
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "voluntary_switches": after.ru_nvcsw - before.ru_nvcsw,
        "peak_bytes": peak_bytes(),
    }


def raw(job: Job, directory: Path) -> dict[str, Any]:
    """`pwrite` and `fdatasync` of 4096 bytes over a file of zeros: what one commit costs."""
    return _raw_writes(directory, _RAW_BYTES, 16 * _MIB, seconds=job["seconds"])


def sequential(job: Job, directory: Path) -> dict[str, Any]:
    """Write and sync 1 MiB at a time over a file of zeros: what the device can take in."""
    return _raw_writes(directory, _MIB, job["bytes"], count=max(1, job["bytes"] // _MIB))


def unwritten(job: Job, directory: Path) -> dict[str, Any]:
    """The same over allocated extents that were never written."""
    count = max(1, job["bytes"] // _MIB)
    return _raw_writes(directory, _MIB, job["bytes"], count=count, is_zeroed=False)


def _raw_writes(
    directory: Path,
    size: int,
    file_bytes: int,
    *,
    count: int = 1 << 62,
    seconds: float = 1e9,
    is_zeroed: bool = True,
) -> dict[str, Any]:
    fd = os.open(directory / "raw", os.O_CREAT | os.O_RDWR, 0o600)
    os.posix_fallocate(fd, 0, file_bytes)
    if is_zeroed:
        for offset in range(0, file_bytes, _MIB):
            os.pwrite(fd, bytes(_MIB), offset)
    os.fsync(fd)
    settle()
    block = random.Random(1).randbytes(size)
    times: list[float] = []
    usage = resource.getrusage(resource.RUSAGE_SELF)
    began = now = time.perf_counter()
    while len(times) < count and now - began < seconds:
        os.pwrite(fd, block, len(times) * size % file_bytes)
        os.fdatasync(fd)
        ended = time.perf_counter()
        times.append(ended - now)
        now = ended
    after = resource.getrusage(resource.RUSAGE_SELF)
    os.close(fd)
    elapsed_s = now - began
    return {
        "records": len(times),
        "bytes": len(times) * size,
        "elapsed_s": elapsed_s,
        "records_per_s": len(times) / elapsed_s,
        "bytes_per_s": len(times) * size / elapsed_s,
        "p50_s": percentile(times, 50),
        "p99_s": percentile(times, 99),
        "cpu_s": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "peak_bytes": peak_bytes(),
    }


ASYNC_WORKLOADS = {"append": append, "bulk": bulk, "recycled": recycled, "fill": fill, "idle": idle}
RAW_WORKLOADS = {"raw": raw, "sequential": sequential, "unwritten": unwritten}


def main() -> None:
    """Run the cell named on the command line."""
    job: Job = json.loads(sys.argv[1])
    directory = Path(job["directory"])
    try:
        if job["workload"] in RAW_WORKLOADS:
            result = RAW_WORKLOADS[job["workload"]](job, directory)
        elif job["workload"] == "scan":
            result = asyncio.run(scan(job, directory))
        else:
            contender = CONTENDERS[job["contender"]]()
            if job.get("settle", True):
                settle()
            result = asyncio.run(ASYNC_WORKLOADS[job["workload"]](job, contender, directory))
    except Missing as error:
        result = {"missing": str(error)}
    except Wrong as error:
        result = {"wrong": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
