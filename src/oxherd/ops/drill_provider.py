"""The model service of a drill: answers at once, costs money, can be cut off and come back, and can revoke a key."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Self

from oxherd.embedded.engine import free_port

if TYPE_CHECKING:
    from aiohttp import web

COST = 0.01  # US dollars a call


class Provider:
    """Chat completions on loopback, and OpenRouter's API for the keys that they take, as far as a rotation asks.

    Attributes:
        calls: how many were answered, and billed.
        key: what workers begin with.
        management_key: makes and deletes keys; no call is answered to it.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.management_key = f"sk-or-v1-{secrets.token_hex(32)}"
        self._keys: dict[str, dict[str, Any]] = {}
        self.key = self._make("drill")
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
        app.router.add_get("/v1/key", self._own)
        app.router.add_get("/v1/keys", self._list)
        app.router.add_post("/v1/keys", self._create)
        app.router.add_patch("/v1/keys/{hash}", self._update)
        app.router.add_delete("/v1/keys/{hash}", self._delete)
        self._runner = web.AppRunner(app, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def cut(self) -> None:
        """Answer nobody. Twice is fine."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def revoke(self) -> None:
        """Take none of the keys that there are any more."""
        for row in self._keys.values():
            row["disabled"] = True

    def _make(self, name: str) -> str:
        value = f"sk-or-v1-{secrets.token_hex(32)}"
        digest = hashlib.sha256(value.encode()).hexdigest()
        self._keys[digest] = {"hash": digest, "name": name, "label": f"{value[:12]}...{value[-3:]}", "disabled": False}
        return value

    def _row(self, request: web.Request) -> dict[str, Any] | None:
        value = request.headers.get("Authorization", "").removeprefix("Bearer ")
        row = self._keys.get(hashlib.sha256(value.encode()).hexdigest())
        return None if row is None or row["disabled"] else row

    async def _own(self, request: web.Request) -> web.Response:
        row = self._row(request)
        return _refused() if row is None else _data(row)

    async def _list(self, request: web.Request) -> web.Response:
        return _data(list(self._keys.values())) if self._may_manage(request) else _refused()

    async def _create(self, request: web.Request) -> web.Response:
        if not self._may_manage(request):
            return _refused()
        value = self._make((await request.json())["name"])
        return _data(list(self._keys.values())[-1], key=value)

    async def _update(self, request: web.Request) -> web.Response:
        if not self._may_manage(request):
            return _refused()
        row = self._keys[request.match_info["hash"]]
        row |= await request.json()
        return _data(row)

    async def _delete(self, request: web.Request) -> web.Response:
        if not self._may_manage(request):
            return _refused()
        del self._keys[request.match_info["hash"]]
        return _data({"deleted": True})

    def _may_manage(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.management_key}"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if self._row(request) is None:
            return _refused()
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


def _refused() -> web.Response:
    from aiohttp import web

    return web.json_response({"error": {"code": 401, "message": "User not found."}}, status=401)


def _data(data: Any, **more: Any) -> web.Response:
    from aiohttp import web

    return web.json_response({"data": data, **more})


def _event(chunk: dict[str, Any]) -> bytes:
    import orjson

    return b"data: %b\n\n" % orjson.dumps(chunk)
