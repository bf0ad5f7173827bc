"""The dashboard: its routes, and what all its pages have in common. What a page shows is in `dashboard_pages`."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from oxherd.errors import OxherdError
from oxherd.telemetry.events import InternalFault, emit
from oxherd.web.auth import Scope
from oxherd.web.desk import Desk
from oxherd.web.problems import Problem

if TYPE_CHECKING:
    from oxherd.web.dashboard_pages import View

PATIENCE = 5.0  # seconds for all that a page asks
PATIENCE_AWAY = 0.5  # seconds for Redis to come back, where it was away already
SAID = "oxherd_said"  # a cookie: what came of an action, for the page after it
REFRESH = "x-refresh"  # a header of requests that the script makes
PAGES = {
    "/": "overview", "/jobs": "jobs", "/jobs/{id:path}": "run", "/runs": "runs", "/runs/{id:path}": "run",
    "/dead": "dead", "/agents": "agents", "/spend": "spend", "/schedules": "schedules", "/approvals": "approvals",
    "/operations": "operations", "/settings": "settings",
}  # fmt: skip
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def routes(desk: Desk) -> list[BaseRoute]:
    """The pages, logging in and out, actions, and what browsers load with them."""

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def shown(request: Request) -> Response:
            return await show(desk, request, name)

        return shown

    async def login(request: Request) -> Response:
        from oxherd.web import dashboard_forms

        if request.method == "POST":
            return await dashboard_forms.log_in(desk, request)
        return await show_login(desk, request)

    async def act(request: Request) -> Response:
        from oxherd.web import dashboard_forms

        return await dashboard_forms.act(desk, request)

    return [
        *(Route(path, page(name)) for path, name in PAGES.items()),
        Route("/login", login, methods=["GET", "POST"]),
        Route("/act/{action}", act, methods=["POST"]),
        Route("/static/{name}", static),
    ]


async def show(desk: Desk, request: Request, name: str) -> Response:
    """A page, or one that says why there is none."""
    try:
        identity = desk.gatekeeper.admit(request, Scope.READ)
    except Problem as problem:
        if problem.status == 401:
            return RedirectResponse(f"/login?next={quote(_here(request), safe='')}", 303)
        return await refuse(desk, problem)
    from oxherd.web.dashboard_pages import PAGES as SHOWN
    from oxherd.web.dashboard_pages import View

    view = View(desk, request, identity)
    try:
        async with asyncio.timeout(PATIENCE if desk.link.is_up else PATIENCE_AWAY):
            shown = await SHOWN[name](view)
        return shown if isinstance(shown, Response) else render(view, name, shown)
    except Exception as error:  # noqa: BLE001  whatever it is, the reader is told
        told = _problem_of(error, name)
        return render(view, "problem", {"problem": told}, told.status)


def _problem_of(error: Exception, name: str) -> Problem:
    match error:
        case Problem():
            return error
        case OxherdError():
            return Problem.of(error)
        case TimeoutError():
            return Problem(503, "Redis or the database does not answer")
        case _:  # our own fault
            emit(InternalFault(where=f"dashboard {name}", stack="".join(traceback.format_exception(error))))
            return Problem(500, "a fault in Oxherd; its log says more")


async def show_login(desk: Desk, request: Request, problem: Problem | None = None, onwards: str = "") -> Response:
    """The form that takes a token, and leads onwards."""
    from oxherd.web.dashboard_templates import page

    needed = not desk.gatekeeper.open_to_this_machine_only
    onwards = onwards or request.query_params.get("next", "/")
    told = {"problem": problem, "next": onwards, "needed": needed, "queue": desk.queue}
    status, headers = (problem.status, dict(problem.headers)) if problem else (200, {})
    return _html(page("login.html", theme=_theme(request), **told), status, headers)


async def refuse(desk: Desk, problem: Problem) -> Response:
    """A page for somebody who is not let in."""
    from oxherd.web.dashboard_templates import page

    return _html(page("refused.html", problem=problem, queue=desk.queue, theme=""), problem.status)


def render(view: View, name: str, shown: dict[str, object], status: int = 200) -> Response:
    """A page for somebody who may see it, with what came of their last action."""
    from oxherd.web.dashboard_templates import page

    # A page that renews itself in the background has nobody who would read it.
    said = "" if REFRESH in view.request.headers else unquote(view.request.cookies.get(SAID, ""))
    bad, _, words = said.partition(":")
    response = _html(
        page(
            f"{name}.html", view=view, here=_here(view.request), name=name, theme=_theme(view.request),
            said=words, said_bad=bad == "bad", **shown,
        ),
        status,
    )  # fmt: skip
    if said:
        response.delete_cookie(SAID)
    return response


def _here(request: Request) -> str:
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    query = request.scope["query_string"].decode("latin-1")
    return raw.decode("latin-1").partition("?")[0] + (f"?{query}" if query else "")


def _theme(request: Request) -> str:
    theme = request.cookies.get("oxherd_theme", "")
    return theme if theme in {"light", "dark"} else ""


def _html(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # A job id that is no UTF-8 is half a surrogate pair.
    return Response(text.encode(errors="backslashreplace"), status, headers, "text/html")


async def static(request: Request) -> Response:
    """A file that pages load. Its address has its version, so browsers may keep it."""
    name = request.path_params["name"]
    kind = TYPES.get(name.rpartition(".")[2])
    found = files("oxherd.web") / "static" / name
    if kind is None or "/" in name or not found.is_file():
        return Problem(404, "there is nothing here").response()
    kept = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
    return Response(found.read_bytes(), media_type=kind, headers={"Cache-Control": kept})
