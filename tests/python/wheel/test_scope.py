"""Callbacks that end together: a scope of a timeout wheel."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from bystander import Bystander
from jumping import run

from millrace import ClosedError, TimeoutWheel

if TYPE_CHECKING:
    from collections.abc import Callable


class Thing:
    """Something a callback holds."""

    def touch(self) -> None:
        """Be called."""


async def _swept(wheel: TimeoutWheel) -> None:
    while wheel.statistics().to_sweep:
        await asyncio.sleep(0)


def test_nothing_of_a_closed_scope_runs_and_everything_else_does() -> None:
    # Belief: the end counts at once, also for what is due before the wheel is swept.
    async def main() -> None:
        wheel = TimeoutWheel()
        ran: list[int] = []
        with wheel.scope() as scope:
            for number in range(2000):
                owner: Any = scope if number % 2 else wheel
                owner.call_later(0.001 * (number + 1), ran.append, number)
            await wheel.sleep(1.0)
            before = len(ran)
            assert ran == list(range(before))
        assert scope.is_closed
        await wheel.sleep(10.0)
        assert ran == [*range(before), *range(before + before % 2, 2000, 2)]
        seen = wheel.statistics()
        assert (seen.live, seen.to_sweep) == (0, 0)
        assert seen.armed == seen.cancelled + seen.expired
        assert seen.cancelled == (2000 - before) // 2

    run(main())


def test_what_is_due_in_the_same_iteration_as_the_end_does_not_run() -> None:
    # Belief: a callback that ends its own scope is the last of it, although the others of its
    # tick are due already; they count as cancelled.
    async def main() -> None:
        wheel = TimeoutWheel()
        scope = wheel.scope()
        ran: list[int] = []

        def end(number: int) -> None:
            ran.append(number)
            scope.close()

        for number in range(5):
            scope.call_later(0.01, end, number)
        await wheel.sleep(1.0)
        assert ran == [0]
        seen = wheel.statistics()
        assert (seen.expired, seen.cancelled, seen.live) == (2, 4, 0)

    run(main())


@pytest.mark.parametrize("go", [asyncio.run, uvloop.run])
def test_functions_and_arguments_are_let_go_of(go: Callable[[Any], Any]) -> None:
    # Belief: after the sweeps nothing of the scope is referred to any more, on the loop's own
    # thread, in goes that others come in between.
    async def main() -> None:
        wheel = TimeoutWheel()
        things = [Thing() for _ in range(20_000)]
        seen = [weakref.ref(thing) for thing in things]
        async with Bystander() as other:
            scope = wheel.scope()
            for thing in things:
                scope.call_later(60.0, thing.touch)
            del thing
            things.clear()
            assert all(ref() is not None for ref in seen)
            scope.close()
            assert wheel.statistics().to_sweep == 20_000
            await asyncio.sleep(0)
            before = other.turns
            await _swept(wheel)
            assert not any(ref() for ref in seen)
            found = wheel.statistics()
            assert (found.live, found.swept, found.cancelled) == (0, 20_000, 20_000)
            assert other.turns - before >= found.sweeps // 100
            assert wheel.next_deadline is None

    go(main())


def test_a_handle_of_a_closed_scope_knows() -> None:
    # Belief: its callback would not have run, so taking it back came too late.
    async def main() -> None:
        wheel = TimeoutWheel()
        scope = wheel.scope()
        first, second, third = (scope.call_later(1.0, print) for _ in range(3))
        assert first.cancel()
        assert "waiting" in repr(second)
        scope.close()
        assert "done" in repr(second)
        assert not second.cancel()
        await _swept(wheel)
        assert not third.cancel()

    run(main())


def test_a_closed_scope_arms_nothing() -> None:
    # Belief: an error instead of a callback that would never run; closing twice is fine.
    async def main() -> None:
        wheel = TimeoutWheel()
        scope = wheel.scope()
        assert repr(scope) == "<millrace.TimerScope open>"
        scope.close()
        scope.close()
        assert repr(scope) == "<millrace.TimerScope closed>"
        with pytest.raises(ClosedError, match="scope"):
            scope.call_later(1.0, print)
        assert wheel.statistics().armed == 0
        other = wheel.scope()
        wheel.close()
        with pytest.raises(ClosedError, match="wheel"):
            other.call_later(1.0, print)
        other.close()

    run(main())


def test_a_scope_that_outlives_its_loop_holds_nothing() -> None:
    # Belief: closed where no loop runs, it is cleaned in the call; and a new loop finds the wheel
    # as if nothing had been, with sweeps that come.
    wheel = TimeoutWheel()
    things = [Thing() for _ in range(3)]
    seen = [weakref.ref(thing) for thing in things]

    async def arm(count: int, *, close: bool) -> Any:
        scope = wheel.scope()
        for thing in things[:count]:
            scope.call_later(60.0, thing.touch)
        if close:
            scope.close()
        return scope

    with asyncio.Runner() as runner:
        left = runner.run(arm(3, close=False))
        left.close()
        assert wheel.statistics().swept == 3
    # Closed as the loop's last act: the sweep was asked for and never came.
    asyncio.run(arm(3, close=True))

    async def again() -> None:
        with wheel.scope() as scope:
            scope.call_later(60.0, things[0].touch)
        await _swept(wheel)
        assert wheel.statistics().live == 0

    asyncio.run(again())
    things.clear()
    gc.collect()
    assert not any(ref() for ref in seen)


def test_a_scope_in_a_cycle_is_collected() -> None:
    # Belief: a callback may hold its scope, and the scope the wheel; it is garbage all the same.
    async def main() -> None:
        wheel = TimeoutWheel()
        thing = Thing()
        scope = wheel.scope()
        scope.call_later(60.0, lambda *_: None, scope, wheel, thing)
        wheel.close()
        ref = weakref.ref(thing)
        del wheel, scope, thing
        gc.collect()
        assert ref() is None

    asyncio.run(main())


def test_a_scope_that_is_only_dropped_ends_nothing() -> None:
    # Belief: as with a handle, whoever lets go of it does not take anything back.
    async def main() -> None:
        wheel = TimeoutWheel()
        ran: list[int] = []
        wheel.scope().call_later(1.0, ran.append, 1)
        gc.collect()
        await wheel.sleep(2.0)
        assert ran == [1]

    run(main())
