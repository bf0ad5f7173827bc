"""Lists of runs and agents, the audit log, operations: what both stores share, over migrations 010 and 011."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from oxherd.errors import StoreRefused
from oxherd.store import ANY_RUN, AuditLine, Operation, RunFilter, RunPage
from oxherd.store.rows import scrubbed

MOST_EXAMINED = 2_000  # runs that one page looks at


class Listing(ABC):
    """The part of a store that lists; a subclass brings the way to the database."""

    @abstractmethod
    async def ask_listing(self, function: str, request: bytes) -> bytes | str:
        """Call one of these functions with one JSON argument. Raises StoreRefused or StoreUnreachable."""

    async def runs(
        self, *, queue: str, limit: int = 50, wanted: RunFilter = ANY_RUN, after: tuple[int, str] | None = None
    ) -> RunPage:
        """A page of a queue's runs, the newest first."""
        request = {**dataclasses.asdict(wanted), "queue": queue, "limit": limit, "after": after, "most": MOST_EXAMINED}
        found = await self._listed("page_runs", request)
        place = found["next"]
        return RunPage([_run(row) for row in found["runs"]], None if place is None else (place[0], place[1]))

    async def write_audit(self, line: AuditLine) -> None:
        """Keep who did what."""
        await self._listed("write_audit", dataclasses.asdict(scrubbed(line)))

    async def audit(self, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """A page of who did what, the newest first."""
        return list(await self._listed("list_audit", {"limit": limit, "before": before}))

    async def write_operation(self, operation: Operation) -> None:
        """Keep what an operator or a schedule did."""
        await self._listed("write_operation", dataclasses.asdict(scrubbed(operation)))

    async def operations(self, kind: str, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """A page of one kind of operations, the newest first."""
        return list(await self._listed("list_operations", {"kind": kind, "limit": limit, "before": before}))

    async def agents(self, *, limit: int, after: str = "") -> list[dict[str, Any]]:
        """A page of the agents that the product's app keeps, by name."""
        return list(await self._listed("list_agents", {"limit": limit, "after": after}))

    async def _listed(self, function: str, request: Mapping[str, Any]) -> Any:
        try:
            argument = orjson.dumps(request)
        except TypeError as error:  # half a surrogate pair
            raise StoreRefused(f"the text can't be sent: {error}") from None
        return orjson.loads(await self.ask_listing(function, argument))


def _run(row: dict[str, Any]) -> dict[str, object]:
    times = {name: row[name] or 0 for name in ("enqueued_at", "started_at", "finished_at")}
    return {**row, **times, "cost_usd": None if row["cost_usd"] is None else Decimal(row["cost_usd"])}
