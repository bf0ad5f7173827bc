"""Credentials as both stores keep them, over the functions of migration 004. What is in an envelope, no store knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from oxherd.errors import StoreRefused
from oxherd.store import CredentialRow
from oxherd.store.outage import Outage


class Credentials(ABC):
    """The part of a store that keeps credentials; a subclass brings the way to the database."""

    _outage: Outage

    @abstractmethod
    async def ask_credentials(self, function: str, request: bytes) -> bytes | str:
        """Call a function of migration 004 with one JSON argument.

        Raises:
            StoreRefused: what is to be stored is at fault.
            StoreUnreachable: anything else.
        """

    async def put_credential(self, tenant: str, name: str, envelope: str) -> bool:
        """Store an envelope in place of any that is there; whether there was none."""
        answer = await self._requested("put_credential", {"tenant": tenant, "name": name, "envelope": envelope})
        return bool(answer["created"])

    async def get_credential(self, tenant: str, name: str) -> str | None:
        """One envelope, or None. Waits while the database is away."""
        request = {"tenant": tenant, "name": name}
        found: str | None = (await self._outage.patiently(lambda: self._requested("get_credential", request)))[
            "envelope"
        ]
        return found

    async def remove_credential(self, tenant: str, name: str) -> bool:
        """Forget one; whether it was there."""
        return bool((await self._requested("remove_credential", {"tenant": tenant, "name": name}))["removed"])

    async def list_credentials(
        self,
        *,
        limit: int,
        after: tuple[str, str] | None = None,
        tenant: str | None = None,
        but_key: str | None = None,
    ) -> list[CredentialRow]:
        """A page in the order of tenant and name."""
        request = {"limit": limit, "after": after, "tenant": tenant, "but_key": but_key}
        return [CredentialRow(**row) for row in await self._requested("list_credentials", request)]

    async def count_credentials(self) -> dict[str, int]:
        """How many each key sealed, by the key's id."""
        return dict(await self._requested("count_credentials", {}))

    async def swap_credentials(self, swaps: Sequence[tuple[str, str, str, str]]) -> int:
        """Replace envelopes that are still the ones that were read; how many."""
        rows = [dict(zip(("tenant", "name", "old", "new"), swap, strict=True)) for swap in swaps]
        return int((await self._requested("swap_credentials", rows))["swapped"])

    async def _requested(self, function: str, request: Mapping[str, Any] | Sequence[Mapping[str, str]]) -> Any:
        try:
            argument = orjson.dumps(request)
        except TypeError as error:  # half a surrogate pair
            raise StoreRefused(f"a credential's tenant or name can't be stored: {error}") from None
        return orjson.loads(await self.ask_credentials(function, argument))
