"""One answer for all who ask at about the same time: however many watch, Redis and the database are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

from oxherd.clock import mono

MOST = 200  # answers that are kept
T = TypeVar("T")


class Shared:
    """Keeps answers for a while."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def ask(self, what: Hashable, seconds: float, answer: Callable[[], Awaitable[T]]) -> T:
        """An answer that is no older than `seconds`, or the one that is on its way.

        Parameters:
            what: the question.
            seconds: how old an answer may be.
            answer: finds a new one. What it raises is raised to all who wait for it.
        """
        asked_at, task = self._asked.get(what, (0.0, None))
        if task is None or (task.done() and mono() - asked_at >= seconds):
            if len(self._asked) >= MOST:
                self._asked = {each: kept for each, kept in self._asked.items() if not kept[1].done()}
            task = asyncio.ensure_future(_of(answer))
            task.add_done_callback(_seen)
            self._asked[what] = (mono(), task)
        return cast(T, await asyncio.shield(task))

    def forget(self, what: Hashable) -> None:
        """Answer anew from now on: somebody has just changed what it is about."""
        self._asked.pop(what, None)


async def _of(answer: Callable[[], Awaitable[T]]) -> T:
    return await answer()


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited may be gone: then nobody else looks at it
