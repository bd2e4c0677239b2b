"""A piece of a test that runs in a forked child."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# From 3.12 on, Python warns of a fork in a process with threads. That is the point where we fork.
QUIET_FORK = "ignore:This process:DeprecationWarning"


def in_child(child: Callable[[], None]) -> None:
    """Run `child` in a fork and require that it ends well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
