"""`millrace.EpochGC` in company: other loops, other threads, the cycle collector."""

from __future__ import annotations

import asyncio
import gc as cycles
import logging
import threading
import warnings
import weakref
from typing import Any

import pytest

import millrace

_ALL = (1_000_000, 60_000_000)


async def _runs_by_itself(gc: millrace.EpochGC) -> None:
    ran: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[int] = []
    async with asyncio.timeout(30):
        with gc.pin("meanwhile"):
            gc.defer(ran.set_result, None)
            await asyncio.sleep(0)
        await ran
        pin = gc.pin("waited for").__enter__()
        gc.defer(seen.append, 1)
        quiet = asyncio.ensure_future(gc.quiesce())
        await asyncio.sleep(0)
        pin.__exit__()
        await quiet
    assert seen == [1]


def test_a_loop_that_merely_does_not_run_starves_no_other() -> None:
    # Belief: each loop turns the tick for its own calls and for those who wait there.
    gc = millrace.EpochGC(settings=millrace.GcSettings(advance_interval_ms=5))
    first = asyncio.new_event_loop()

    async def defer_and_go() -> None:
        gc.defer(int)
        await asyncio.sleep(0)

    first.run_until_complete(defer_and_go())
    asyncio.run(_runs_by_itself(gc))
    first.close()
    assert gc.close() == 0


def test_a_loop_that_blocks_starves_no_other() -> None:
    # Belief: the same while the loop that was first sits in a blocking call.
    gc = millrace.EpochGC(settings=millrace.GcSettings(advance_interval_ms=5))
    ready, over = threading.Event(), threading.Event()

    async def block() -> None:
        gc.defer(int)
        await gc.quiesce()
        ready.set()
        over.wait(60)

    thread = threading.Thread(target=asyncio.run, args=(block(),))
    thread.start()
    ready.wait(60)
    try:
        asyncio.run(_runs_by_itself(gc))
    finally:
        over.set()
        thread.join(60)
    assert gc.close() == 0


def test_calls_of_a_plain_thread_run_in_a_loop_that_uses_the_collector() -> None:
    # Belief: a worker thread of a program with a loop need not collect, also under a pin.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(advance_interval_ms=5))
        gc.defer(int)
        await gc.quiesce()
        seen: list[int] = []
        pin = gc.pin().__enter__()
        await asyncio.to_thread(gc.defer, seen.append, 1)
        await asyncio.sleep(0)
        pin.__exit__()
        async with asyncio.timeout(30):
            while not seen:
                await asyncio.sleep(0)
        gc.close()

    asyncio.run(main())


@pytest.mark.parametrize("overflow", ["inline", "wait"])
def test_a_call_that_defers_does_not_wait_for_its_own_room(overflow: Any) -> None:
    # Belief: it is told that there is no room, or its call runs at once if nobody is pinned.
    seen: list[str] = []
    gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, min_batch=1, overflow=overflow))

    def again() -> None:
        try:
            gc.defer(seen.append, "ran")
        except millrace.OverloadedError:
            seen.append("told")

    gc.defer(again)
    assert gc.collect(*_ALL) == 1
    assert seen == (["ran"] if overflow == "inline" else ["told"])
    gc.close()


def test_under_ones_own_pin_nobody_waits_for_room() -> None:
    # Belief: a thread that holds the pin it would wait for is told, and goes on.
    seen: list[int] = []
    with millrace.EpochGC(settings=millrace.GcSettings(max_items=3)) as gc:
        with gc.pin("mine"):
            for number in range(3):
                gc.defer(seen.append, number)
            with pytest.raises(millrace.OverloadedError, match="wait for itself"):
                gc.defer(seen.append, 3)
        gc.defer(seen.append, 4)
    assert seen == [0, 1, 2, 4]


def test_calls_that_defer_into_a_full_queue_do_not_pile_up() -> None:
    # Belief: cleaning a tree, each node deferring its children, ends well in a short queue.
    async def main() -> int:
        cleaned = 0
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1000))

        def clean(depth: int) -> None:
            nonlocal cleaned
            for _ in range(2 if depth else 0):
                gc.defer(clean, depth - 1)
            cleaned += 1

        for _ in range(1000):
            with gc.pin():
                gc.defer(clean, 3)
        while len(gc):
            await gc.quiesce()
        assert gc.statistics().failed == 0
        gc.close()
        return cleaned

    assert asyncio.run(main()) == 15_000


def _left_behind(seen: list[int], *, is_closed: bool) -> millrace.EpochPin:
    gc = millrace.EpochGC()
    pin = gc.pin("somebody else").__enter__()
    gc.defer(seen.append, 1)
    if is_closed:
        assert gc.close() == 1
    return pin


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_a_pin_held_back_runs_when_the_collector_is_gone(
    *,
    is_closed: bool,
) -> None:
    # Belief: `close` returned 1, nobody kept the collector, and the call runs with the pin's end.
    seen: list[int] = []
    pin = _left_behind(seen, is_closed=is_closed)
    assert seen == []
    pin.__exit__()
    del pin
    cycles.collect()
    assert seen == [1]


def test_the_last_pin_of_a_closed_collector_runs_what_is_left() -> None:
    # Belief: nobody has to collect after `close`.
    seen: list[int] = []
    gc = millrace.EpochGC()
    first, second = gc.pin(), gc.pin()
    with first:
        with second:
            gc.defer(seen.append, 1)
            assert gc.close() == 1
        assert seen == []
    assert (seen, len(gc)) == ([1], 0)


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_was_handed_to_a_loop_runs_when_the_collector_is_gone(
    *,
    is_closed: bool,
) -> None:
    # Belief: closed or dropped on another thread, the calls of a living loop run in that loop.
    async def main() -> None:
        ran: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        box = [millrace.EpochGC()]
        with box[0].pin():
            box[0].defer(lambda: ran.set_result(threading.get_ident()))

        def drop() -> None:
            if is_closed:
                box[0].close()
            box.clear()
            cycles.collect()

        await asyncio.to_thread(drop)
        async with asyncio.timeout(30):
            assert await ran == threading.get_ident()

    asyncio.run(main())


def test_what_was_handed_to_a_loop_that_closes_is_not_lost() -> None:
    # Belief: neither a handle nor the loop is left, and the call still runs, on who drops it.
    seen: list[int] = []

    async def main(gc: millrace.EpochGC) -> None:
        with gc.pin():
            gc.defer(seen.append, 1)
        thread = threading.Thread(target=gc.close)
        thread.start()
        thread.join(60)

    asyncio.run(main(millrace.EpochGC()))
    cycles.collect()
    assert seen == [1]


def test_the_cycle_collector_leaves_pending_arguments_alone() -> None:
    # Belief: a collection while another thread closes does not take what calls hold for garbage.
    class Argument:
        def __init__(self) -> None:
            self.is_ended = False
            self.me = self

        def __del__(self) -> None:
            self.is_ended = True

    early: list[Argument] = []

    def look(argument: Argument) -> None:
        if argument.is_ended:
            early.append(argument)

    cycles.disable()
    try:
        for _ in range(5):
            gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=100_000))
            for _ in range(30_000):
                gc.defer(look, Argument())
            thread = threading.Thread(target=gc.close)
            thread.start()
            for _ in range(3):
                cycles.collect()
            thread.join()
    finally:
        cycles.enable()
    assert early == []


def test_what_lay_on_the_desk_of_a_loop_that_closed_runs_at_the_next_collect() -> None:
    # Belief: it was handed to the loop, which stopped and closed before it came to it.
    seen: list[int] = []
    gc = millrace.EpochGC()
    pin = gc.pin().__enter__()
    loop = asyncio.new_event_loop()

    async def defer() -> None:
        gc.defer(seen.append, 1)

    loop.run_until_complete(defer())
    pin.__exit__()
    assert gc.collect(*_ALL) == 0
    loop.close()
    del loop
    cycles.collect()
    assert gc.collect(*_ALL) == 1
    assert (seen, gc.close()) == ([1], 0)


def test_what_lies_on_a_desk_is_no_garbage() -> None:
    # Belief: only a cycle leads to the collector any more, but a loop holds the call, and runs it.
    ran: list[int] = []

    class Node:
        def __init__(self) -> None:
            self.gc = millrace.EpochGC()

        def clean(self) -> None:
            ran.append(1)

    async def main() -> None:
        node = Node()
        with node.gc.pin():
            node.gc.defer(node.clean)
        thread = threading.Thread(target=node.gc.close)
        thread.start()
        thread.join(60)
        kept = weakref.ref(node)
        del node, thread
        cycles.collect()
        assert kept() is not None
        assert ran == []
        async with asyncio.timeout(10):
            while not ran:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_a_cycle_through_a_pin_is_collected() -> None:
    # Belief: a pin that is not entered hides nothing from the cycle collector.
    ran: list[int] = []

    class Node:
        def __init__(self) -> None:
            self.gc = millrace.EpochGC()
            self.pin = self.gc.pin("kept")
            self.gc.defer(self.clean)

        def clean(self) -> None:
            ran.append(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Node()
        cycles.collect()
    assert ran == [1]
    assert any("unclosed" in str(warning.message) for warning in caught)


def test_a_call_that_is_garbage_with_its_pin_runs_or_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Belief: when nobody can leave the pin any more, the call is not swallowed in silence.
    ran: list[int] = []

    class Node:
        def __init__(self) -> None:
            self.gc = millrace.EpochGC()
            self.pin = self.gc.pin("kept").__enter__()
            self.gc.defer(self.clean)

        def clean(self) -> None:
            ran.append(1)

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="millrace.gc"):
        warnings.simplefilter("ignore")
        Node()
        cycles.collect()
    assert ran == [1] or "1 deferred calls were garbage" in caplog.text


def test_a_pin_dropped_while_entered_says_so_and_lets_go() -> None:
    # Belief: like a file that was never closed.
    with millrace.EpochGC() as gc:
        with pytest.warns(ResourceWarning, match="without being left"):
            gc.pin("lost").__enter__()
        assert gc.statistics().pins == 0


def test_a_cancelled_wait_leaves_nothing_in_the_loop() -> None:
    # Belief: while a pin is held, waiting and giving up piles nothing up.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow="wait"))

        async def wait_quiet() -> None:
            await gc.quiesce()

        async def wait_room() -> None:
            await gc.defer_async(int)

        with gc.pin():
            gc.defer(int)
            left: list[weakref.ref[Any]] = []
            for wait in (wait_quiet, wait_room):
                task = asyncio.ensure_future(wait())
                await asyncio.sleep(0)
                waited: Any = task
                left.append(weakref.ref(waited._fut_waiter))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                del task, waited
            async with asyncio.timeout(30):
                while any(future() is not None for future in left):
                    await asyncio.sleep(0)
                    cycles.collect()
        await gc.quiesce()
        gc.close()

    asyncio.run(main())
