"""Reading, following, cursors and truncation."""

from __future__ import annotations

import asyncio
import copy
import errno
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from millrace import ClosedError, IoError, IoTimeout, Log, LogSettings, Record

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("each_driver")


async def _filled(directory: Path, settings: LogSettings, count: int) -> Log:
    log = await Log.open(directory, settings=settings)
    for first in range(0, count, 50):
        await log.append_many([b"%d" % number for number in range(first, first + 50)])
    return log


async def test_read_gives_what_was_written(directory: Path, small: LogSettings) -> None:
    # Over several segments and a reopening: the same records, dense, in order.
    log = await _filled(directory, small, 1000)
    await log.close()
    async with Log.open(directory, settings=small) as log:
        records = [record async for record in log.read()]
        assert [record.lsn for record in records] == list(range(1, 1001))
        assert [record.data for record in records] == [b"%d" % number for number in range(1000)]
        assert all(record.timestamp > 1_500_000_000 * 10**9 for record in records)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (1, None, range(1, 101)),
        (50, None, range(50, 101)),
        (50, 53, range(50, 53)),
        (50, 50, range(0)),
        (50, 20, range(0)),
        (100, 1000, range(100, 101)),
        (101, None, range(0)),
        (2**63 - 1, None, range(0)),
    ],
)
async def test_stop_is_exclusive(
    directory: Path,
    start: int,
    stop: int | None,
    expected: range,
) -> None:
    # A range is what `range` would make of it, cut to what is there.
    async with Log.open(directory) as log:
        await log.append_many([b""] * 100)
        assert [record.lsn async for record in log.read(start, stop)] == list(expected)


@pytest.mark.parametrize("records_max", [1, 7, 4096])
async def test_batches_are_bounded(directory: Path, records_max: int) -> None:
    # No batch is empty or larger than asked for, and together they are everything.
    async with Log.open(directory) as log:
        await log.append_many([b"x"] * 100)
        batches = [batch async for batch in log.read_batches(records_max=records_max)]
        assert all(1 <= len(batch) <= records_max for batch in batches)
        assert [record.lsn for batch in batches for record in batch] == list(range(1, 101))


async def test_a_read_ends_where_it_began(directory: Path) -> None:
    # What becomes durable after the call is not part of it.
    async with Log.open(directory) as log:
        await log.append_many([b"old"] * 3)
        reading = log.read()
        await log.append(b"new")
        assert [record.data async for record in reading] == [b"old"] * 3


async def test_a_read_can_be_left(directory: Path, small: LogSettings) -> None:
    # Leaving a reader in the middle costs nothing and harms nothing.
    log = await _filled(directory, small, 500)
    async for record in log.read():
        if record.lsn == 3:
            break
    reading = log.read_batches(records_max=10)
    assert len(await anext(reading)) == 10
    await reading.aclose()
    assert await log.append(b"after") == 501
    await log.close()


async def test_follow_waits_for_more(directory: Path) -> None:
    # A follower sees old records, then each new one once it is durable.
    async with Log.open(directory) as log:
        await log.append(b"0")
        seen: list[bytes] = []
        enough = asyncio.Event()

        async def follow() -> None:
            async for record in log.follow(1):
                assert record.lsn <= log.durable_lsn
                seen.append(record.data)
                if len(seen) == 200:
                    enough.set()

        follower = asyncio.create_task(follow())
        for number in range(1, 200):
            await log.append(b"%d" % number)
        await enough.wait()
        assert seen == [b"%d" % number for number in range(200)]
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower


async def test_follow_from_now_on(directory: Path) -> None:
    # Without a start, a follower begins behind what is durable.
    async with Log.open(directory) as log:
        await log.append(b"old")
        following = log.follow()
        first = asyncio.create_task(anext(following))
        await asyncio.sleep(0)
        await log.append(b"new")
        assert (await first).data == b"new"
        await following.aclose()


@pytest.mark.parametrize("start", [1, None])
async def test_follow_beside_the_owner(
    directory: Path,
    small: LogSettings,
    start: int | None,
) -> None:
    # A read-only log shows what was there, and then what its owner makes durable, over rotations,
    # a close and the next owner.
    seen: list[bytes] = []
    owner = await Log.open(directory, settings=small)
    await owner.append_many([b"old-1", b"old-2"])
    async with Log.open(directory, read_only=True, settings=small) as reader:
        more = asyncio.Event()

        async def follow() -> None:
            async for record in reader.follow(start):
                assert record.lsn == len(seen) + (start or 3)
                seen.append(record.data)
                more.set()

        async def wait_for(count: int) -> None:
            async with asyncio.timeout(30):
                while len(seen) < count:
                    more.clear()
                    await more.wait()

        before = [b"old-1", b"old-2"] if start else []
        follower = asyncio.create_task(follow())
        await wait_for(len(before))
        expected = list(before)
        for round_ in range(3):
            expected += [b"%d-%d" % (round_, number) + bytes(4000) for number in range(30)]
            for data in expected[-30:]:
                await owner.append(data)
            await wait_for(len(expected))
            if round_ == 1:
                await owner.close()
                owner = await Log.open(directory, settings=small)
        assert owner.statistics().rotations > 0
        assert seen == expected
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
    await owner.close()


@pytest.mark.parametrize("trouble", [IoTimeout("busy"), IoError("gone", errno=errno.ENOENT)])
async def test_follow_goes_on_when_files_are_dropped(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
) -> None:
    # A look that the owner's truncation spoils is followed by another one, not by an error.
    async with Log.open(directory) as log:
        await log.append(b"kept")
    spoiled = [trouble]
    watch = Log._watch

    class Spoiled:
        """A reader whose first look fails."""

        def __init__(self, *args: Any) -> None:
            self._reader = watch(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        async def batch(self) -> list[Record] | None:
            if spoiled:
                raise spoiled.pop()
            return await self._reader.batch()

    def watch_spoiled(*args: Any) -> Spoiled:
        return Spoiled(*args)

    async with Log.open(directory, read_only=True) as reader:
        monkeypatch.setattr(Log, "_watch", watch_spoiled)
        following = reader.follow(1)
        async with asyncio.timeout(30):
            assert (await anext(following)).data == b"kept"
        assert not spoiled
        await following.aclose()


async def test_follow_of_a_lost_directory_ends(directory: Path) -> None:
    # Going on is for files; a log that is gone altogether is an error.
    async with Log.open(directory) as log:
        await log.append(b"kept")
    async with Log.open(directory, read_only=True) as reader:
        following = reader.follow(1)
        assert (await anext(following)).data == b"kept"
        directory.rename(directory.with_name("elsewhere"))
        with pytest.raises(IoError) as caught:
            await anext(following)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("shown", [0, 1])
async def test_follow_ends_with_the_log(directory: Path, shown: int) -> None:
    # A close wakes followers with an error that says so, those who wait for their first record and
    # those who have had some.
    log = await Log.open(directory)
    for _ in range(shown):
        await log.append(b"x")
    records = log.follow(1)
    assert [(await anext(records)).lsn for _ in range(shown)] == [1] * shown
    following = asyncio.ensure_future(anext(records))
    await asyncio.sleep(0)
    await log.close()
    with pytest.raises(ClosedError):
        await following


async def test_a_cursor_survives(directory: Path) -> None:
    # A committed position is there after a reopening, and reading goes on behind it.
    async with Log.open(directory) as log:
        await log.append_many([b"%d" % number for number in range(10)])
        cursor = log.cursor("shipper \N{SNOWMAN}")
        assert cursor.position == 0
        await cursor.commit(4)
        assert cursor.position == 4
    async with Log.open(directory) as log:
        cursor = log.cursor("shipper \N{SNOWMAN}")
        assert "position=4" in repr(cursor)
        rest = []
        async for record in cursor:
            rest.append(record.lsn)
            if record.lsn == 10:
                break
        assert rest == list(range(5, 11))
        assert log.cursor("another").position == 0


async def test_a_cursor_only_moves_forward_to_what_is_durable(directory: Path) -> None:
    # Above the durable mark or back: a ValueError, and nothing has changed.
    async with Log.open(directory) as log:
        await log.append_many([b""] * 5)
        cursor = log.cursor("c")
        await cursor.commit(3)
        for lsn, message in ((6, "durable"), (2, "forward")):
            with pytest.raises(ValueError, match=message):
                await cursor.commit(lsn)
        assert cursor.position == 3


@pytest.mark.parametrize("name", ["", "x" * 256, "\N{SNOWMAN}" * 86])
async def test_names_of_cursors_are_bounded(directory: Path, name: str) -> None:
    # A name is 1 to 255 bytes.
    async with Log.open(directory) as log:
        with pytest.raises(ValueError, match="name"):
            log.cursor(name)


async def test_truncation_drops_whole_segments(directory: Path, small: LogSettings) -> None:
    # Nothing at or above the mark goes, and reading below what is left is refused.
    big = b"x" * 1000
    async with Log.open(directory, settings=small) as log:
        for _ in range(20):
            await log.append_many([big] * 20)
        first = await log.truncate_before(200)
        assert 1 < first <= 200
        assert log.first_lsn == first
        assert [record.lsn async for record in log.read()] == list(range(first, 401))
        with pytest.raises(ValueError, match="truncated"):
            _ = [record async for record in log.read(2)]
    async with Log.open(directory, settings=small) as log:
        assert log.first_lsn == first


async def test_a_cursor_holds_truncation_back(directory: Path, small: LogSettings) -> None:
    # What a holding cursor has not passed stays.
    async with Log.open(directory, settings=small) as log:
        cursor = log.cursor("slow", holds_truncation=True)
        for _ in range(20):
            await log.append_many([b"x" * 1000] * 20)
        await cursor.commit(30)
        assert await log.truncate_before(300) <= 31
        assert [record.lsn async for record in log.read(31, 33)] == [31, 32]


async def test_a_reader_keeps_its_segments(directory: Path, small: LogSettings) -> None:
    # A reader that began before a truncation reads on to its end.
    async with Log.open(directory, settings=small) as log:
        for _ in range(20):
            await log.append_many([b"x" * 1000] * 20)
        reading = log.read_batches(records_max=5)
        batches = [await anext(reading)]
        await log.truncate_before(400)
        batches += [batch async for batch in reading]
        assert [record.lsn for batch in batches for record in batch] == list(range(1, 401))


async def test_what_was_truncated_under_a_reader_does_not_come_back(
    directory: Path, small: LogSettings
) -> None:
    # A close removes what a slow reader held back; that reader ends the segment it has open.
    async with Log.open(directory, settings=small) as log:
        for _ in range(20):
            await log.append_many([b"x" * 1000] * 20)
        reading = log.read_batches(records_max=5)
        await anext(reading)
        first = await log.truncate_before(300)
        assert first > 1
        assert log.statistics().segments_held > 0
    await reading.aclose()
    async with Log.open(directory, settings=small) as log:
        assert log.first_lsn == first
        assert [record.lsn async for record in log.read()] == list(range(first, 401))


def test_a_record_is_a_value() -> None:
    # Records compare, hash, copy, pickle and match by what they hold.
    record = Record(7, b"data", 99)
    assert record == Record(7, b"data", 99)
    assert record != Record(8, b"data", 99)
    assert record != (7, b"data", 99)
    assert hash(record) == hash(Record(7, b"data", 99))
    assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record
    assert repr(record) == "Record(lsn=7, data=b'data', timestamp=99)"
    assert repr(Record(1, bytes(100), 0)).endswith("... (100 bytes), timestamp=0)")
    match record:
        case Record(lsn, data, _):
            assert (lsn, data) == (7, b"data")
    with pytest.raises(AttributeError):
        record.lsn = 8  # type: ignore[misc]
