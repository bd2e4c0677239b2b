"""
What a segment should be made of, and the memory it is written from: the device alone, no log.

Large writes are compared by bandwidth, over five files of 64 MiB, and small ones beside a
zero-fill by how long each takes.

    python benches/python/extents.py            nine rounds, about two minutes
    python benches/python/extents.py --quick    three rounds
"""

from __future__ import annotations

import argparse
import functools
import itertools
import mmap
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from measure import percentile, settle

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1 << 20
_HUGE = 2 * _MIB
_SEGMENT = 64 * _MIB
_SEGMENTS = 5
_WRITERS = 4
_SMALL = 4096
_SMALL_WRITES = 400
_DIRECT = os.O_DIRECT | os.O_DSYNC
_CONTROL = "buffered, one at a time, over zeros (the control)"
_ALONE = "a zeroed file, nothing beside it"


class Arm(NamedTuple):
    """Large writes: into what, and from which memory."""

    name: str
    is_direct: bool
    is_zeroed: bool
    is_huge: bool = False
    is_filled_meanwhile: bool = False


ARMS = (
    Arm(_CONTROL, is_direct=False, is_zeroed=True),
    Arm("the same, into unwritten extents", is_direct=False, is_zeroed=False),
    Arm("direct, four in flight, over zeros", is_direct=True, is_zeroed=True),
    Arm("over zeros, from huge pages", is_direct=True, is_zeroed=True, is_huge=True),
    Arm("direct, four in flight, unwritten", is_direct=True, is_zeroed=False),
    Arm("unwritten, from huge pages", is_direct=True, is_zeroed=False, is_huge=True),
    Arm(
        "huge pages, over zeros that are written ahead meanwhile",
        is_direct=True,
        is_zeroed=True,
        is_huge=True,
        is_filled_meanwhile=True,
    ),
)


def _memory(*, is_huge: bool) -> memoryview:
    """Return a mebibyte to write, in one huge page or in 256 small ones."""
    area = mmap.mmap(-1, 2 * _HUGE)
    area.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
    # The second half of four mebibytes holds a whole huge page, or most of one.
    view = memoryview(area)[_HUGE : _HUGE + _MIB]
    view[:] = os.urandom(_MIB)
    return view


def _make(path: Path, *, is_zeroed: bool) -> None:
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.posix_fallocate(fd, 0, _SEGMENT)
    if is_zeroed:
        _fill(path)
    os.fsync(fd)
    os.close(fd)


def _fill(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    zeros = memoryview(mmap.mmap(-1, _MIB))
    for offset in range(0, _SEGMENT, _MIB):
        os.pwrite(fd, zeros, offset)
    os.fdatasync(fd)
    os.close(fd)


def _write_buffered(path: Path, memory: memoryview) -> None:
    fd = os.open(path, os.O_RDWR)
    for offset in range(0, _SEGMENT, _MIB):
        os.pwrite(fd, memory, offset)
        os.fdatasync(fd)
    os.close(fd)


def _write_direct(path: Path, memories: list[memoryview]) -> None:
    fd = os.open(path, os.O_RDWR | _DIRECT)
    # `next` of a range is one step of the interpreter: no two writers get the same.
    offsets = iter(range(0, _SEGMENT, _MIB))

    def write(memory: memoryview) -> None:
        for offset in offsets:
            os.pwrite(fd, memory, offset)

    _together([functools.partial(write, memory) for memory in memories])
    os.close(fd)


def _together(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bandwidth(arm: Arm, directory: Path) -> float:
    """Return the bytes per second of *arm*."""
    paths = [directory / f"{number}" for number in range(_SEGMENTS)]
    memories = [_memory(is_huge=arm.is_huge) for _ in range(_WRITERS)]
    for number, path in enumerate(paths):
        _make(path, is_zeroed=arm.is_zeroed and not (arm.is_filled_meanwhile and number))
    settle()
    began = time.perf_counter()
    for path, following in itertools.zip_longest(paths, paths[1:]):
        if not arm.is_direct:
            _write_buffered(path, memories[0])
            continue
        jobs = [functools.partial(_write_direct, path, memories)]
        if arm.is_filled_meanwhile and following is not None:
            jobs.append(functools.partial(_fill, following))
        _together(jobs)
    elapsed_s = time.perf_counter() - began
    for path in paths:
        path.unlink()
    return _SEGMENTS * _SEGMENT / elapsed_s


def small_writes(directory: Path, pause_s: float | None) -> list[float]:
    """
    Return how long single blocks took, each written and synced.

    Args:
        directory: On the disk to be measured.

        pause_s: Between two mebibytes of a zero-fill beside them; none: no fill.
    """
    path, beside = directory / "log", directory / "next"
    _make(path, is_zeroed=True)
    _make(beside, is_zeroed=False)
    settle()
    is_over = threading.Event()

    def fill() -> None:
        fd = os.open(beside, os.O_RDWR | os.O_DIRECT)
        zeros = memoryview(mmap.mmap(-1, _MIB))
        for offset in itertools.cycle(range(0, _SEGMENT, _MIB)):
            if is_over.wait(pause_s):
                break
            os.pwrite(fd, zeros, offset)
        os.close(fd)

    took: list[float] = []
    with ExitStack() as stack:
        fd = os.open(path, os.O_RDWR | _DIRECT)
        stack.callback(os.close, fd)
        if pause_s is not None:
            thread = threading.Thread(target=fill)
            thread.start()
            stack.callback(thread.join)
        stack.callback(is_over.set)
        block = memoryview(mmap.mmap(-1, _SMALL))
        for number in range(_SMALL_WRITES):
            began = time.perf_counter()
            os.pwrite(fd, block, number * _SMALL)
            took.append(time.perf_counter() - began)
    path.unlink()
    beside.unlink()
    return took


SMALL: tuple[tuple[str, float | None], ...] = (
    (_ALONE, None),
    ("a zero-fill beside it, a mebibyte after the other", 0.0),
    ("the same with 4 ms between two", 0.004),
)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path.cwd(), help="on the disk to measure")
    options = parser.parse_args()
    rounds = 3 if options.quick else 9
    rates: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    waits: dict[str, list[list[float]]] = {name: [] for name, _ in SMALL}
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        for number in range(rounds):
            # In turns, in an order that moves on.
            for step in range(len(ARMS)):
                arm = ARMS[(number + step) % len(ARMS)]
                rates[arm.name].append(bandwidth(arm, Path(name)))
            for label, pause_s in SMALL:
                waits[label].append(small_writes(Path(name), pause_s))
    print("| 1 MiB, written and synced | MiB/s | of the control |\n| --- | ---: | ---: |")
    for label, found in rates.items():
        ratios = [ours / control for ours, control in zip(found, rates[_CONTROL], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {label} | {median(found) / _MIB:,.0f} | {spread} |")
    print("\n| 4 KiB, written and synced | p50 | p99 |\n| --- | ---: | ---: |")
    for label, rows in waits.items():
        p50, p99 = (median(percentile(row, share) for row in rows) * 1e6 for share in (50, 99))
        print(f"| {label} | {p50:,.0f} us | {p99:,.0f} us |")


if __name__ == "__main__":
    main()
