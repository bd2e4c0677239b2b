"""
Opens logs with the driver that a test is run for, where the test does not say which.

Programs that a test starts import this too: they are told by the environment.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING

from millrace import _core

if TYPE_CHECKING:
    from typing import Any

    from millrace import LogSettings

VARIABLE = "MILLRACE_TEST_DRIVER"
_open_log = _core.open_log


@functools.wraps(_core.open_log)
def open_log(path: str, settings: LogSettings, read_only: bool) -> Any:  # noqa: FBT001 - as in _core
    """Open as asked, by the preferred driver if nothing was asked of driver, path or backend."""
    asked = (settings.driver, settings.commit_path, settings.backend)
    driver: Any = os.environ.get(VARIABLE)
    if driver and asked == ("auto", "auto", "auto"):
        # Direct, so that who turns follows the load and not what the disk was like at the open.
        way: Any = "direct" if driver == "auto" else "auto"
        settings = dataclasses.replace(settings, driver=driver, commit_path=way)
    return _open_log(path, settings, read_only)


_core.open_log = open_log
