"""The HTTP server: its routes as one list, and the way to run it inside the worker's loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from typing import Any, cast
from urllib.parse import unquote

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from oxherd.errors import UsageError
from oxherd.web import approvals, dashboard
from oxherd.web.desk import Desk
from oxherd.web.headers import SecurityHeaders
from oxherd.web.problems import Problem

HealthReport = Callable[[], tuple[bool, dict[str, Any]]]
MetricsPage = Callable[[], Awaitable[bytes]]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def routes(health: HealthReport, metrics: MetricsPage, desk: Desk) -> list[BaseRoute]:
    """All routes.

    Parameters:
        health: tells whether all is well, and each check.
        metrics: renders the page in Prometheus's text format.
        desk: what the API answers with.
    """

    async def ready(_: Request) -> Response:
        ok, report = health()
        return Response(orjson.dumps(report), 200 if ok else 503, media_type="application/json")

    async def live(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def prometheus(_: Request) -> Response:
        return Response(await metrics(), media_type="text/plain; version=0.0.4")

    async def api(request: Request) -> Response:
        return await serve(desk, request)

    return [
        Route("/health", ready),
        Route("/health/live", live),
        Route("/metrics", prometheus),
        Route("/api/openapi.json", openapi),
        Route("/api/docs", docs),
        Route("/api/docs.css", docs_style),
        Route("/api/{rest:path}", api, methods=METHODS),
        *dashboard.routes(desk),
        *(approvals.routes(desk.approvals) if desk.approvals is not None else ()),
    ]


async def serve(desk: Desk, request: Request) -> Response:
    """Find the endpoint that a request is for, and have it answered."""
    from oxherd.web.api import endpoints_at  # with all its models: 30 ms that a worker's start does without

    # The path as it was sent: an id may hold a slash, percent-encoded.
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    segments = tuple(unquote(part, errors="surrogateescape") for part in raw.decode("latin-1").strip("/").split("/"))
    if segments[:2] != ("api", "v1"):
        return Problem(404, "there is nothing here", hint="GET /api/docs shows what there is").response()
    found = endpoints_at(segments[2:])
    method = "GET" if request.method == "HEAD" else request.method
    for endpoint, values in found:
        if endpoint.method == method:
            return await endpoint.serve(desk, request, values)
    if not found:
        return Problem(404, "there is nothing here", hint="GET /api/docs shows what there is").response()
    allowed = ", ".join(sorted({endpoint.method for endpoint, _ in found}))
    return Problem(405, f"{request.method} is not possible here", headers={"Allow": allowed}).response()


async def openapi(_: Request) -> Response:
    """The OpenAPI document; it says nothing about this server's data."""
    from oxherd.web.openapi import document  # made when first asked for: it costs the start 0.1 s

    return Response(orjson.dumps(document()), media_type="application/json")


async def docs(_: Request) -> Response:
    """The same for people."""
    from oxherd.web.reference import page

    return Response(page(), media_type="text/html")


async def docs_style(_: Request) -> Response:
    """How that looks."""
    return Response((files("oxherd.web") / "static" / "docs.css").read_bytes(), media_type="text/css")


def build(health: HealthReport, metrics: MetricsPage, desk: Desk) -> Starlette:
    """The whole site, as an ASGI app."""
    return Starlette(routes=routes(health, metrics, desk), middleware=[Middleware(SecurityHeaders)])


class Server:
    """Uvicorn in our loop, with our signals left alone."""

    def __init__(self, host: str, port: int, site: Starlette) -> None:
        self._host, self._port = host, port
        self._server = _Quiet(
            uvicorn.Config(
                site, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1,
                http=_Protocol,
                server_header=False,
                proxy_headers=False,  # who asks from this machine decides whether a login is needed: see web/auth.py
            )
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises UsageError when the port is taken."""
        bound = _bind(self._host, self._port)
        self.port = bound.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="http")

    async def stop(self) -> None:
        """Stop listening. Twice, or before `start`, is fine."""
        task, self._task = self._task, None
        if task is not None:
            self._server.should_exit = True
            await task


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joining(transport)))


class _Joining:
    """A transport that joins two writes of one turn of the loop: uvicorn writes an answer's head and body apart."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written.append(data)
        if len(self._written) == 1:
            self._loop.call_soon(self._flush)
        else:
            self._flush()  # no more: who writes too much has to hear of it

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            self._transport.write(b"".join(self._written))
            self._written.clear()


class _Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # now, not in uvicorn's own time: whoever reads "Started" may ask at once
    except OSError as error:
        bound.close()
        raise UsageError(
            f"can't listen on {host}:{port}: {error.strerror}", hint="set PORT to a free one, or to 0"
        ) from None
    return bound
