"""What the binding lets go of is cleaned by a worker, all of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import millrace


def _descriptors(kind: str) -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += kind in str(entry.readlink())
    return count


def _settles_at(kind: str, most: int) -> bool:
    deadline = time.monotonic() + 20
    while _descriptors(kind) > most:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_ports_of_closed_loops_are_deregistered_and_closed(tmp_path: Path) -> None:
    # Belief: a log whose appends stood in line forgets each loop that is gone; before, it kept
    # the last loop's eventfd until another loop found the ring full.
    settings = millrace.LogSettings(ring_entries=2, linger_s=0.02)

    async def crowd(log: millrace.Log) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(log.append(b"x"))

    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log", settings=settings) as log:
            await crowd(log)
            before = _descriptors("eventfd")
            for _ in range(6):
                await asyncio.to_thread(asyncio.run, crowd(log))
            assert await asyncio.to_thread(_settles_at, "eventfd", before)

    asyncio.run(main())


def test_readers_that_are_dropped_give_their_backend_back(tmp_path: Path) -> None:
    # Belief: fifty readers dropped half way leave no descriptor behind, and hold nothing back.
    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log") as log:
            for _ in range(100):
                log.submit(b"x" * 100)
            await log.flush()
            before = _descriptors("")
            for _ in range(50):
                async for record in log.read():
                    if record.lsn == 10:
                        break
            assert await asyncio.to_thread(_settles_at, "", before + 1)

    asyncio.run(main())


def test_appends_cancelled_in_line_free_their_records(tmp_path: Path) -> None:
    # Belief: what was cancelled in line is never written and its memory comes back.
    settings = millrace.LogSettings(ring_entries=2, linger_s=0.05)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log", settings=settings) as log:
            payload = b"x" * (4 << 20)
            written = before = 0
            for round_ in range(12):
                tasks = [asyncio.create_task(log.append(payload)) for _ in range(6)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                written = log.last_lsn
                if round_ == 2:
                    before = resident()
            await log.flush()
            assert written <= log.durable_lsn < 12 * 6
            grown = resident() - before
            assert grown < 96 << 20, f"grew by {grown >> 20} MiB"

    asyncio.run(main())
