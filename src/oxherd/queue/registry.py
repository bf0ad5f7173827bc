"""Who works on a queue: every worker's last sign of life.

Workers leave it in the round in which they look at leases anyway (`watchQueue`), so it costs no command of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from oxherd.queue.connection import Link
from oxherd.queue.consumer import text_of
from oxherd.queue.keys import Keys

SILENT_MS = 90_000  # three rounds without a sign
KEPT_MS = 3_600_000  # how long a worker that died without a word is remembered


class Registry:
    """Reads and leaves the registry of one queue over a link it is given."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def workers(self) -> list[dict[str, Any]]:
        """What each worker said of itself last, with `seen` (ms ago) and `alive`; the liveliest first."""
        k = self._keys
        (seconds, micros), seen, said = await asyncio.gather(
            self._link.call(b"TIME"),
            self._link.call(b"ZREVRANGE", k.workers_seen, 0, -1, b"WITHSCORES"),
            self._link.call(b"HGETALL", k.workers),
        )
        now = int(seconds) * 1000 + int(micros) // 1000
        words = dict(zip(said[::2], said[1::2], strict=True))
        return [
            {"id": text_of(each), **orjson.loads(words[each]), "seen": ago, "alive": ago < SILENT_MS}
            for each, score in zip(seen[::2], seen[1::2], strict=True)
            if each in words and (ago := max(now - int(float(score)), 0)) < KEPT_MS
        ]

    async def leave(self, worker: str) -> None:
        """Forget a worker that stops in good order."""
        await asyncio.gather(
            self._link.call(b"ZREM", self._keys.workers_seen, worker),
            self._link.call(b"HDEL", self._keys.workers, worker),
        )
