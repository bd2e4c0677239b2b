"""`wheel.timeout` behaves as `asyncio.timeout`: every test here runs on both."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from jumping import here, run

from millrace import ClosedError, TimeoutWheel

Limit = Callable[[float | None], Any]


@pytest.fixture(params=["wheel", "asyncio"])
def limit(request: pytest.FixtureRequest, _wheel: None) -> Limit:
    """`timeout` of a wheel, or asyncio's own."""
    if request.param == "asyncio":
        return asyncio.timeout
    return WHEELS[-1].timeout


WHEELS: list[TimeoutWheel] = []


@pytest.fixture(autouse=True)
def _wheel() -> None:
    WHEELS.append(TimeoutWheel())


def live() -> int:
    return WHEELS[-1].statistics().live


def test_a_block_that_is_quick_enough_is_left_alone(limit: Limit) -> None:
    # Belief: nothing is raised, it says so, and nothing stays armed.
    async def main() -> None:
        async with limit(5.0) as scope:
            assert not scope.expired()
            await asyncio.sleep(4.9)
        assert not scope.expired()
        await asyncio.sleep(10.0)
        assert live() == 0

    run(main())


def test_a_block_that_is_too_slow_is_ended(limit: Limit) -> None:
    # Belief: at its deadline, with TimeoutError caused by the cancellation, and the task is as if
    # nobody had asked to cancel it.
    async def main() -> None:
        began = here().time()
        with pytest.raises(TimeoutError) as caught:
            async with limit(5.0) as scope:
                assert scope.when() == began + 5.0
                await asyncio.sleep(60.0)
        assert began + 5.0 <= here().time() + 1e-9 <= began + 5.002
        assert scope.expired()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert isinstance(caught.value.__context__, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1.0)

    run(main())


def test_none_sets_no_limit(limit: Limit) -> None:
    # Belief: `None` never expires.
    async def main() -> None:
        async with limit(None) as scope:
            assert scope.when() is None
            await asyncio.sleep(1e6)
        assert not scope.expired()

    run(main())


def test_zero_ends_the_block_at_its_first_wait(limit: Limit) -> None:
    # Belief: the first await in it is cancelled, even one that only lets others in.
    async def main() -> None:
        reached = False
        with pytest.raises(TimeoutError):
            async with limit(0):
                reached = True
                await asyncio.sleep(0)
                pytest.fail("went on")
        assert reached
        async with limit(0):
            pass
        await asyncio.sleep(1.0)

    run(main())


def test_only_the_block_that_timed_out_raises(limit: Limit) -> None:
    # Belief: with the inner one over, the outer one goes on; with the outer one over, the inner
    # one is left by a cancellation and is not the one that raises.
    async def main() -> None:
        async with limit(10.0) as outer:
            with pytest.raises(TimeoutError):
                async with limit(1.0) as inner:
                    await asyncio.sleep(5.0)
            await asyncio.sleep(1.0)
        assert (outer.expired(), inner.expired()) == (False, True)

        with pytest.raises(TimeoutError):
            async with limit(1.0) as outer:
                with pytest.raises(asyncio.CancelledError):
                    async with limit(10.0) as inner:
                        await asyncio.sleep(5.0)
                raise asyncio.CancelledError
        assert (outer.expired(), inner.expired()) == (True, False)

    run(main())


def test_both_deadlines_in_one_tick(limit: Limit) -> None:
    # Belief: if both are over before the task runs, it is the outer one that raises.
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with limit(1.0) as outer, limit(1.0) as inner:
                await asyncio.sleep(5.0)
        assert (outer.expired(), inner.expired()) == (True, True)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_a_cancellation_from_outside_stays_one(limit: Limit) -> None:
    # Belief: it is not taken for a timeout, and the block leaves no timer.
    async def main() -> None:
        async def work() -> None:
            async with limit(10.0):
                await asyncio.sleep(60.0)

        task = asyncio.create_task(work())
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(60.0)
        assert live() == 0

    run(main())


@pytest.mark.parametrize("first", ["cancel", "timeout"])
def test_cancelled_and_timed_out_at_once(limit: Limit, first: str) -> None:
    # Belief: whichever came first, a request from outside is not swallowed.
    async def main() -> None:
        async def work() -> None:
            async with limit(1.0) as scope:
                scopes.append(scope)
                await asyncio.sleep(60.0)

        scopes: list[Any] = []
        task = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        delay_s = 0.5 if first == "cancel" else 0.5015
        here().call_later(delay_s, task.cancel)
        if first == "timeout":
            # Both are due when the loop gets to look.
            here().call_later(0.4, lambda: setattr(here().jumping, "now", here().time() + 1.0))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert task.cancelling() == 1

    run(main())


def test_a_block_that_swallows_its_cancellation(limit: Limit) -> None:
    # Belief: then nothing is raised, it still says that it expired, and the count is in order.
    async def main() -> None:
        async with limit(1.0) as scope:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60.0)
        assert scope.expired()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(1.0)

    run(main())


def test_another_error_wins(limit: Limit) -> None:
    # Belief: an error of the block is what it raises, before and while it is cancelled.
    async def main() -> None:
        with pytest.raises(KeyError):
            async with limit(1.0):
                raise KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with limit(1.0):
                try:
                    await asyncio.sleep(60.0)
                except asyncio.CancelledError:
                    raise KeyError("meanwhile") from None
        kind = type(caught.value.__context__)
        if limit is not asyncio.timeout or sys.version_info >= (3, 13):
            assert kind is TimeoutError
        await asyncio.sleep(5.0)
        assert live() == 0

    run(main())


@pytest.mark.parametrize(("move", "ends_at"), [(3.0, 3.0), (0.7, 0.7), (0.2, 0.5), (None, None)])
def test_a_deadline_can_be_moved(limit: Limit, move: float | None, ends_at: float | None) -> None:
    # Belief: later, sooner, into the past, and away; only the last word counts.
    async def main() -> None:
        began = here().time()

        async def work() -> None:
            async with limit(1.0) as scope:
                await asyncio.sleep(0.5)
                scope.reschedule(2.0 + began)
                scope.reschedule(None if move is None else began + move)
                assert scope.when() == (None if move is None else began + move)
                await asyncio.sleep(60.0)

        if ends_at is None:
            await work()
        else:
            with pytest.raises(TimeoutError):
                await work()
            assert ends_at - 1e-9 <= here().time() - began <= ends_at + 0.002
        await asyncio.sleep(100.0)
        assert live() == 0

    run(main())


def test_a_past_deadline_can_be_taken_back(limit: Limit) -> None:
    # Belief: moved into the past and away again before the loop ran, nothing happens.
    async def main() -> None:
        async with limit(1.0) as scope:
            scope.reschedule(here().time() - 5.0)
            scope.reschedule(here().time() + 5.0)
            await asyncio.sleep(4.0)
        assert not scope.expired()

    run(main())


def test_moving_needs_the_block(limit: Limit) -> None:
    # Belief: before, after and once it has expired it is a mistake, said as RuntimeError.
    async def main() -> None:
        scope = limit(1.0)
        with pytest.raises(RuntimeError):
            scope.reschedule(5.0)
        async with scope:
            pass
        with pytest.raises(RuntimeError):
            scope.reschedule(5.0)
        with pytest.raises(TimeoutError):
            async with limit(1.0) as over:
                try:
                    await asyncio.sleep(60.0)
                finally:
                    with pytest.raises(RuntimeError):
                        over.reschedule(5.0)

    run(main())


def test_a_timeout_is_entered_once_and_in_a_task(limit: Limit) -> None:
    # Belief: a second time, or outside of a task, is a RuntimeError, and arms nothing.
    async def main() -> None:
        scope = limit(1.0)
        async with scope:
            with pytest.raises(RuntimeError):
                await scope.__aenter__()
        with pytest.raises(RuntimeError):
            await scope.__aenter__()

        failures: list[Exception] = []

        def outside() -> None:
            try:
                next(iter(limit(1.0).__aenter__().__await__()))
            except RuntimeError as failed:
                failures.append(failed)

        here().call_soon(outside)
        await asyncio.sleep(1.0)
        assert [type(failed) for failed in failures] == [RuntimeError]
        assert live() == 0

    run(main())


def test_it_shows_its_state(limit: Limit) -> None:
    # Belief: created, active with its deadline, expired, finished.
    async def main() -> None:
        scope = limit(1.0)
        assert "created" in repr(scope)
        async with scope:
            assert "active" in repr(scope)
            assert "when=" in repr(scope)
        assert "finished" in repr(scope)

    run(main())


def test_timeouts_in_many_tasks(limit: Limit) -> None:
    # Belief: a thousand blocks, half of them too slow, each get their own outcome.
    async def main() -> None:
        async def work(number: int) -> str:
            try:
                async with limit(1.0 + number / 1000):
                    await asyncio.sleep(0.5 if number % 2 else 60.0)
            except TimeoutError:
                return "late"
            return "done"

        outcomes = await asyncio.gather(*map(work, range(1000)))
        assert outcomes == ["late", "done"] * 500
        assert live() == 0

    run(main())


def test_a_closed_wheel_ends_the_blocks_under_it() -> None:
    # Belief: nobody would end them in time any more, so they end now, with ClosedError; a
    # cancellation from outside is still one.
    async def main() -> None:
        wheel = TimeoutWheel()

        async def work() -> None:
            async with wheel.timeout(60.0):
                await asyncio.sleep(600.0)

        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await asyncio.sleep(1.0)
        tasks[1].cancel()
        wheel.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in outcomes] == [ClosedError, asyncio.CancelledError]
        assert tasks[0].cancelling() == 0

    run(main())


def test_a_wheel_closed_by_the_block_itself() -> None:
    # Belief: the block ends with ClosedError at its next wait; if it has none, it ends as it is,
    # and nothing comes after it.
    async def main() -> None:
        for waits in (True, False):
            wheel, ended = TimeoutWheel(), False
            with pytest.raises(ClosedError) if waits else contextlib.nullcontext():
                async with wheel.timeout(60.0) as scope:
                    wheel.close()
                    if waits:
                        await asyncio.sleep(600.0)
                        pytest.fail("the block went on")
                    ended = True
            assert ended is not waits
            await asyncio.sleep(1.0)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            assert not scope.expired()
            assert repr(scope) == "<millrace.Timeout closed>"

    run(main())


def test_a_closed_wheel_is_no_expired_timeout() -> None:
    # Belief: expired() tells a block whose time was up from one whose wheel was closed.
    async def main() -> None:
        wheel = TimeoutWheel()
        here().call_later(1.0, wheel.close)
        with pytest.raises(ClosedError):
            async with wheel.timeout(60.0) as scope:
                await asyncio.sleep(600.0)
        assert not scope.expired()

    run(main())


def test_the_deadline_is_told_as_it_was_given() -> None:
    # Belief: when() is the very float that reschedule was given, also where the wheel counts in
    # whole nanoseconds, and at infinity.
    async def main() -> None:
        async with TimeoutWheel().timeout(5.0) as scope:
            for when in (here().time() + 12.3456789012345678, math.inf, 7200.1):
                scope.reschedule(when)
                assert scope.when() == when
            scope.reschedule(None)
            assert scope.when() is None

    run(main())


def test_bad_deadlines_are_refused() -> None:
    # Belief: what is no time is refused, and the deadline stays what it was.
    async def main() -> None:
        wheel = TimeoutWheel()
        async with wheel.timeout(5.0) as scope:
            before = scope.when()
            for bad, error in ((float("nan"), ValueError), ("1", TypeError), ([], TypeError)):
                wrong: Any = bad
                with pytest.raises(error, match="when"):
                    scope.reschedule(wrong)
            assert scope.when() == before
            assert wheel.statistics().live == 1

    run(main())
