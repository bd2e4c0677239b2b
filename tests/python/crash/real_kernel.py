"""
Filesystems that are small, thin, slow or suddenly dead, on the real kernel.

Each needs root, a loop device or a mount. Where that is missing the test is skipped with a
reason that names what was missing, so that a run says what it did not show.
"""

from __future__ import annotations

import fcntl
import gc
import os
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# _IOR('X', 125, u32): tell ext4 to stop, as if the power had failed; 2 leaves its log unflushed.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)
_BLKIO = Path("/sys/fs/cgroup/blkio")


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not possible here: {argv[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a filesystem")


def unmount(point: Path) -> None:
    """Unmount, with patience for a device that is still draining."""
    # A failure keeps its frames, and a frame may keep a handle on the filesystem.
    gc.collect()
    done = None
    for _ in range(100):
        done = subprocess.run(["umount", str(point)], capture_output=True, text=True, check=False)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        time.sleep(0.05)
    raise AssertionError(f"could not unmount {point}: {done and done.stderr}")


@contextmanager
def tmpfs(point: Path, size: str) -> Iterator[Path]:
    """Mount a small tmpfs."""
    _need_root()
    point.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point))
    try:
        yield point
    finally:
        unmount(point)


class LoopFilesystem:
    """
    An ext4 filesystem on a loop device.

    Args:
        image: File behind the device; made here.

        point: Where it is mounted.

        size_mib: Its size; the file is sparse.
    """

    def __init__(self, image: Path, point: Path, size_mib: int) -> None:
        self.point = point
        self._image = image
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        _run("mkfs.ext4", "-q", "-F", str(image))
        point.mkdir()
        # Direct, so that what the loop device has is what its file has.
        argv = ("losetup", "--find", "--show", "--direct-io=on", str(image))
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        self.device = done.stdout.strip() or _run("losetup", "--find", "--show", str(image))

    def mount(self) -> None:
        """Mount it; a journal left behind is replayed."""
        _run("mount", self.device, str(self.point))

    def unmount(self) -> None:
        """Unmount it."""
        unmount(self.point)

    def shut_down(self) -> None:
        """Fail everything from now on, as if the power had gone."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        except OSError as error:
            pytest.skip(f"this filesystem cannot be shut down: {error}")
        finally:
            os.close(fd)

    def detach(self) -> None:
        """Give the loop device back."""
        subprocess.run(["losetup", "--detach", self.device], check=False)


@contextmanager
def ext4(base: Path, size_mib: int, image: Path | None = None) -> Iterator[LoopFilesystem]:
    """Make and mount an ext4 on a loop device."""
    _need_root()
    filesystem = LoopFilesystem(image or base / "image", base / "mounted", size_mib)
    try:
        filesystem.mount()
        try:
            yield filesystem
        finally:
            filesystem.unmount()
    finally:
        filesystem.detach()


@contextmanager
def throttled(device: str, bytes_per_s: int) -> Iterator[Path]:
    """Make a control group whose writes to *device* are slow; yields its list of tasks."""
    _need_root()
    group = _BLKIO / f"millrace-{os.getpid()}"
    number = Path(device).stat().st_rdev
    limit = f"{os.major(number)}:{os.minor(number)} {bytes_per_s}"
    try:
        group.mkdir()
        (group / "blkio.throttle.write_bps_device").write_text(limit, encoding="ascii")
    except OSError as error:
        pytest.skip(f"no throttle for block devices (cgroup v1 blkio): {error}")
    try:
        yield group / "tasks"
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)
