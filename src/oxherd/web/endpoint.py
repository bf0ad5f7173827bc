"""One endpoint of the API, and what all have in common: who may, what fits, what is answered, what is recorded."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from oxherd.errors import OxherdError
from oxherd.store import AuditLine
from oxherd.telemetry.events import InternalFault, emit
from oxherd.web.answers import dump
from oxherd.web.auth import Identity, Scope, source_of
from oxherd.web.desk import Desk
from oxherd.web.models import Taken
from oxherd.web.problems import Problem

LARGEST_BODY = 4 * 1024 * 1024  # bytes
PATIENCE = 15.0  # seconds for a body to arrive, and for an answer
PARTS_NOT_AUDITED = frozenset(
    {"data", "token", "jobs", "job", "value"}
)  # payloads and secrets stay out of the audit log

P = TypeVar("P")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Ask(Generic[P, B]):
    """A request that fits.

    Attributes:
        desk: what it can be answered with.
        params: from the path and the query.
        body: from the body.
        identity: who asks.
        request: as it came.
    """

    desk: Desk
    params: P
    body: B
    identity: Identity
    request: Request


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way of asking.

    Attributes:
        name: its `operationId`, and the action in the audit log.
        method, path: such as `POST` and `/jobs/{id}/retry`, below `/api/v1`.
        about: what it does; the first sentence is its summary.
        tag: the group that it is shown in.
        handler: gives the answer: JSON-able data, or a Response.
        answer: what the answer holds.
        params: from path and query; names in the path's braces come from there.
        body: what the body must hold.
        optional_body: whether it may be left out.
        scope: what one must be allowed; None lets everybody in.
        status: where all went well.
        errors: HTTP statuses that this endpoint has besides those that all have.
        idempotent: whether the header `Idempotency-Key` makes it safe to repeat.
        media_type: of the answer.
    """

    name: str
    method: str
    path: str
    about: str
    tag: str
    handler: Callable[[Ask[Any, Any]], Awaitable[Any]]
    answer: type[BaseModel]
    params: type[Taken] | None = None
    body: type[Taken] | None = None
    optional_body: bool = False
    scope: Scope | None = Scope.READ
    status: int = 200
    errors: tuple[int, ...] = ()
    idempotent: bool = False
    media_type: str = "application/json"
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.path.strip("/").split("/")))

    def values(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """The path's values where these segments fit, else None."""
        if len(segments) != len(self.segments):
            return None
        values = {}
        for ours, given in zip(self.segments, segments, strict=True):
            if ours.startswith("{"):
                values[ours[1:-1]] = given
            elif ours != given:
                return None
        return values

    async def serve(self, desk: Desk, request: Request, values: Mapping[str, str]) -> Response:
        """Answer a request, with problem details where it can't be done."""
        identity: Identity | None = None
        try:
            if self.scope is not None:
                identity = desk.gatekeeper.admit(request, self.scope)
            body = await self._body(request)
            params = self._params(request, values)
            ask = Ask(desk, params, body, identity or NOBODY, request)
        except Problem as problem:
            return problem.response()
        return await self.perform(ask, values)

    async def perform(self, ask: Ask[Any, Any], values: Mapping[str, str]) -> Response:
        """Answer somebody who may ask, and record what they did.

        Parameters:
            ask: the request.
            values: from its path.
        """
        response = await self._answered(ask)
        if self.scope is Scope.ACT:
            await self._record(ask, values, response.status_code)
        return response

    async def _answered(self, ask: Ask[Any, Any]) -> Response:
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self.handler(ask)
        except Problem as problem:
            return problem.response()
        except OxherdError as error:
            return Problem.of(error).response()
        except TimeoutError:
            away = "Redis or the database does not answer"
            return Problem(503, away, headers={"Retry-After": "5"}).response()
        except Exception:  # noqa: BLE001  our own fault: the client is told so, the log has the stack
            emit(InternalFault(where=f"API {self.name}", stack=traceback.format_exc()))
            return Problem(500, "a fault in Oxherd; its log says more").response()
        if isinstance(answer, Response):
            return answer
        return Response(dump(answer), self.status, media_type=self.media_type)

    def _params(self, request: Request, values: Mapping[str, str]) -> Any:
        query = dict(request.query_params)
        if self.params is None:
            if query:
                name = min(query)
                raise Problem(422, f"query.{name}: is not known here", fields=[(f"query.{name}", "is not known here")])
            return None
        try:
            return self.params.model_validate({**query, **values})
        except ValidationError as error:
            first = error.errors()[0]["loc"]
            raise Problem.of_fields("path" if first and first[0] in values else "query", error) from None

    async def _body(self, request: Request) -> Any:
        raw = await read_body(request)
        if self.body is None:
            return None
        if not raw and self.optional_body:
            return self.body()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem(415, "the body must be JSON, with the header Content-Type: application/json")
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Problem(400, f"the body is no JSON: {error}") from None
        try:
            return self.body.model_validate(data, strict=True)
        except ValidationError as error:
            raise Problem.of_fields("body", error) from None

    async def _record(self, ask: Ask[Any, Any], values: Mapping[str, str], outcome: int) -> None:
        named = getattr(ask.body, "name", "") or getattr(ask.body, "pattern", "")
        target = "/".join(values.values()) or named or ask.desk.queue
        source = source_of(ask.request)
        await ask.desk.record(AuditLine(ask.identity.actor, source, self.name, target, _detail(ask.body), outcome))


NOBODY = Identity("nobody", Scope.READ)


async def read_body(request: Request) -> bytes:
    """The whole body. Raises Problem: 413 as soon as it is too large."""
    if not {"content-length", "transfer-encoding"}.intersection(request.headers):
        return b""  # HTTP/1.1: then there is none
    raw = bytearray()
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > LARGEST_BODY:
        raise _too_large()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > LARGEST_BODY:
                    raise _too_large()
    except TimeoutError:
        raise Problem(408, f"the body took more than {PATIENCE:g} s", headers={"Connection": "close"}) from None
    return bytes(raw)


def _too_large() -> Problem:
    return Problem(413, f"the body has more than {LARGEST_BODY // 1024**2} MiB", headers={"Connection": "close"})


def _detail(body: Any) -> dict[str, Any]:
    if not isinstance(body, BaseModel):
        return {}
    detail = body.model_dump(mode="json", exclude_unset=True, exclude=set(PARTS_NOT_AUDITED))
    return {**detail, **({"jobs": len(body.jobs)} if hasattr(body, "jobs") else {})}
