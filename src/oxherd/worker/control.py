"""What people ask of running workers: cancel or follow a job, close or open the gate. Heard at once, or late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oxherd.clock import wall_ms
from oxherd.queue.connection import Connection, Link
from oxherd.queue.consumer import text_of
from oxherd.queue.keys import Keys
from oxherd.settings import RedisTarget


class Control:
    """Listens on the queue's control channel.

    A message only says "look": requests are kept in keys and read after each message and each reconnection, so that
    none is lost with a message.

    Parameters:
        target, keys: where the queue is.
        on_cancel: called with the id of a job to cancel, running here or not.
        on_reader: called with the id of a job that somebody follows, running here or not, again every so often.
        on_gate: called with the reason while the gate is closed, with None when it is open.
    """

    def __init__(
        self,
        target: RedisTarget,
        keys: Keys,
        *,
        on_cancel: Callable[[str], None],
        on_reader: Callable[[str], None],
        on_gate: Callable[[str | None], None],
    ) -> None:
        self._keys = keys
        self._on_cancel = on_cancel
        self._on_reader = on_reader
        self._on_gate = on_gate
        self._link = Link(target, "control", on_up=self._listen, on_push=self._hear)
        self._ask: Callable[..., Any] | None = None

    async def start(self, link: Link) -> None:
        """Read what was asked so far and listen from now on. `link` is the worker's own, for reading the keys."""
        self._ask = link.call
        await self._link.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._link.stop()

    def listen_anew(self) -> None:
        """Connect and read the keys again: after an outage the old connection may be dead without our knowing."""
        self._link.drop(quietly=True)

    async def _listen(self, connection: Connection) -> int:
        assert self._ask is not None
        await connection.send(b"SUBSCRIBE", self._keys.control)
        # Subscribed first, then read: a request made in between is seen by one or the other.
        for job_id in await self._ask(b"ZRANGE", self._keys.cancels, 0, -1):
            self._on_cancel(text_of(job_id))
        for job_id in await self._ask(b"ZRANGEBYSCORE", self._keys.readers, wall_ms(), b"+inf"):
            self._on_reader(text_of(job_id))
        await self._read_gate()
        return 0

    async def _read_gate(self) -> None:
        assert self._ask is not None
        reason = await self._ask(b"GET", self._keys.gate)
        self._on_gate(None if reason is None else reason.decode("utf-8", "replace"))

    def _hear(self, message: list[Any]) -> None:
        kind, _, text = message
        if kind != b"message":
            return
        word, _, rest = text_of(text).partition(" ")
        if word == "cancel":
            self._on_cancel(rest)
        elif word == "reader":
            self._on_reader(rest)
        elif word == "gate":
            closed, _, reason = rest.partition(" ")
            self._on_gate(reason if closed == "closed" else None)
