"""What the dashboard's forms do: each is an action of the API, with a form's fields in place of JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from oxherd.web.api import ENDPOINTS
from oxherd.web.auth import Identity, Scope, is_https
from oxherd.web.dashboard import SAID, show_login
from oxherd.web.desk import Desk
from oxherd.web.endpoint import NOBODY, Ask, Endpoint, read_body
from oxherd.web.problems import Problem

ACTIONS = {endpoint.name: endpoint for endpoint in ENDPOINTS if endpoint.scope is Scope.ACT}
BY_NAME = {endpoint.name: endpoint for endpoint in ENDPOINTS}
MOST_AT_ONCE = 200  # things that one form acts on
OURS = frozenset({"csrf", "next", "each"})  # fields that are not the action's

Fields = dict[str, list[str]]


async def log_in(desk: Desk, request: Request) -> Response:
    """Open a session, and go on to the page that was asked for."""
    try:
        fields = await _fields(request)
        _same_site(request)
        body = _model(BY_NAME["logIn"], {"token": _one(fields, "token")})
    except Problem as problem:
        return await show_login(desk, request, problem)
    answer = await BY_NAME["logIn"].perform(Ask(desk, None, body, NOBODY, request), {})
    if answer.status_code != 200:
        told: dict[str, Any] = orjson.loads(answer.body)
        wrong = Problem(answer.status_code, told["detail"], hint=told.get("hint", ""))
        return await show_login(desk, request, wrong, _one(fields, "next"))
    response = RedirectResponse(_local(_one(fields, "next")), 303)
    response.headers.append("set-cookie", answer.headers["set-cookie"])
    return response


async def act(desk: Desk, request: Request) -> Response:
    """Do what a form asks for, and go back to where it was, with a word of what came of it.

    The form's fields are the action's. `each` names the things to act on one by one, where there are many.
    """
    try:
        fields = await _fields(request)
    except Problem as problem:
        return problem.response()
    action, back = request.path_params["action"], _local(_one(fields, "next"))
    try:
        if action == "logOut":
            return await _log_out(desk, request, fields)
        if action not in ACTIONS:
            raise Problem(404, "there is no such action")
        identity = desk.gatekeeper.admit(request, Scope.ACT, csrf=_one(fields, "csrf"))
        said, bad = await _acted(desk, request, identity, ACTIONS[action], fields)
    except Problem as problem:
        said, bad = _words(problem.detail, problem.hint), True
    return _go_on(request, back, said, bad=bad)


async def _log_out(desk: Desk, request: Request, fields: Fields) -> Response:
    identity = desk.gatekeeper.admit(request, Scope.READ, csrf=_one(fields, "csrf"))
    answer = await BY_NAME["logOut"].perform(Ask(desk, None, None, identity, request), {})
    response = RedirectResponse("/login", 303)
    response.headers.append("set-cookie", answer.headers["set-cookie"])
    return response


async def _acted(
    desk: Desk, request: Request, identity: Identity, endpoint: Endpoint, fields: Fields
) -> tuple[str, bool]:
    targets = fields.get("each", [])[:MOST_AT_ONCE]
    if "each" not in fields:
        status, told = await _once(desk, request, identity, endpoint, fields)
        return (_words(told.get("detail", ""), told.get("hint", "")), True) if status >= 400 else (_good(told), False)
    refused, done = [], 0
    for target in targets:
        status, told = await _once(desk, request, identity, endpoint, {**fields, "id": [target]})
        done += status < 400
        refused += [told.get("detail", "")] if status >= 400 else []
    if refused:
        return f"{done} done, {len(refused)} refused: {refused[0]}.", True
    return f"{done} done.", not done


async def _once(
    desk: Desk, request: Request, identity: Identity, endpoint: Endpoint, fields: Fields
) -> tuple[int, dict[str, Any]]:
    names = [each[1:-1] for each in endpoint.segments if each.startswith("{")]
    values = {name: _one(fields, name) for name in names}
    try:
        params = None if endpoint.params is None else endpoint.params.model_validate(values)
    except ValidationError as error:
        raise Problem.of_fields("path", error) from None
    rest = {name: _value(name, given) for name, given in fields.items() if name not in OURS and name not in names}
    body = None if endpoint.body is None else _model(endpoint, rest)
    answer = await endpoint.perform(Ask(desk, params, body, identity, request), values)
    return answer.status_code, orjson.loads(answer.body)


def _value(name: str, given: list[str]) -> Any:
    return given if name == "ids" else given[-1]


def _model(endpoint: Endpoint, fields: dict[str, Any]) -> BaseModel:
    """The action's body: a field with dots in its name is one of an object inside. What is empty is left out."""
    body: dict[str, Any] = {}
    for name, value in fields.items():
        if value in ("", []):
            continue
        *path, last = name.split(".")
        place = body
        for part in path:
            place = place.setdefault(part, {})
        place[last] = _json(name, value) if last == "data" else value
    assert endpoint.body is not None
    try:
        return endpoint.body.model_validate(body)
    except ValidationError as error:
        raise Problem.of_fields("form", error) from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Problem(422, f"form.{name}: is no JSON: {error}") from None


def _good(told: dict[str, Any]) -> str:
    """What came of an action, in words."""
    match told:
        case {"ids": list(ids), "next": following}:
            gone = f", {len(told['gone'])} were gone" if told.get("gone") else ""
            words = f"{len(ids)} done{gone}{'; there are more, do it again' if following else ''}"
        case {"removed": removed, "left": left}:
            words = f"{removed} jobs removed, {left} left"
        case {"kept": kept, "job_id": job_id}:
            words = f"Job {job_id} waits: {kept} steps come from the journal"
        case {"done": done, "id": found}:
            words = f"{found}: {done}"
        case {"approved": approved}:
            words = "Approved" if approved else "Denied"
        case {"paused": bool(paused), "counts": _}:
            words = "Workers take no more jobs" if paused else "Workers take jobs again"
        case {"pattern": pattern, "until": _}:
            words = f"Silenced: {pattern}"
        case _:
            words = f"{told.get('id', 'It is')}: done"
    return f"{words}."


def _words(detail: str, hint: str) -> str:
    return f"{detail[:1].upper()}{detail[1:]}{'; ' + hint if hint else ''}."


def _go_on(request: Request, back: str, said: str, *, bad: bool) -> Response:
    response = RedirectResponse(back, 303)
    text = quote(f"{'bad' if bad else 'good'}:{said[:500]}".encode(errors="replace"))
    response.set_cookie(SAID, text, max_age=60, httponly=True, samesite="strict", secure=is_https(request))
    return response


async def _fields(request: Request) -> Fields:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Problem(415, "this takes a form")
    try:
        given = parse_qsl((await read_body(request)).decode(), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise Problem(400, "the form can't be read") from None
    fields: Fields = {}
    for name, value in given:
        fields.setdefault(name, []).append(value)
    return fields


def _one(fields: Fields, name: str) -> str:
    return fields.get(name, [""])[-1]


def _local(place: str) -> str:
    """A place on this site; nothing else is gone to."""
    safe = place.startswith("/") and not place.startswith(("//", "/\\", "/act/")) and place.isprintable()
    return place if safe else "/"


def _same_site(request: Request) -> None:
    if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        raise Problem(403, "the request comes from another site")
