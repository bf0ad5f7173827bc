"""Sentry's web API: dashboards, monitors (`detectors`) and alerts (`workflows`) of one organisation.

Source: Sentry's published OpenAPI description, https://docs.sentry.io/api/. The older alert rules are no part of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import orjson

from oxherd.clock import wall_ms
from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.settings import Secret

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

PATIENCE = 30.0  # seconds for one answer
TRIES = 4
LONGEST_WAIT = 60.0  # seconds
MOST_SHOWN = 500  # characters of an error
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next";\s*results="true"')


class SentryApi:
    """The API of one organisation.

    Parameters:
        base: such as `https://sentry.io`, or a region's address.
        token: an auth token with `org:write` and `alerts:write`.
        organisation: its slug.
    """

    def __init__(self, base: str, token: Secret, organisation: str) -> None:
        self._root = f"{base.rstrip('/')}/api/0"
        self._token = token
        self._organisation = f"/organizations/{quote(organisation, safe='')}"
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self._token.reveal()}"}, timeout=aiohttp.ClientTimeout(total=PATIENCE)
        )
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def dashboards(self) -> list[dict[str, Any]]:
        """All dashboards, without their widgets."""
        return await self._pages(f"{self._organisation}/dashboards/?per_page=100")

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
        return await self._pages(f"{self._organisation}/detectors/?project={quote(project_id, safe='')}")

    async def create_detector(self, project: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a monitor in a project, given by its slug or id."""
        return await self._call("POST", f"{self._organisation}/projects/{quote(project, safe='')}/detectors/", body)

    async def update_detector(self, id: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        """Replace a monitor."""
        return await self._call("PUT", f"{self._organisation}/detectors/{quote(id, safe='')}/", body)

    async def workflows(self) -> list[dict[str, Any]]:
        """All alerts."""
        return await self._pages(f"{self._organisation}/workflows/")

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

    async def _pages(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        url: str | None = self._root + path
        while url is not None:
            answer, link = await self._send("GET", url, None)
            found += answer
            more = _NEXT.search(link)
            # The token goes to the host it was meant for, whatever an answer says.
            url = more[1] if more and more[1].startswith(self._root) else None
        return found

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer, _ = await self._send(method, self._root + path, body)
        return answer if isinstance(answer, dict) else {}

    async def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> tuple[Any, str]:
        """Send; again where Sentry is busy, and where reading failed. A write whose answer was lost is not repeated.

        Raises:
            ServiceUnreachable: Sentry does not answer, or stays busy.
            ServiceRefused: with Sentry's own words, field by field.
        """
        import aiohttp

        assert self._session is not None
        data = None if body is None else orjson.dumps(body)
        headers = {} if data is None else {"content-type": "application/json"}
        for attempt in range(1, TRIES + 1):
            try:
                async with self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False
                ) as response:
                    text = await response.read()
                    if response.status < 300:
                        return orjson.loads(text) if text else {}, response.headers.get("link", "")
                    if response.status != 429 and response.status < 500:
                        raise _refused(response.status, text)
                    pause = _pause(response, attempt)
                    why = f"HTTP {response.status}"
                    again = response.status == 429 or method == "GET"
            except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
                pause, why, again = float(2**attempt) / 2, type(error).__name__, method == "GET"
            if not again or attempt == TRIES:
                raise ServiceUnreachable(f"Sentry did not answer {method} {url.removeprefix(self._root)}: {why}")
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")


def _pause(response: ClientResponse, attempt: int) -> float:
    reset = response.headers.get("x-sentry-rate-limit-reset", "")
    if response.status == 429 and reset.isdecimal():
        return min(max(int(reset) - wall_ms() / 1000, 0.1), LONGEST_WAIT)
    return float(2**attempt) / 2


def _refused(status: int, text: bytes) -> ServiceRefused:
    try:
        words = orjson.loads(text)
    except orjson.JSONDecodeError:
        words = text.decode("utf-8", "replace")
    if isinstance(words, dict):
        words = "; ".join(f"{field}: {_plain(said)}" for field, said in words.items())
    hint = {
        401: "is SENTRY_AUTH_TOKEN right?",
        403: "does SENTRY_AUTH_TOKEN have the scopes org:write and alerts:write?",
        404: "are SENTRY_ORG and SENTRY_PROJECT right?",
    }.get(status, "")
    return ServiceRefused(f"Sentry refused with HTTP {status}: {str(words)[:MOST_SHOWN]}", hint=hint)


def _plain(said: Any) -> str:
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said)
