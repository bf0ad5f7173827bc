"""Supabase's Management API: the keys and the database password of one project.

Source: Supabase's published OpenAPI description, https://api.supabase.com/api/v1.
"""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import quote

from oxherd.cloud.rest import Client, Rest
from oxherd.errors import ServiceRefused
from oxherd.settings import Secret

HINTS = {
    401: "is SUPABASE_ACCESS_TOKEN right, and not revoked?",
    403: "does SUPABASE_ACCESS_TOKEN belong to somebody who may change the project's keys?",
    404: "is SUPABASE_PROJECT_REF, or the ref in SUPABASE_URL, right?",
}


class SupabaseAdmin(Client):
    """One project, as an async context manager.

    Parameters:
        base: such as `https://api.supabase.com`.
        token: a personal access token.
        ref: the project's 20 letters.
    """

    def __init__(self, base: str, token: Secret, ref: str) -> None:
        super().__init__(Rest("Supabase", base, Secret(f"Bearer {token.reveal()}"), HINTS))
        self._project = f"/v1/projects/{quote(ref, safe='')}"

    async def api_keys(self) -> list[dict[str, Any]]:
        """All keys of the project **with their values** in `api_key`."""
        return cast(list[dict[str, Any]], await self._rest.call("GET", f"{self._project}/api-keys?reveal=true"))

    async def create_secret_key(self, name: str, description: str) -> dict[str, Any]:
        """Make a secret key that acts as `service_role`; with its value in `api_key`.

        Parameters:
            name: of small letters, digits and underscores, 4 to 64 characters.
            description: for people.
        """
        body = {
            "type": "secret", "name": name, "description": description, "secret_jwt_template": {"role": "service_role"},
        }  # fmt: skip
        return cast(dict[str, Any], await self._rest.call("POST", f"{self._project}/api-keys?reveal=true", body))

    async def delete_key(self, id: str, *, reason: str) -> bool:  # noqa: A002  the API's word
        """Delete a key for good; whether it was there."""
        try:
            await self._rest.call(
                "DELETE", f"{self._project}/api-keys/{quote(id, safe='')}?reason={quote(reason, safe='')}"
            )
        except ServiceRefused as error:
            if error.status == 404:
                return False
            raise
        return True

    async def legacy_enabled(self) -> bool:
        """Whether the JWT keys, anon and service_role, are taken. Supabase is about to do away with them."""
        try:
            return bool((await self._rest.call("GET", f"{self._project}/api-keys/legacy"))["enabled"])
        except ServiceRefused as error:
            if error.status == 404:
                return False
            raise

    async def set_legacy(self, *, enabled: bool) -> None:
        """Take both JWT keys, or neither."""
        await self._rest.call("PUT", f"{self._project}/api-keys/legacy?enabled={str(enabled).lower()}")

    async def backups(self) -> dict[str, Any]:
        """The project's own backups; `physical_backup_data` has the window of `pitr_enabled`, Unix seconds."""
        return cast(dict[str, Any], await self._rest.call("GET", f"{self._project}/database/backups"))

    async def restore_to(self, unix: int) -> None:
        """Go back to a moment, in place. The project is offline meanwhile, and what came after is gone."""
        body = {"recovery_time_target_unix": unix}
        await self._rest.call("POST", f"{self._project}/database/backups/restore-pitr", body)

    async def set_database_password(self, password: Secret) -> None:
        """Give the role `postgres` another password. The old one is refused at once."""
        await self._rest.call("PATCH", f"{self._project}/database/password", {"password": password.reveal()})
