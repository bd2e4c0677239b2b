"""Appending: what goes in, which LSN comes out, what every form of the call promises."""

from __future__ import annotations

import array
import asyncio
import contextlib
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from millrace import (
    ClosedError,
    Error,
    IoTimeout,
    Log,
    LogSettings,
    OverloadedError,
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from millrace.types import Durability


pytestmark = pytest.mark.usefixtures("each_driver")


async def _contents(log: Log) -> list[bytes]:
    return [record.data async for record in log.read()]


async def test_lsns_are_dense_and_in_the_order_of_the_calls(directory: Path) -> None:
    # An append gets its LSN when it is called, whatever the order of the awaits.
    async with Log.open(directory) as log:
        started = [log.append(b"%d" % number) for number in range(10)]
        backwards = [await operation for operation in reversed(started)]
        assert backwards == list(range(10, 0, -1))
        assert await _contents(log) == [b"%d" % number for number in range(10)]


async def test_awaits_out_of_order(directory: Path) -> None:
    # Waiters that come in any order, at any level, are each answered with their own LSN.
    log = await Log.open(directory, settings=LogSettings(linger_s=3600.0))
    levels: list[Durability] = ["durable", "committed"]
    started = [log.append(b"x", durability=levels[number % 2]) for number in range(2000)]
    order = sorted(range(2000), key=lambda number: number * 7919 % 2003)
    tasks = {number: asyncio.create_task(started[number]) for number in order}
    started.clear()
    flushed = asyncio.create_task(log.flush())
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks.values())
    await log.close()
    assert [await tasks[number] for number in range(2000)] == list(range(1, 2001))
    assert await flushed == 2000


@pytest.mark.parametrize("tasks", [2, 300])
async def test_tasks_get_what_they_wrote(directory: Path, tasks: int) -> None:
    # Each of many tasks finds its own record at the LSN it was given.
    async with Log.open(directory) as log:

        async def one(number: int) -> tuple[int, bytes]:
            data = b"task %d" % number
            return await log.append(data), data

        given = dict(await asyncio.gather(*(one(number) for number in range(tasks))))
        found = {record.lsn: record.data async for record in log.read()}
        assert found == given


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(bytearray(b"writable view")),
        memoryview(b"a longer one")[2:8],
        array.array("I", [1, 2, 3]),
        memoryview(b"12345678").cast("I", (2, 1)),
    ],
    ids=lambda data: type(data).__name__,
)
async def test_any_contiguous_buffer_is_a_record(directory: Path, data: bytes) -> None:
    # What is read back are the bytes that were there at the call, as `bytes`.
    async with Log.open(directory) as log:
        lsn = await log.append(data)
        [record] = [record async for record in log.read(lsn)]
        assert type(record.data) is bytes
        assert record.data == bytes(data)


async def test_data_is_copied_at_the_call(directory: Path, held: LogSettings) -> None:
    # A buffer may be changed and even resized as soon as the call has returned.
    log = await Log.open(directory, settings=held)
    data = bytearray(b"before")
    started = log.append(data)
    data.clear()
    await log.close()
    assert await started == 1
    async with Log.open(directory) as log:
        assert await _contents(log) == [b"before"]


async def test_many_share_a_range(directory: Path) -> None:
    # A batch gets consecutive LSNs; an empty one gets an empty range and writes nothing.
    async with Log.open(directory) as log:
        assert await log.append_many([b"a", bytearray(b"b"), memoryview(b"c")]) == range(1, 4)
        assert await log.append_many(iter([])) == range(4, 4)
        assert await log.append_many(data for data in (b"d", b"")) == range(4, 6)
        assert log.statistics().records == 5


async def test_a_bad_item_stops_the_whole_batch(directory: Path) -> None:
    # Nothing of a batch is written if one item cannot be; the error says which.
    async with Log.open(directory) as log:
        with pytest.raises(TypeError, match=r"item 1: .*encode"):
            log.append_many([b"good", "bad"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="append_many"):
            log.append_many(b"not a list")  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            log.append_many(bytes(1 // number) for number in (1, 0))
        assert await log.append(b"next") == 1


@pytest.mark.parametrize("durability", ["durable", "committed", "appended"])
async def test_every_durability_ends_on_disk(directory: Path, durability: Durability) -> None:
    # The level chooses when the await ends, never whether the record is written.
    async with Log.open(directory) as log:
        lsns = [await log.append(b"x", durability=durability) for _ in range(300)]
        assert lsns == list(range(1, 301))
        assert await log.flush() == 300
    async with Log.open(directory) as log:
        assert log.last_lsn == 300


async def test_appended_does_not_wait(directory: Path, held: LogSettings) -> None:
    # At the level `appended` the await is over while nothing is durable.
    async with Log.open(directory, settings=held) as log:
        assert await log.append(b"x", durability="appended") == 1
        assert await log.append_many([b"y"], durability="appended") == range(2, 3)
        assert log.durable_lsn == 0


async def test_a_ticket_tells_its_lsn_at_once(directory: Path, held: LogSettings) -> None:
    # A ticket is awaited as often as one likes, and can be waited for without a loop.
    log = await Log.open(directory, settings=held)
    ticket = log.submit(b"x")
    assert (ticket.lsn, ticket.done()) == (1, False)
    assert "pending" in repr(ticket)
    with pytest.raises(IoTimeout, match="still being written"):
        ticket.wait(0)
    await log.close()
    assert ticket.done()
    assert "durable" in repr(ticket)
    assert [await ticket, await ticket, ticket.wait(), ticket.wait(0.0)] == [1, 1, 1, 1]


async def test_submit_refuses_when_full(directory: Path, held: LogSettings) -> None:
    # A full ring refuses a submit; nothing was written, and what was accepted is.
    log = await Log.open(directory, settings=held)
    assert [log.submit(b"1").lsn, log.submit(b"2").lsn] == [1, 2]
    with pytest.raises(OverloadedError, match="ring_entries=2") as caught:
        log.submit(b"3")
    assert isinstance(caught.value, BlockingIOError)
    await log.close()
    async with Log.open(directory) as log:
        assert await _contents(log) == [b"1", b"2"]


async def test_append_waits_in_line_when_full(directory: Path, small: LogSettings) -> None:
    # A ring of two entries carries any number of appends, in the order of the calls.
    settings = LogSettings(
        segment_bytes=small.segment_bytes,
        segment_first_bytes=small.segment_first_bytes,
        record_bytes_max=small.record_bytes_max,
        group_bytes_max=small.group_bytes_max,
        ring_entries=2,
    )
    async with Log.open(directory, settings=settings) as log:
        appends = [log.append(b"%d" % number) for number in range(500)]
        assert await asyncio.gather(*appends) == list(range(1, 501))
        assert await _contents(log) == [b"%d" % number for number in range(500)]


async def test_batches_wait_in_line_as_a_whole(directory: Path) -> None:
    # A batch in line is admitted as one, and its range is consecutive.
    async with Log.open(directory, settings=LogSettings(ring_entries=3)) as log:
        batches = [log.append_many([b"%d" % number] * 3) for number in range(50)]
        ranges = await asyncio.gather(*batches)
        assert ranges == [range(first, first + 3) for first in range(1, 151, 3)]


def test_append_sync_from_threads(directory: Path) -> None:
    # Plain threads append side by side, each learning that its record is durable.
    async def opened() -> Log:
        return await Log.open(directory)

    log = asyncio.run(opened())
    given: list[int] = []
    threads = [
        threading.Thread(target=lambda: given.extend(log.append_sync(b"x") for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 81))
    assert log.durable_lsn == 80
    assert log._close_within(10.0)


async def test_append_sync_gives_up_in_line(directory: Path, held: LogSettings) -> None:
    # In line, a timeout takes the record back; in the ring, it says that writing goes on.
    log = await Log.open(directory, settings=held)
    with pytest.raises(IoTimeout, match="still being written"):
        log.append_sync(b"1", timeout_s=0.01)
    log.submit(b"2")
    with pytest.raises(IoTimeout, match="was not written"):
        log.append_sync(b"3", timeout_s=0.01)
    await log.close()
    async with Log.open(directory) as log:
        assert await _contents(log) == [b"1", b"2"]


async def test_limits_name_themselves(directory: Path, small: LogSettings) -> None:
    # Too much says which limit and how much, writes nothing, and the log goes on.
    async with Log.open(directory, settings=small) as log:
        log_limit = small.record_bytes_max
        with pytest.raises(TooLargeError, match="record_bytes_max") as caught:
            log.append(bytes(log_limit + 1))
        assert caught.value.limit == "record_bytes_max"
        assert isinstance(caught.value, ValueError)
        with pytest.raises(TooLargeError, match="group_bytes_max"):
            log.append_many([bytes(log_limit)] * 3)
        assert await log.append(bytes(log_limit)) == 1


@pytest.mark.parametrize("state", ["closed", "closing", "failed", "read_only"])
async def test_an_empty_batch_needs_an_open_log(
    directory: Path,
    held: LogSettings,
    state: str,
) -> None:
    # It raises what any append raises; only on a live log it is an empty range, at once.
    settings = LogSettings(commit_path="pwrite") if state == "failed" else held
    log = await Log.open(directory, settings=settings)
    waiting = asyncio.create_task(log.append(b"x"))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(log.append_many([]), 0.5) == range(2, 2)
    closing = log.close() if state == "closing" else None
    if state == "closing":
        await waiting
    elif state == "failed":
        await waiting
        with _files_limited(), contextlib.suppress(Error):
            while True:
                await log.append(bytes(1 << 20))
    else:
        await log.close()
        await waiting
    if state == "read_only":
        log = await Log.open(directory, read_only=True)
    with pytest.raises((Error, ValueError)) as any_append:
        await log.append(b"x")
    with pytest.raises(type(any_append.value), match=re.escape(str(any_append.value))):
        await log.append_many([])
    with contextlib.suppress(Error):
        await (closing or log.close())


@contextlib.contextmanager
def _files_limited() -> Iterator[None]:
    """No file of this process grows beyond one MiB; a write that would is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_is_too_large_is_not_copied(directory: Path, tmp_path: Path) -> None:
    # The size is looked at before the bytes are: refusing a terabyte takes no memory, and no more
    # does a batch of which each record by itself would do.
    script = """
        import asyncio, mmap, resource, sys
        from millrace import Log, Ring, TooLargeError
        MIB = 1 << 20
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        def refuses(call, argument, limit):
            try:
                call(argument)
            except TooLargeError as refused:
                assert refused.limit == limit, refused.limit
            else:
                raise AssertionError("taken")
        async def main():
            with open(sys.argv[2], "w+b") as file:
                file.truncate(1 << 40)
                huge = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            block = memoryview(bytes(8 * MIB))
            async with Log.open(sys.argv[1]) as log:
                before = peak()
                for call in (log.append, log.submit, log.append_sync):
                    refuses(call, huge, "record_bytes_max")
                for call in (Ring(8).try_append, Ring(8).append, Ring(8).append_blocking):
                    refuses(call, huge, "entry_bytes_max")
                refuses(log.append_many, [block, huge], "record_bytes_max")
                for many in ([block] * 100, (block,) * 100):
                    refuses(log.append_many, many, "group_bytes_max")
                grown = peak() - before
                assert grown < 8 * MIB, grown
                endless = iter(lambda: block, None)
                refuses(log.append_many, endless, "group_bytes_max")
                refuses(log.append_many, iter(lambda: b"", None), "ring_entries")
                grown = peak() - before
                assert grown < 64 * MIB, grown
                one = bytearray(1)
                def reused():
                    for number in range(3):
                        one[0] = number
                        yield one
                assert await log.append_many(reused()) == range(1, 4)
                data = [record.data async for record in log.read()]
                assert data == [b"\\0", b"\\1", b"\\2"], data
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), directory, tmp_path / "huge"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_record_that_no_memory_holds(directory: Path) -> None:
    # Whatever way it comes in, and when it is read: an error of that call, and the log goes on.
    script = """
        import asyncio, mmap, resource, sys
        from millrace import Log, LogSettings, TooLargeError
        MIB = 1 << 20
        LARGE = 128 * MIB
        settings = LogSettings(
            record_bytes_max=LARGE,
            group_bytes_max=2 * LARGE,
            segment_bytes=512 * MIB,
            ring_bytes=LARGE,
        )
        def leave(room):
            with open("/proc/self/statm") as sizes:
                used = int(sizes.read().split()[0]) * mmap.PAGESIZE
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
        async def main():
            large = mmap.mmap(-1, LARGE)
            async with Log.open(sys.argv[1], settings=settings) as log:
                assert await log.append(large) == 1
                leave(LARGE // 2)
                for call in (log.append, log.submit, log.append_sync):
                    try:
                        call(large)
                    except TooLargeError as refused:
                        assert "no memory" in str(refused), refused
                    else:
                        raise AssertionError("taken")
                for room in (LARGE // 2, LARGE + LARGE // 2):
                    leave(room)
                    try:
                        seen = [len(record.data) async for record in log.read()]
                    except (MemoryError, TooLargeError):
                        continue
                    raise AssertionError(seen)
                assert await log.append(b"small") == 2
                hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
                assert [record.data async for record in log.read(2)] == [b"small"]
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), directory],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stderr


async def test_a_closed_log_says_so(directory: Path) -> None:
    # After the close every call fails alike, and closing again is fine.
    log = await Log.open(directory)
    await log.append(b"x")
    await log.close()
    await log.close()
    for call in (log.append, log.submit, log.append_sync):
        with pytest.raises(ClosedError):
            call(b"y")
    with pytest.raises(ClosedError):
        log.append_many([b"y"])
    assert log.statistics().state == "closed"
    assert (log.last_lsn, log.durable_lsn) == (1, 1)
    assert "state=closed" in repr(log)


async def test_a_closed_log_does_not_look_at_a_batch(directory: Path) -> None:
    # What is refused anyway is not copied first: no item is even asked for.
    log = await Log.open(directory)
    await log.close()
    seen: list[int] = []

    def items() -> Iterator[bytes]:
        for number in range(3):
            seen.append(number)
            yield b"x"

    with pytest.raises(ClosedError):
        log.append_many(items())
    assert seen == []


async def test_close_writes_what_was_appended(directory: Path, held: LogSettings) -> None:
    # Everything that got an LSN before the close is durable after it.
    log = await Log.open(directory, settings=held)
    waiting = [asyncio.create_task(log.append(b"x")) for _ in range(2)]
    await asyncio.sleep(0)
    in_line = asyncio.create_task(log.append(b"in line"))
    await asyncio.sleep(0)
    await log.close()
    assert await asyncio.gather(*waiting) == [1, 2]
    with pytest.raises(ClosedError):
        await in_line


async def test_statistics_count(directory: Path) -> None:
    # What the statistics say is what was done.
    async with Log.open(directory) as log:
        await log.append_many([b"abc"] * 10)
        statistics = log.statistics()
        assert (statistics.state, statistics.records, statistics.group_records_max) == (
            "open",
            10,
            10,
        )
        assert statistics.appended_lsn == statistics.durable_lsn == 10
        assert statistics.commit_path in statistics.commit_paths
        with pytest.raises(AttributeError):
            statistics.records = 0  # type: ignore[misc]


def test_a_loop_that_cannot_be_told_fails_no_submit(directory: Path) -> None:
    # A record that was claimed is written, so nothing may fail behind the claim: with a loop that
    # takes no descriptor the ticket tells the LSN all the same, and nothing is there twice.
    class Full(asyncio.SelectorEventLoop):
        def add_reader(self, *_arguments: object) -> None:
            raise OSError(24, "Too many open files")

    log = asyncio.run(_opened(directory))

    async def submit() -> list[int]:
        return [log.submit(b"x").lsn for _ in range(3)]

    loop = Full()
    try:
        assert loop.run_until_complete(submit()) == [1, 2, 3]
    finally:
        loop.close()
    log.submit(b"last").wait(10)
    assert log.last_lsn == 4
    asyncio.run(_closed(log))


@pytest.mark.usefixtures("needs_loop_driver")
def test_an_interrupt_while_a_loop_is_told_claims_nothing(directory: Path) -> None:
    # Who is interrupted is told so, and the record is not there.
    class Interrupted(asyncio.SelectorEventLoop):
        def add_reader(self, *_arguments: object) -> None:
            raise KeyboardInterrupt

    settings = LogSettings(driver="loop")
    log = asyncio.run(_opened(directory, settings))

    async def submit() -> None:
        log.submit(b"x")

    loop = Interrupted()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(submit())
    finally:
        loop.close()
    assert log.last_lsn == 0
    asyncio.run(_closed(log))


async def _opened(directory: Path, settings: LogSettings | None = None) -> Log:
    return await Log.open(directory, settings=settings)


async def _closed(log: Log) -> None:
    await log.close()
