"""The model service of a drill: answers at once, costs money, can be cut off and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from oxherd.embedded.engine import free_port

if TYPE_CHECKING:
    from aiohttp import web

COST = 0.01  # US dollars a call


class Provider:
    """Chat completions on loopback.

    Attributes:
        calls: how many were answered, and billed.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._port = free_port()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """For OPENROUTER_BASE_URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def start(self) -> None:
        """Answer from now on, at the same address as before."""
        from aiohttp import web

        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def cut(self) -> None:
        """Answer nobody. Twice is fine."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        asked = await request.json()
        self.calls += 1
        common = {"id": f"gen-drill-{self.calls}", "model": asked["model"], "created": 1}
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11, "cost": COST}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
            return web.json_response({**common, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        delta = {"index": 0, "delta": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
        for part in ({"choices": [delta]}, {"choices": [], "usage": usage}):
            await response.write(_event({**common, "object": "chat.completion.chunk", **part}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(chunk: dict[str, Any]) -> bytes:
    import orjson

    return b"data: %b\n\n" % orjson.dumps(chunk)
