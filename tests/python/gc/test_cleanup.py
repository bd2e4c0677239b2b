"""What the binding lets go of is cleaned by a worker, all of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import millrace
from millrace import _core


def _descriptors(kind: str) -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += kind in str(entry.readlink())
    return count


async def _settles_at(kind: str, most: int) -> None:
    """Wait until no more descriptors than *most* are open; each look comes after a cleanup."""
    async with asyncio.timeout(20):
        while _descriptors(kind) > most:
            await _core.cleanup_done()


def _done(kind: str) -> int:
    return millrace.cleanup_statistics().done_by_kind[kind]


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
            before, wakers = _descriptors("eventfd"), _done("waker")
            for _ in range(6):
                await asyncio.to_thread(asyncio.run, crowd(log))
            await _settles_at("eventfd", before)
            assert _done("waker") >= wakers + 6

    asyncio.run(main())


def test_readers_that_are_dropped_give_their_backend_back(tmp_path: Path) -> None:
    # Belief: fifty readers dropped half way leave no descriptor behind, and hold nothing back.
    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log") as log:
            for _ in range(100):
                log.submit(b"x" * 100)
            await log.flush()
            before, channels = _descriptors(""), _done("channel")
            for _ in range(50):
                async for record in log.read():
                    if record.lsn == 10:
                        break
            await asyncio.get_running_loop().shutdown_asyncgens()
            await _settles_at("", before + 1)
            assert _done("channel") >= channels + 50
            seen = log.statistics()
            assert (seen.readers, seen.oldest_reader_age_s) == (0, None)

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
            obligations = _done("obligation")
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
            await _core.cleanup_done()
            assert _done("obligation") > obligations
            assert millrace.cleanup_statistics().bytes_peak >= 4 << 20
            grown = resident() - before
            assert grown < 96 << 20, f"grew by {grown >> 20} MiB"

    asyncio.run(main())


def test_an_abandoned_write_is_there_whole_or_leaves_no_trace(tmp_path: Path) -> None:
    # Belief: what the ring has admitted is written although nobody waits; what stood in line was
    # never there, and its place is free for whoever comes next.
    settings = millrace.LogSettings(ring_entries=2, linger_s=0.002)
    abandoned, kept = set[bytes](), list[bytes]()

    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log", settings=settings) as log:
            for turn in range(40):
                names = [b"%d-%d" % (turn, one) for one in range(8)]
                tasks = [asyncio.create_task(log.append(name)) for name in names]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                abandoned.update(names)
                kept.append(b"kept %d" % turn)
                async with asyncio.timeout(30):
                    await log.append(kept[-1])
            await log.flush()
            for _ in range(2):
                log.submit(b"kept: room")
            await log.flush()
            found = [record async for record in log.read()]
        assert [record.lsn for record in found] == list(range(1, len(found) + 1))
        names = [record.data for record in found]
        assert [name for name in names if name.startswith(b"kept ")] == kept
        written = [name for name in names if not name.startswith(b"kept")]
        assert len(set(written)) == len(written)
        assert set(written) < abandoned

    asyncio.run(main())


def test_who_holds_back_a_truncation_is_shown(tmp_path: Path, small: millrace.LogSettings) -> None:
    # Belief: a slow reader shows with its age, and what it holds back; both go with it.

    async def main() -> None:
        async with millrace.Log.open(tmp_path / "log", settings=small) as log:
            for _ in range(40):
                await log.append_many([b"x" * 1000] * 10)
            reader = log.read()
            first = await anext(reader)
            assert first.lsn == 1
            assert await log.truncate_before(300) > 1
            seen = log.statistics()
            assert seen.readers == 1
            assert seen.oldest_reader_age_s is not None
            held = seen.segments_held
            assert held > 0
            await reader.aclose()
            del reader
            async with asyncio.timeout(30):
                # A worker may still be reading ahead for it.
                while log.statistics().readers:
                    await asyncio.sleep(0)
            await _core.cleanup_done()
            await log.truncate_before(300)
            seen = log.statistics()
            assert (seen.readers, seen.segments_held) == (0, 0)
            assert seen.segments_released == held

    asyncio.run(main())


def test_cleanup_is_counted_when_it_was_done() -> None:
    # Belief: what was enqueued before `cleanup_done` has been processed after it.
    async def main() -> None:
        before = millrace.cleanup_statistics()
        await _core.cleanup_done()
        await _core.cleanup_done()
        after = millrace.cleanup_statistics()
        assert after.processed >= before.processed + 2
        assert after.failed == 0
        assert after.last_failure is None

    asyncio.run(main())
