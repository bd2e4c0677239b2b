"""Stores that live as long as a test."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from millrace import Log, LogSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@asynccontextmanager
async def temporary_log(
    *, settings: LogSettings | None = None, directory: str | Path | None = None
) -> AsyncGenerator[Log]:
    """
    Open a log in a new directory, and remove both on the way out.

    Args:
        settings: Settings of the log.

        directory: Where to make the new directory; the usual place for temporary files if
            left out. A tmpfs there makes the test fast and nothing durable.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-", dir=directory) as path:
        async with Log.open(path, settings=settings or LogSettings()) as log:
            yield log
