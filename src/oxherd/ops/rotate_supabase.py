"""SUPABASE_SERVICE_ROLE_KEY: a second secret key; an old JWT can only be switched off together with the anon key."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urlsplit

from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.errors import OxherdError, RotationStopped, StoreUnreachable, UsageError
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_state import Stage
from oxherd.settings import Secret, Settings
from oxherd.store.supabase import SupabaseStore

NAME = "SUPABASE_SERVICE_ROLE_KEY"
LEGACY = (
    "the old key is a JWT, which Supabase can only switch off together with the anon key: every browser and app that "
    "uses the anon key would be locked out"
)


def ref_of(settings: Settings) -> str:
    """The project's ref. Raises UsageError."""
    if settings.supabase_project_ref:
        return settings.supabase_project_ref
    host = urlsplit(settings.supabase_url or "").hostname or ""
    found = re.fullmatch(r"([a-z]{20})\.supabase\.(co|in)", host)
    if found is None:
        raise UsageError("which project at Supabase?", hint="set SUPABASE_PROJECT_REF to its 20 letters")
    return found[1]


class SupabaseKey(Rotation):
    """See the module.

    Parameters:
        scene: what every rotation works with.
        api: Supabase's Management API.
        disable_legacy: nothing uses the anon JWT any more, so both JWTs may be switched off.
    """

    def __init__(self, scene: Scene, api: SupabaseAdmin, *, disable_legacy: bool) -> None:
        super().__init__(NAME, scene)
        if scene.settings.supabase_url is None:
            raise UsageError("SUPABASE_URL is not set", hint="set it to the project's address")
        self._url = scene.settings.supabase_url
        self._api = api
        self._disable_legacy = disable_legacy
        self._key_name = f"oxherd_{scene.progress.id}"

    async def look(self) -> Words:
        """See Rotation."""
        old = self.progress.old.get(NAME) or await self.old_value(self.scene.settings.supabase_service_role_key)
        legacy = _is_jwt(old)
        if not legacy and self.progress.stage is Stage.NEW:
            await self._id_of(old)
        retire = "delete the old key, which can't be had back"
        if legacy:
            retire = "switch both JWT keys off, as --disable-legacy says" if self._disable_legacy else f"stop: {LEGACY}"
        return {
            Stage.NEW: f"a secret key called {self._key_name}",
            Stage.INSTALL: "make it at Supabase, with the role service_role; both keys are good from here on",
            Stage.PROVE: "check the schema and count credentials with it, over REST",
            Stage.SWITCH: await self.scene.consumers.look(self.names),
            Stage.RETIRE: retire,
            Stage.BURY: "see the old key refused over REST",
        }

    async def new(self) -> None:
        """See Rotation."""
        old = await self.old_value(self.scene.settings.supabase_service_role_key)
        self.progress.old = {NAME: old}
        self.progress.facts = {"old_id": None if _is_jwt(old) else await self._id_of(old)}

    async def install(self) -> None:
        """See Rotation. A key that a process which died has made is found by its name, with its value."""
        made = next((each for each in await self._api.api_keys() if each["name"] == self._key_name), None)
        if made is None:
            made = await self._api.create_secret_key(self._key_name, "made by `oxherd rotate`")
        if not made.get("api_key") or not made.get("id"):
            raise RotationStopped("Supabase does not show the value of the key that it made",
                                  hint="may SUPABASE_ACCESS_TOKEN read the project's secrets?")  # fmt: skip
        self.progress.facts["new_id"] = made["id"]
        self.progress.new = {NAME: Secret(made["api_key"])}

    async def prove(self) -> None:
        """See Rotation. A new key is known everywhere after some seconds."""

        async def taken() -> bool:
            return not await self._is_refused(self.progress.new[NAME])

        await self.scene.until(taken, "Supabase does not take the key that it has made")
        store = SupabaseStore(self._url, self.progress.new[NAME])
        try:
            await store.start()
            await store.count_credentials()
        except OxherdError as error:
            raise RotationStopped(f"the new key does not work: {error.message}", hint=error.hint) from None
        finally:
            await store.stop()

    async def retire(self) -> None:
        """See Rotation."""
        if self.progress.facts["old_id"] is not None:
            self.no_way_back()
            await self._api.delete_key(self.progress.facts["old_id"], reason="rotated")
        elif self._disable_legacy:
            self.no_way_back()
            await self._api.set_legacy(enabled=False)
        elif await self._api.legacy_enabled():
            raise RotationStopped(
                LEGACY, hint="give them a publishable key (`sb_publishable_…`) first, then add --disable-legacy"
            )

    async def bury(self) -> None:
        """See Rotation."""

        async def refused() -> bool:
            return await self._is_refused(self.progress.old[NAME])

        await self.scene.until(refused, "Supabase still takes the old key")

    async def undo(self) -> None:
        """See Rotation."""
        for each in await self._api.api_keys():
            if each["name"] == self._key_name and each.get("id"):
                await self._api.delete_key(each["id"], reason="rolled back")

    def settings_after(self) -> Settings:
        """See Rotation."""
        return replace(self.scene.settings, supabase_service_role_key=self.progress.new[NAME])

    async def _id_of(self, key: Secret) -> str:
        for each in await self._api.api_keys():
            if each.get("id") and each.get("api_key") and Secret(each["api_key"]) == key:
                return str(each["id"])
        raise RotationStopped(f"{NAME} is none of the project's keys", hint="is the ref of the same project?")

    async def _is_refused(self, key: Secret) -> bool:
        store = SupabaseStore(self._url, key)
        try:
            await store.start()
        except StoreUnreachable as error:
            if "(401)" in error.message:
                return True
            raise
        finally:
            await store.stop()
        return False


def _is_jwt(key: Secret) -> bool:
    return key.reveal().startswith("eyJ")
