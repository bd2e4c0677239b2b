"""`millrace.EpochGC`: what becomes of calls that misbehave, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

import millrace

_ALL = (1_000_000, 60_000_000)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _leave() -> None:
    raise SystemExit(3)


def test_a_cancelled_error_of_a_call_strikes_nobody(caplog: pytest.LogCaptureFixture) -> None:
    # Belief: a cleanup that asks a cancelled future does not cancel the task that makes room.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=2, min_batch=1))
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        seen: list[int] = []

        async def innocent() -> str:
            gc.defer(cancelled.result)
            gc.defer(seen.append, 1)
            gc.defer(seen.append, 2)
            return "fine"

        assert await asyncio.ensure_future(innocent()) == "fine"
        await gc.quiesce()
        gc.defer(cancelled.result)
        gc.defer(seen.append, 3)
        assert gc.close() == 0
        assert seen == [1, 2, 3]
        assert gc.statistics().failed == 2

    with caplog.at_level(logging.ERROR, logger="millrace.gc"):
        asyncio.run(main())
    assert "CancelledError" in caplog.text


@pytest.mark.parametrize(
    ("strike", "error"),
    [(_interrupt, KeyboardInterrupt), (_leave, SystemExit)],
)
def test_close_runs_the_rest_before_it_raises(strike: Any, error: type[BaseException]) -> None:
    # Belief: an exit out of the first call leaves no other behind.
    seen: list[int] = []
    gc = millrace.EpochGC()
    gc.defer(strike)
    gc.defer(seen.append, 1)
    gc.defer(seen.append, 2)
    with pytest.raises(error):
        gc.close()
    assert (seen, len(gc)) == ([1, 2], 0)


def test_ctrl_c_out_of_a_call_that_made_room_does_not_undo_the_defer() -> None:
    # Belief: `defer` finishes what it does, then lets the interrupt go on.
    seen: list[int] = []
    with millrace.EpochGC(settings=millrace.GcSettings(max_items=1, min_batch=1)) as gc:
        gc.defer(_interrupt)
        with pytest.raises(KeyboardInterrupt):
            gc.defer(seen.append, 1)
        assert gc.collect(*_ALL) == 1
    assert seen == [1]


def test_calls_of_loop_and_thread_run_in_the_order_of_the_defers() -> None:
    # Belief: one who may run both runs what was deferred first.
    async def main() -> None:
        gc = millrace.EpochGC()
        seen: list[int] = []
        with gc.pin():
            for number in range(0, 6, 2):
                await asyncio.to_thread(gc.defer, seen.append, number)
                gc.defer(seen.append, number + 1)
        assert gc.close() == 0
        assert seen == [0, 1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_collect_inside_a_call_leaves_the_rest_to_the_run_under_way() -> None:
    # Belief: calls do not nest, however deep the queue.
    depth = deepest = 0

    def nested() -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        assert gc.collect(*_ALL) == 0
        depth -= 1

    with millrace.EpochGC() as gc:
        for _ in range(2000):
            gc.defer(nested)
        assert gc.collect(*_ALL) == 2000
        assert gc.statistics().failed == 0
    assert deepest == 1


def test_a_small_budget_costs_little_beside_a_long_queue() -> None:
    # Belief: no more is handed over than may be run.
    with millrace.EpochGC(settings=millrace.GcSettings(max_items=200_000)) as gc:
        for _ in range(150_000):
            gc.defer(int)
        begun = time.perf_counter()
        assert gc.collect(1, 60_000_000) == 1
        small = time.perf_counter() - begun
        begun = time.perf_counter()
        assert gc.collect(*_ALL) == 149_999
        large = time.perf_counter() - begun
    assert small < large / 4, f"{small * 1e3:.1f} ms of {large * 1e3:.1f} ms"


def test_who_waits_for_room_and_gets_it_was_not_refused() -> None:
    # Belief: `refused` counts calls given back, not tries.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=2, overflow="wait"))

        async def one() -> None:
            async with gc.pin():
                await asyncio.sleep(0)
            await gc.defer_async(int)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(one())
        await gc.quiesce()
        now = gc.statistics()
        assert (now.refused, now.processed + now.ran_inline) == (0, 100)
        gc.close()

    asyncio.run(main())


def test_a_thread_that_waits_for_room_when_it_is_disabled_runs_its_call() -> None:
    # Belief: disabled and nobody pinned, callers clean directly, also those who were waiting.
    seen: list[int] = []
    gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow="wait"))
    pin = gc.pin().__enter__()
    gc.defer(seen.append, 1)
    failed: list[millrace.Error] = []

    def wait() -> None:
        try:
            gc.defer(seen.append, 2)
        except millrace.Error as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    pin.__exit__()
    gc.disable()
    thread.join(60)
    assert (sorted(seen), failed) == ([1, 2], [])
    gc.close()


@pytest.mark.parametrize("cost", [-1, 2**64, 2**130])
def test_a_cost_out_of_range_is_named(cost: int) -> None:
    # Belief: the limits are in the message, whatever the number.
    with millrace.EpochGC() as gc, pytest.raises(ValueError, match="between 0 and") as raised:
        gc.defer(int, cost_bytes=cost)
    assert str(cost) in str(raised.value)


def test_max_batch_has_a_limit_where_it_is_written_down() -> None:
    # Belief: settings that the collector would refuse cannot be made.
    millrace.GcSettings(max_batch=2**21 - 1)
    with pytest.raises(ValueError, match="max_batch must be at most"):
        millrace.GcSettings(max_batch=2**21)
