"""What Oxherd says about itself, kept for a test to look at and to wait for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from oxherd.telemetry.events import Event, attach

E = TypeVar("E")
T = TypeVar("T")
SHOWN = 60  # how many of the newest a failure shows


class Events:
    """Things that happened, in order. `captured_events` fills it with Oxherd's events."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._reactions: list[Callable[[Any], None]] = []
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, one: Any) -> None:
        """Note that something happened. May be called from any thread."""
        self._all.append(one)
        for reaction in self._reactions:
            reaction(one)
        for news, loop in list(self._waiting.items()):
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(news.set)

    def on(self, kind: type[E], react: Callable[[E], None]) -> None:
        """Have something done in the very moment in which it happens, in the thread in which it does."""
        self._reactions.append(lambda one: react(one) if isinstance(one, kind) else None)

    def all(self, kind: type[E], **fields: Any) -> list[E]:
        """What happened so far, of one kind and with these fields."""
        return [
            one
            for one in self
            if isinstance(one, kind) and all(getattr(one, name) == value for name, value in fields.items())
        ]

    async def wait(self, kind: type[E], *, count: int = 1, within: float = 10.0, **fields: Any) -> list[E]:
        """Wait until it has happened `count` times, counted from the beginning.

        Parameters:
            kind: the event's class.
            count: how often.
            within: seconds, after which an AssertionError shows what did happen.
            fields: what it must hold.
        """
        return await self.until(lambda: found if len(found := self.all(kind, **fields)) >= count else None, within)

    async def until(self, look: Callable[[], T | None], within: float = 10.0) -> T:
        """Look after everything that happens until there is something to see, which is returned.

        Raises:
            AssertionError: there was nothing within so many seconds; it shows what did happen.
        """
        news = asyncio.Event()
        self._waiting[news] = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within):
                while not (found := look()):
                    await news.wait()
                    news.clear()
        except TimeoutError:
            lines = "\n".join(f"  {one}" for one in self._all[-SHOWN:])
            raise AssertionError(f"did not happen within {within} s; what did:\n{lines}") from None
        finally:
            del self._waiting[news]
        return found


@contextlib.contextmanager
def captured_events(*types: type[Event]) -> Iterator[Events]:
    """Keep the events that are emitted in this process meanwhile.

    Parameters:
        types: which, from `oxherd.telemetry.events`; all when left out.
    """
    events = Events()
    detach = attach(events.add, *types)
    try:
        yield events
    finally:
        detach()
