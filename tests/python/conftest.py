"""What several folders of tests use."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from millrace import LogSettings

if TYPE_CHECKING:
    from pathlib import Path

# A shell that starts us in the background lets us ignore SIGINT, and our children would inherit
# that. They are interrupted in some tests, as from a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KIB = 1024
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for a log; it does not exist yet."""
    return tmp_path / "log"


@pytest.fixture
def small() -> LogSettings:
    """Segments so small that a few hundred records fill several."""
    return LogSettings(
        segment_bytes=64 * KIB,
        segment_first_bytes=64 * KIB,
        record_bytes_max=16 * KIB,
        group_bytes_max=32 * KIB,
    )


@pytest.fixture
def held() -> LogSettings:
    """
    Nothing becomes durable before the log is closed, and two records fill the ring.

    So a test decides at which stage an append is when something happens to it.
    """
    return LogSettings(
        linger_s=3600.0,
        ring_entries=2,
        segment_first_bytes=64 * KIB,
    )


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on a loop of its own."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Objects a test forgot complain in that test, not in the next one."""
    yield
    gc.collect()
