"""What is being opened: a coroutine to asyncio, and a block that closes at its end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator
    from types import TracebackType

    from ._core import Operation


class Closable(Protocol):
    """What can be closed with an await."""

    def close(self) -> Awaitable[object]:
        """Close it."""
        ...


Opened = TypeVar("Opened", bound=Closable)


class Opening(Coroutine[Any, Any, Opened], Generic[Opened]):
    """
    Something that opens: await it, or use it with `async with`, which closes it at the end.

    The work began at the call. It is a coroutine as far as asyncio is concerned, so `create_task`
    and `TaskGroup` take it, and a task made of it that is cancelled before its first step tells
    it so: what opens all the same is closed again.
    """

    __slots__ = ("_finishing", "_opened", "_started")

    def __init__(self, started: Operation[Any]) -> None:
        self._started = started
        self._opened: Opened | None = None
        self._finishing: Coroutine[Any, Any, Opened] | None = None

    @abstractmethod
    async def _finish(self) -> Opened:
        """Wait for what was started, and make of it what the caller gets."""

    def __await__(self) -> Generator[Any, Any, Opened]:
        return self._finish().__await__()

    def send(self, value: object, /) -> object:
        """Advance one step, as a task does; the result is what to wait for."""
        if self._finishing is None:
            self._finishing = self._finish()
        return self._finishing.send(value)

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> object:
        """Stop waiting with an exception, as a cancelled task does."""
        if self._finishing is None:
            self._started.close()
            self._finishing = self._finish()
        error = value if isinstance(value, BaseException) else kind
        if isinstance(error, BaseException) and traceback is not None:
            error = error.with_traceback(traceback)
        return self._finishing.throw(error)

    def close(self) -> None:
        """Stop waiting; what opens all the same is closed again."""
        if self._finishing is None:
            self._started.close()
        else:
            self._finishing.close()

    async def __aenter__(self) -> Opened:
        self._opened = await self._finish()
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
