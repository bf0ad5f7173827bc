"""The HTTP server: its routes as one list, and the way to run it inside the worker's loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oxherd.errors import UsageError

HealthReport = Callable[[], tuple[bool, dict[str, Any]]]
MetricsPage = Callable[[], Awaitable[bytes]]


def routes(health: HealthReport, metrics: MetricsPage) -> list[Route]:
    """All routes.

    Parameters:
        health: tells whether all is well, and each check.
        metrics: renders the page in Prometheus's text format.
    """

    async def ready(_: Request) -> Response:
        ok, report = health()
        return Response(orjson.dumps(report), 200 if ok else 503, media_type="application/json")

    async def live(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def prometheus(_: Request) -> Response:
        return Response(await metrics(), media_type="text/plain; version=0.0.4")

    return [Route("/health", ready), Route("/health/live", live), Route("/metrics", prometheus)]


class Server:
    """Uvicorn in our loop, with our signals left alone."""

    def __init__(
        self, host: str, port: int, health: HealthReport, metrics: MetricsPage, *, more: Sequence[Route] = ()
    ) -> None:
        self._host, self._port = host, port
        app = Starlette(routes=[*routes(health, metrics), *more])
        self._server = _Quiet(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
            )
        )
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
