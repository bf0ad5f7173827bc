"""Who may do what on Postgres, with the roles that Supabase has: the service role all it needs, everybody else nothing.

The tables and functions are asked of the database, so that a new one is tried without being named here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from postgrest_double import MAKE_ROLES

from oxherd.embedded.postgres import Postgres
from oxherd.store.migrate import migrate

STRANGERS = ["anon", "authenticated"]
GENEROUS = """
grant usage on schema oxherd to anon, authenticated;
grant all on all tables in schema oxherd to anon, authenticated;
grant all on all sequences in schema oxherd to anon, authenticated;
"""
ROWS = """
insert into oxherd.runs (id, queue, job_id, name, status, fence, attempt, attempts, worker, input, model_calls,
    input_tokens, output_tokens) values ('q/1@1', 'q', '1', 'n', 'completed', 1, 1, 1, 'w', '{}', 0, 0, 0);
insert into oxherd.steps (run_id, key, kind, inputs, output, fence, started_at, ms)
    values ('q/1@1', 'k', 'step', '', '1', 1, now(), 1);
insert into oxherd.agents (name, definition) values ('support', '{}');
insert into oxherd.spend (id, run_id, step, fence, agent, model, state, at)
    values ('s', 'q/1@1', 'support/model-1', 1, 'support', 'm', 'unknown', now());
insert into oxherd.audit_log (actor, source, action, target, detail, outcome)
    values ('token', '127.0.0.1', 'cancelJob', '1', '{}', 200);
insert into oxherd.operations (kind, target, outcome, seconds, summary) values ('backup', 'b', 'ok', 1, '{}');
insert into oxherd.waits (run_id, key, id, nonce, queue, job_id, job, inputs, state, asked_at, expires_at)
    values ('q/1@1', 'refund', '00000000000000aa', 'n', 'q', '1', 'n', '', 'open', now(), now() + interval '1 hour');
insert into oxherd.credentials (tenant, name, envelope) values ('acme', 'stripe', 'oxherd1.0a1b2c3d.33.x');
"""


async def prepared(url: str, *, generous: bool) -> str:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(MAKE_ROLES)
        await migrate(url)
        await connection.execute(ROWS)
        if generous:
            await connection.execute(GENEROUS)
    finally:
        await connection.close()
    return url


@pytest.fixture(scope="module", params=[False, True], ids=["as migrated", "with all granted to all"])
def url(request, postgres: Postgres) -> Iterator[str]:
    """Once as the migrations leave it, once after somebody granted everything to everybody."""
    name = f"access_{request.param}".lower()
    yield asyncio.run(prepared(postgres.create_database(name), generous=request.param))
    postgres.drop_database(name)


@pytest.fixture
async def connection(url: str):
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def tables(connection: asyncpg.Connection) -> list[str]:
    query = "select relname, relkind from pg_class where relnamespace = 'oxherd'::regnamespace and relkind in "
    found = await connection.fetch(query + "('r', 'v', 'm', 'p', 'f') order by relname")
    assert {row["relkind"] for row in found} == {b"r"}, "a view would show its owner's rows to everybody"
    return [row["relname"] for row in found]


async def tried(connection: asyncpg.Connection, role: str, statement: str) -> object:
    """What a role gets: rows, or the SQLSTATE."""
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        await connection.execute(f"set local role {role}")
        return await connection.fetch(statement)
    except asyncpg.PostgresError as error:
        return error.sqlstate
    finally:
        await savepoint.rollback()


async def test_row_level_security_is_on_for_every_table_and_no_policy_lets_anybody_in(connection):
    off = await connection.fetch(
        "select relname from pg_class where relnamespace = 'oxherd'::regnamespace and relkind = 'r' "
        "and not relrowsecurity"
    )
    assert off == []
    assert await connection.fetch("select * from pg_policies where schemaname = 'oxherd'") == []


async def test_every_table_that_keeps_something_of_customers_has_a_row_here(connection):
    empty = [table for table in await tables(connection) if not await connection.fetch(f"table oxherd.{table} limit 1")]
    assert empty == []


@pytest.mark.parametrize("role", STRANGERS)
async def test_a_stranger_reads_no_row_of_any_table(connection, role):
    for table in await tables(connection):
        assert await tried(connection, role, f"select * from oxherd.{table}") in ("42501", []), table


@pytest.mark.parametrize("role", STRANGERS)
async def test_a_stranger_changes_no_row_of_any_table(connection, role):
    for table in await tables(connection):
        column = await connection.fetchval(
            "select column_name from information_schema.columns where table_schema = 'oxherd' and table_name = $1 "
            "and is_generated = 'NEVER' and is_identity = 'NO' limit 1", table
        )  # fmt: skip
        for statement in (f"update oxherd.{table} set {column} = {column}", f"delete from oxherd.{table}"):
            assert await tried(connection, role, f"{statement} returning 1") in ("42501", []), (table, statement)
        # The policies are asked before the constraints: no row passes them, whatever it holds.
        assert await tried(connection, role, f"insert into oxherd.{table} default values") == "42501", table


@pytest.mark.parametrize("role", STRANGERS)
async def test_a_stranger_can_not_add_an_agent_or_a_credential(connection, role):
    for statement in (
        "insert into oxherd.agents (name, definition) values ('mine', '{}')",
        "insert into oxherd.agent_versions (name, version, definition) values ('support', 9, '{}')",
        "insert into oxherd.credentials (tenant, name, envelope) values ('a', 'b', 'oxherd1.0a1b2c3d.33.x')",
    ):
        assert await tried(connection, role, statement) == "42501"


@pytest.mark.parametrize("role", STRANGERS)
async def test_a_stranger_may_call_no_function(connection, role):
    functions = await connection.fetch(
        "select oid::regprocedure::text as name, has_function_privilege($1, oid, 'execute') as may "
        "from pg_proc where pronamespace = 'oxherd'::regnamespace", role
    )  # fmt: skip
    assert len(functions) > 8
    assert [row["name"] for row in functions if row["may"]] == []


async def test_functions_with_their_owner_s_rights_are_triggers_and_pin_their_search_path(connection):
    definers = await connection.fetch(
        "select proname, prorettype::regtype::text as returns, proconfig from pg_proc "
        "where pronamespace = 'oxherd'::regnamespace and prosecdef"
    )
    for function in definers:
        assert (function["returns"], function["proconfig"]) == ("trigger", ['search_path=""']), function["proname"]


async def test_the_service_role_reads_every_table(connection):
    for table in await tables(connection):
        assert await tried(connection, "service_role", f"select count(*) from oxherd.{table}") != "42501", table


async def test_the_service_role_can_edit_agents_but_not_their_history(connection):
    edit = "update oxherd.agents set definition = '{\"a\": 1}' returning version"
    assert [row["version"] for row in await tried(connection, "service_role", edit)] == [2]
    for statement in ("update oxherd.agent_versions set definition = '{}'", "delete from oxherd.agent_versions"):
        assert await tried(connection, "service_role", statement) == "42501"


async def test_the_service_role_may_call_what_the_store_calls(connection):
    calls = {
        "get_credential": '{"tenant": "acme", "name": "stripe"}',
        "put_credential": '{"tenant": "acme", "name": "new", "envelope": "oxherd1.0a1b2c3d.33.x"}',
        "remove_credential": '{"tenant": "acme", "name": "stripe"}',
        "list_credentials": '{"limit": 5}',
        "count_credentials": "{}",
        "swap_credentials": "[]",
        "open_wait": '{"run_id": "q/1@1", "key": "other", "id": "00000000000000bb", "nonce": "n", "queue": "q", '
        '"job_id": "1", "job": "n", "inputs": "", "timeout_ms": 1, "fence": 1, "attempt_started_at": 1}',
        "answer_wait": '{"id": "00000000000000aa", "approved": true, "message": "", "by": "ana"}',
        "get_wait": '{"id": "00000000000000aa"}',
        "list_waits": '{"queue": "q", "state": "open", "limit": 9}',
        "withdraw_waits": '{"ids": []}',
        "drop_steps": '{"run_id": "q/1@1", "key": "k"}',
    }
    for function, request in calls.items():
        assert isinstance(await tried(connection, "service_role", f"select oxherd.{function}('{request}')"), list)
