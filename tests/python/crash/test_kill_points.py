"""
Exact kill points: the child dies at its n-th call of one kind, for each kind and n.

A storm hits the long moments; this hits the short ones, between a rename and the directory's
sync, between the cut of the old tail and the first append. `strace` sends SIGKILL on entering
the call, before the kernel has done it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from storm_records import OPENED, Book
from test_storm import CHILD, SMALL, read_back

from millrace.testing import Victim, read_acks

if TYPE_CHECKING:
    from pathlib import Path

#: Calls that change something on the disk, and the doors of the ring.
CALLS = (
    "mkdir",
    "fallocate",
    "pwrite64",
    "fdatasync",
    "fsync",
    "renameat",
    "ftruncate",
    "unlinkat",
    "io_uring_setup",
    "io_uring_register",
    "io_uring_enter",
)
_POINTS_MAX = 40
_PATIENCE_S = 100


def live_and_die(path: Path, book: Book, driver: str, call: str, when: int) -> tuple[int, bool]:
    """Run a child that dies at its *when*-th *call*; returns its status, and if it had opened."""
    settings = {**SMALL, "driver": driver}
    job = {"path": str(path), "settings": settings, "life": when, "tasks": 8, "calls_max": 120}
    argv = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    argv += ["-e", f"inject={call}:signal=SIGKILL:when={when}"]
    parts: list[bytes] = []
    victim = Victim([*argv, sys.executable, str(CHILD), json.dumps(job)], on_entries=parts.append)
    status = victim.wait(_PATIENCE_S)
    acks = list(read_acks(b"".join(parts)))
    book.promise(acks)
    return status, any(ack.number == OPENED for ack in acks)


def run_points(
    base: Path, driver: str, calls: tuple[str, ...], points_max: int, seconds: float
) -> Counter[str]:
    """
    Kill at every point of every kind, look after each, and count.

    The clock stops it only behind the first two points of each kind.
    """
    if shutil.which("strace") is None:
        pytest.skip("needs strace to stop a process at an exact call")
    tally: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for call in calls:
        path, book = base / call, Book()
        for when in range(1, points_max + 1):
            if when > 2 and time.monotonic() > end:
                tally["kinds cut by the clock"] += 1
                break
            where = f"{call} number {when}"
            status, was_opened = live_and_die(path, book, driver, call, when)
            assert status in (0, -signal.SIGKILL), f"{where}: the child ended with {status}"
            start = book.resume_point(50)
            book.check(iter(asyncio.run(read_back(path, start))), start=start)
            tally["clean runs" if status == 0 else "kills"] += 1
            tally["kills while opening"] += not was_opened
            if status == 0:
                break
        book.check(iter(asyncio.run(read_back(path, 1))))
        tally["promises"] += len(book.promised)
        print(f"kill points: {driver}, {call} up to number {when}", flush=True)
    return tally


@pytest.mark.timeout(300)
def test_the_first_points_of_each_call(tmp_path: Path, each_driver: str) -> None:
    # Killed at the first calls of each kind, a log opens again and keeps its promises.
    tally = run_points(tmp_path, each_driver, CALLS, 2, 0)
    print(f"kill points: {each_driver}, {dict(tally)}")
    assert tally["kills"] >= 5
    assert tally["kills while opening"] >= 1


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_every_point_of_each_call(tmp_path: Path, each_driver: str) -> None:
    # The same for the n-th call, n = 1, 2, ..., until a run is over before it comes.
    given = float(os.environ.get("MILLRACE_TORTURE_SECONDS") or 600)
    tally = run_points(tmp_path, each_driver, CALLS, _POINTS_MAX, given / 24)
    print(f"kill points: {each_driver}, {dict(tally)}")
    assert tally["kills"] > len(CALLS)
