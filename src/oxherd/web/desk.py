"""All that requests are answered with: the app builds one and hands it in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oxherd.errors import OxherdError
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.dead import DeadLetters
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.queue.registry import Registry
from oxherd.queue.timetable import Timetable
from oxherd.store import AuditLine, Store
from oxherd.telemetry.events import ApiActed, AuditLost, emit
from oxherd.web.approvals import Questions
from oxherd.web.auth import Gatekeeper
from oxherd.web.feed import Feed
from oxherd.web.following import Following
from oxherd.web.levels import Levels
from oxherd.web.problems import Problem

AUDIT_PATIENCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Process:
    """What a process brings to its desk.

    Attributes:
        agents: those of the product's own program: objects with `name` and `definition`.
        hide: takes the process's own secrets out of a text.
        variables: the names of those that it was given something for.
    """

    agents: Callable[[], Sequence[dict[str, Any]]]
    hide: Callable[[str], str]
    variables: frozenset[str]


class Desk:
    """One queue's services.

    Parameters:
        link: to Redis; not the one that jobs are taken by, which long answers would hold up.
        reader: makes another one, for somebody who follows a run.
        keys: of the queue.
        store: where runs are, or None.
        levels: how the queue is doing.
        gatekeeper: who may.
        approvals: the questions that jobs ask people, or None without a store.
        process: what this process brings.
    """

    def __init__(
        self,
        link: Link,
        reader: Callable[[], Link],
        keys: Keys,
        *,
        store: Store | None,
        levels: Levels,
        gatekeeper: Gatekeeper,
        approvals: Questions | None,
        process: Process,
    ) -> None:
        self.link = link
        self.keys = keys
        self.queue = keys.queue
        self.store = store
        self.levels = levels
        self.gatekeeper = gatekeeper
        self.approvals = approvals
        self.agents = process.agents
        self.hide = process.hide
        self.variables = process.variables
        self.producer = Producer(link, keys)
        self.admin = Admin(link, keys)
        self.letters = DeadLetters(self.admin)
        self.timetable = Timetable(link, keys)
        self.registry = Registry(link, keys)
        self._stopped = asyncio.Event()
        self.feed = Feed(self.admin, self._stopped)
        self.following = Following(self.admin, keys, reader, self._stopped)

    @property
    def stored(self) -> Store:
        """The store. Raises Problem: 501 where there is none."""
        if self.store is None:
            raise Problem(501, "no store is configured, so no runs are kept", hint="set DATABASE_URL")
        return self.store

    @property
    def asked(self) -> Questions:
        """The questions that jobs ask people. Raises Problem: 501 where there is no store to keep them."""
        if self.approvals is None:
            raise Problem(501, "no store is configured, so nobody can be asked anything", hint="set DATABASE_URL")
        return self.approvals

    async def stop(self) -> None:
        """End what goes on for as long as somebody listens."""
        self._stopped.set()

    async def record(self, line: AuditLine) -> None:
        """Log what somebody did, and keep it in the audit log; a store that is away is no reason not to act."""
        emit(
            ApiActed(actor=line.actor, source=line.source, action=line.action, target=line.target, outcome=line.outcome)
        )
        if self.store is None:
            return
        try:
            async with asyncio.timeout(AUDIT_PATIENCE):
                await self.store.write_audit(line)
        except (OxherdError, TimeoutError) as error:
            emit(AuditLost(action=f"{line.action} {line.target}", error=str(error) or "no answer in time"))
