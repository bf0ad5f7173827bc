"""One operator at a time for one service. docs/deploying.md has the story."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from oxherd.app import keys_of
from oxherd.cloud.railway import Place
from oxherd.errors import OperationUnderWay, RedisRefused, RedisUnreachable
from oxherd.ops.recording import operator
from oxherd.queue.connection import Link
from oxherd.queue.scripts import script
from oxherd.settings import Settings

LEASE_MS = 60_000  # after which the lock of a process that died is free
RENEW = 20.0  # seconds


@contextlib.asynccontextmanager
async def held(
    settings: Settings, place: Place, command: str, why: str, told: Callable[[str], None]
) -> AsyncIterator[None]:
    """Hold the lock of a service. Where Redis can't be used there is none, and that is told: operators must act.

    Parameters:
        settings: with Redis.
        place: the service that is changed.
        command: which command does it.
        why: what it does, in words.
        told: hears why there is no lock.

    Raises:
        OperationUnderWay: somebody else has it.
    """
    if getattr(settings, "redis_url", None) is None:
        told("without a lock: REDIS_URL is not set")
        yield
        return
    link = Link(settings.redis_url, "lock")
    lock = _Lock(link, keys_of(settings).operating(f"{place.environment_id}:{place.service_id}"), told)
    value = orjson.dumps(
        {
            "command": command, "who": operator(), "why": why, "token": secrets.token_hex(8),
            "since": datetime.now(UTC).isoformat(" ", "seconds"),
        }
    )  # fmt: skip
    try:
        renewing = await lock.take(value, str(place))
        try:
            yield
        finally:
            await lock.release(value, renewing)
    finally:
        await link.stop()


class _Lock:
    def __init__(self, link: Link, key: bytes, told: Callable[[str], None]) -> None:
        self._link = link
        self._key = key
        self._told = told

    async def take(self, value: bytes, shown: str) -> asyncio.Task[None] | None:
        """What renews it; None where Redis is away."""
        try:
            await self._link.start()
            other = await self._ask(value, LEASE_MS)
        except (RedisUnreachable, RedisRefused) as error:
            self._told(f"without a lock: {error.message}")
            return None
        except TimeoutError:
            self._told("without a lock: Redis does not answer")
            return None
        if other:
            raise OperationUnderWay(
                f"{shown} is being changed: {_holder(other[0])}",
                hint=f"wait until that ends; if that process is dead, its lock runs out in {other[1] / 1000:.0f} s",
            )
        return asyncio.create_task(self._renew(value), name="lock")

    async def release(self, value: bytes, renewing: asyncio.Task[None] | None) -> None:
        """Free it, if it is still ours."""
        if renewing is None:
            return
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with contextlib.suppress(RedisUnreachable, RedisRefused, TimeoutError):
            await self._ask(value, 0)

    async def _renew(self, value: bytes) -> None:
        while True:
            await asyncio.sleep(RENEW)
            with contextlib.suppress(RedisUnreachable, RedisRefused, TimeoutError):
                if other := await self._ask(value, LEASE_MS):
                    self._told(f"the lock was lost while Redis was away: {_holder(other[0])}")
                    return

    async def _ask(self, value: bytes, ms: int) -> list[Any]:
        async with asyncio.timeout(5):
            found: list[Any] = await self._link.run(script("holdLock"), self._key, value, ms)
            return found


def _holder(value: bytes) -> str:
    held_by = orjson.loads(value)
    return f"`oxherd {held_by['command']}` of {held_by['who']} since {held_by['since']} ({held_by['why']})"
