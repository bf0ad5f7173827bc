"""Tokens that only their service's own pages make: a person makes and revokes them, and both are proved here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from oxherd.cloud.openrouter_admin import OpenRouterAdmin
from oxherd.cloud.railway import Railway
from oxherd.cloud.sentry_api import SentryApi
from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.cloud.upstash import Upstash
from oxherd.errors import OxherdError, RotationStopped, ServiceRefused
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_state import Stage
from oxherd.ops.rotate_supabase import ref_of
from oxherd.settings import Secret, Settings


@dataclass(frozen=True, slots=True)
class Guide:
    """How one kind of token is replaced.

    Attributes:
        make: where a person makes a new one, in words.
        revoke: where they revoke the old one.
        proof: what is called with it, in words.
        call: calls it; raises ServiceRefused where the token is not taken.
    """

    make: str
    revoke: str
    proof: str
    call: Callable[[Settings, Secret], Awaitable[object]]


async def _railway_project(settings: Settings, token: Secret) -> object:
    async with Railway(settings.railway_api_url, project_token=token) as api:
        return await api.place(service=settings.railway_service_id)


async def _railway_account(settings: Settings, token: Secret) -> object:
    async with Railway(settings.railway_api_url, api_token=token) as api:
        return await api.place(
            project=settings.railway_project_id, environment=settings.railway_environment_id,
            service=settings.railway_service_id,
        )  # fmt: skip


async def _sentry(settings: Settings, token: Secret) -> object:
    async with SentryApi(settings.sentry_url, token, settings.sentry_org) as api:
        return await api.project(settings.sentry_project)


async def _openrouter(settings: Settings, token: Secret) -> object:
    async with OpenRouterAdmin(settings.openrouter_base_url, token) as api:
        return await api.keys()


async def _supabase(settings: Settings, token: Secret) -> object:
    async with SupabaseAdmin(settings.supabase_api_url, token, ref_of(settings)) as api:
        return await api.legacy_enabled()


async def _upstash(settings: Settings, token: Secret) -> object:
    async with Upstash(settings.upstash_api_url, settings.upstash_email, token) as api:
        return await api.databases()


GUIDES = {
    "RAILWAY_TOKEN": Guide(
        "in the project's settings on Railway, under Tokens, for the same environment", "in the same list",
        "find the service with it", _railway_project,
    ),
    "RAILWAY_API_TOKEN": Guide(
        "on railway.com/account/tokens", "in the same list", "find the service with it", _railway_account,
    ),
    "SENTRY_AUTH_TOKEN": Guide(
        "in Sentry's settings, under Auth Tokens, with org:write and alerts:write", "in the same list",
        "read the project with it", _sentry,
    ),
    "OPENROUTER_MANAGEMENT_KEY": Guide(
        "on openrouter.ai/settings/management-keys", "in the same list", "list the account's keys with it", _openrouter,
    ),
    "SUPABASE_ACCESS_TOKEN": Guide(
        "on supabase.com/dashboard/account/tokens", "in the same list", "read the project's key settings with it",
        _supabase,
    ),
    "UPSTASH_API_KEY": Guide(
        "on console.upstash.com/account/api", "in the same list", "list the account's databases with it", _upstash,
    ),
}  # fmt: skip


class Guided(Rotation):
    """See the module.

    Parameters:
        name: of the variable.
        scene: what every rotation works with.
    """

    def __init__(self, name: str, scene: Scene) -> None:
        super().__init__(name, scene)
        self._guide = GUIDES[name]

    async def look(self) -> Words:
        """See Rotation."""
        return {
            Stage.NEW: f"you make one {self._guide.make}, and enter it here",
            Stage.INSTALL: "nothing: both are good from here on",
            Stage.PROVE: self._guide.proof,
            Stage.SWITCH: await self.scene.consumers.look(self.names),
            Stage.RETIRE: f"you revoke the old one {self._guide.revoke}",
            Stage.BURY: "see the old one refused",
        }

    async def new(self) -> None:
        """See Rotation."""
        old = await self.old_value(getattr(self.scene.settings, self.name.lower()))
        self.scene.tell(f"Make a new {self.name} {self._guide.make}.")
        value = self.scene.person.value(f"The new {self.name}")
        if value == old or not value.reveal().strip():
            raise RotationStopped(f"that is no new {self.name}")
        self.progress.old, self.progress.new = {self.name: old}, {self.name: value}

    async def install(self) -> None:
        """See Rotation."""

    async def prove(self) -> None:
        """See Rotation."""
        try:
            await self._guide.call(self.scene.settings, self.progress.new[self.name])
        except OxherdError as error:
            # It may have been mistyped: the next try asks for it again.
            self.progress.stage = Stage.NEW
            self.scene.keep()
            raise RotationStopped(f"the new {self.name} does not work: {error.message}", hint=error.hint) from None

    async def retire(self) -> None:
        """See Rotation."""
        self.scene.tell(f"Revoke the old {self.name} {self._guide.revoke}.")
        again = self.progress.facts.get("asked", False)
        self.progress.facts["asked"] = True
        self.scene.keep()
        if not self.scene.person.confirms(f"Is the old {self.name} revoked?", again=again):
            raise RotationStopped(f"the old {self.name} waits for you to revoke it")
        self.no_way_back()

    async def bury(self) -> None:
        """See Rotation."""

        async def refused() -> bool:
            try:
                await self._guide.call(self.scene.settings, self.progress.old[self.name])
            except ServiceRefused:
                return True
            return False

        await self.scene.until(refused, f"the old {self.name} is still taken", hint=f"revoke it {self._guide.revoke}")

    async def undo(self) -> None:
        """See Rotation."""
        self.scene.tell(f"Revoke the new {self.name} {self._guide.revoke}, if you made one.")
