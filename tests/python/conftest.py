"""What several folders of tests use."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import driven
import hypothesis
import pytest
import uvloop

from millrace import Log, LogSettings
from millrace.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path

# A shell that starts us in the background lets us ignore SIGINT, and our children would inherit
# that. They are interrupted in some tests, as from a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's business, not a test's.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

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


@pytest.fixture(scope="session")
def why_no_loop_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Why the loop driver cannot be used where tests put their logs; empty if it can."""
    path = tmp_path_factory.mktemp("probe") / "log"

    async def probe() -> str:
        try:
            async with Log.open(path, settings=LogSettings(driver="loop")):
                return ""
        except BackendUnavailable as error:
            return str(error)

    return asyncio.run(probe())


@pytest.fixture
def needs_loop_driver(why_no_loop_driver: str) -> None:
    """Skip the test where the loop driver cannot be used."""
    if why_no_loop_driver:
        pytest.skip(why_no_loop_driver)


@pytest.fixture(params=["thread", "loop", "auto"])
def each_driver(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    why_no_loop_driver: str,
) -> str:
    """Run the test for each driver: logs that it opens without saying how are opened with it."""
    if request.param != "thread" and why_no_loop_driver:
        pytest.skip(why_no_loop_driver)
    monkeypatch.setenv(driven.VARIABLE, request.param)
    # For programs that the test starts.
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(driven.__file__))  # noqa: PTH120
    driver: str = request.param
    return driver


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on a loop of its own."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Objects a test forgot complain in that test, not in the next one."""
    yield
    gc.collect()
