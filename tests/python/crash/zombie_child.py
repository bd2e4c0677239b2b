"""
A child with large writes in flight on a slow device, to be killed.

Run as `python zombie_child.py JOB`; joins the control group first, so that everything it
submits is slow, also what is still under way when it is dead.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from millrace import Log, LogSettings
from millrace.errors import BackendUnavailable
from millrace.testing import AckWriter

EXIT_UNAVAILABLE = 3
_RECORD_BYTES = 48 << 10


def large_record(index: int) -> bytes:
    """Return a record that follows from its number."""
    digest = hashlib.blake2b(index.to_bytes(8, "little")).digest()
    return index.to_bytes(8, "little") + digest * (_RECORD_BYTES // len(digest))


async def main() -> int:
    """Append until killed."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    Path(job["group"]).write_text(str(os.getpid()), encoding="ascii")
    acks = AckWriter(int(os.environ["MILLRACE_ACK_FD"]))
    try:
        log = await Log.open(job["path"], settings=LogSettings(**job["settings"]))
    except BackendUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNAVAILABLE
    following = iter(range(1 << 30))

    async def work() -> None:
        for index in following:
            acks.note(index, 0, await log.append(large_record(index)))

    await asyncio.gather(*(work() for _ in range(64)))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
