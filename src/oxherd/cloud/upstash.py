"""Upstash's Developer API: Redis databases and their passwords.

Source: Upstash's published OpenAPI description, https://upstash.com/docs/devops/developer-api. Accounts that were made
through Vercel or Fly can't use it.
"""

from __future__ import annotations

import base64
from typing import Any, cast
from urllib.parse import quote

from oxherd.cloud.rest import Client, Rest
from oxherd.settings import Secret

HINTS = {
    401: "are UPSTASH_EMAIL and UPSTASH_API_KEY right? Accounts made through Vercel or Fly have no such key",
    403: "may UPSTASH_API_KEY change this database?",
}


class Upstash(Client):
    """The account's databases, as an async context manager.

    Parameters:
        base: such as `https://api.upstash.com/v2`.
        email, key: the login.
    """

    def __init__(self, base: str, email: str, key: Secret) -> None:
        login = base64.b64encode(f"{email}:{key.reveal()}".encode()).decode()
        super().__init__(Rest("Upstash", base, Secret(f"Basic {login}"), HINTS))

    async def databases(self) -> list[dict[str, Any]]:
        """All databases, with what else Upstash says of them, passwords among it."""
        return cast(list[dict[str, Any]], await self._rest.call("GET", "/redis/databases"))

    async def password(self, id: str) -> Secret | None:  # noqa: A002  the API's word
        """A database's password; None where the plan has Upstash keep it to itself."""
        return _password(await self._rest.call("GET", f"/redis/database/{quote(id, safe='')}"))

    async def reset_password(self, id: str) -> Secret | None:  # noqa: A002
        """Give a database another password. The old one is refused at once, and can't be had back."""
        return _password(await self._rest.call("POST", f"/redis/reset-password/{quote(id, safe='')}"))


def _password(database: Any) -> Secret | None:
    """It comes back, though the published schema does not list it."""
    value = database.get("password") if isinstance(database, dict) else None
    return Secret(value) if isinstance(value, str) and value else None
