"""When an event loop turns the engine that it drives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from io_engines import WAYS, Engines, pair, until

if TYPE_CHECKING:
    import socket

    from millrace import IoEngine

_LOOP = [name for name, settings in WAYS.items() if settings.driver == "loop"]


@pytest.fixture(params=_LOOP)
def driven(request: pytest.FixtureRequest) -> Engines:
    """Every backend that a loop drives."""
    return Engines(WAYS[request.param])


def test_tasks_that_were_answered_together_ask_together(driven: Engines) -> None:
    # The first of them does not go on alone, however quick its answers are: what all of them ask
    # for goes to the kernel at once.
    calls = []

    async def task(io: IoEngine, name: str, ours: socket.socket) -> None:
        await io.recv(ours, 1)
        for _ in range(5):
            calls.append(name)
            await io.send(ours, b"x")

    async def main(io: IoEngine) -> None:
        with pair() as (one, ours), pair() as (other, theirs):
            tasks = [
                asyncio.ensure_future(task(io, "a", ours)),
                asyncio.ensure_future(task(io, "b", theirs)),
            ]
            await until(lambda: io.statistics().in_flight == 2)
            one.sendall(b"x")
            other.sendall(b"x")
            await asyncio.gather(*tasks)

    driven.run(main)
    assert calls[0] != calls[1]
    assert sorted(calls) == ["a"] * 5 + ["b"] * 5
