"""Looking at a run's steps and dropping them, for people: what both stores share, over migration 007's functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from oxherd.errors import StoreRefused


class Timeline(ABC):
    """Reads and cuts the steps of ended runs; a subclass brings the way to the database."""

    @abstractmethod
    async def ask_timeline(self, function: str, request: bytes) -> bytes | str:
        """Call one of the functions for timelines. Raises StoreRefused or StoreUnreachable."""

    async def find_run(self, queue: str, job_id: str) -> str | None:
        """The id of a job id's newest run, or None."""
        found: str | None = (await self._asked("find_run", {"queue": queue, "job_id": job_id}))["id"]
        return found

    async def steps(self, run_id: str, *, outputs: bool = False) -> list[dict[str, object]]:
        """The finished steps of a run as rows, for people, in the order in which they finished."""
        rows = await self._asked("list_steps", {"run_id": run_id, "outputs": outputs})
        return [_shown(row, outputs) for row in rows]

    async def drop_steps(self, run_id: str, key: str) -> list[str]:
        """Forget a step, all that finished after it, and those inside it; their keys, none where there is no such."""
        return list((await self._asked("drop_steps", {"run_id": run_id, "key": key}))["dropped"])

    async def _asked(self, function: str, request: Mapping[str, Any]) -> Any:
        try:
            argument = orjson.dumps(request)
        except TypeError as error:  # half a surrogate pair
            raise StoreRefused(f"the text can't be sent: {error}") from None
        return orjson.loads(await self.ask_timeline(function, argument))


def _shown(row: dict[str, Any], outputs: bool) -> dict[str, object]:  # noqa: FBT001  private
    row["cost_usd"] = None if row["cost_usd"] is None else Decimal(row["cost_usd"])
    output = row.pop("output")
    if outputs:
        row["output"] = orjson.loads(output)
    return row
