"""OpenRouter, Supabase and Upstash as far as they make and retire secrets. What their published schemas refuse, they
refuse; what FACTS of those services say about errors and answers, they do.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import uuid
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

from fakes.contract import Body, Contract

OPENROUTER = Contract("openrouter.openapi.json")
SUPABASE = Contract("supabase.management.openapi.json")
UPSTASH = Contract("upstash.redis.openapi.json")
REF = "abcdefghijklmnopqrst"


class Service:
    """An HTTP server on a free port. `next_answers` are given instead of what is asked for; `requests` came."""

    contract: Contract
    below = ""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.next_answers: list[tuple[int, Any]] = []
        self.url = ""
        app = web.Application(middlewares=[self._guard])
        self.routes(app.router)
        app.router.add_route("*", "/{path:.*}", self._nothing)
        self._runner = web.AppRunner(app)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}{self.below}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [each for each in self.requests if each[0] != "GET"]

    def routes(self, router: web.UrlDispatcher) -> None:
        raise NotImplementedError

    def login(self, request: web.Request) -> web.Response | None:
        """What is answered to whoever may not ask."""
        raise NotImplementedError

    def refusal(self, status: int, words: str) -> web.Response:
        raise NotImplementedError

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path.removeprefix(self.below)
        self.requests.append((request.method, path))
        if self.next_answers:
            status, body = self.next_answers.pop(0)
            return web.json_response(body, status=status)
        if (refused := self.login(request)) is not None:
            return refused
        body = await request.json() if request.can_read_body else None
        if said := self.contract.faults(request.method, path, body, dict(request.query)):
            return self.refusal(400, "; ".join(said))
        return await handler(request)

    async def _nothing(self, _: web.Request) -> web.Response:
        return self.refusal(404, "not found")


class FakeOpenRouterKeys(Service):
    """One account. `values` are its keys' values by hash; a management key can't be used for anything else."""

    contract = OPENROUTER
    below = "/api/v1"

    def __init__(self) -> None:
        super().__init__()
        self.management_key = f"sk-or-v1-{secrets.token_hex(32)}"
        self.rows: dict[str, Body] = {}
        self.values: dict[str, str] = {}
        self.refuses_new_keys = False

    def make(self, name: str, **settings: Any) -> str:
        value = f"sk-or-v1-{secrets.token_hex(32)}"
        hashed = hashlib.sha256(value.encode()).hexdigest()
        self.values[hashed] = value
        self.rows[hashed] = {
            "hash": hashed, "name": name, "label": f"{value[:12]}...{value[-3:]}", "disabled": False, "limit": None,
            "limit_remaining": settings.get("limit"), "limit_reset": None, "include_byok_in_limit": False, "usage": 0,
            "created_at": "2026-11-28T00:00:00Z", "updated_at": None, "expires_at": None, **settings,
        }  # fmt: skip
        return value

    def routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/v1/keys", self._list)
        router.add_post("/api/v1/keys", self._create)
        router.add_patch("/api/v1/keys/{hash}", self._update)
        router.add_delete("/api/v1/keys/{hash}", self._delete)
        router.add_get("/api/v1/key", self._own)

    def _row(self, request: web.Request) -> Body | None:
        value = request.headers.get("Authorization", "").removeprefix("Bearer ")
        found = self.rows.get(hashlib.sha256(value.encode()).hexdigest())
        return found if found and not found["disabled"] else None

    def login(self, request: web.Request) -> web.Response | None:
        value = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if value == self.management_key:
            return None
        row = self._row(request)
        if row is None or (request.path.endswith("/key") and self.refuses_new_keys and row["name"] != "first"):
            return self.refusal(401, "User not found.")
        return None if request.path.endswith("/key") else self.refusal(403, "Only management keys can do this")

    def refusal(self, status: int, words: str) -> web.Response:
        return web.json_response({"error": {"code": status, "message": words}}, status=status)

    async def _list(self, request: web.Request) -> web.Response:
        start = int(request.query.get("offset", "0"))
        rows = [
            row for row in self.rows.values() if request.query.get("include_disabled") == "true" or not row["disabled"]
        ]
        return web.json_response({"data": rows[start : start + 100]})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        value = self.make(**body)
        return web.json_response({"data": list(self.rows.values())[-1], "key": value}, status=201)

    async def _update(self, request: web.Request) -> web.Response:
        row = self.rows.get(request.match_info["hash"])
        if row is None:
            return self.refusal(404, "API key not found")
        row |= await request.json()
        return web.json_response({"data": row})

    async def _delete(self, request: web.Request) -> web.Response:
        if self.rows.pop(request.match_info["hash"], None) is None:
            return self.refusal(404, "API key not found")
        return web.json_response({"deleted": True})

    async def _own(self, request: web.Request) -> web.Response:
        row = self._row(request)
        if row is None:
            return self.refusal(401, "User not found.")
        return web.json_response({"data": {**row, "is_management_key": False, "is_free_tier": False}})


class FakeSupabaseApi(Service):
    """One project, `REF`. `keys` are its secret keys; `changed` is called after each change."""

    contract = SUPABASE

    def __init__(self, *, changed: Callable[[FakeSupabaseApi], None] = lambda _: None) -> None:
        super().__init__()
        self.token = f"sbp_{secrets.token_hex(20)}"
        self.keys: dict[str, Body] = {}
        self.legacy: bool | None = True
        self.password = ""
        self._changed = changed

    def make(self, name: str, value: str | None = None) -> str:
        value = value or f"sb_secret_{secrets.token_urlsafe(24)}"
        id = str(uuid.uuid4())  # noqa: A001
        self.keys[id] = {"id": id, "name": name, "type": "secret", "api_key": value, "prefix": value[:15]}
        self._changed(self)
        return value

    @property
    def values(self) -> set[str]:
        return {each["api_key"] for each in self.keys.values()}

    def routes(self, router: web.UrlDispatcher) -> None:
        root = f"/v1/projects/{REF}"
        router.add_get("/v1/organizations", self._organizations)
        router.add_get(f"{root}/api-keys", self._list)
        router.add_post(f"{root}/api-keys", self._create)
        router.add_get(f"{root}/api-keys/legacy", self._legacy)
        router.add_put(f"{root}/api-keys/legacy", self._set_legacy)
        router.add_delete(f"{root}/api-keys/{{id}}", self._delete)
        router.add_patch(f"{root}/database/password", self._set_password)

    def login(self, request: web.Request) -> web.Response | None:
        good = request.headers.get("Authorization") == f"Bearer {self.token}"
        return None if good else self.refusal(401, "Unauthorized")

    def refusal(self, status: int, words: str) -> web.Response:
        return web.json_response({"message": words}, status=status)

    async def _organizations(self, _: web.Request) -> web.Response:
        return web.json_response([{"id": "acme", "slug": "acme", "name": "Acme"}])

    async def _list(self, request: web.Request) -> web.Response:
        shown = request.query.get("reveal") == "true"
        legacy = {"id": None, "name": "service_role", "type": "legacy", "api_key": None}
        rows = [row if shown else {**row, "api_key": None} for row in self.keys.values()]
        return web.json_response([legacy, *rows])

    async def _create(self, request: web.Request) -> web.Response:
        self.make((await request.json())["name"])
        row = list(self.keys.values())[-1]
        return web.json_response(row if request.query.get("reveal") == "true" else {**row, "api_key": None}, status=201)

    async def _delete(self, request: web.Request) -> web.Response:
        row = self.keys.pop(request.match_info["id"], None)
        if row is None:
            return self.refusal(404, "API key not found")
        self._changed(self)
        return web.json_response(row)

    async def _legacy(self, _: web.Request) -> web.Response:
        return self.refusal(404, "gone") if self.legacy is None else web.json_response({"enabled": self.legacy})

    async def _set_legacy(self, request: web.Request) -> web.Response:
        self.legacy = request.query["enabled"] == "true"
        self._changed(self)
        return web.json_response({"enabled": self.legacy})

    async def _set_password(self, request: web.Request) -> web.Response:
        self.password = (await request.json())["password"]
        self._changed(self)
        return web.json_response({"message": "Successfully updated password"})


class FakeUpstash(Service):
    """One account with one database, whose password is `password`; `reset` is awaited with each new one."""

    contract = UPSTASH
    below = "/v2"

    def __init__(self, endpoint: str, password: str, reset: Callable[[str], Any]) -> None:
        super().__init__()
        self.email, self.key = "ops@example.com", str(uuid.uuid4())
        self.password = password
        self._endpoint = endpoint
        self._reset_to = reset
        self.resets = 0

    def routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v2/redis/databases", self._list)
        router.add_get("/v2/redis/database/{id}", self._get)
        router.add_post("/v2/redis/reset-password/{id}", self._reset)

    def login(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if not given:
            return web.Response(status=401)
        if not given.startswith("Basic "):
            return web.Response(status=401, text="token contains an invalid number of segments")
        good = base64.b64decode(given.removeprefix("Basic ")).decode() == f"{self.email}:{self.key}"
        return None if good else self.refusal(401, "Unauthorized")

    def refusal(self, status: int, words: str) -> web.Response:
        return web.json_response({"error": words}, status=status)

    @property
    def _row(self) -> Body:
        return {"database_id": "db-1", "endpoint": self._endpoint, "tls": True, "region": "global",
                "password": self.password}  # fmt: skip

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response([self._row])

    async def _get(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "db-1":
            return self.refusal(404, "database not found")
        return web.json_response(self._row)

    async def _reset(self, request: web.Request) -> web.Response:
        self.password = secrets.token_hex(16)
        self.resets += 1
        await self._reset_to(self.password)
        return web.json_response(self._row)
