"""Asking the configured queue something and being told when it can't answer right now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from oxherd import settings as variables
from oxherd.app import queue_client, run_loop
from oxherd.cli.printing import note
from oxherd.queue.admin import Admin
from oxherd.queue.producer import Producer
from oxherd.telemetry.events import RedisBack, RedisLost, attach

T = TypeVar("T")


def ask_queue(question: Callable[[Producer, Admin], Awaitable[T]]) -> T:
    """Connect to the configured queue, ask, disconnect.

    Raises:
        SettingsError: REDIS_URL is missing or malformed.
        RedisUnreachable, RedisRefused: Redis is not there or does not let us in.
    """
    settings = variables.load()

    async def ask() -> T:
        async with queue_client(settings) as (producer, admin):
            return await question(producer, admin)

    return cast(T, run_loop(ask()))


@contextmanager
def say_when_redis_is_away() -> Iterator[None]:
    """Meanwhile, tell on stderr that Redis went away and came back."""
    detach = attach(_say, RedisLost, RedisBack)
    try:
        yield
    finally:
        detach()


def _say(event: RedisLost | RedisBack) -> None:
    if isinstance(event, RedisBack):
        note(f"Redis is back after {event.seconds:g} s")
    else:
        note(f"Redis is away ({event.error}); waiting for it")
