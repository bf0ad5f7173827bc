"""JSON over HTTP to a service around the worker: tries, pauses and refusals, the same for all of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

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
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next";\s*results="true"')  # Sentry links a next page also where there is none


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
        """What it answers, as data. See `ask`."""
        return (await self.ask(method, path, body, login=login))[0]

    async def pages(self, path: str) -> list[dict[str, Any]]:
        """All of a list whose pages are linked as RFC 8288 has it. See `ask`."""
        found: list[dict[str, Any]] = []
        following: str | None = path
        while following is not None:
            answer, headers = await self.ask("GET", following)
            found += answer
            more = _NEXT.search(headers.get("link", ""))
            # The login goes to the host it was meant for, whatever an answer says.
            following = more[1].removeprefix(self._base) if more and more[1].startswith(f"{self._base}/") else None
        return found

    async def ask(
        self, method: str, path: str, body: Any = None, *, login: Secret | None = None
    ) -> tuple[Any, Mapping[str, str]]:
        """Send; again where it is busy, and where reading failed. A write whose answer was lost is not repeated.

        Parameters:
            method, path: what is asked for.
            body: sent as JSON; None sends nothing.
            login: instead of the usual one.

        Returns:
            The answer as data, and its headers.

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
                        return orjson.loads(text) if text else None, response.headers
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
            said = said.get("message") or "; ".join(f"{field}: {_plain(each)}" for field, each in said.items())
        words = str(said)[:MOST_SHOWN] or "no words"
        return ServiceRefused(
            f"{self._service} refused with HTTP {status}: {words}", hint=self._hints.get(status, ""), status=status
        )


def _retry_after(response: ClientResponse, otherwise: float) -> float:
    """Seconds to wait: as `Retry-After` has it, or until the moment that Sentry names."""
    said, reset = (response.headers.get(name, "") for name in ("retry-after", "x-sentry-rate-limit-reset"))
    if said.isdecimal():
        pause = float(said)
    elif reset.isdecimal():
        pause = int(reset) - wall_ms() / 1000
    else:
        return otherwise
    return min(max(pause, 0.1), LONGEST_WAIT)


def _plain(said: Any) -> str:
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said)


class Client:
    """What the clients of single services share: a `Rest` that lives as long as they do, as a context manager."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def __aenter__(self) -> Self:
        await self._rest.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._rest.__aexit__(kind, error, trace)
