"""One operator at a time for one service, and one rotation for one secret. docs/deploying.md has the story."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
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
RESERVED_MS = 86_400_000  # a rotation may wait for a person; after a day without a stage its secret is free


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
    lock = _Lock(settings, f"{place.environment_id}:{place.service_id}", told)
    value = orjson.dumps(
        {
            "command": command, "who": operator(), "why": why, "token": secrets.token_hex(8),
            "since": datetime.now(UTC).isoformat(" ", "seconds"),
        }
    )  # fmt: skip
    try:
        other, ms = await lock.take(value, LEASE_MS)
        if other:
            raise OperationUnderWay(
                f"{place} is being changed: {_holder(other)}",
                hint=f"wait until that ends; if that process is dead, its lock runs out in {ms / 1000:.0f} s",
            )
        renewing = asyncio.create_task(lock.renew(value), name="lock") if other is not None else None
        try:
            yield
        finally:
            await lock.release(value, renewing)
    finally:
        await lock.close()


async def reserve(settings: Settings, name: str, holder: Mapping[str, str], told: Callable[[str], None]) -> None:
    """Keep a secret for one rotation, also while no process of it runs. The same holder may do it again, and has to.

    Parameters:
        settings: with Redis; where that can't be used nothing is kept, and that is told.
        name: the variable.
        holder: `command`, `who`, `since` and `why`, which are the same for the whole rotation and for no other.
        told: hears why it is not kept.

    Raises:
        OperationUnderWay: another rotation has it.
    """
    lock = _Lock(settings, f"rotation:{name}", told)
    try:
        other, ms = await lock.take(orjson.dumps(holder), RESERVED_MS)
    finally:
        await lock.close()
    if other:
        raise OperationUnderWay(
            f"{name} is being rotated elsewhere: {_holder(other)}",
            hint=f"go on with it there (`oxherd rotate {name} --resume`). If its state is lost, look at what it made; "
            f"{name} is free in {ms / 3_600_000:.0f} h, or after `redis-cli DEL {lock.key.decode()}`",
        )


async def set_free(settings: Settings, name: str, holder: Mapping[str, str]) -> None:
    """End what `reserve` began. Where Redis can't be used, it ends by itself within a day."""
    lock = _Lock(settings, f"rotation:{name}", lambda _: None)
    try:
        await lock.take(orjson.dumps(holder), 0)
    finally:
        await lock.close()


class _Lock:
    def __init__(self, settings: Settings, what: str, told: Callable[[str], None]) -> None:
        self.key = keys_of(settings).operating(what)
        self._link = None if getattr(settings, "redis_url", None) is None else Link(settings.redis_url, "lock")
        self._told = told

    async def take(self, value: bytes, ms: int) -> tuple[bytes | None, int]:
        """Who else has it, empty where it is ours, and ms until theirs runs out; None where Redis can't be used."""
        if self._link is None:
            self._told("without a lock: REDIS_URL is not set")
            return None, 0
        try:
            await self._link.start()
            other = await self._ask(value, ms)
        except (RedisUnreachable, RedisRefused) as error:
            self._told(f"without a lock: {error.message}")
            return None, 0
        except TimeoutError:
            self._told("without a lock: Redis does not answer")
            return None, 0
        return (other[0], other[1]) if other else (b"", 0)

    async def close(self) -> None:
        """Without freeing it."""
        if self._link is not None:
            await self._link.stop()

    async def release(self, value: bytes, renewing: asyncio.Task[None] | None) -> None:
        """Free it, if it is still ours."""
        if renewing is None:
            return
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with contextlib.suppress(RedisUnreachable, RedisRefused, TimeoutError):
            await self._ask(value, 0)

    async def renew(self, value: bytes) -> None:
        """Keep it until somebody else has it."""
        while True:
            await asyncio.sleep(RENEW)
            with contextlib.suppress(RedisUnreachable, RedisRefused, TimeoutError):
                if other := await self._ask(value, LEASE_MS):
                    self._told(f"the lock was lost while Redis was away: {_holder(other[0])}")
                    return

    async def _ask(self, value: bytes, ms: int) -> list[Any]:
        assert self._link is not None
        async with asyncio.timeout(5):
            found: list[Any] = await self._link.run(script("holdLock"), self.key, value, ms)
            return found


def _holder(value: bytes) -> str:
    held_by = orjson.loads(value)
    return f"`oxherd {held_by['command']}` of {held_by['who']} since {held_by['since']} ({held_by['why']})"
