"""A client of the HTTP API that holds every answer against the published OpenAPI document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from jsonschema import Draft202012Validator

from oxherd.web.openapi import document


@dataclass
class Answer:
    status: int
    headers: Any
    json: Any
    text: str


@dataclass
class Api:
    """Asks a server.

    Parameters:
        port: where it listens, on this machine.
        token: sent as a bearer token; none where None.
    """

    port: int
    token: str | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def __call__(
        self, method: str, path: str, body: Any = None, *, expect: int = 200, headers: dict[str, str] | None = None
    ) -> Any:
        """Ask `/api/v1<path>`; the decoded answer, which must have this status and fit the document."""
        answer = await self.raw(method, f"/api/v1{path}", body, headers=headers)
        assert answer.status == expect, (method, path, answer.status, answer.text)
        self._holds(method, path.partition("?")[0], answer)
        return answer.json

    async def raw(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, data: Any = None
    ) -> Answer:
        """Ask for anything."""
        sent = {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **(headers or {})}
        given = {"json": body} if body is not None else {"data": data} if data is not None else {}
        async with self._session.request(
            method, aiohttp.client.URL(self.url(path), encoded=True), headers=sent, **given
        ) as response:
            text = await response.text()
            is_json = "json" in response.headers.get("content-type", "")
            return Answer(
                response.status, response.headers, await response.json(content_type=None) if is_json else text, text
            )

    def stream(self, path: str, **headers: str):
        """Open a stream of events."""
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return self._session.get(
            self.url(f"/api/v1{path}"), headers={**sent, **headers}, timeout=aiohttp.ClientTimeout()
        )

    def _holds(self, method: str, path: str, answer: Answer) -> None:
        operation = operation_of(method, path)
        described = operation["responses"].get(str(answer.status))
        assert described is not None, f"{operation['operationId']} does not document {answer.status}: {answer.text}"
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = {**described["content"][media_type]["schema"], "components": document()["components"]}
        Draft202012Validator(schema).validate(answer.json)


def operation_of(method: str, path: str) -> dict[str, Any]:
    for template, operations in document()["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template.removeprefix("/api/v1")))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return operations[method.lower()]
    raise AssertionError(f"{method} {path} is not in the document")


async def events_of(response: aiohttp.ClientResponse):
    """Server-sent events as they come: `(id, event, data)`; comments are left out."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif "data" in fields:
            yield fields.get("id"), fields.get("event"), fields["data"]
            fields = {}
