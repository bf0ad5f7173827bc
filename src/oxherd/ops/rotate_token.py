"""API_TOKEN and API_READ_TOKEN: the server takes one of each, so clients change with it."""

from __future__ import annotations

import secrets
from typing import Literal

from oxherd.cloud.rest import Rest
from oxherd.errors import RotationStopped, ServiceRefused, UsageError
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_state import Stage
from oxherd.settings import Secret

ASKED = "/api/v1/queues"  # what every token may read


class ApiToken(Rotation):
    """See the module.

    Parameters:
        name: of the variable.
        scene: what every rotation works with.
        url: where the HTTP server is.
    """

    def __init__(self, name: Literal["API_TOKEN", "API_READ_TOKEN"], scene: Scene, url: str | None) -> None:
        super().__init__(name, scene)
        if url is None:
            raise UsageError("where is the HTTP server? A token can only be proved there",
                             hint="give --url https://…, or set PUBLIC_URL")  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url must be an http:// or https:// address, and not {url}")
        self._url = url

    async def look(self) -> Words:
        """See Rotation."""
        if self.progress.stage is Stage.NEW and not await self._takes(await self.old_value(self._here)):
            raise RotationStopped(f"{self._url} does not take the {self.name} of now",
                                  hint="is it the server of these settings?")  # fmt: skip
        return {
            Stage.NEW: "48 random hex digits",
            Stage.INSTALL: "nothing: a server knows one token; what it serves changes with the deployment",
            Stage.PROVE: f"ask {self._url} with the new token: a server that checks tokens refuses it as yet",
            Stage.SWITCH: f"{await self.scene.consumers.look(self.names)}; then use the new token for real. Clients "
            "change at the same moment, and sessions of browsers end",
            Stage.RETIRE: "nothing: the deployment did it",
            Stage.BURY: "see the old token refused",
        }

    async def new(self) -> None:
        """See Rotation."""
        self.progress.old = {self.name: await self.old_value(self._here)}
        self.progress.new = {self.name: Secret(secrets.token_hex(24))}

    async def install(self) -> None:
        """See Rotation."""

    async def prove(self) -> None:
        """See Rotation."""
        if await self._takes(self.progress.new[self.name]):
            raise RotationStopped(f"{self._url} takes any token: it is not protected", hint="is it an Oxherd server?")

    async def switch(self) -> None:
        """See Rotation."""
        await super().switch()

        async def taken() -> bool:
            return await self._takes(self.progress.new[self.name])

        await self.scene.until(taken, f"{self._url} does not take the new token")

    async def retire(self) -> None:
        """See Rotation."""
        self.no_way_back()

    async def bury(self) -> None:
        """See Rotation."""

        async def refused() -> bool:
            return not await self._takes(self.progress.old[self.name])

        await self.scene.until(refused, f"{self._url} still takes the old token")

    async def undo(self) -> None:
        """See Rotation. Nothing was installed."""

    @property
    def _here(self) -> Secret | None:
        settings = self.scene.settings
        return settings.api_token if self.name == "API_TOKEN" else settings.api_read_token

    async def _takes(self, token: Secret) -> bool:
        async with Rest("the HTTP API", self._url, Secret(f"Bearer {token.reveal()}"), {}) as api:
            try:
                await api.call("GET", ASKED)
            except ServiceRefused as error:
                if error.status == 401:
                    return False
                raise
        return True
