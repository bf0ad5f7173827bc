"""Alerts and silences of a queue, kept in Redis, so that whichever worker looks next goes on where another left off."""

from __future__ import annotations

from typing import Any

import orjson

from oxherd.clock import wall_ms
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.telemetry.alerts import Alert, Looked, Silence

PAST = 500  # alerts that are over and kept for reports


class AlertBook:
    """Alerts and silences of a queue, as they are kept in Redis.

    Parameters:
        link: a connection to Redis.
        keys: the queue's keys.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def alerts(self) -> list[Alert]:
        """What is wrong, or was until a moment ago; what nobody was told yet is among it."""
        return [Alert.load(each) for each in await self._all(self._keys.alerts)]

    async def past(self) -> list[Alert]:
        """Those that are over, the newest first: the last 500 that people were told of."""
        raw = await self._link.call(b"LRANGE", self._keys.past_alerts, 0, -1)
        return [Alert.load(orjson.loads(each)) for each in raw]

    async def silences(self) -> list[Silence]:
        """Those that have not ended."""
        found = [Silence(**each) for each in await self._all(self._keys.silences)]
        return [each for each in found if each.until > wall_ms() / 1000]

    async def silence(self, silence: Silence) -> None:
        """Tell nobody of these alerts until then; an earlier silence of the same pattern is replaced."""
        now = wall_ms() / 1000
        for each in await self._all(self._keys.silences):
            if each["until"] <= now:
                await self.unsilence(each["pattern"])
        kept = {name: getattr(silence, name) for name in silence.__slots__}
        await self._link.call(b"HSET", self._keys.silences, silence.pattern, orjson.dumps(kept))

    async def unsilence(self, pattern: str) -> bool:
        """End a silence; False where there was none of that pattern."""
        return bool(await self._link.call(b"HDEL", self._keys.silences, pattern))

    async def keep(self, looked: Looked) -> None:
        """Write what a look came to."""
        if looked.over:
            ended = [orjson.dumps(alert.dump()) for alert in looked.over]
            await self._link.call(b"LPUSH", self._keys.past_alerts, *ended)
            await self._link.call(b"LTRIM", self._keys.past_alerts, 0, PAST - 1)
        if looked.forget:
            await self._link.call(b"HDEL", self._keys.alerts, *looked.forget)
        if looked.keep:
            pairs: list[str | bytes] = []
            for alert in looked.keep:
                pairs += [alert.key, orjson.dumps(alert.dump())]
            await self._link.call(b"HSET", self._keys.alerts, *pairs)

    async def _all(self, key: bytes) -> list[dict[str, Any]]:
        return [orjson.loads(each) for each in await self._link.call(b"HVALS", key)]
