"""How Railway's GraphQL API is spoken to: tokens, tries, limits, refusals, subscriptions.

Source: https://docs.railway.com/integrations/api, and for subscriptions the protocol graphql-transport-ws.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from oxherd.clock import wall_ms
from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.settings import Secret

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession, ClientWebSocketResponse

PATIENCE = 60.0  # seconds for one answer
QUIET = 30.0  # seconds of silence after which a subscription is asked whether it is still there
TRIES = 4
LONGEST_WAIT = 60.0  # seconds
MOST_SHOWN = 500  # characters of an error
WINDOW = 3600.0  # seconds for which Railway counts requests
PROTOCOL = "graphql-transport-ws"


class Wire:
    """A connection to the API, as an async context manager.

    Parameters:
        url: where it is.
        headers: with the token.
        sleep: waits for so many seconds between tries.
    """

    def __init__(self, url: str, headers: Mapping[str, Secret], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._url = url
        self._headers = headers
        self._sleep = sleep
        self._session: ClientSession | None = None
        self._left: tuple[int, int, float] | None = None  # requests left, of how many, until which wall second

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {name: value.reveal() for name, value in self._headers.items()}
        self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=PATIENCE))
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def pace(self, seconds: float) -> float:
        """How long to wait before asking again: `seconds`, or longer where few requests are left."""
        if self._left is None:
            return seconds
        left, limit, until = self._left
        ahead = until - wall_ms() / 1000
        if left * 2 > limit or ahead <= 0:
            return seconds
        return max(seconds, ahead / max(left, 1))

    async def ask(self, operation: str, **variables: Any) -> dict[str, Any]:
        """Send an operation; again where Railway is busy, and where reading failed. A lost write is not repeated.

        Raises:
            ServiceUnreachable: Railway does not answer, or stays busy.
            ServiceRefused: with Railway's own words and where in the answer they belong.
        """
        import aiohttp

        assert self._session is not None
        text = document(operation)
        body = orjson.dumps({"query": text, "operationName": operation, "variables": variables})
        is_read = not text.startswith("mutation")
        for attempt in range(1, TRIES + 1):
            pause = 2.0**attempt / 2
            again = is_read
            try:
                async with self._session.post(
                    self._url, data=body, headers={"content-type": "application/json"}, allow_redirects=False
                ) as response:
                    self._count(response)
                    answer = await response.read()
                    if response.status == 429:
                        again, pause = True, _retry_after(response, pause)
                        why = f"it has had too many requests, and wants none for {pause:.0f} s"
                    elif response.status >= 500:
                        why = f"HTTP {response.status}"
                    else:
                        return _data(operation, response.status, answer)
            except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
                why = type(error).__name__
            if not again or attempt == TRIES or pause > LONGEST_WAIT:
                hint = "docs.railway.com/integrations/api has each plan's limits" if "too many" in why else ""
                raise ServiceUnreachable(f"Railway did not answer {operation}: {why}", hint=hint)
            await self._sleep(pause)
        raise AssertionError("unreachable")

    def _count(self, response: ClientResponse) -> None:
        headers = response.headers
        left, limit = headers.get("x-ratelimit-remaining", ""), headers.get("x-ratelimit-limit", "")
        if left.isdecimal() and limit.isdecimal():
            self._left = (int(left), int(limit), _renewed(headers.get("x-ratelimit-reset", "")))

    async def subscribe(self, operation: str, **variables: Any) -> AsyncIterator[dict[str, Any]]:
        """What an operation yields until Railway says that this was all."""
        import aiohttp

        assert self._session is not None
        payload = {"query": document(operation), "operationName": operation, "variables": variables}
        try:
            async with self._session.ws_connect(
                re.sub("^http", "ws", self._url), protocols=(PROTOCOL,), heartbeat=QUIET, max_msg_size=0
            ) as socket:
                await socket.send_json({"type": "connection_init", "payload": {}})
                while True:
                    said = await _message(operation, socket)
                    match said["type"]:
                        case "connection_ack":
                            await socket.send_json({"id": "1", "type": "subscribe", "payload": payload})
                        case "ping":
                            await socket.send_json({"type": "pong"})
                        case "next":
                            yield _data(operation, 200, orjson.dumps(said["payload"]))
                        case "error":
                            raise _refused(operation, said["payload"])
                        case "complete":
                            return
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServiceUnreachable(f"Railway did not answer {operation}: {type(error).__name__}") from None


@cache
def documents() -> Mapping[str, str]:
    """Every operation by its name, with the fragments it uses."""
    text = re.sub(r"^#.*\n", "", (files("oxherd.cloud") / "railway.graphql").read_text(), flags=re.MULTILINE)
    definitions = {}
    for part in re.split(r"^(?=(?:query|mutation|subscription|fragment) )", text, flags=re.MULTILINE)[1:]:
        kind, name = re.split(r"\W+", part, maxsplit=2)[:2]
        definitions[name] = (kind, part.strip())
    fragments = {name: part for name, (kind, part) in definitions.items() if kind == "fragment"}
    return {
        name: "\n".join([part, *(each for fragment, each in fragments.items() if f"...{fragment}" in part)])
        for name, (kind, part) in definitions.items()
        if kind != "fragment"
    }


def document(operation: str) -> str:
    """The text of one operation."""
    return documents()[operation]


async def _message(operation: str, socket: ClientWebSocketResponse) -> dict[str, Any]:
    from aiohttp import WSMsgType

    message = await socket.receive()
    if message.type is not WSMsgType.TEXT:
        raise ServiceUnreachable(f"Railway closed the connection of {operation} (code {socket.close_code})")
    said = orjson.loads(message.data)
    return said if isinstance(said, dict) and "type" in said else {"type": ""}


def _data(operation: str, status: int, answer: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        if status < 300:
            raise
        said = answer.decode("utf-8", "replace")
    if not isinstance(said, dict) or said.get("errors") or not isinstance(said.get("data"), dict):
        errors = said.get("errors") if isinstance(said, dict) else None
        raise _refused(operation, errors or said, status)
    return said["data"]  # type: ignore[no-any-return]  # looked at above


HINTS = {
    "project token not found": "Railway does not know this RAILWAY_TOKEN. A token of an account or a workspace "
    "goes into RAILWAY_API_TOKEN, and RAILWAY_TOKEN must then be unset",
    "not authorized": "is the token right, not revoked, and made for this project and environment? RAILWAY_TOKEN "
    "is for a project token, RAILWAY_API_TOKEN for one of an account or a workspace",
    "two factor": "the workspace asks for two-factor authentication; switch it on for the account, or use a project "
    "token",
    "commit not found": "is it pushed to the repository that the service builds from, and are these all 40 digits?",
    "problem processing request": "Railway says so of ids that it does not know, and of logs that it keeps no longer",
    "rate limit": "Railway limits how often a service may be deployed; wait some minutes",
    "not found": "check RAILWAY_API_URL, RAILWAY_PROJECT_ID, RAILWAY_ENVIRONMENT_ID and RAILWAY_SERVICE_ID",
}


def _refused(operation: str, errors: Any, status: int = 200) -> ServiceRefused:
    said = errors if isinstance(errors, list) else [errors]
    words = "; ".join(_words(each) for each in said)[:MOST_SHOWN]
    known = next((hint for mark, hint in HINTS.items() if mark in words.lower()), "")
    if any(_code(each) == "GRAPHQL_VALIDATION_FAILED" for each in said):
        known = "Railway's API is not as this version of Oxherd knows it: is there a newer one?"
    http = "" if status == 200 else f" with HTTP {status}"
    return ServiceRefused(f"Railway refused {operation}{http}: {words}", hint=known)


def _code(error: Any) -> Any:
    return error.get("extensions", {}).get("code") if isinstance(error, dict) else None


def _words(error: Any) -> str:
    """A GraphQL error's message, its path, and the number that Railway's support asks for."""
    if not isinstance(error, dict):
        return str(error)
    path = ".".join(map(str, error.get("path") or ()))
    trace = error.get("traceId") or error.get("extensions", {}).get("traceId")
    extra = [f"at {path}"] * bool(path) + [f"trace {trace}"] * bool(trace)
    return str(error.get("message", "no message")) + (f" ({', '.join(extra)})" if extra else "")


def _retry_after(response: ClientResponse, otherwise: float) -> float:
    said = response.headers.get("retry-after", "")
    return max(float(said), 0.1) if said.isdecimal() else otherwise


def _renewed(text: str) -> float:
    """The wall second at which requests are counted anew. The form is not documented: all the usual ones are read."""
    now = wall_ms() / 1000
    if text.isdecimal():
        number = int(text)
        return number / 1000 if number > 1e11 else float(number) if number > 1e9 else now + number
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return now + WINDOW
