"""
Disks that fill up, turn out thinner than they said, or die, on the real kernel.

One rule for all: what was acknowledged before the fault is there after it, nothing is
acknowledged after a failed commit until the log is reopened, and reopening works once the
cause is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real_kernel import ext4, tmpfs

from millrace import Log, LogSettings
from millrace.errors import Error, LogPoisonedError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Callable

# A busy machine is slow, and a test stopped half way leaves mounts and children behind.
pytestmark = pytest.mark.timeout(300)
SMALL: dict[str, Any] = {
    "segment_bytes": 1 << 20,
    "segment_first_bytes": 256 << 10,
    "group_bytes_max": 256 << 10,
    "record_bytes_max": 128 << 10,
}
WAYS: tuple[dict[str, Any], ...] = (
    {"commit_path": "pwrite"},
    {"commit_path": "auto"},
    {"driver": "loop"},
)
# A filesystem in memory has no direct I/O, without which a loop cannot be the driver.
WAYS_IN_MEMORY = WAYS[:2]


def payload(index: int) -> bytes:
    return index.to_bytes(8, "little") * 256


async def append_until_it_fails(
    log: Log, *, at: int = -1, then: Callable[[], None] = lambda: None
) -> tuple[dict[int, int], Error]:
    """
    Append from many tasks until an append fails; *then* is called before number *at*.

    Returns what was acknowledged and the failure. With *then*, only what was acknowledged
    before it: a sync that races with the end of its filesystem may be told anything.
    """
    acked: dict[int, int] = {}
    certain: dict[int, int] = {}
    failures: list[Error] = []
    following = itertools.count()

    async def work() -> None:
        for index in following:
            if index == at:
                certain.update(acked)
                then()
            try:
                acked[index] = await log.append(payload(index))
            except Error as error:
                failures.append(error)
                return
            if failures:
                return

    async with asyncio.timeout(120):
        await asyncio.gather(*(work() for _ in range(32)))
    return certain if at >= 0 else acked, failures[0]


async def assert_fail_stop(log: Log) -> None:
    """Nothing is acknowledged any more, and the first cause is told."""
    with pytest.raises(LogPoisonedError) as first:
        await log.append(b"after the failure")
    with pytest.raises(LogPoisonedError) as second:
        await log.append_many([b"still"])
    assert str(first.value) == str(second.value)


async def assert_all_there(path: Path, acked: dict[int, int]) -> None:
    """Every acknowledged record is there, byte for byte, and the log goes on."""
    async with Log.open(path, settings=LogSettings(**SMALL)) as log:
        found = {record.lsn: record.data async for record in log.read(1)}
        for index, lsn in acked.items():
            assert found[lsn] == payload(index)
        lsn = await log.append(b"and on it goes")
        assert lsn == len(found) + 1


async def run_full(base: Path, free_space: Callable[[], None], settings: dict[str, Any]) -> None:
    path = base / "log"
    log = await Log.open(path, settings=LogSettings(**SMALL, **settings))
    try:
        acked, failure = await append_until_it_fails(log)
        assert isinstance(failure, NoSpaceError | LogPoisonedError)
        assert acked
        if isinstance(failure, LogPoisonedError):
            await assert_fail_stop(log)
    finally:
        with contextlib.suppress(Error):
            await log.close()
    free_space()
    await assert_all_there(path, acked)


@pytest.mark.parametrize("way", WAYS_IN_MEMORY, ids=str)
def test_full_tmpfs(tmp_path: Path, way: dict[str, Any]) -> None:
    # A filesystem in memory that is full stops the log, loses nothing, and room heals it.
    with tmpfs(tmp_path / "small", "8m") as point:
        ballast = point / "ballast"
        ballast.write_bytes(bytes(4 << 20))
        asyncio.run(run_full(point, ballast.unlink, way))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_full_ext4(tmp_path: Path, way: dict[str, Any]) -> None:
    # The same on ext4, where the journal and delayed allocation have a word, too.
    with ext4(tmp_path, 24) as filesystem:
        ballast = filesystem.point / "ballast"
        ballast.write_bytes(bytes(6 << 20))
        asyncio.run(run_full(filesystem.point, ballast.unlink, way))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_thin_volume(tmp_path: Path, way: dict[str, Any]) -> None:
    # A device that promised more than it has fails at the sync; that poisons, and nothing of
    # what was acknowledged before is lost.
    async def run(path: Path) -> dict[int, int]:
        settings = LogSettings(**SMALL, **way)
        log = await Log.open(path, settings=settings)
        try:
            acked, failure = await append_until_it_fails(log)
            assert isinstance(failure, Error)
            if isinstance(failure, LogPoisonedError):
                await assert_fail_stop(log)
        finally:
            with contextlib.suppress(Error):
                await log.close()
        return acked

    with (
        tmpfs(tmp_path / "pool", "14m") as pool,
        ext4(tmp_path, 64, pool / "image") as filesystem,
    ):
        acked = asyncio.run(run(filesystem.point / "log"))
        filesystem.unmount()
        subprocess.run(["mount", "-o", "remount,size=80m", str(pool)], check=True)
        subprocess.run(["fsck.ext4", "-p", filesystem.device], check=False)
        filesystem.mount()
        asyncio.run(assert_all_there(filesystem.point / "log", acked))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_filesystem_dies(tmp_path: Path, way: dict[str, Any]) -> None:
    # When the filesystem stops answering, every waiter is told, closing does not hang, and
    # after the journal is replayed the acknowledged records are there.
    with ext4(tmp_path, 64) as filesystem:
        path = filesystem.point / "log"

        async def run() -> dict[int, int]:
            settings = LogSettings(**SMALL, **way)
            log = await Log.open(path, settings=settings)
            try:
                acked, failure = await append_until_it_fails(log, at=500, then=filesystem.shut_down)
                assert isinstance(failure, LogPoisonedError)
                await assert_fail_stop(log)
            finally:
                async with asyncio.timeout(10):
                    with contextlib.suppress(Error):
                        await log.close()
            return acked

        acked = asyncio.run(run())
        assert acked
        filesystem.unmount()
        filesystem.mount()
        asyncio.run(assert_all_there(path, acked))


_SIZE_LIMIT = """
import asyncio, resource, sys
sys.path.insert(0, {here!r})
from test_faults import SMALL, append_until_it_fails, assert_fail_stop
from millrace import Log, LogSettings
from millrace.errors import Error

async def main():
    log = await Log.open({path!r}, settings=LogSettings(**SMALL, **{way!r}))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (96 << 10, hard))
    acked, failure = await append_until_it_fails(log, at=10, then=limit)
    try:
        await assert_fail_stop(log)
        await log.close()
    except Error:
        pass
    print(acked)

asyncio.run(main())
"""


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_file_size_limit(tmp_path: Path, way: dict[str, Any]) -> None:
    # RLIMIT_FSIZE gives a short write and then EFBIG; the process lives, the log is poisoned,
    # and what was acknowledged is there when the limit is gone.
    path = tmp_path / "log"
    here = str(Path(__file__).parent)
    script = _SIZE_LIMIT.format(path=str(path), way=way, here=here)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    asyncio.run(assert_all_there(path, eval(done.stdout)))  # our own child's dictionary


@pytest.mark.parametrize("way", WAYS_IN_MEMORY, ids=str)
def test_open_on_a_full_disk(tmp_path: Path, way: dict[str, Any]) -> None:
    # Opening where there is no room says so, leaves nothing that disturbs, and works later.
    with tmpfs(tmp_path / "full", "4m") as point:
        ballast = point / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            file.write(bytes(8 << 20))
        settings = LogSettings(**SMALL, **way)

        async def opened() -> None:
            async with Log.open(point / "log", settings=settings) as log:
                assert await log.append(b"first") == 1

        with pytest.raises((NoSpaceError, OSError)):
            asyncio.run(opened())
        ballast.unlink()
        asyncio.run(opened())


def test_read_only_filesystem(tmp_path: Path) -> None:
    # A log on a filesystem that has turned read-only can be read, and writing says why not.
    with ext4(tmp_path, 32) as filesystem:
        path = filesystem.point / "log"

        async def fill() -> None:
            async with Log.open(path, settings=LogSettings(**SMALL)) as log:
                await log.append_many([b"one", b"two"])

        async def read() -> list[bytes]:
            async with Log.open(path, read_only=True) as log:
                return [record.data async for record in log.read(1)]

        asyncio.run(fill())
        subprocess.run(["mount", "-o", "remount,ro", str(filesystem.point)], check=True)
        assert asyncio.run(read()) == [b"one", b"two"]
        with pytest.raises((Error, OSError)):
            asyncio.run(fill())
        assert os.access(path, os.R_OK)
