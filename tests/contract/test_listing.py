"""Lists of runs and agents, and the audit log: the same suite over Postgres and over Supabase's REST."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import asyncpg
import pytest
from test_store import KINDS, NOON, a_run, opened, set_up, sql

from oxherd.embedded.postgres import Postgres
from oxherd.errors import StoreRefused
from oxherd.store import AuditLine, Operation, RunFilter, listing

CANCELLED = AuditLine("token", "127.0.0.1", "cancelJob", "42", {"ids": ["42"], "why": "ü"}, 200)
FILL = """
insert into oxherd.runs (id, queue, job_id, name, tenant, status, fence, attempt, attempts, worker, input,
    enqueued_at, started_at, model_calls, input_tokens, output_tokens)
select 'agent-jobs/' || n || '@1', 'agent-jobs', n::text, 'job-' || n % 5, case when n % 50 = 0 then 'acme' end,
    case when n % 20 = 0 then 'failed' else 'completed' end, 1, 1, 1, 'w', '{}',
    to_timestamp(n), to_timestamp(n * 7919 % 20000), 0, 0, 0  -- where a run lies on disk tells nothing of its time
from generate_series(1, 20000) n
"""


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> Iterator[str]:
    yield asyncio.run(set_up(postgres.create_database("listing_suite")))
    postgres.drop_database("listing_suite")


@pytest.fixture(params=KINDS)
async def store(request, shared_url: str):
    await sql(
        shared_url, "truncate oxherd.runs, oxherd.audit_log, oxherd.operations, oxherd.agents, oxherd.agent_versions"
    )
    async with opened(request.param, shared_url) as store:
        yield store


async def keep(store, *changes: dict) -> None:
    for number, change in enumerate(changes):
        assert await store.record(a_run(number, **{"started_at": NOON + number, **change}))


async def listed(store, *, limit: int = 50, **wanted) -> list[str]:
    """Job ids over all pages."""
    found, place = [], None
    while True:
        page = await store.runs(queue="agent-jobs", limit=limit, wanted=RunFilter(**wanted), after=place)
        found += [run["job_id"] for run in page.runs]
        assert len(page.runs) <= limit
        if (place := page.next) is None:
            return found


async def test_the_newest_runs_come_first_and_without_long_texts(store):
    await keep(store, {}, {}, {}, {}, {}, {"queue": "other"})
    page = await store.runs(queue="agent-jobs", limit=3)
    assert [run["job_id"] for run in page.runs] == ["4", "3", "2"]
    assert not {"input", "output", "stack"} & page.runs[0].keys()
    whole = await store.run(page.runs[0]["id"])
    assert page.runs[0] == {name: whole[name] for name in page.runs[0]}
    assert page.next == (NOON + 2, page.runs[-1]["id"])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"status": "completed"}, ["5", "3", "0"]),
        ({"status": "failed"}, ["4", "1"]),
        ({"name": "report"}, ["3", "2", "1"]),
        ({"tenant": "zeta"}, ["5", "4"]),
        ({"tenant": "zeta", "status": "failed"}, ["4"]),
        ({"name": "report", "status": "failed"}, ["1"]),
        ({"job_id": "2"}, ["2"]),
        ({"worker": "host-2"}, ["2"]),
        ({"since": NOON + 2, "until": NOON + 4}, ["3", "2"]),
        ({"status": "%L' or true --"}, []),
    ],
)
async def test_runs_can_be_had_by_what_is_known_of_them(store, wanted, expected):
    await keep(
        store, {}, {"status": "failed", "name": "report"}, {"status": "running", "name": "report", "worker": "host-2"},
        {"name": "report"}, {"tenant": "zeta", "status": "failed"}, {"tenant": "zeta"},
    )  # fmt: skip
    assert await listed(store, limit=2, **wanted) == expected


async def test_runs_that_began_in_one_moment_are_each_on_one_page(store):
    await keep(store, *({"started_at": NOON} for _ in range(5)))
    assert sorted(await listed(store, limit=2)) == list("01234")


async def test_runs_that_begin_meanwhile_move_no_page(store):
    await keep(store, {}, {}, {}, {})
    page = await store.runs(queue="agent-jobs", limit=2)
    assert await store.record(a_run(9, started_at=NOON + 99))
    rest = await store.runs(queue="agent-jobs", limit=2, after=page.next)
    assert [run["job_id"] for run in rest.runs] == ["1", "0"]


async def test_a_page_looks_at_so_many_runs_and_says_where_it_stopped(store, monkeypatch):
    monkeypatch.setattr(listing, "MOST_EXAMINED", 2)
    await keep(store, {"worker": "rare"}, {}, {}, {}, {})
    page = await store.runs(queue="agent-jobs", wanted=RunFilter(worker="rare"))
    assert page.runs == []
    assert page.next is not None
    assert await listed(store, worker="rare") == ["0"]


async def test_every_filter_walks_an_index(shared_url):
    """20,000 runs: no page reads the table from one end to the other, nor all that fits its filter."""
    connection = await asyncpg.connect(shared_url)
    try:
        await connection.execute("truncate oxherd.runs")
        await connection.execute(FILL)
        await connection.execute("analyze oxherd.runs")
        await connection.execute("load 'auto_explain'")
        await connection.execute(
            "set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
            "set client_min_messages = log"
        )
        plans: list[str] = []
        connection.add_log_listener(lambda _, message: plans.append(message.message))
        after = [10_000_000, "agent-jobs/10000@1"]
        for wanted in (
            {}, {"status": "failed"}, {"status": "completed"}, {"name": "job-1"}, {"tenant": "acme"}, {"after": after},
            {"tenant": "acme", "name": "job-0", "after": after}, {"since": 9_000_000, "until": 9_500_000},
            {"job_id": "7"},
        ):  # fmt: skip
            plans.clear()
            request = {"queue": "agent-jobs", "limit": 10, "most": 100, **wanted}
            await connection.fetchval("select oxherd.page_runs($1::json)", json.dumps(request))
            (plan,) = [text for text in plans if "looked_at" in text]
            assert "Index" in plan, plan
            assert "Seq Scan on runs" not in plan, (wanted, plan)
            assert "Bitmap Heap Scan on runs" not in plan, (wanted, plan)
    finally:
        await connection.execute("truncate oxherd.runs")
        await connection.close()


async def test_who_did_what_is_kept_in_order(store):
    for number in range(3):
        await store.write_audit(AuditLine("session", "::1", "retryJob", str(number), {}, 404))
    await store.write_audit(CANCELLED)
    first, second = await store.audit(limit=2)
    assert first["at"] > NOON
    assert {name: first[name] for name in ("actor", "source", "action", "target", "detail", "outcome")} == {
        "actor": "token", "source": "127.0.0.1", "action": "cancelJob", "target": "42",
        "detail": {"ids": ["42"], "why": "ü"}, "outcome": 200,
    }  # fmt: skip
    rest = await store.audit(limit=9, before=second["id"])
    assert [line["target"] for line in rest] == ["1", "0"]


async def test_a_target_that_can_not_be_stored_is_kept_as_its_escapes(store):
    await store.write_audit(AuditLine("token", "x", "cancelJob", "a\0b\ud83d", {}, 404))
    assert (await store.audit(limit=1))[0]["target"] == "a\\u0000b\\ud83d"


async def test_operations_of_one_kind_are_listed_the_newest_first(store):
    for number in range(3):
        await store.write_operation(Operation("backup", f"b{number}", "ok", 1.5, {"bytes": number}))
    await store.write_operation(Operation("drill", "redis-lost", "failed", 9.0, {}))
    newest, second = await store.operations("backup", limit=2)
    assert newest["at"] > NOON
    assert {name: newest[name] for name in ("kind", "target", "outcome", "seconds", "summary")} == {
        "kind": "backup", "target": "b2", "outcome": "ok", "seconds": 1.5, "summary": {"bytes": 2},
    }  # fmt: skip
    assert [each["target"] for each in await store.operations("backup", limit=9, before=second["id"])] == ["b0"]
    assert await store.operations("restore", limit=9) == []


async def test_agents_are_listed_by_name_in_pages(store, shared_url):
    for name in ("zoe", "adam", "Süd"):
        await sql(
            shared_url, "insert into oxherd.agents (name, definition) values ($1, $2::jsonb)", name, '{"model": "m"}'
        )
    first = await store.agents(limit=2)
    assert [agent["name"] for agent in first] == ["Süd", "adam"]
    assert (first[0]["version"], first[0]["definition"]) == (1, {"model": "m"})
    assert first[0]["updated_at"] > NOON
    assert [agent["name"] for agent in await store.agents(limit=2, after="adam")] == ["zoe"]


async def test_a_name_that_can_not_be_sent_is_refused(store):
    with pytest.raises(StoreRefused):
        await store.runs(queue="agent-jobs", wanted=RunFilter(name="half \ud83d pair"))
