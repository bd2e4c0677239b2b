"""Which backend a log takes: by its settings, by the environment, or by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from millrace import Log, LogSettings
from millrace.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path


async def ways(directory: Path, **settings: Any) -> set[str]:
    """Open a log, and return the ways to the disk that it had to choose from."""
    async with Log.open(directory, settings=LogSettings(**settings)) as log:
        assert await log.append(b"x") == 1
        return set(log.statistics().commit_paths)


async def test_the_environment_decides_where_the_settings_say_auto(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads have no way through the ring, and the ring none through plain writes.
    monkeypatch.setenv("MILLRACE_BACKEND", "threads")
    assert "ring_dsync" not in await ways(directory.with_name("a"))
    monkeypatch.setenv("MILLRACE_BACKEND", "uring-plain")
    try:
        assert "pwrite" not in await ways(directory.with_name("b"))
    except BackendUnavailable:
        pytest.skip("this kernel refuses io_uring")
    assert "ring_dsync" not in await ways(directory.with_name("c"), backend="threads")


async def test_a_name_in_the_environment_that_nobody_knows(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is an error, not a guess, and nothing is made.
    monkeypatch.setenv("MILLRACE_BACKEND", "magic")
    with pytest.raises(ValueError, match="MILLRACE_BACKEND"):
        await Log.open(directory)
    assert not directory.exists()


async def test_an_environment_that_contradicts_the_settings(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was asked for is not silently given up: the error names the variable.
    monkeypatch.setenv("MILLRACE_BACKEND", "threads")
    for settings in (LogSettings(driver="loop"), LogSettings(commit_path="ring_dsync")):
        with pytest.raises(ValueError, match="MILLRACE_BACKEND"):
            await Log.open(directory, settings=settings)
    assert not directory.exists()
