"""OPENROUTER_API_KEY: a second key with the first one's limits, both good until the first is disabled."""

from __future__ import annotations

import hashlib
from typing import Any

from oxherd.cloud.openrouter_admin import OpenRouterAdmin
from oxherd.errors import RotationStopped
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_state import Stage
from oxherd.settings import Secret

COPIED = ("limit", "limit_reset", "include_byok_in_limit", "expires_at", "workspace_id")
NAME = "OPENROUTER_API_KEY"


class OpenRouterKey(Rotation):
    """See the module.

    Parameters:
        scene: what every rotation works with.
        api: with a management key.
    """

    def __init__(self, scene: Scene, api: OpenRouterAdmin) -> None:
        super().__init__(NAME, scene)
        self._api = api

    async def look(self) -> Words:
        """See Rotation."""
        limits = self.progress.facts.get("settings")
        if limits is None:
            limits = _settings(await self._row(await self.old_value(self.scene.settings.openrouter_api_key)))
        limit = limits.get("limit")
        spent = "" if limit is None else f"; its limit of ${limit:g} begins anew"
        return {
            Stage.NEW: f"a key called oxherd-{self.progress.id}, with the limits of the one there is{spent}",
            Stage.INSTALL: "make it at OpenRouter; both keys are good from here on",
            Stage.PROVE: "ask OpenRouter what it says of the new key, which costs nothing",
            Stage.SWITCH: await self.scene.consumers.look(self.names),
            Stage.RETIRE: "disable the old key",
            Stage.BURY: "see the old key refused, then delete it for good",
        }

    async def new(self) -> None:
        """See Rotation."""
        old = await self.old_value(self.scene.settings.openrouter_api_key)
        row = await self._row(old)
        self.progress.old = {NAME: old}
        self.progress.facts = {"old_hash": row["hash"], "settings": _settings(row)}

    async def install(self) -> None:
        """Make it. A key of that name whose value was lost with a process that died is removed first."""
        await self.undo()
        body = {"name": f"oxherd-{self.progress.id}", **self.progress.facts["settings"]}
        self.progress.facts["new_hash"], self.progress.new[NAME] = await self._api.create_key(body)

    async def prove(self) -> None:
        """See Rotation."""
        said = await self._api.whose(self.progress.new[NAME])
        if said is None:
            raise RotationStopped("OpenRouter does not take the key that it has just made")
        if said.get("is_management_key") or said.get("is_provisioning_key"):
            raise RotationStopped("OpenRouter made a management key, which can't call models")
        if said.get("limit_remaining") is not None and said["limit_remaining"] <= 0:
            raise RotationStopped("the new key has nothing left to spend", hint="raise its limit at OpenRouter")

    async def retire(self) -> None:
        """See Rotation."""
        self.no_way_back()
        await self._api.update_key(self.progress.facts["old_hash"], {"disabled": True})

    async def bury(self) -> None:
        """See Rotation."""

        async def refused() -> bool:
            return await self._api.whose(self.progress.old[NAME]) is None

        await self.scene.until(refused, "OpenRouter still takes the old key, though it is disabled")
        await self._api.delete_key(self.progress.facts["old_hash"])

    async def undo(self) -> None:
        """See Rotation."""
        for row in await self._api.keys():
            if row["name"] == f"oxherd-{self.progress.id}":
                await self._api.delete_key(row["hash"])

    async def _row(self, key: Secret) -> dict[str, Any]:
        """Which of the account's keys it is: by its hash, else by what OpenRouter shows of it."""
        rows = await self._api.keys()
        value = key.reveal()
        digest = hashlib.sha256(value.encode()).hexdigest()
        found = [row for row in rows if row["hash"] == digest]
        if not found:
            found = [row for row in rows if _shows(str(row.get("label", "")), value)]
        if len(found) != 1:
            which = "is none" if not found else "could be several"
            raise RotationStopped(
                f"{NAME} {which} of the {len(rows)} keys in the default workspace of this account",
                hint="is OPENROUTER_MANAGEMENT_KEY of the same account? Where the key was deleted, make one "
                "there and `oxherd env push` it",
            )
        return found[0]


def _shows(label: str, value: str) -> bool:
    """Whether a label such as `sk-or-v1-au7...890` is that of a key."""
    begin, dots, end = label.partition("...")
    return bool(dots and begin and end) and value.startswith(begin) and value.endswith(end)


def _settings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in COPIED if row.get(name) is not None}
