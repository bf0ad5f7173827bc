"""Sentry's web API: dashboards, monitors (`detectors`) and alerts (`workflows`) of one organisation.

Source: Sentry's published OpenAPI description, https://docs.sentry.io/api/. The older alert rules are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from oxherd.cloud.rest import Client, Rest
from oxherd.settings import Secret

HINTS = {
    401: "is SENTRY_AUTH_TOKEN right?",
    403: "does SENTRY_AUTH_TOKEN have the scopes org:write and alerts:write?",
    404: "are SENTRY_ORG and SENTRY_PROJECT right?",
}


class SentryApi(Client):
    """The API of one organisation.

    Parameters:
        base: such as `https://sentry.io`, or a region's address.
        token: an auth token with `org:write` and `alerts:write`.
        organisation: its slug.
    """

    def __init__(self, base: str, token: Secret, organisation: str) -> None:
        super().__init__(Rest("Sentry", f"{base.rstrip('/')}/api/0", Secret(f"Bearer {token.reveal()}"), HINTS))
        self._organisation = f"/organizations/{quote(organisation, safe='')}"

    async def dashboards(self) -> list[dict[str, Any]]:
        """All dashboards, without their widgets."""
        return await self._rest.pages(f"{self._organisation}/dashboards/?per_page=100")

    async def dashboard(self, id: str) -> dict[str, Any]:  # noqa: A002  the API's word
        """One dashboard with its widgets."""
        return await self._call("GET", f"{self._organisation}/dashboards/{quote(id, safe='')}/")

    async def create_dashboard(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a dashboard."""
        return await self._call("POST", f"{self._organisation}/dashboards/", body)

    async def update_dashboard(self, id: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        """Replace a dashboard and all of its widgets."""
        return await self._call("PUT", f"{self._organisation}/dashboards/{quote(id, safe='')}/", body)

    async def detectors(self, project_id: str) -> list[dict[str, Any]]:
        """All monitors of a project, Sentry's own among them."""
        return await self._rest.pages(f"{self._organisation}/detectors/?project={quote(project_id, safe='')}")

    async def create_detector(self, project: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a monitor in a project, given by its slug or id."""
        return await self._call("POST", f"{self._organisation}/projects/{quote(project, safe='')}/detectors/", body)

    async def update_detector(self, id: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        """Replace a monitor."""
        return await self._call("PUT", f"{self._organisation}/detectors/{quote(id, safe='')}/", body)

    async def workflows(self) -> list[dict[str, Any]]:
        """All alerts."""
        return await self._rest.pages(f"{self._organisation}/workflows/")

    async def create_workflow(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an alert."""
        return await self._call("POST", f"{self._organisation}/workflows/", body)

    async def update_workflow(self, id: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        """Replace an alert."""
        return await self._call("PUT", f"{self._organisation}/workflows/{quote(id, safe='')}/", body)

    async def project(self, project: str) -> dict[str, Any]:
        """A project by its slug or id."""
        organisation = self._organisation.removeprefix("/organizations/")
        return await self._call("GET", f"/projects/{organisation}/{quote(project, safe='')}/")

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = await self._rest.call(method, path, body)
        return answer if isinstance(answer, dict) else {}
