"""A wheel on real loops: asyncio and uvloop, several threads, a forked child."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from millrace import ForkedError, TimeoutWheel

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_real_time_is_never_early(run: Run) -> None:
    # Belief: on both loops, whatever their timers round to, a sleep takes at least its delay by
    # the machine's own clock, and a callback comes no earlier.
    async def main() -> None:
        wheel = TimeoutWheel()

        async def one(delay_s: float) -> float:
            began = time.monotonic()
            await wheel.sleep(delay_s)
            return time.monotonic() - began - delay_s

        late = await asyncio.gather(*(one(number * 0.00037) for number in range(100)))
        assert min(late[1:]) >= 0.0
        assert wheel.statistics().turns <= 200

    run(main())


def test_limits_work_on_real_loops(run: Run) -> None:
    # Belief: expiry, nesting and a moved deadline, in the loop's own time.
    async def main() -> None:
        loop = asyncio.get_running_loop()
        wheel = TimeoutWheel()
        with pytest.raises(TimeoutError):
            async with wheel.timeout(60.0) as scope:
                scope.reschedule(loop.time() + 0.002)
                await asyncio.Event().wait()
        async with wheel.timeout(60.0) as outer:
            with pytest.raises(TimeoutError):
                async with wheel.timeout(0.001):
                    await wheel.sleep(60.0)
        assert not outer.expired()
        assert wheel.statistics().live == 0

    run(main())


def test_every_loop_of_a_process_can_have_its_wheel(run: Run) -> None:
    # Belief: four threads with a loop and a wheel each do not disturb one another.
    finished: list[int] = []

    async def work() -> None:
        wheel = TimeoutWheel()
        ran: list[int] = []
        for number in range(2_000):
            handle = wheel.call_later(0.001 * (number % 5), ran.append, number)
            if number % 3 == 0:
                handle.cancel()
        while wheel.statistics().live:
            await wheel.sleep(0.001)
        assert sorted(ran) == [number for number in range(2_000) if number % 3]
        wheel.close()

    def thread(number: int) -> None:
        run(work())
        finished.append(number)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(finished) == [0, 1, 2, 3]


def test_closing_belongs_to_the_loop(run: Run) -> None:
    # Belief: another thread must not close a wheel whose loop is running.
    async def main() -> None:
        wheel = TimeoutWheel()
        wheel.call_later(60.0, print)
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(wheel.close)
        assert not wheel.is_closed
        wheel.close()

    run(main())


def test_a_stopped_loop_goes_on_with_its_timers() -> None:
    # Belief: a loop that runs in several pieces is the same loop.
    wheel = TimeoutWheel()
    ran: list[int] = []

    async def arm(number: int) -> None:
        wheel.call_later(0.001, ran.append, number)

    async def until(count: int) -> None:
        while len(ran) < count:
            await wheel.sleep(0.001)

    loop = asyncio.new_event_loop()
    for number in range(3):
        loop.run_until_complete(arm(number))
    loop.run_until_complete(until(3))
    loop.close()
    assert ran == [0, 1, 2]


def test_a_forked_child_is_refused() -> None:
    # Belief: a child of fork shares no timer with its parent: every call says so, nothing runs.
    wheel = TimeoutWheel()

    async def main() -> None:
        handle = wheel.call_later(60.0, print)
        child = os.fork()
        if child == 0:
            os._exit(_in_child(wheel))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert handle.cancel() is True

    asyncio.run(main())


def _in_child(wheel: TimeoutWheel) -> int:
    refused = 0
    for call in (
        lambda: wheel.call_later(1.0, print),
        lambda: wheel.timeout(1.0),
        lambda: wheel.start_sleep(1.0),
        wheel.close,
    ):
        try:
            call()
        except ForkedError:
            refused += 1
    return 0 if refused == 4 else 1
