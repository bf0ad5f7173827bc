"""Questions that jobs wait for, as both stores keep them, over the functions of migration 008."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from oxherd.errors import StoreRefused
from oxherd.store import Question, WaitRow
from oxherd.store.outage import Outage
from oxherd.store.rows import scrub


class Waits(ABC):
    """The part of a store that keeps questions; a subclass brings the way to the database."""

    _outage: Outage

    @abstractmethod
    async def ask_waits(self, function: str, request: bytes) -> bytes | str:
        """Call a function of migration 008 with one JSON argument.

        Raises:
            StoreRefused: what is to be stored is at fault.
            StoreUnreachable: anything else.
        """

    async def open_wait(
        self, question: Question, *, fence: int, attempt_started_at: int
    ) -> tuple[WaitRow, bool] | None:
        """Ask, or look what became of it; whether it was asked just now. None: a later attempt has begun."""
        request = {**asdict(question), "fence": fence, "attempt_started_at": attempt_started_at}
        answer = await self._outage.ride_out(lambda: self._waits("open_wait", request))
        return None if answer["refused"] else (_row(answer["wait"]), bool(answer["created"]))

    async def answer_wait(
        self, wait_id: str, *, approved: bool, value: bytes | None, message: str, by: str, nonce: str | None = None
    ) -> tuple[WaitRow, bool] | None:
        """Answer a question that is open; the row as it is now, and whether this was the answer. None: no such."""
        request = {
            "id": wait_id, "nonce": nonce, "approved": approved, "value": None if value is None else value.decode(),
            "message": scrub(message), "by": scrub(by),
        }  # fmt: skip
        answer = await self._waits("answer_wait", request)
        return None if answer["wait"] is None else (_row(answer["wait"]), bool(answer["won"]))

    async def get_wait(self, wait_id: str) -> WaitRow | None:
        """One question, or None."""
        found = (await self._waits("get_wait", {"id": wait_id}))["wait"]
        return None if found is None else _row(found)

    async def list_waits(self, *, queue: str, state: str, limit: int) -> list[WaitRow]:
        """A queue's questions in one state: open ones by when they expire, others the newest first."""
        request = {"queue": queue, "state": state, "limit": limit}
        return [_row(found) for found in await self._waits("list_waits", request)]

    async def withdraw_waits(self, wait_ids: Sequence[str]) -> None:
        """Close open questions whose jobs are gone."""
        await self._waits("withdraw_waits", {"ids": list(wait_ids)})

    async def _waits(self, function: str, request: Mapping[str, Any]) -> Any:
        try:
            argument = orjson.dumps(request)
        except TypeError as error:  # half a surrogate pair
            raise StoreRefused(f"the text can't be stored: {error}") from None
        return orjson.loads(await self.ask_waits(function, argument))


def _row(found: Mapping[str, Any]) -> WaitRow:
    row = {**found, "about": _decoded(found["about"]), "value": _decoded(found["value"])}
    return WaitRow(**row)


def _decoded(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
