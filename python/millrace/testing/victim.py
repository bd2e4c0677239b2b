"""
A child process made to be killed, with a pipe that outlives it.

Always true:

1. After `wait` returns, every entry that left the child has been handed to *on_entries*.
2. `wait` does not depend on the pipe reaching its end, because a forked grandchild may hold
   the other end open long after the child is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from millrace.testing.acks import whole_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


class Victim:
    """
    Run *argv* with the write end of a pipe, and collect what it acknowledges.

    The child finds the descriptor's number in the environment variable `MILLRACE_ACK_FD`.

    Args:
        argv: Command to run.

        on_entries: Called from the collecting thread with whole entries, for `read_acks`.

        env: Environment of the child; the parent's if left out.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_entries: Callable[[bytes], None],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._on_entries = on_entries
        self._dead = threading.Event()
        self._read_fd, write_fd = os.pipe()
        _enlarge(write_fd)
        os.set_blocking(self._read_fd, False)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the caller's own command
                argv,
                pass_fds=(write_fd,),
                env={**(os.environ if env is None else env), "MILLRACE_ACK_FD": str(write_fd)},
            )
        finally:
            os.close(write_fd)
        self._collector = threading.Thread(target=self._collect, name="acks", daemon=True)
        self._collector.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return int(self.process.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the child a signal; nothing happens if it is already gone."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float | None = None) -> int:
        """
        Wait for the child to end and for its acknowledgements to arrive.

        Returns the exit status; negative is the signal that ended it. Raises
        `subprocess.TimeoutExpired` when it is still running after *timeout_s*.
        """
        status = int(self.process.wait(timeout_s))
        self._dead.set()
        self._collector.join()
        return status

    def _collect(self) -> None:
        waiting = bytearray()
        try:
            while True:
                # Ask first: what is read after the child is known dead is all there will be.
                was_dead = self._dead.is_set()
                select.select([self._read_fd], [], [], 0.02)
                try:
                    data = os.read(self._read_fd, _PIPE_BYTES)
                except BlockingIOError:
                    if was_dead:
                        return
                    continue
                if not data:
                    return
                waiting += data
                whole = whole_bytes(len(waiting))
                if whole:
                    entries = bytes(waiting[:whole])
                    del waiting[:whole]
                    self._on_entries(entries)
        finally:
            os.close(self._read_fd)


def _enlarge(fd: int) -> None:
    """Ask for a pipe that holds a burst; the usual size works too, only with more stops."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
