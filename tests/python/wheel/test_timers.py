"""Callbacks and sleeps of a wheel, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import random
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jumping import JumpingLoop, here, run

from millrace import ClosedError, Handle, TimeoutWheel

if TYPE_CHECKING:
    from types import FrameType

TICK_S = 0.001
TURN = Path(__file__).parents[3] / "rust" / "bind" / "src" / "wheel" / "turn.py"


def test_a_sleep_is_never_early_and_late_by_less_than_a_tick() -> None:
    # Belief: whatever the delay and the phase, a sleep ends at its deadline or in the tick after.
    async def main() -> None:
        wheel = TimeoutWheel(tick_s=TICK_S)
        numbers = random.Random(1)
        loop = here()

        async def one(delay_s: float) -> None:
            deadline = loop.time() + delay_s
            await wheel.sleep(delay_s)
            # The clock is a float: beyond 104 days it cannot tell neighbouring nanoseconds apart.
            hair = 1e-8 + loop.time() * 1e-15
            assert deadline - hair <= loop.time() < deadline + TICK_S + hair

        for _ in range(50):
            delays = [numbers.uniform(0, 10 ** numbers.uniform(-4, 7)) for _ in range(20)]
            await asyncio.gather(*map(one, delays))

    run(main())


def test_callbacks_run_in_the_order_of_their_deadlines() -> None:
    # Belief: sooner ones first, those of one tick in the order of the calls, with their arguments.
    async def main() -> None:
        wheel = TimeoutWheel()
        ran: list[Any] = []
        for number, delay_s in enumerate([0.2, 0.1, 0.3, 0.1, 70.0, 0.1]):
            wheel.call_later(delay_s, lambda *args: ran.append(args), number, delay_s)
        wheel.call_later(0.05, ran.append, ())
        await wheel.sleep(100.0)
        assert ran == [(), (1, 0.1), (3, 0.1), (5, 0.1), (0, 0.2), (2, 0.3), (4, 70.0)]

    run(main())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e4) | st.floats(0, 0.2) | st.sampled_from([0.064, 4.096, 262.144]),
            st.none() | st.floats(0, 300.0),
        ),
        max_size=60,
    )
)
def test_what_runs_is_what_was_not_cancelled(plan: list[tuple[float, float | None]]) -> None:
    # Belief: against a sorted list, any mix of delays and cancels runs the same callbacks, each
    # once and in its tick; and everything is accounted for.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        began = loop.time()
        ran: dict[int, float] = {}
        cancelled: dict[int, bool] = {}

        def note(number: int) -> None:
            assert number not in ran
            ran[number] = loop.time()

        def take_back(number: int, handle: Handle) -> None:
            cancelled[number] = handle.cancel()

        for number, (delay_s, cancel_s) in enumerate(plan):
            handle = wheel.call_later(delay_s, note, number)
            if cancel_s is not None:
                loop.call_later(cancel_s, take_back, number, handle)
        await asyncio.sleep(2e4)
        for number, (delay_s, _) in enumerate(plan):
            if cancelled.get(number, False):
                assert number not in ran
            else:
                late_s = ran[number] - began - delay_s
                assert -1e-8 <= late_s < TICK_S + 1e-8
        seen = wheel.statistics()
        assert seen.expired == len(ran)
        assert seen.cancelled == sum(cancelled.values())
        assert (seen.armed, seen.live) == (len(plan), 0)

    run(main())


def test_many_timers_share_one_of_the_loop() -> None:
    # Belief: ten thousand deadlines later than the first one cost the loop a single timer; the
    # wheel asks again only after a batch, and for one that is sooner.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        ran: list[int] = []
        for number in range(10_000):
            wheel.call_later(5.0 + number % 10, ran.append, number)
        assert loop.timers == 1
        wheel.call_later(1.0, ran.append, -1)
        assert loop.timers == 2
        await asyncio.sleep(20.0)
        assert len(ran) == 10_001
        seen = wheel.statistics()
        assert seen.turns <= 12
        assert seen.rearmed <= 13

    run(main())


def test_an_idle_wheel_wakes_nobody() -> None:
    # Belief: when all are cancelled or through, the loop is called at most once more, ever.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        for handle in [wheel.call_later(1.0 + n / 100, print) for n in range(500)]:
            handle.cancel()
        assert wheel.next_deadline is None
        before = loop.jumping.waits
        await asyncio.sleep(80_000.0)
        assert wheel.statistics().turns <= 1
        assert loop.jumping.waits - before <= 2

    run(main())


def test_the_next_deadline_is_told() -> None:
    # Belief: in the loop's time, rounded up to a tick; none if nothing waits.
    async def main() -> None:
        wheel, loop = TimeoutWheel(tick_s=0.5), here()
        told = [wheel.next_deadline]
        wheel.call_later(10.1, print)
        told.append(wheel.next_deadline)
        first = wheel.call_later(0.5, print)
        told.append(wheel.next_deadline)
        first.cancel()
        told.append(wheel.next_deadline)
        now = loop.time()
        assert told == [None, now + 10.5, now + 0.5, now + 10.5]

    run(main())


def test_a_cancel_lets_go_at_once() -> None:
    # Belief: it says whether it came in time, twice is harmless, and what the callback held is
    # free although the handle is kept.
    class Big:
        def use(self) -> None:
            raise AssertionError("cancelled")

    async def main() -> None:
        wheel = TimeoutWheel()
        big = Big()
        gone = weakref.ref(big)
        handle = wheel.call_later(1.0, big.use)
        other = wheel.call_later(1.0, print, big)
        assert "waiting" in repr(handle)
        del big
        assert gone() is not None
        assert handle.cancel() is True
        assert other.cancel() is True
        assert gone() is None
        assert handle.cancel() is False
        assert "done" in repr(handle)
        await wheel.sleep(2.0)

    run(main())


def test_a_callback_can_cancel_one_that_is_due_with_it() -> None:
    # Belief: what has not run yet can still be taken back, also within a batch; what has run
    # cannot.
    async def main() -> None:
        wheel = TimeoutWheel()
        outcomes: list[bool] = []
        handles: list[Handle] = []
        handles.append(wheel.call_later(1.0, lambda: outcomes.append(handles[2].cancel())))
        handles.append(wheel.call_later(1.0, lambda: outcomes.append(handles[0].cancel())))
        handles.append(wheel.call_later(1.0, pytest.fail))
        await wheel.sleep(2.0)
        assert outcomes == [True, False]

    run(main())


def test_a_cancelled_sleep_takes_its_timer_back() -> None:
    # Belief: a task that is cancelled while it sleeps leaves nothing in the wheel.
    async def main() -> None:
        wheel = TimeoutWheel()
        tasks = [asyncio.create_task(wheel.sleep(60.0)) for _ in range(100)]
        await asyncio.sleep(1.0)
        assert wheel.statistics().live == 100
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        seen = wheel.statistics()
        assert (seen.live, seen.cancelled) == (0, 100)

    run(main())


def test_an_exception_does_not_stop_the_batch() -> None:
    # Belief: it goes to the loop's handler, is counted, and everybody else runs.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        heard: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: heard.append(context))
        ran: list[int] = []
        for number in range(10):
            if number % 2:
                wheel.call_later(1.0, lambda: 1 // 0)
            else:
                wheel.call_later(1.0, ran.append, number)
        await wheel.sleep(2.0)
        assert ran == [0, 2, 4, 6, 8]
        assert [type(context["exception"]) for context in heard] == [ZeroDivisionError] * 5
        seen = wheel.statistics()
        assert seen.failed == 5
        assert seen.turns == 2, "one for the batch, one for the sleep"

    run(main())


def test_an_interrupt_leaves_the_rest_for_later() -> None:
    # Belief: KeyboardInterrupt stops the loop, as from a callback of its own; what was due and
    # has not run is run when the loop goes on.
    wheel = TimeoutWheel()
    ran: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def arm() -> None:
        wheel.call_later(1.0, ran.append, 1)
        wheel.call_later(1.0, interrupt)
        wheel.call_later(1.0, ran.append, 2)
        wheel.call_later(5.0, ran.append, 3)

    loop = JumpingLoop()
    try:
        loop.run_until_complete(arm())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(2.0))
        assert ran == [1]
        loop.run_until_complete(asyncio.sleep(10.0))
        assert ran == [1, 2, 3]
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_callbacks_see_the_context_of_their_call() -> None:
    # Belief: as it was at the call, whatever was set since; what one sets, no other one sees.
    async def main() -> None:
        wheel = TimeoutWheel()
        seen: list[str] = []

        def look(number: int) -> None:
            seen.append(f"{number} {VARIABLE.get()}")
            VARIABLE.set(f"by {number}")

        wheel.call_later(1.0, look, 0)
        wheel.call_later(1.0, look, 1)
        VARIABLE.set("one")
        wheel.call_later(1.0, look, 2)
        token = VARIABLE.set("two")
        wheel.call_later(1.0, look, 3)
        VARIABLE.reset(token)
        wheel.call_later(1.0, look, 4)
        wheel.call_later(1.0, look, 5)
        VARIABLE.set("three")
        await wheel.sleep(2.0)
        assert seen == ["0 unset", "1 unset", "2 one", "3 two", "4 one", "5 one"]
        assert VARIABLE.get() == "three"

    run(main())


def test_an_idle_wheel_holds_no_context() -> None:
    # Belief: once nothing waits, what the variables of the last call held is free.
    class Big: ...

    async def main() -> None:
        wheel = TimeoutWheel()
        big: Any = Big()
        gone = weakref.ref(big)

        async def arm(value: Any) -> None:
            other: contextvars.ContextVar[Any] = contextvars.ContextVar("other")
            other.set(value)
            wheel.call_later(1.0, int)

        await asyncio.create_task(arm(big))
        del big
        gc.collect()
        assert gone() is not None
        await asyncio.sleep(2.0)
        gc.collect()
        assert gone() is None

    run(main())


def test_a_callback_that_arms_itself_does_not_keep_the_loop() -> None:
    # Belief: with a delay of 0 as well, others get their turns in between.
    async def main() -> None:
        wheel = TimeoutWheel()
        rounds = 0

        def again() -> None:
            nonlocal rounds
            rounds += 1
            wheel.call_later(0, again)

        wheel.call_later(0, again)
        await asyncio.sleep(1.0)
        assert 900 <= rounds <= 1001
        wheel.close()

    run(main())


def test_a_large_batch_lets_others_in() -> None:
    # Belief: ten thousand callbacks of one tick all run, in order, and the loop sees to others
    # several times meanwhile.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        ran: list[int] = []
        others: list[int] = []

        def other() -> None:
            others.append(len(ran))
            if len(ran) < 10_000:
                loop.call_soon(other)

        wheel.call_later(1.0, loop.call_soon, other)
        for number in range(10_000):
            wheel.call_later(1.0, ran.append, number)
        await asyncio.sleep(2.0)
        assert ran == list(range(10_000))
        assert len(set(others)) >= 9

    run(main())


def test_a_slow_batch_lets_others_in() -> None:
    # Belief: timers that take long are handed out for a millisecond of the loop's time at once,
    # at least one of them; then it is the others' turn.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        order: list[str] = []

        def take(seconds: float) -> None:
            order.append("timer")
            loop.jumping.now += seconds

        def other() -> None:
            order.append("other")
            if order.count("timer") < 14:
                loop.call_soon(other)

        wheel.call_later(1.0, loop.call_soon, other)
        for _ in range(4):
            wheel.call_later(1.0, take, 0.005)
        for _ in range(10):
            wheel.call_later(1.0, take, 0.0003)
        await asyncio.sleep(2.0)
        batches = "".join("t" if one == "timer" else " " for one in order).split()
        assert batches == ["t"] * 4 + ["tttt", "tttt", "tt"]

    run(main())


def test_a_sleep_of_nothing_lets_others_in() -> None:
    # Belief: as asyncio.sleep(0): one turn for the others, no timer.
    async def main() -> None:
        wheel = TimeoutWheel()
        order: list[str] = []
        asyncio.get_running_loop().call_soon(order.append, "other")
        await wheel.sleep(0)
        order.append("sleeper")
        assert order == ["other", "sleeper"]
        assert wheel.statistics().armed == 0

    run(main())


def test_closing_tells_everybody() -> None:
    # Belief: sleeps fail with ClosedError, callbacks are dropped and counted, later calls are
    # refused; closing twice is fine.
    async def main() -> None:
        ran: list[int] = []
        async with TimeoutWheel() as wheel:
            sleepers = [asyncio.create_task(wheel.sleep(60.0)) for _ in range(3)]
            handle = wheel.call_later(60.0, ran.append, 1)
            wheel.call_later(1.0, ran.append, 2)
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*sleepers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClosedError] * 3
        assert handle.cancel() is False
        wheel.close()
        assert wheel.is_closed
        assert wheel.next_deadline is None
        assert "closed" in repr(wheel)
        seen = wheel.statistics()
        assert (seen.dropped, seen.live, seen.cancelled) == (5, 0, 0)
        for refused in (
            lambda: wheel.call_later(1.0, print),
            lambda: wheel.timeout(1.0),
        ):
            with pytest.raises(ClosedError):
                refused()
        with pytest.raises(ClosedError):
            await wheel.sleep(1.0)
        await asyncio.sleep(100.0)
        assert ran == []

    run(main())


def test_a_callback_may_close_the_wheel() -> None:
    # Belief: then the rest of its batch is dropped with everything else.
    async def main() -> None:
        wheel = TimeoutWheel()
        wheel.call_later(1.0, wheel.close)
        wheel.call_later(1.0, pytest.fail)
        await asyncio.sleep(2.0)
        assert wheel.is_closed
        assert wheel.statistics().dropped == 1

    run(main())


BAD_DELAYS: list[tuple[Any, type[Exception] | tuple[type[Exception], ...]]] = [
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (-0.001, ValueError),
    (-float("inf"), ValueError),
    ("1", TypeError),
    (b"1", TypeError),
    (True, TypeError),
    ([], TypeError),
    (1j, TypeError),
    (10**400, (TypeError, OverflowError)),
]


@pytest.mark.parametrize(("delay_s", "error"), BAD_DELAYS)
def test_bad_delays_are_refused_before_anything_moves(delay_s: Any, error: Any) -> None:
    # Belief: in every call, with the name of the argument, and nothing is armed.
    async def main() -> None:
        wheel = TimeoutWheel()
        with pytest.raises(error, match="delay_s"):
            wheel.call_later(delay_s, print)
        with pytest.raises(error, match="delay_s"):
            wheel.timeout(delay_s)
        with pytest.raises(error, match="delay_s"):
            await wheel.sleep(delay_s)
        assert wheel.statistics().armed == 0

    run(main())


def test_bad_callbacks_and_ticks_are_refused() -> None:
    # Belief: what cannot be called is refused at the call, a tick that makes no sense at once.
    async def main() -> None:
        wheel = TimeoutWheel()
        bad: Any = 3
        with pytest.raises(TypeError, match="callable"):
            wheel.call_later(1.0, bad)
        assert wheel.statistics().armed == 0

    run(main())
    for tick_s in (0.0, -1.0, float("nan"), float("inf"), 1e-9, 1e9):
        with pytest.raises(ValueError, match="tick_s"):
            TimeoutWheel(tick_s=tick_s)
    wrong: Any = "1"
    with pytest.raises(TypeError, match="tick_s"):
        TimeoutWheel(tick_s=wrong)


def test_far_deadlines_are_not_clamped() -> None:
    # Belief: days, years and more than the clock can count are armed and stay; the first of them
    # comes at its time.
    async def main() -> None:
        wheel, loop = TimeoutWheel(), here()
        ran: list[float] = []
        began = loop.time()
        wheel.call_later(86_400.0 * 30, lambda: ran.append(loop.time() - began))
        for delay_s in (1e9, 1e12, 1e300):
            wheel.call_later(delay_s, pytest.fail)
        await asyncio.sleep(86_400.0 * 31)
        assert ran == [pytest.approx(86_400.0 * 30, abs=2 * TICK_S)]
        assert wheel.statistics().live == 3
        wheel.close()

    run(main())


def test_a_loop_that_is_closed_leaks_nothing() -> None:
    # Belief: with timers alive, with a cycle through the callback and a handle kept in it, all
    # goes with the loop and the wheel.
    class Node:
        handle: Any = None

        def __init__(self, wheel: TimeoutWheel) -> None:
            self.wheel = wheel

        def call(self) -> None: ...

    async def main() -> tuple[Any, Any]:
        wheel = TimeoutWheel()
        node = Node(wheel)
        node.handle = wheel.call_later(60.0, node.call)
        limit = wheel.timeout(60.0)
        await limit.__aenter__()
        return weakref.ref(node), weakref.ref(wheel)

    node, wheel = run(main())
    gc.collect()
    assert node() is None
    assert wheel() is None


def test_a_wheel_belongs_to_one_loop_at_a_time() -> None:
    # Belief: another loop is refused while the first one is open; once that is closed, the wheel
    # serves the next, and old handles and deadlines mean nothing there.
    wheel = TimeoutWheel()
    ran: list[int] = []

    async def arm(number: int) -> Any:
        return wheel.call_later(5.0, ran.append, number)

    first, second = JumpingLoop(), JumpingLoop()
    second.jumping.now = 7.0
    try:
        old = first.run_until_complete(arm(1))
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run_until_complete(arm(2))
        first.close()
        second.run_until_complete(arm(3))
        assert old.cancel() is False
        assert wheel.next_deadline == 12.0
        second.run_until_complete(asyncio.sleep(6.0))
        assert ran == [3]
        assert wheel.statistics().dropped == 1
    finally:
        first.close()
        second.close()


def test_without_a_loop_it_says_so() -> None:
    # Belief: outside of a running loop nothing can be armed; closing works all the same.
    wheel = TimeoutWheel()
    with pytest.raises(RuntimeError, match="no running event loop"):
        wheel.call_later(1.0, print)
    with pytest.raises(RuntimeError, match="no running event loop"):
        wheel.timeout(1.0)
    wheel.close()
    assert wheel.is_closed


def test_an_interrupt_in_a_turn_leaves_the_wheel_whole() -> None:
    # Belief: wherever Ctrl-C strikes once a turn has begun, what is armed afterwards comes.
    def interrupted_at(strike: int) -> bool:
        wheel = TimeoutWheel()
        lines = 0
        # In the package it is compiled in.
        source = TURN.read_text(encoding="utf-8").splitlines()

        def in_turn(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal lines
            # Where it sets up a block, and before the turn's end, CPython looks for no signal.
            if event == "line" and source[frame.f_lineno - 1].strip() not in {"try:", "turn.end()"}:
                lines += 1
                if lines == strike:
                    raise KeyboardInterrupt
            return in_turn

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            return in_turn if frame.f_code.co_filename == "millrace/turn.py" else None

        loop = asyncio.new_event_loop()
        before = sys.gettrace()
        try:
            with contextlib.suppress(KeyboardInterrupt):
                sys.settrace(trace)
                loop.run_until_complete(wheel.sleep(0.001))
            sys.settrace(before)
            loop.run_until_complete(asyncio.wait_for(wheel.sleep(0.001), 10.0))
        finally:
            sys.settrace(before)
            loop.close()
        return lines >= strike

    strikes = list(itertools.takewhile(interrupted_at, itertools.count(1)))
    assert len(strikes) >= 4


def test_an_interrupt_before_a_turn_leaves_the_wheel_whole() -> None:
    # Belief: Ctrl-C may also strike when the loop has taken the timer and the turn has not begun;
    # the next call asks for that turn again, and both what waited and what is new come.
    wheel = TimeoutWheel()
    ran: list[int] = []

    def strike(frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if (code.co_filename, code.co_name) == ("millrace/turn.py", "run"):
            raise KeyboardInterrupt

    async def interrupted() -> None:
        wheel.call_later(0.001, ran.append, 1)
        await asyncio.sleep(60.0)

    async def healed() -> None:
        wheel.call_later(0.001, ran.append, 2)
        while len(ran) < 2:
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            sys.settrace(strike)
            loop.run_until_complete(interrupted())
        sys.settrace(before)
        assert (ran, wheel.statistics().turns) == ([], 0)
        loop.run_until_complete(asyncio.wait_for(healed(), 10.0))
        assert ran == [1, 2]
    finally:
        sys.settrace(before)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
