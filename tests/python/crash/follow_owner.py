"""
An owner that appends, rotates and truncates as fast as it can, to be followed from outside.

Run as `python follow_owner.py DIRECTORY SETTINGS MODE`. It reads lines from its input: `N` says
that everything up to N was seen, `stop` ends it; the end of the input does so, too. When it ends in
order it prints the last LSN it was acknowledged.

Modes: `seen` drops what was seen and nothing else, `blind` drops nearly everything again and again,
`keep` drops nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading

from millrace import Log, LogSettings


def record(lsn: int) -> bytes:
    """Make the record with this LSN: nobody else has its bytes."""
    return b"%d:" % lsn + bytes([lsn % 251]) * (lsn * 7919 % 3000)


class Reports:
    """What comes in: how far the follower has come, and whether it is to end."""

    def __init__(self) -> None:
        self.seen = 0
        self.is_over = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            if not line.strip().isdigit():
                break
            self.seen = int(line)
        self.is_over = True


async def own(directory: str, settings: LogSettings, mode: str) -> int:
    """Append until told to stop; return the last LSN."""
    reports, chance = Reports(), random.Random()
    async with Log.open(directory, settings=settings) as log:
        last = log.last_lsn
        while not reports.is_over:
            count = chance.choice([1, 1, 3, 20, 100])
            tickets = [log.submit(record(last + 1 + extra)) for extra in range(count)]
            assert [ticket.lsn for ticket in tickets] == list(range(last + 1, last + 1 + count))
            last = await tickets[-1]
            if mode == "seen":
                await log.truncate_before(reports.seen + 1)
            elif mode == "blind" and chance.random() < 0.2:
                await log.truncate_before(max(1, last - chance.randrange(50)))
            if chance.random() < 0.05:
                # Long enough that the note of an idle owner is written.
                await asyncio.sleep(0.07)
    return last


if __name__ == "__main__":
    place, text, how = sys.argv[1:]
    print(asyncio.run(own(place, LogSettings(**json.loads(text)), how)), flush=True)
