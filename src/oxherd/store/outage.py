"""Riding out a database that is away: try again with growing, jittered pauses, and say so once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from oxherd.clock import mono
from oxherd.errors import StoreRefused, StoreUnreachable
from oxherd.telemetry.events import StoreBack, StoreLost, emit

T = TypeVar("T")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try: doubling up to 5 s, each shortened by chance so that workers spread."""
    ceiling = FIRST_PAUSE
    while True:
        yield random.uniform(ceiling / 2, ceiling)
        ceiling = min(ceiling * 2, LONGEST_PAUSE)


class Outage:
    """Whether writes are failing, and since when.

    Parameters:
        waiting: how many writes are not durable yet, for the event.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._since: float | None = None
        self._given_up = False

    @property
    def seconds(self) -> float:
        """How long writes have been failing, 0.0 while all is well."""
        return 0.0 if self._since is None else mono() - self._since

    def give_up(self) -> None:
        """From now on raise instead of trying again: the store is stopping."""
        self._given_up = True

    async def ride_out(self, write: Callable[[], Awaitable[T]]) -> T:
        """Call `write` until the database answers. It must be safe to repeat.

        Raises:
            StoreRefused: the database answered that a row can't be stored.
            StoreUnreachable: `give_up` was called.
        """
        for pause in pauses():
            try:
                result = await write()
            except StoreUnreachable as error:
                self._lost(error)
                if self._given_up:
                    raise
            except StoreRefused:
                self._back()
                raise
            else:
                self._back()
                return result
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """`patiently`, until `give_up` is called."""
        return await patiently(read, given_up=lambda: self._given_up)

    def _lost(self, error: StoreUnreachable) -> None:
        if self._since is None:
            self._since = mono()
            emit(StoreLost(error=error.message, waiting=self._waiting()))

    def _back(self) -> None:
        if self._since is not None:
            seconds = self.seconds
            self._since = None
            emit(StoreBack(seconds=seconds))


async def patiently(ask: Callable[[], Awaitable[T]], *, given_up: Callable[[], bool] = lambda: False) -> T:
    """Call `ask` until the database answers; it must be safe to repeat. What is asked begins and ends no outage.

    Parameters:
        ask: a read, or a write that changes nothing the second time.
        given_up: whether to stop trying.

    Raises:
        StoreUnreachable: it was given up.
    """
    for pause in pauses():
        try:
            return await ask()
        except StoreUnreachable:
            if given_up():
                raise
        await asyncio.sleep(pause)
    raise AssertionError("pauses never end")
