"""The dashboard's feed: what the queue looks like and what just happened, every second while somebody watches.

However many watch, Redis is asked once a second, and nobody asks it while nobody does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from oxherd.clock import mono
from oxherd.errors import OxherdError
from oxherd.queue.admin import Admin
from oxherd.web.answers import dump
from oxherd.web.shared import Shared

EVERY = 1.0  # seconds
KEEP_ALIVE = 15.0  # seconds without news after which a comment keeps proxies from closing the connection
LONGEST = 3600.0  # seconds; a browser connects again by itself, and has to show its login anew
PATIENCE = 5.0  # seconds for Redis
SHOWN = 100  # of the newest events

Position = tuple[int, int]


class Feed:
    """Tells watchers about one queue.

    Parameters:
        admin: of the queue.
        stopped: ends every watcher's stream.
    """

    def __init__(self, admin: Admin, stopped: asyncio.Event) -> None:
        self._admin = admin
        self._stopped = stopped
        self._shared = Shared()

    async def watch(self, last_event_id: str | None = None) -> AsyncIterator[bytes]:
        """Server-sent events: `queue` whenever something changed, `away` once when Redis does not answer.

        Parameters:
            last_event_id: the last one that the watcher has seen: what happened since then comes first.
        """
        position = position_of(last_event_id)
        before: dict[str, Any] | None = None
        end, spoken = mono() + LONGEST, mono()
        yield b"retry: 1000\n\n"
        while not self._stopped.is_set() and mono() < end:
            message = await self._message(position)
            told = {name: value for name, value in message.items() if name != "id"} if message else None
            if message is None and before != {}:
                yield b"event: away\ndata: {}\n\n"
                before, spoken = {}, mono()
            elif message is not None and (told != before or message["events"]):
                position = position_of(message["id"])
                yield b"id: %b\nevent: queue\ndata: %b\n\n" % (message["id"].encode(), dump(told))
                before, spoken = {**(told or {}), "events": [], "missed": False}, mono()
            elif mono() - spoken > KEEP_ALIVE:
                yield b": still here\n\n"
                spoken = mono()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), EVERY)

    async def _message(self, position: Position | None) -> dict[str, Any] | None:
        try:
            seen = await self._shared.ask("look", EVERY / 2, self._look)
        except (OxherdError, TimeoutError):
            return None
        # A new watcher is told how things are, not what was.
        events = [event for event in seen["events"] if position is not None and _is_after(event["id"], position)]
        missed = len(events) == SHOWN
        return {**seen, "events": events, "missed": missed}

    async def _look(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            counts, gate, events = await asyncio.gather(
                self._admin.counts(), self._admin.gate(), self._admin.newest_events(SHOWN)
            )
        newest = events[-1]["id"] if events else "0-0"
        return {"id": newest, "counts": counts, "paused": gate is not None, "reason": gate, "events": events}


def position_of(event_id: str | None) -> Position | None:
    """A place in the queue's event stream that can be compared; None where it is none."""
    millis, _, number = (event_id or "").partition("-")
    return (int(millis), int(number or 0)) if millis.isdecimal() and (number or "0").isdecimal() else None


def _is_after(event_id: str, position: Position) -> bool:
    found = position_of(event_id)
    return found is not None and found > position
