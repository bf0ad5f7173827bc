"""JSON over HTTP to a service around the worker: tries, pauses and refusals, the same for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.settings import Secret

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

PATIENCE = 30.0  # seconds for one answer
TRIES = 4
LONGEST_WAIT = 60.0  # seconds
MOST_SHOWN = 500  # characters of an error


class Rest:
    """A service's API, as an async context manager.

    Parameters:
        service: its name, for errors.
        base: the address that all paths are below.
        login: the value of the header `Authorization`.
        hints: what to do about an HTTP status.
    """

    def __init__(self, service: str, base: str, login: Secret, hints: Mapping[int, str]) -> None:
        self._service = service
        self._base = base.rstrip("/")
        self._login = login
        self._hints = hints
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, body: Any = None, *, login: Secret | None = None) -> Any:
        """Send; again where it is busy, and where reading failed. A write whose answer was lost is not repeated.

        Parameters:
            method, path: what is asked for.
            body: sent as JSON; None sends nothing.
            login: instead of the usual one.

        Raises:
            ServiceUnreachable: it does not answer, or stays busy.
            ServiceRefused: with its own words and the HTTP status.
        """
        import aiohttp

        assert self._session is not None
        headers = {"authorization": (login or self._login).reveal()}
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            headers["content-type"] = "application/json"
        for attempt in range(1, TRIES + 1):
            pause, again = float(2**attempt) / 2, method == "GET"
            try:
                async with self._session.request(
                    method, self._base + path, data=data, headers=headers, allow_redirects=False
                ) as response:
                    text = await response.read()
                    if response.status < 300:
                        return orjson.loads(text) if text else None
                    if response.status != 429 and response.status < 500:
                        raise self._refused(response.status, text)
                    why = f"HTTP {response.status}"
                    if response.status == 429:
                        again, pause = True, _retry_after(response, pause)
            except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
                why = type(error).__name__
            if not again or attempt == TRIES:
                raise ServiceUnreachable(f"{self._service} did not answer {method} {path.partition('?')[0]}: {why}")
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _refused(self, status: int, text: bytes) -> ServiceRefused:
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError:
            said = text.decode("utf-8", "replace")
        if isinstance(said, dict):
            said = said.get("message") or said.get("error") or said
        if isinstance(said, dict):
            said = said.get("message") or said
        words = str(said)[:MOST_SHOWN] or "no words"
        return ServiceRefused(
            f"{self._service} refused with HTTP {status}: {words}", hint=self._hints.get(status, ""), status=status
        )


def _retry_after(response: ClientResponse, otherwise: float) -> float:
    said = response.headers.get("retry-after", "")
    return min(max(float(said), 0.1), LONGEST_WAIT) if said.isdecimal() else otherwise
