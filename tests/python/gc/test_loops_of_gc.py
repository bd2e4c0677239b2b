"""`millrace.EpochGC` on several loops, on uvloop, and where an interpreter or a task ends early."""

from __future__ import annotations

import asyncio
import gc as cycles
import logging
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import millrace

if TYPE_CHECKING:
    from collections.abc import Callable

_ALL = (1_000_000, 60_000_000)
_WAIT_S = 30


@pytest.fixture(params=["asyncio", "uvloop"])
def make(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make an event loop of either kind."""
    makers: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop,
        "uvloop": uvloop.new_event_loop,
    }
    return makers[request.param]


def test_it_keeps_its_promises_on_either_loop(
    make: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    # Belief: by itself, after the pin, in order, on the loop's thread, awaited by quiesce.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=4, advance_interval_ms=1))
        ran: list[tuple[int, int]] = []
        ready = asyncio.Event()

        def note(number: int) -> None:
            ran.append((number, threading.get_ident()))
            if number == 99:
                ready.set()

        async with gc.pin("reader"):
            for number in range(4):
                gc.defer(note, number)
            await asyncio.sleep(0.01)
            assert ran == []
            with pytest.raises(millrace.OverloadedError):
                gc.defer(note, -1)
        await gc.quiesce()
        for number in range(4, 99):
            await gc.defer_async(note, number)
        await gc.quiesce()
        with gc.pin():
            gc.defer(note, 99)
        await asyncio.wait_for(ready.wait(), _WAIT_S)
        assert ran == [(number, threading.get_ident()) for number in range(100)]
        assert gc.close() == 0

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())


@pytest.mark.parametrize("mode", ["stopped", "blocked", "closed"])
def test_a_loop_does_not_depend_on_another_one(
    mode: str, make: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    # Belief: whatever the loop does that used the collector first, calls of another loop run by
    # themselves once their pins are gone, and its quiesce returns.
    gc = millrace.EpochGC(settings=millrace.GcSettings(advance_interval_ms=1))
    ran: list[str] = []

    async def first() -> None:
        gc.defer(ran.append, "first")
        if mode != "closed":
            await gc.quiesce()

    async def second() -> None:
        pin = gc.pin("held for a while").__enter__()
        gc.defer(ran.append, "second")
        await asyncio.sleep(0.01)
        assert "second" not in ran
        pin.__exit__()
        if mode != "closed":
            await asyncio.wait_for(gc.quiesce(), _WAIT_S)
        while "second" not in ran:
            await asyncio.sleep(0.001)

    async def beside_a_blocked_one() -> None:
        gc.defer(ran.append, "second")
        while "second" not in ran:
            await asyncio.sleep(0.001)

    def with_another() -> None:
        other = make()
        main = beside_a_blocked_one if mode == "blocked" else second
        other.run_until_complete(asyncio.wait_for(main(), _WAIT_S))
        other.close()

    async def block() -> None:
        gc.defer(ran.append, "blocked")
        thread.start()
        thread.join(_WAIT_S)

    loop = make()
    loop.run_until_complete(first())
    if mode == "closed":
        loop.close()
    thread = threading.Thread(target=with_another)
    if mode == "blocked":
        loop.run_until_complete(block())
    else:
        thread.start()
        thread.join(_WAIT_S)
    assert not thread.is_alive()
    assert "second" in ran
    if mode != "closed":
        loop.close()
    assert gc.close() == 0


def test_a_call_that_defers_into_a_full_queue_neither_waits_nor_digs() -> None:
    # Belief: the running call holds its room, so waiting would be for ever, and running others to
    # make room would go as deep as the queue is long. Twenty thousand children of children are all
    # cleaned, or given back to their parent, and no call fails.
    async def main() -> None:
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1000))
        cleaned = 0

        def clean(depth: int) -> None:
            nonlocal cleaned
            cleaned += 1
            for _ in range(2 if depth else 0):
                try:
                    gc.defer(clean, depth - 1)
                except millrace.OverloadedError:
                    clean(depth - 1)

        for _ in range(20):
            await gc.defer_async(clean, 9)
        while len(gc):
            await gc.quiesce()
        seen = gc.statistics()
        assert (cleaned, seen.failed) == (20 * 1023, 0)
        assert seen.items_peak <= 1000

    asyncio.run(main())


@pytest.mark.parametrize("overflow", ["wait", "inline"])
def test_a_thread_does_not_wait_for_itself(overflow: Any) -> None:
    # Belief: inside a call, and under a pin that it entered itself, a thread is refused where it
    # would have to wait for its own going on.
    gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow=overflow))
    ran: list[str] = []

    def inside() -> None:
        with gc.pin(), pytest.raises(millrace.OverloadedError):
            gc.defer(ran.append, "never")
        ran.append("inside")

    def work() -> None:
        gc.defer(inside)
        gc.collect(*_ALL)
        with gc.pin():
            gc.defer(ran.append, "first")
            with pytest.raises(millrace.OverloadedError):
                gc.defer(ran.append, "second")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(_WAIT_S)
    assert not thread.is_alive()
    assert gc.close() == 0
    assert ran == ["inside", "first"]


@pytest.mark.parametrize("end", ["leave", "drop"])
@pytest.mark.parametrize("on_a_loop", [False, True])
@pytest.mark.filterwarnings("ignore:a pin was dropped:ResourceWarning")
def test_what_a_close_left_runs_with_the_last_pin(end: str, *, on_a_loop: bool) -> None:
    # Belief: nobody needs to keep the collector or to come back to it.
    ran: list[int] = []

    def scene() -> None:
        with millrace.EpochGC() as gc:
            pins = [gc.pin("kept").__enter__()]
            gc.defer(ran.append, 1)
        del gc
        cycles.collect()
        assert ran == []
        if end == "leave":
            pins[0].__exit__()
        pins.clear()
        assert ran == [1]

    async def main() -> None:
        scene()

    if on_a_loop:
        asyncio.run(main())
    else:
        scene()


def test_a_cancelled_error_of_a_call_cancels_nobody(caplog: pytest.LogCaptureFixture) -> None:
    # Belief: it is logged and counted as any other; only Ctrl-C and an exit go on to the caller,
    # and at a close they do so after the last call.
    def cancelled() -> None:
        raise asyncio.CancelledError

    def interrupt() -> None:
        raise KeyboardInterrupt

    ran: list[int] = []
    gc = millrace.EpochGC()
    gc.defer(cancelled)
    gc.defer(interrupt)
    gc.defer(ran.append, 1)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.ERROR, "millrace.gc"):
        gc.close()
    assert ran == [1]
    assert gc.statistics().failed == 2
    assert "CancelledError" in caplog.text


def test_a_task_cancelled_as_it_enters_a_pin_leaves_none(
    make: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    # Belief: entering does not let others run, so a cancellation comes before it or inside.
    async def main() -> None:
        gc = millrace.EpochGC()

        async def enter() -> None:
            while True:
                async with gc.pin():
                    pass
                await asyncio.sleep(0)

        for _ in range(400):
            task = asyncio.create_task(enter())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert gc.statistics().pins == 0

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())


def test_a_stall_is_logged_on_a_plain_thread(caplog: pytest.LogCaptureFixture) -> None:
    # Belief: whoever collects hears of the pin that is in the way, loop or no loop.
    gc = millrace.EpochGC(settings=millrace.GcSettings(stall_after_s=0.0))
    with gc.pin("in the way"), caplog.at_level(logging.WARNING, "millrace.gc"):
        gc.collect(*_ALL)
        gc.collect(*_ALL)
    assert caplog.text.count("in the way") == 1
    gc.close()


def test_a_pin_does_not_hold_what_was_deferred_before_it() -> None:
    # Belief: what its docstring says, also on a plain thread where nobody has looked yet.
    ran: list[int] = []
    gc = millrace.EpochGC()
    gc.defer(ran.append, 1)
    with gc.pin("later"):
        gc.defer(ran.append, 2)
        assert gc.collect(*_ALL) == 1
    assert gc.close() == 0
    assert ran == [1, 2]


def test_a_batch_is_no_larger_than_it_may_be() -> None:
    # Belief: however much one collect runs, it counts in batches of at most max_batch.
    gc = millrace.EpochGC(settings=millrace.GcSettings(max_batch=10))
    for _ in range(95):
        gc.defer(int)
    assert gc.collect(*_ALL) == 95
    seen = gc.statistics()
    assert (seen.batches, seen.batch_items_max) == (10, 10)
    assert seen.done_by_kind["call"] == 95
    gc.close()


def test_a_second_interpreter_is_refused_and_the_first_one_goes_on() -> None:
    # Belief: a subinterpreter hears ImportError, and calls deferred before and after still run.
    code = """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import millrace
        ran = []
        gc = millrace.EpochGC()
        pin = gc.pin("across").__enter__()
        gc.defer(ran.append, 1)
        other = interpreters.create()
        refused = '''
        try:
            from millrace import EpochGC
        except ImportError as refused:
            assert "interpreter" in str(refused), refused
        else:
            raise AssertionError("imported")
        '''
        import textwrap
        found = interpreters.run_string(other, textwrap.dedent(refused))
        assert found is None, found
        gc.defer(ran.append, 2)
        assert ran == []
        interpreters.destroy(other)
        pin.__exit__()
        assert gc.collect(10, 60_000_000) == 2
        assert (ran, gc.close()) == ([1, 2], 0)
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
