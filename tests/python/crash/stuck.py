"""
A disk that takes writes and never answers a sync, for chosen descriptors of this process.

A filter of seccomp has the kernel ask a supervisor before each sync, and the supervisor says
nothing. Unlike on a frozen filesystem, who waits there can still be killed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

# Numbers of fsync and fdatasync.
_SYNCS = {"x86_64": (74, 75), "aarch64": (82, 83)}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
# All threads; a descriptor for the supervisor; a thread that cannot follow is an error.
_FLAGS = 1 | 8 | 16
_PR_SET_NO_NEW_PRIVS = 38
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16


def descriptors_below(directory: Path) -> list[int]:
    """Open files of this process below *directory*."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink()
        except FileNotFoundError:
            # The one of the listing.
            continue
        if target.is_relative_to(directory):
            found.append(int(entry.name))
    return found


def stick(descriptors: list[int]) -> int:
    """
    From now on no sync of these descriptors ends, on any thread of this process.

    Returns the supervisor's descriptor: closed, the syncs fail.
    """
    machine = platform.machine()
    if machine not in _SYNCS:
        raise NotImplementedError(machine)
    step = struct.Struct("=HBBI")
    fsync, fdatasync = _SYNCS[machine]
    count = len(descriptors)
    # Steps to jump over are counted from the next one; the last two are "allow" and "ask".
    steps = [
        step.pack(_LOAD, 0, 0, _NUMBER_AT),
        step.pack(_JUMP_IF_EQUAL, 1, 0, fsync),
        step.pack(_JUMP_IF_EQUAL, 0, count + 1, fdatasync),
        step.pack(_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
    ]
    steps += [
        step.pack(_JUMP_IF_EQUAL, count - place, 0, descriptor)
        for place, descriptor in enumerate(descriptors)
    ]
    steps += [step.pack(_RETURN, 0, 0, _ALLOW), step.pack(_RETURN, 0, 0, _ASK)]
    code = ctypes.create_string_buffer(b"".join(steps))
    head = struct.pack("=H6xQ", len(steps), ctypes.addressof(code))
    program = ctypes.create_string_buffer(head)
    libc = ctypes.CDLL(None, use_errno=True)
    none = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *none):
        raise OSError(ctypes.get_errno(), "prctl refused")
    arguments = (_SECCOMP[machine], _SET_MODE_FILTER, _FLAGS, ctypes.addressof(program))
    listener = int(libc.syscall(*(ctypes.c_long(value) for value in arguments)))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener
