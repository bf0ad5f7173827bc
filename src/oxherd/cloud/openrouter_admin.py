"""OpenRouter's API for keys: with a management key, which makes and deletes keys and can't call a model.

Source: OpenRouter's published OpenAPI description, https://openrouter.ai/docs/api-reference/api-keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from oxherd.cloud.rest import Client, Rest
from oxherd.errors import ServiceRefused
from oxherd.settings import Secret

PAGE = 100  # keys in one answer

HINTS = {
    401: "is OPENROUTER_MANAGEMENT_KEY a management key, and not revoked?",
    403: "is OPENROUTER_MANAGEMENT_KEY a management key? One for model calls may not do this",
}


class OpenRouterAdmin(Client):
    """The keys of one account, as an async context manager.

    Parameters:
        base: such as `https://openrouter.ai/api/v1`.
        key: a management key.
    """

    def __init__(self, base: str, key: Secret) -> None:
        super().__init__(Rest("OpenRouter", base, Secret(f"Bearer {key.reveal()}"), HINTS))

    async def keys(self) -> list[dict[str, Any]]:
        """All keys of the default workspace, disabled ones too, each without its value."""
        found: list[dict[str, Any]] = []
        while True:
            page = (await self._rest.call("GET", f"/keys?include_disabled=true&offset={len(found)}"))["data"]
            found += page
            if len(page) < PAGE:
                return found

    async def create_key(self, body: Mapping[str, Any]) -> tuple[str, Secret]:
        """Make a key: its hash, and its value, which OpenRouter never tells again."""
        made = await self._rest.call("POST", "/keys", dict(body))
        return made["data"]["hash"], Secret(made["key"])

    async def update_key(self, hash: str, body: Mapping[str, Any]) -> None:  # noqa: A002  the API's word
        """Change a key, such as its `disabled`."""
        await self._rest.call("PATCH", f"/keys/{quote(hash, safe='')}", dict(body))

    async def delete_key(self, hash: str) -> bool:  # noqa: A002
        """Delete a key for good; whether it was there."""
        try:
            await self._rest.call("DELETE", f"/keys/{quote(hash, safe='')}")
        except ServiceRefused as error:
            if error.status == 404:
                return False
            raise
        return True

    async def whose(self, key: Secret) -> dict[str, Any] | None:
        """What OpenRouter says of a key to whoever has it; None where it does not take it. Costs nothing."""
        try:
            said = await self._rest.call("GET", "/key", login=Secret(f"Bearer {key.reveal()}"))
        except ServiceRefused as error:
            if error.status == 401:
                return None
            raise
        return cast(dict[str, Any], said["data"])
