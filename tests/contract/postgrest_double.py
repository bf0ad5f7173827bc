"""PostgREST as far as the store needs it, on a real Postgres: strict about headers, roles, names and error codes.

What it does not know it refuses with PostgREST's own code, so that a request it answers is one PostgREST would answer.
Sources: PostgREST's reference (errors, preferences, functions as RPC, schemas) and Supabase's pages on API keys.
"""

from __future__ import annotations

import json
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Self

import asyncpg
from aiohttp import web

SECRET_KEY = "sb_secret_made_up_for_tests"
LEGACY_KEY = "eyJhbGciOiJIUzI1NiJ9.service_role.made_up_for_tests"
ANON_KEY = "eyJhbGciOiJIUzI1NiJ9.anon.made_up_for_tests"

ROLES_OF_JWTS = {LEGACY_KEY: "service_role", ANON_KEY: "anon"}

MAKE_ROLES = """
do $$ begin
    create role anon nologin;
    create role authenticated nologin;
    create role service_role nologin bypassrls;
exception when duplicate_object or unique_violation then
    null;
end $$
"""

FUNCTION = """
select array_agg(name order by place) as names,
       array_agg(format_type(type, null) order by place) as types
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
cross join unnest(p.proargnames, p.proargtypes::oid[]) with ordinality as argument (name, type, place)
where n.nspname = $1 and p.proname = $2
"""

STATUS_OF_CLASS = {"40": 500, "53": 503, "57": 500, "08": 503, "25": 500, "55": 500, "XX": 500, "58": 500}
STATUS_OF_STATE = {"23503": 409, "23505": 409, "42P01": 404, "42883": 404, "25006": 405, "53400": 500}


class Refusal(Exception):
    def __init__(self, status: int, code: str | None, message: str, hint: str | None = None) -> None:
        body = {"code": code, "message": message, "details": None, "hint": hint}
        super().__init__(message)
        self.status = status
        self.body = body if code else {"message": message, "hint": hint}


@dataclass
class PostgrestDouble(AbstractAsyncContextManager):
    """Serves a database as `http://127.0.0.1:<port>/rest/v1/`."""

    database_url: str
    exposed: tuple[str, ...] = ("public", "oxherd")
    requests: list[str] = field(default_factory=list)
    secret_keys: set[str] = field(default_factory=lambda: {SECRET_KEY})
    jwts: dict[str, str] = field(default_factory=lambda: dict(ROLES_OF_JWTS))

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64_000_000)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path}")
        try:
            return web.Response(text=await self._answer(request), content_type="application/json")
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        except asyncpg.PostgresError as error:
            return self._database_said(request, error)
        except (OSError, asyncpg.InterfaceError):
            body = {"code": "PGRST001", "message": "Database client error.", "details": None, "hint": None}
            return web.json_response(body, status=503, headers={"Retry-After": "1"})

    async def _answer(self, request: web.Request) -> str:
        role = self._role_of(request)
        if not request.path.startswith("/rest/v1/"):
            raise Refusal(404, None, "no Route matched with those values")
        schema = self._schema(request)
        if request.headers.get("Prefer"):
            raise Refusal(400, "PGRST122", "Invalid preferences given with handling=strict")
        place = request.path.removeprefix("/rest/v1/")
        connection = await asyncpg.connect(self.database_url)
        try:
            async with connection.transaction(readonly=request.method == "GET"):
                await connection.execute(f"set local role {role}; set local statement_timeout = '8s'")
                if place.startswith("rpc/"):
                    return await call(connection, request, schema, place.removeprefix("rpc/"))
                return await select(connection, request, schema, place)
        finally:
            connection.terminate()

    def _schema(self, request: web.Request) -> str:
        header = "Accept-Profile" if request.method in {"GET", "HEAD"} else "Content-Profile"
        schema = request.headers.get(header, self.exposed[0])
        if schema not in self.exposed:
            raise Refusal(
                406, "PGRST106", f"Invalid schema: {schema}",
                f"Only the following schemas are exposed: {', '.join(self.exposed)}",
            )  # fmt: skip
        return schema

    def _role_of(self, request: web.Request) -> str:
        """The gateway's part: a secret key is swapped for its role; a JWT counts only as a bearer token."""
        key, bearer = request.headers.get("apikey"), request.headers.get("Authorization")
        if key is not None and key in self.secret_keys:
            if bearer not in {None, f"Bearer {key}"}:
                raise Refusal(401, None, "Invalid API key")
            if "Mozilla" in request.headers.get("User-Agent", ""):
                raise Refusal(401, None, "Forbidden use of secret API key in browser")
            return "service_role"
        if key not in self.jwts:
            raise Refusal(401, None, "Invalid API key", "Double check your Supabase `anon` or `service_role` API key.")
        if bearer is None:
            return "anon"
        if (token := bearer.removeprefix("Bearer ")) not in self.jwts:
            raise Refusal(401, "PGRST301", "No suitable key or wrong key type")
        return self.jwts[token]

    def _database_said(self, request: web.Request, error: asyncpg.PostgresError) -> web.Response:
        state = error.sqlstate or "XX000"
        body = {"code": state, "message": error.message, "details": error.detail, "hint": error.hint}
        status = STATUS_OF_STATE.get(state) or STATUS_OF_CLASS.get(state[:2], 400)
        if state == "42501":
            status = 401 if self._role_of(request) == "anon" else 403
        return web.json_response(body, status=status)


async def call(connection: asyncpg.Connection, request: web.Request, schema: str, name: str) -> str:
    if request.method != "POST":
        raise Refusal(405, "PGRST101", "Invalid HTTP method")
    if request.content_type != "application/json":
        raise Refusal(415, "PGRST102", "Content-Type not acceptable")
    try:
        arguments = json.loads(await request.read())
    except ValueError:
        raise Refusal(400, "PGRST102", "Empty or invalid json") from None
    found = await connection.fetchrow(FUNCTION, schema, name)
    if not isinstance(arguments, dict) or found["names"] is None or set(found["names"]) != set(arguments):
        raise Refusal(404, "PGRST202", f"Could not find the function {schema}.{name} in the schema cache")
    types = dict(zip(found["names"], found["types"], strict=True))
    placed = ", ".join(f'"{key}" := ${place}::{types[key]}' for place, key in enumerate(arguments, 1))
    values = [None if value is None else json.dumps(value) for value in arguments.values()]
    return await connection.fetchval(f'select "{schema}"."{name}"({placed})', *values)


async def select(connection: asyncpg.Connection, request: web.Request, schema: str, table: str) -> str:
    if request.method != "GET":
        raise Refusal(405, "PGRST117", f"Unsupported HTTP method: {request.method}")
    columns = await connection.fetch(
        "select column_name from information_schema.columns where table_schema = $1 and table_name = $2", schema, table
    )
    if not columns and not await connection.fetchval("select to_regclass($1)", f"{schema}.{table}"):
        raise Refusal(404, "PGRST205", f"Could not find the table '{schema}.{table}' in the schema cache")
    clauses = Clauses()
    for key, value in request.query.items():
        clauses.add(key, value)
    query = f'select {clauses.selected} from "{schema}"."{table}" {clauses.tail()}'
    return await connection.fetchval(f"select coalesce(json_agg(row), '[]') from ({query}) as row", *clauses.values)


NAME = re.compile(r"[a-z_]+")


@dataclass
class Clauses:
    """A query string as SQL; raises PGRST100 at what it can't read."""

    selected: str = "*"
    order: str = ""
    limit: str = ""
    filters: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def add(self, key: str, value: str) -> None:
        match key:
            case "select":
                self.selected = ", ".join(self._column(part) for part in value.split(","))
            case "order":
                column, _, direction = value.partition(".")
                self.order = f"order by {self._named(column)} {self._one_of(direction, 'asc', 'desc')}"
            case "limit" if value.isdecimal():
                self.limit = f"limit {value}"
            case _:
                operator, dot, operand = value.partition(".")
                sign = {"eq": "=", "neq": "<>"}.get(operator)
                if not dot or sign is None:
                    raise Refusal(400, "PGRST100", f'"failed to parse filter ({value})"')
                self.values.append(operand)
                self.filters.append(f"{self._named(key)}::text {sign} ${len(self.values)}")

    def tail(self) -> str:
        where = f"where {' and '.join(self.filters)}" if self.filters else ""
        return f"{where} {self.order} {self.limit}"

    def _column(self, part: str) -> str:
        name, cast, kind = part.partition("::")
        return f"{self._named(name)}::{self._one_of(kind, 'text')} as {name}" if cast else self._named(name)

    def _named(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise Refusal(400, "PGRST100", f'"failed to parse ({name})"')
        return f'"{name}"'

    def _one_of(self, word: str, *allowed: str) -> str:
        if word not in allowed:
            raise Refusal(400, "PGRST100", f'"failed to parse ({word})"')
        return word
