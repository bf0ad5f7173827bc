"""The ledger as both stores keep it, over the functions of migration 006."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from oxherd.store import SpendRow, SpendSum
from oxherd.store.rows import scrubbed


class Spending(ABC):
    """The part of a store that keeps the ledger; a subclass brings the way to the database."""

    @abstractmethod
    async def ask_spend(self, function: str, request: bytes) -> bytes | str:
        """Call a function of migration 006 with one JSON argument.

        Raises:
            StoreRefused: what is to be stored is at fault.
            StoreUnreachable: anything else.
        """

    async def write_spend(self, rows: Sequence[SpendRow]) -> None:
        """Write to the ledger, no id twice. A settled row stays as it is."""
        await self.ask_spend("write_spend", orjson.dumps([scrubbed(row) for row in rows], default=str))

    async def unsettled_spend(self, *, before: int, run_id: str | None = None, limit: int = 100) -> list[SpendRow]:
        """Rows of the ledger whose bill is not known yet, the oldest first."""
        request = orjson.dumps({"before": before, "run_id": run_id, "limit": limit})
        return [_row(found) for found in orjson.loads(await self.ask_spend("unsettled_spend", request))]

    async def spend_report(self, *, by: str, since: int, until: int) -> list[SpendSum]:
        """What was spent, summed by day, tenant, agent or model."""
        request = orjson.dumps({"by": by, "since": since, "until": until})
        return [_sum(found) for found in orjson.loads(await self.ask_spend("spend_report", request))]


def _row(found: Mapping[str, Any]) -> SpendRow:
    return SpendRow(**{**found, **{name: _money(found[name]) for name in ("reserved_usd", "cost_usd")}})


def _sum(found: Mapping[str, Any]) -> SpendSum:
    return SpendSum(**{**found, **{name: Decimal(found[name]) for name in ("reserved_usd", "cost_usd")}})


def _money(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
