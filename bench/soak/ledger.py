"""The books of a soak: what was put on the queue, what became of it, and what the witness saw."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.settings import parse_redis_url


@dataclass
class Kind:
    """One kind of job and how each of them must end."""

    name: str
    end: str
    jobs: list[str] = field(default_factory=list)


class Ends:
    """How jobs finished, as the queue's own event stream tells it."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._link = Link(parse_redis_url(url), "ledger")
        self._keys = keys
        self._position = "0"
        self._task: asyncio.Task[None] | None = None
        self.of: defaultdict[str, list[str]] = defaultdict(list)
        self.events: Counter[str] = Counter()

    async def start(self) -> None:
        """Begin to read."""
        await self._link.start()
        await self._link.call(b"HSET", self._keys.meta, b"opts.maxLenEvents", 10_000_000)  # trim nothing unread
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._link.stop()

    async def _read(self) -> None:
        while True:
            try:
                reply = await self._link.call(
                    b"XREAD", b"COUNT", 1000, b"BLOCK", 1000, b"STREAMS", self._keys.events, self._position
                )
            except (RedisUnreachable, RedisRefused):
                await asyncio.sleep(0.05)
                continue
            for entry_id, flat in reply[0][1] if reply else ():
                self._position = entry_id.decode()
                words = dict(zip(flat[::2], flat[1::2], strict=True))
                event = words[b"event"].decode()
                self.events[event] += 1
                if event in ("completed", "failed"):
                    self.of[words[b"jobId"].decode()].append(event)
