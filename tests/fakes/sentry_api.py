"""A Sentry that keeps dashboards, monitors and alerts. What its published schema refuses, it refuses.

Requests may be snake or camel case, answers are camel case; what a monitor looks at is nested deeper in answers than in
requests; lists come in pages.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Self

from aiohttp import web

from fakes.contract import Contract

PUBLISHED = Contract("sentry.openapi.json")
CONTRACT = PUBLISHED.path
PAGE = 2
Body = dict[str, Any]


def snake(value: Any) -> Any:
    match value:
        case dict():
            return {re.sub(r"(?<!^)([A-Z])", r"_\1", key).lower(): snake(each) for key, each in value.items()}
        case list():
            return [snake(each) for each in value]
        case _:
            return value


def camel(value: Any) -> Any:
    match value:
        case dict():
            return {re.sub(r"_([a-z])", lambda m: m[1].upper(), key): camel(each) for key, each in value.items()}
        case list():
            return [camel(each) for each in value]
        case _:
            return value


def faults(method: str, path: str, body: Body) -> list[str]:
    """What the published schema has against a request's body."""
    return PUBLISHED.faults(method, path, body)


class FakeSentry:
    """One organisation, `acme`, with one project, `worker`, whose number is 7."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.kept: dict[str, dict[str, Body]] = {"dashboards": {}, "detectors": {}, "workflows": {}}
        self.kept["detectors"]["1"] = {"id": "1", "name": "Error Monitor", "type": "error", "dataSources": None}
        self.requests: list[tuple[str, str]] = []
        self.next_answers: list[tuple[int, Body, dict[str, str]]] = []
        self.url = ""
        self._number = 100
        app = web.Application()
        root = "/api/0/organizations/acme"
        app.router.add_get("/api/0/", self._whoami)
        app.router.add_get("/api/0/projects/acme/worker/", self._project)
        for kind in self.kept:
            app.router.add_get(f"{root}/{kind}/", self._list)
            app.router.add_get(f"{root}/{kind}/{{id}}/", self._get)
            app.router.add_put(f"{root}/{kind}/{{id}}/", self._put)
        app.router.add_post(f"{root}/dashboards/", self._post)
        app.router.add_post(f"{root}/workflows/", self._post)
        app.router.add_post(f"{root}/projects/worker/detectors/", self._post)
        app.router.add_route("*", "/{path:.*}", self._nothing)
        app.middlewares.append(self._guard)
        self._runner = web.AppRunner(app)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [each for each in self.requests if each[0] != "GET"]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.next_answers:
            status, body, headers = self.next_answers.pop(0)
            return web.json_response(body, status=status, headers=headers)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"detail": "Invalid org token"}, status=401)
        return await handler(request)

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.Response(status=404, text="Route not found, did you forget a trailing slash?")

    async def _whoami(self, _: web.Request) -> web.Response:
        """As Sentry's source has it (src/sentry/api/endpoints/index.py); the published description leaves it out."""
        return web.json_response({"version": "0", "auth": {"scopes": ["org:ci"]}, "user": None})

    async def _project(self, _: web.Request) -> web.Response:
        return web.json_response({"id": "7", "slug": "worker"})

    async def _list(self, request: web.Request) -> web.Response:
        kind = request.path.rstrip("/").rpartition("/")[2]
        everything = sorted(self.kept[kind].values(), key=lambda each: int(each["id"]))
        start = int(request.query.get("cursor", "0"))
        page, more = everything[start : start + PAGE], start + PAGE < len(everything)
        if kind == "dashboards":
            page = [{name: each[name] for name in each if name != "widgets"} for each in page]
        link = (
            f'<{self.url}{request.path}?cursor={start + PAGE}>; rel="next"; results="{str(more).lower()}"; cursor="x"'
        )
        return web.json_response(page, headers={"Link": link})

    async def _get(self, request: web.Request) -> web.Response:
        kind = request.path.split("/")[-3]
        return web.json_response(self.kept[kind][request.match_info["id"]])

    async def _post(self, request: web.Request) -> web.Response:
        kind, body = request.path.rstrip("/").rpartition("/")[2], await request.json()
        if said := faults("POST", request.path, body) + self._semantic(kind, body):
            return web.json_response({"nonFieldErrors": said}, status=400)
        self._number += 1
        self._keep(kind, str(self._number), body)
        return web.json_response(self.kept[kind][str(self._number)], status=201)

    async def _put(self, request: web.Request) -> web.Response:
        kind, number, body = request.path.split("/")[-3], request.match_info["id"], await request.json()
        if said := faults("PUT", request.path, body) + self._semantic(kind, body):
            return web.json_response({"nonFieldErrors": said}, status=400)
        self._keep(kind, number, body)
        return web.json_response(self.kept[kind][number])

    def _semantic(self, kind: str, body: Body) -> list[str]:
        """What the schema leaves open and Sentry's source does not."""
        if kind == "dashboards":
            queries = [query for widget in body["widgets"] for query in widget["queries"]]
            layouts = [widget["layout"] for widget in body["widgets"]]
            said = [
                f"{name}: This field is required."
                for query in queries
                for name in ("fields", "conditions")
                if name not in query
            ]
            return said + [
                f"layout: {each}"
                for each in layouts
                if set(each) != {"x", "y", "w", "h", "min_h"} or each["x"] + each["w"] > 6
            ]
        if kind == "workflows":
            unknown = {str(each) for each in body.get("detector_ids", [])} - set(self.kept["detectors"])
            frequency = body["config"]["frequency"]
            return [f"detectorIds: {each}" for each in unknown] + (
                [] if frequency in {0, 5, 10, 30, 60, 180, 720, 1440} else ["frequency"]
            )
        return []

    def _keep(self, kind: str, number: str, body: Body) -> None:
        kept = camel(body) | {"id": number}
        if kind == "detectors":
            kept["projectId"] = "7"
            sources = kept["dataSources"]
            for each in sources:
                each.pop("extrapolationMode", None)
            kept["dataSources"] = [
                {"id": "1", "type": "snuba_query_subscription", "queryObj": {"snubaQuery": each}} for each in sources
            ]
        if kind == "workflows":
            kept["detectorIds"] = [str(each) for each in kept.get("detectorIds", [])]
        self.kept[kind][number] = kept
