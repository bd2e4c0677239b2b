"""
The process that is killed: appends the demonstration's events and reports acknowledgements.

Run as `python -m millrace.cli.demo.worker JOB`, where JOB is a JSON object. Everything it has
to say goes through the pipe whose number is in `MILLRACE_ACK_FD`: an entry for each
acknowledged event, one for each heartbeat, one at the start and one at the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from millrace import Log
from millrace.cli.demo.events import Plan
from millrace.cli.usual import USUAL_WAYS, Appender
from millrace.testing import AckWriter, Heartbeat

if TYPE_CHECKING:
    from collections.abc import Iterator

LAG = 0xFFFF_FFFF
STARTED = 0xFFFF_FFFE
FINISHED = 0xFFFF_FFFD


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    way: str
    store: str
    plan: str
    todo: str
    tasks: int
    seconds_max: float

    def argv(self) -> list[str]:
        """Return the command that does this job."""
        return [sys.executable, "-m", "millrace.cli.demo.worker", json.dumps(asdict(self))]


def save_todo(path: Path, indices: Iterator[int]) -> None:
    """Write which events are still to be appended."""
    path.write_bytes(array("I", indices).tobytes())


def _load_todo(job: Job) -> list[tuple[int, bytes]]:
    plan = Plan.load(Path(job.plan))
    wanted = array("I")
    wanted.frombytes(Path(job.todo).read_bytes())
    return [(index, plan.event(index)) for index in wanted]


async def _append_all(job: Job, target: Appender | Log, acks: AckWriter) -> None:
    todo = iter(_load_todo(job))
    # The events are many small objects that live until the end; looking through them again
    # and again would be the collector's lag and not the log's.
    gc.collect()
    gc.freeze()
    clock = time.perf_counter_ns
    deadline = clock() + int(job.seconds_max * 1e9)

    async def work() -> None:
        for index, data in todo:
            began = clock()
            lsn = await target.append(data)
            ended = clock()
            acks.note(index, ended - began, lsn)
            if ended > deadline:
                return

    async with Heartbeat(on_beat=lambda late_s: acks.note(LAG, int(late_s * 1e9), 0)):
        acks.note(STARTED, 0, time.monotonic_ns())
        await asyncio.gather(*(work() for _ in range(job.tasks)))
        acks.note(FINISHED, 0, time.monotonic_ns())
        acks.flush()


async def _run(job: Job) -> None:
    acks = AckWriter(int(os.environ["MILLRACE_ACK_FD"]))
    if job.way == "millrace":
        async with Log.open(job.store) as log:
            await _append_all(job, log, acks)
        return
    usual = USUAL_WAYS[job.way](Path(job.store))
    try:
        await _append_all(job, usual, acks)
    finally:
        await usual.close()


if __name__ == "__main__":
    asyncio.run(_run(Job(**json.loads(sys.argv[1]))))
