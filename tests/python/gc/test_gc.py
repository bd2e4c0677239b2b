"""`millrace.EpochGC`: what it promises its users."""

from __future__ import annotations

import asyncio
import contextvars
import gc as cycles
import logging
import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

import millrace

_ALL = (1_000_000, 60_000_000)


def test_a_pin_holds_back_what_is_deferred_after_it_and_nothing_else() -> None:
    # Belief: the effect comes when the pin is gone, and only then.
    seen: list[int] = []
    with millrace.EpochGC() as gc:
        gc.defer(seen.append, 1)
        assert gc.collect(*_ALL) == 1
        with gc.pin("reader"):
            gc.defer(seen.append, 2)
            for _ in range(100):
                assert gc.collect(*_ALL) == 0
            assert gc.statistics().oldest_pin_label == "reader"
        assert gc.collect(*_ALL) == 1
    assert seen == [1, 2]


def test_pins_nest_in_one_object_and_in_several() -> None:
    # Belief: only the last exit lets go.
    seen: list[int] = []
    with millrace.EpochGC() as gc:
        pin = gc.pin("outer")
        with pin, pin, gc.pin("inner"):
            gc.defer(seen.append, 1)
            assert pin.depth == 2
            assert gc.statistics().pins == 2
        assert pin.depth == 0
        assert gc.collect(*_ALL) == 1
        with pytest.raises(RuntimeError, match="not entered"):
            pin.__exit__()


def test_a_pin_is_held_across_awaits_and_left_on_another_thread() -> None:
    # Belief: it belongs to whoever holds it, not to a thread.
    async def main() -> None:
        seen: list[int] = []
        gc = millrace.EpochGC()
        async with gc.pin("view"):
            gc.defer(seen.append, 1)
            await asyncio.sleep(0.01)
            gc.collect(*_ALL)
            assert seen == []
        await gc.quiesce()
        assert seen == [1]
        pin = gc.pin()
        pin.__enter__()
        gc.defer(seen.append, 2)
        await asyncio.to_thread(pin.__exit__)
        await gc.quiesce()
        assert seen == [1, 2]
        assert gc.close() == 0

    asyncio.run(main())


def test_a_call_runs_by_itself_in_the_loop_that_deferred_it() -> None:
    # Belief: nobody has to collect; the drain of the port does, on the loop's own thread.
    async def main() -> None:
        ran: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        gc = millrace.EpochGC()
        gc.defer(lambda: ran.set_result(threading.get_ident()))
        assert await asyncio.wait_for(ran, 10) == threading.get_ident()
        gc.close()

    asyncio.run(main())


def test_what_a_pin_held_back_runs_without_a_next_push() -> None:
    # Belief: the tick comes while something is deferred, also for fewer than min_batch calls.
    async def main() -> None:
        ran: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gc = millrace.EpochGC(settings=millrace.GcSettings(advance_interval_ms=5))
        with gc.pin():
            gc.defer(ran.set_result, None)
            await asyncio.sleep(0)
        await asyncio.wait_for(ran, 10)
        gc.close()

    asyncio.run(main())


def test_it_runs_in_the_context_of_the_defer() -> None:
    # Belief: context variables are those of the caller, whoever runs the call.
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")
    seen: list[str] = []
    with millrace.EpochGC() as gc:
        name.set("deferred")
        gc.defer(lambda: seen.append(name.get()))
        name.set("later")
        gc.collect(*_ALL)
    assert seen == ["deferred"]


def test_exceptions_are_isolated_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    # Belief: a call that raises stops nothing, and its traceback is in the log.
    seen: list[int] = []
    gc = millrace.EpochGC()
    gc.defer(seen.append, 1)
    gc.defer(lambda: 1 // 0)
    gc.defer(seen.append, 2)
    with caplog.at_level(logging.ERROR, logger="millrace.gc"):
        assert gc.collect(*_ALL) == 3
    assert seen == [1, 2]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    now = gc.statistics()
    assert (now.enqueued, now.processed, now.failed, now.items) == (3, 2, 1, 0)
    assert "ZeroDivisionError" in (now.last_failure or "")
    gc.close()


def test_what_is_no_exception_goes_on_and_strands_nothing() -> None:
    # Belief: Ctrl-C inside a call reaches the collector's caller; the rest runs next time.
    def interrupt() -> None:
        raise KeyboardInterrupt

    seen: list[int] = []
    with millrace.EpochGC() as gc:
        gc.defer(interrupt)
        gc.defer(seen.append, 1)
        with pytest.raises(KeyboardInterrupt):
            gc.collect(*_ALL)
        assert seen == []
        assert gc.collect(*_ALL) == 1
        assert gc.statistics().failed == 1


def test_a_budget_is_kept() -> None:
    # Belief: no more calls than asked for, and time covers running them.
    seen: list[int] = []
    with millrace.EpochGC() as gc:
        for number in range(10):
            gc.defer(seen.append, number)
        assert gc.collect(3, 1_000_000) == 3
        assert gc.collect(0, 1_000_000) == 0
        assert gc.collect(100, 0) == 0
        assert gc.collect(100, 1_000_000) == 7
    assert seen == list(range(10))


def test_overflow_inline_runs_what_is_safe_and_refuses_what_is_not() -> None:
    # Belief: with no room and nobody pinned the call runs at once; on a loop a pin means refusal.
    async def main() -> None:
        seen: list[str] = []
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_bytes=10))
        gc.defer(seen.append, "large", cost_bytes=11)
        assert (seen, gc.statistics().ran_inline) == (["large"], 1)
        with gc.pin():
            gc.defer(seen.append, "fits", cost_bytes=10)
            with pytest.raises(millrace.OverloadedError):
                gc.defer(seen.append, "no", cost_bytes=1)
            with pytest.raises(millrace.TooLargeError):
                gc.defer(seen.append, "never", cost_bytes=11)
        await gc.quiesce()
        assert seen == ["large", "fits"]
        assert gc.statistics().refused == 2
        gc.close()

    asyncio.run(main())


def test_defer_async_waits_for_room() -> None:
    # Belief: fifty tasks squeeze through room for two while pins come and go; nothing is lost.
    async def main() -> None:
        seen: list[int] = []
        settings = millrace.GcSettings(max_items=2, min_batch=1, overflow="wait")
        gc = millrace.EpochGC(settings=settings)

        async def one(number: int) -> None:
            async with gc.pin():
                await asyncio.sleep(0)
            await gc.defer_async(seen.append, number)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))
        await gc.quiesce()
        assert sorted(seen) == list(range(50))
        assert gc.statistics().items_peak <= 2
        gc.close()

    asyncio.run(main())


def test_defer_async_cancelled_while_it_waits_did_not_defer() -> None:
    # Belief: what its docstring says about cancelling.
    async def main() -> None:
        seen: list[int] = []
        gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow="wait"))
        with gc.pin():
            gc.defer(seen.append, 1)
            waiting = asyncio.ensure_future(gc.defer_async(seen.append, 2))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await gc.quiesce()
        assert seen == [1]
        gc.close()

    asyncio.run(main())


def test_overflow_wait_on_a_plain_thread() -> None:
    # Belief: it waits without the interpreter, and goes on when the pin goes.
    seen: list[int] = []
    gc = millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow="wait"))
    pin = gc.pin()
    pin.__enter__()
    gc.defer(seen.append, 1)
    thread = threading.Thread(target=gc.defer, args=(seen.append, 2))
    thread.start()
    pin.__exit__()
    thread.join(30)
    assert not thread.is_alive()
    gc.close()
    assert seen == [1, 2]


def test_overflow_refuse_refuses() -> None:
    # Belief: no waiting, no running; the caller keeps the call.
    seen: list[int] = []
    with millrace.EpochGC(settings=millrace.GcSettings(max_items=1, overflow="refuse")) as gc:
        with gc.pin():
            gc.defer(seen.append, 1)
            with pytest.raises(millrace.OverloadedError):
                gc.defer(seen.append, 2)
        assert gc.collect(*_ALL) == 1
    assert seen == [1]


def test_disable_drains_and_close_reports_what_is_left() -> None:
    # Belief: nothing is stranded; what a pin holds back runs when it goes.
    seen: list[int] = []
    gc = millrace.EpochGC()
    gc.defer(seen.append, 1)
    assert gc.disable() == 0
    gc.defer(seen.append, 2)
    assert seen == [1, 2]
    with gc.pin(), pytest.raises(millrace.OverloadedError):
        gc.defer(seen.append, 0)
    gc.enable()
    with gc.pin():
        gc.defer(seen.append, 3)
        assert gc.close() == 1
        with pytest.raises(millrace.ClosedError):
            gc.defer(seen.append, 0)
    assert gc.close() == 0
    assert seen == [1, 2, 3]
    assert "closed" in repr(gc)


def test_calls_of_a_closed_loop_run_at_the_next_collect() -> None:
    # Belief: a loop that comes and goes strands nothing, held back or already handed to it.
    seen: list[int] = []
    gc = millrace.EpochGC()

    async def held(pin: millrace.EpochPin) -> None:
        pin.__enter__()
        gc.defer(seen.append, 1)

    async def handed() -> None:
        gc.defer(seen.append, 2)

    pin = gc.pin()
    asyncio.run(held(pin))
    pin.__exit__()
    asyncio.run(handed())
    gc.collect(*_ALL)
    assert sorted(seen) == [1, 2]
    assert gc.close() == 0


def test_several_loops_run_their_own_calls() -> None:
    # Belief: a call runs on the thread of the loop that deferred it, whoever collects.
    gc = millrace.EpochGC()
    wrong: list[int] = []

    def check(ident: int) -> None:
        if threading.get_ident() != ident:
            wrong.append(ident)

    async def work() -> None:
        for _ in range(200):
            with gc.pin():
                gc.defer(check, threading.get_ident())
            await asyncio.sleep(0)
        await gc.quiesce()

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gc.collect(*_ALL)
    assert wrong == []
    assert gc.statistics().processed == 600
    assert gc.close() == 0


def test_a_call_may_defer_pin_collect_and_close() -> None:
    # Belief: a call that comes back finds no lock in its way.
    seen: list[int] = []
    gc = millrace.EpochGC()

    def again() -> None:
        with gc.pin():
            gc.defer(seen.append, 2)
            gc.collect(*_ALL)
        gc.close()
        seen.append(1)

    gc.defer(again)
    gc.collect(*_ALL)
    assert sorted(seen) == [1, 2]


def test_a_stall_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    # Belief: the oldest pin shows in the statistics and, past the threshold, in the log.
    async def main() -> None:
        settings = millrace.GcSettings(advance_interval_ms=1, stall_after_s=0.005)
        gc = millrace.EpochGC(settings=settings)
        async with gc.pin("forgotten"):
            gc.defer(print)
            async with asyncio.timeout(10):
                while not caplog.records:
                    await asyncio.sleep(0.001)
            assert (gc.statistics().oldest_pin_age_s or 0) >= 0.005
        gc.disable()
        gc.close()

    with caplog.at_level(logging.WARNING, logger="millrace.gc"):
        asyncio.run(main())
    assert "forgotten" in caplog.text


def test_a_cycle_through_a_deferred_call_is_collected() -> None:
    # Belief: the collector holds what it defers; when all of it is garbage, it runs and goes.
    ran: list[int] = []

    class Node:
        def __init__(self) -> None:
            self.gc = millrace.EpochGC()
            self.gc.defer(self.clean)

        def clean(self) -> None:
            ran.append(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Node()
        cycles.collect()
    assert ran == [1]
    assert any(issubclass(warning.category, ResourceWarning) for warning in caught)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"max_items": 0}, ValueError),
        ({"max_items": 2**21}, ValueError),
        ({"max_items": True}, TypeError),
        ({"max_items": 1.5}, TypeError),
        ({"max_bytes": -1}, ValueError),
        ({"max_bytes": 2**40}, ValueError),
        ({"min_batch": 101}, ValueError),
        ({"max_batch": 0}, ValueError),
        ({"max_batch_time_us": 0}, ValueError),
        ({"advance_interval_ms": 0}, ValueError),
        ({"advance_interval_ms": "1"}, TypeError),
        ({"overflow": "drop"}, ValueError),
        ({"overflow": 1}, TypeError),
        ({"stall_after_s": float("nan")}, ValueError),
        ({"stall_after_s": -1.0}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], error: type[Exception]) -> None:
    # Belief: each is named where it is written down.
    with pytest.raises(error):
        millrace.GcSettings(**bad)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda gc: gc.defer(), TypeError),
        (lambda gc: gc.defer(3), TypeError),
        (lambda gc: gc.defer(print, cost_bytes=-1), ValueError),
        (lambda gc: gc.defer(print, cost_bytes=1.5), TypeError),
        (lambda gc: gc.defer(print, cost_bytes=2**80), (ValueError, OverflowError)),
        (lambda gc: gc.defer(print, no_such=1), TypeError),
        (lambda gc: gc.pin(3), TypeError),
        (lambda gc: gc.collect(), TypeError),
        (lambda gc: gc.collect(-1, 1), OverflowError),
        (lambda gc: gc.collect(1, -1), OverflowError),
        (lambda gc: gc.quiesce(), RuntimeError),
        (lambda _: millrace.EpochGC(settings=3), TypeError),  # type: ignore[arg-type]
        (lambda _: millrace.EpochGC(millrace.GcSettings()), TypeError),  # type: ignore[call-arg]
    ],
)
def test_bad_input_changes_nothing(call: Any, error: type[Exception]) -> None:
    # Belief: an error, no trace, and the collector goes on.
    with millrace.EpochGC() as gc:
        with pytest.raises(error):
            call(gc)
        assert (len(gc), gc.statistics().enqueued) == (0, 0)
        gc.defer(int)
        assert gc.collect(*_ALL) == 1


def test_exit_with_work_left_neither_hangs_nor_crashes() -> None:
    # Belief: an interpreter may end with calls deferred and a pin held.
    code = """
import millrace
gc = millrace.EpochGC()
pin = gc.pin("held")
pin.__enter__()
gc.defer(print, "late")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_is_told() -> None:
    # Belief: ForkedError for every call, also for a pin entered before; its exit is quiet.
    code = """
import os, millrace
gc = millrace.EpochGC()
pin = gc.pin("parent")
pin.__enter__()
gc.defer(int)
child = os.fork()
if child == 0:
    told = 0
    for call in (
        lambda: gc.defer(int), gc.pin, lambda: gc.collect(1, 1), gc.close, gc.disable,
        gc.statistics, pin.__enter__, pin.__exit__,
    ):
        try:
            call()
        except millrace.ForkedError:
            told += 1
    del pin, gc
    os._exit(0 if told == 8 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
pin.__exit__()
assert gc.collect(10, 1000) == 1
gc.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
