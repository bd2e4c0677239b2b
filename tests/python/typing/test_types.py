"""What a type checker makes of the public names. mypy checks this file; running it is a bonus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_type

from millrace import Log, LogStatistics, Record, RecoveryReport, Ticket

if TYPE_CHECKING:
    from pathlib import Path


async def test_results_have_types(directory: Path) -> None:
    # An await and a task give the type the documentation names.
    async with Log.open(directory) as log:
        assert_type(log, Log)
        assert_type(await log.append(b"x"), int)
        assert_type(await log.append_many([b"x"]), range)
        assert_type(await asyncio.create_task(log.append(b"x")), int)
        assert_type(await asyncio.wait_for(log.append_many([bytearray()]), 10), range)
        assert_type(await asyncio.gather(log.append(b"x"), log.flush()), tuple[int, int])
        ticket = log.submit(memoryview(b"x"))
        assert_type(ticket, Ticket)
        assert_type(await ticket, int)
        async for record in log.read():
            assert_type(record, Record)
            assert_type(record.data, bytes)
        async for batch in log.read_batches(records_max=10):
            assert_type(batch, list[Record])
        assert_type(log.cursor("c").position, int)
        assert_type(await log.cursor("c").commit(1), None)
        assert_type(await log.truncate_before(1), int)
        assert_type(log.recovery, RecoveryReport)
        assert_type(log.statistics(), LogStatistics)
    again = await Log.open(directory, read_only=True)
    assert_type(again, Log)
    await again.close()
