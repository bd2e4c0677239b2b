"""A log beside an engine: it runs on what the engine runs on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from millrace import IoEngine, Log, LogSettings

if TYPE_CHECKING:
    from pathlib import Path

    from io_engines import Engines


def test_a_log_takes_backend_and_driver_from_an_engine(engines: Engines, tmp_path: Path) -> None:
    # Where its own settings say auto; both then work side by side on one loop.
    async def main(io: IoEngine) -> None:
        async with Log.open(tmp_path / "log", io=io) as log, io.open(tmp_path / "f", "w+") as file:
            await asyncio.gather(
                *(log.append(b"x") for _ in range(50)),
                *(io.write_at(file, b"y" * 100, 100 * n) for n in range(50)),
            )
            assert [record.lsn async for record in log.read()] == list(range(1, 51))
            seen = log.statistics()
            on_ring = io.backend.name != "threads"
            wanted = "loop" if on_ring and io.statistics().driver == "loop" else "thread"
            assert seen.driver == wanted
            assert ("pwrite" in seen.commit_paths) != on_ring

    engines.run(main)


def test_what_a_log_says_itself_stays(any_engine: Engines, tmp_path: Path) -> None:
    # Its settings come first.
    async def main(io: IoEngine) -> None:
        settings = LogSettings(backend="threads", driver="thread")
        async with Log.open(tmp_path / "log", settings=settings, io=io) as log:
            assert log.statistics().driver == "thread"
            assert "ring_dsync" not in log.statistics().commit_paths

    any_engine.run(main)


@pytest.mark.parametrize("io", [object(), "uring", IoEngine])
def test_what_is_no_engine_is_refused(tmp_path: Path, io: Any) -> None:
    # At the call, before anything is made.
    with pytest.raises(TypeError, match="io must be an IoEngine"):
        Log.open(tmp_path / "log", io=io)
    assert not (tmp_path / "log").exists()
