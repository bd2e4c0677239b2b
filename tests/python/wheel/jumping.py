"""A loop whose clock stands still, and jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Jumping(selectors.DefaultSelector):
    """Waits for nothing: what the loop wanted to wait is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits = 0

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready, after a jump if nothing is."""
        if timeout is None:
            raise AssertionError("the loop would wait for ever")
        if timeout > 0:
            self.waits += 1
            # asyncio wants to see a time after the deadline once floats are coarser than its
            # resolution; a clock that stands exactly on it would stand there for ever.
            self.now = math.nextafter(self.now + timeout, math.inf)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        self.jumping = Jumping()
        super().__init__(self.jumping)
        self.timers = 0

    def time(self) -> float:
        """Return the time of the virtual clock."""
        return self.jumping.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Count the timers of the loop."""
        self.timers += 1
        return super().call_at(when, callback, *args, **options)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in virtual time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


def here() -> JumpingLoop:
    """Return the loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    return loop
