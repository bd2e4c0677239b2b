"""
Runs a module where seccomp refuses io_uring, as in a container.

    python denied.py ERRNO MODULE [ARGUMENTS...]
"""

from __future__ import annotations

import ctypes
import os
import runpy
import struct
import sys

# The same number on every architecture.
_IO_URING_SETUP = 425
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
DENIED = "MILLRACE_TEST_RING_DENIED"


def deny(errno: int) -> None:
    """Have io_uring_setup answered with *errno*, in this process and all it starts."""
    step = struct.Struct("=HBBI")
    steps = (
        step.pack(_LOAD_NUMBER, 0, 0, 0)
        + step.pack(_JUMP_IF_EQUAL, 0, 1, _IO_URING_SETUP)
        + step.pack(_RETURN, 0, 0, _REFUSE | errno)
        + step.pack(_RETURN, 0, 0, _ALLOW)
    )
    code = ctypes.create_string_buffer(steps)
    program = ctypes.create_string_buffer(struct.pack("=H6xQ", 4, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (_MODE_FILTER, ctypes.addressof(program), 0, 0)]
    none = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *none) or libc.prctl(_PR_SET_SECCOMP, *arguments):
        raise OSError(ctypes.get_errno(), "prctl refused the filter")


if __name__ == "__main__":
    deny(int(sys.argv[1]))
    os.environ[DENIED] = "1"
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
