"""
Facts about this machine and the place a store would lie, read from the kernel's own files.

Nothing here measures; everything can be missing, and then says so.
"""

from __future__ import annotations

import mmap
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

# Written through memory or a network, or by a program: a sync there means something else.
VOLATILE = {"tmpfs", "ramfs"}
REMOTE = {"nfs", "nfs4", "9p", "cifs", "smb3", "ceph", "glusterfs", "afs"}
LAYERED = {"overlay", "aufs", "ecryptfs"}
DIRECT_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Mount:
    """The mount a path lies on."""

    point: str
    filesystem: str
    device: str
    options: str


def mount_of(path: Path) -> Mount | None:
    """Return the mount *path* lies on, or None where /proc cannot tell."""
    try:
        device = path.stat().st_dev
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    resolved = str(path.resolve())
    best: Mount | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        point = fields[4].replace("\\040", " ")
        inside = point in {"/", resolved} or resolved.startswith(point + "/")
        # btrfs gives each subvolume its own device number, so the longest prefix decides and
        # the device number only breaks a tie.
        if inside and (
            best is None or (len(point), fields[2] == wanted) >= (len(best.point), True)
        ):
            best = Mount(point, tail[0], tail[1], fields[5])
    return best


def kernel_release() -> str:
    """Return the running kernel's release."""
    return os.uname().release


def io_uring_switch() -> str:
    """Say what /proc/sys/kernel/io_uring_disabled allows."""
    try:
        value = Path("/proc/sys/kernel/io_uring_disabled").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown: this kernel has no switch for it"
    meanings = {"0": "allowed", "1": "allowed for privileged processes", "2": "switched off"}
    return meanings.get(value, value)


def direct_io(directory: Path) -> str:
    """Try one aligned O_DIRECT write in *directory*; returns what happened, in a few words."""
    path = directory / "direct-probe"
    block = mmap.mmap(-1, DIRECT_BLOCK_BYTES)
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_DIRECT", 0)
        fd = os.open(path, flags, 0o600)
        try:
            os.pwrite(fd, block, 0)
        finally:
            os.close(fd)
    except OSError as error:
        return f"refused: {error.strerror}"
    finally:
        block.close()
        path.unlink(missing_ok=True)
    return "accepted"


def limit_text(kind: int) -> str:
    """Return a soft resource limit in words."""
    soft, _ = resource.getrlimit(kind)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the name is not told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "cpu model"}:
            return value.strip()
    return platform.machine()


def memory_bytes() -> int:
    """Return how much memory the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def facts(directory: Path) -> dict[str, object]:
    """Return what a report of measurements must say about where they were taken."""
    mount = mount_of(directory)
    return {
        "kernel": kernel_release(),
        "processor": cpu_model(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "filesystem": mount.filesystem if mount else "unknown",
        "device": mount.device if mount else "unknown",
        "python": sys.version.split()[0],
        "io_uring": io_uring_switch(),
    }
