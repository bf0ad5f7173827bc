"""One suite for both stores: Postgres directly, and Supabase's REST over a strict double on the same Postgres."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from postgrest_double import ANON_KEY, LEGACY_KEY, MAKE_ROLES, SECRET_KEY, PostgrestDouble

from oxherd.context import Step, Usage
from oxherd.embedded.postgres import Postgres
from oxherd.errors import StoreRefused, StoreUnreachable, UsageError
from oxherd.store import KeptAgent, RunRecord, Store
from oxherd.store.migrate import migrate, migrations
from oxherd.store.postgres import PostgresStore
from oxherd.store.supabase import SupabaseStore
from oxherd.telemetry.events import StoreBack, StoreFlushed, StoreLost, attach

KINDS = ["postgres", "supabase"]
NOON = 1_763_899_200_000


def a_run(number: int = 1, **changes) -> RunRecord:
    run = RunRecord(
        id=f"agent-jobs/{number}@{NOON}",
        queue="agent-jobs",
        job_id=str(number),
        name="support.reply",
        tenant="acme",
        status="completed",
        fence=1,
        attempt=1,
        attempts=3,
        worker="host-1",
        input='{"text": "hello"}',
        output='{"answer": 42}',
        error=None,
        kind=None,
        stack=None,
        enqueued_at=NOON,
        started_at=NOON + 1_001,
        finished_at=NOON + 2_003,
        model_calls=2,
        input_tokens=300,
        output_tokens=40,
        cost_usd=Decimal("0.00012345678901234567"),
    )
    return replace(run, **changes)


def a_step(key: str = "model-1", **changes) -> Step:
    step = Step(
        key=key, inputs="ab" * 16, output=b'{"text":"hi"}', kind="model", attempt=1, started_at=NOON + 1_500, ms=12.5,
        usage=Usage(calls=1, input_tokens=150, output_tokens=20, cost_usd=Decimal("0.00006")),
    )  # fmt: skip
    return replace(step, **changes)


def running(number: int = 1, **changes) -> RunRecord:
    return a_run(number, **{"status": "running", "output": None, "finished_at": 0, **changes})


@asynccontextmanager
async def opened(kind: str, url: str, *, key: str = SECRET_KEY):
    async with PostgrestDouble(url) as double:
        store = PostgresStore(url) if kind == "postgres" else SupabaseStore(double.url, key)
        try:
            await store.start()
            yield store
        finally:
            await store.stop()


@contextmanager
def heard(*types):
    events = []
    detach = attach(events.append, *types)
    try:
        yield events
    finally:
        detach()


async def sql_script(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


async def sql(url: str, statement: str, *arguments):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


async def set_up(url: str) -> str:
    """Make Supabase's roles and Oxherd's schema."""
    await sql(url, MAKE_ROLES)
    await migrate(url)
    return url


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> Iterator[str]:
    yield asyncio.run(set_up(postgres.create_database("store_suite")))
    postgres.drop_database("store_suite")


@pytest.fixture
async def url(shared_url: str) -> str:
    """A database that is set up, with empty tables."""
    await sql(
        shared_url, "truncate oxherd.runs, oxherd.steps, oxherd.agents, oxherd.agent_versions, oxherd.credentials"
    )
    return shared_url


@pytest.fixture
async def own_url(database_url: str) -> str:
    """A database that is set up, for a test that changes more than rows."""
    return await set_up(database_url)


@pytest.fixture(params=KINDS)
async def store(request, url: str):
    async with opened(request.param, url) as store:
        yield store


async def test_a_recorded_run_reads_back_as_it_was_written(store: Store):
    assert await store.record(a_run())
    row = await store.run(a_run().id)
    assert row == {
        "id": f"agent-jobs/1@{NOON}", "queue": "agent-jobs", "job_id": "1", "name": "support.reply", "tenant": "acme",
        "status": "completed", "fence": 1, "attempt": 1, "attempts": 3, "worker": "host-1",
        "input": '{"text": "hello"}', "output": {"answer": 42}, "error": None, "kind": None, "stack": None,
        "enqueued_at": NOON, "started_at": NOON + 1_001, "finished_at": NOON + 2_003, "model_calls": 2,
        "input_tokens": 300, "output_tokens": 40, "cost_usd": Decimal("0.00012345678901234567"),
    }  # fmt: skip


async def test_unknown_cost_and_times_that_have_not_happened_stay_unknown(store: Store):
    assert await store.record(running(cost_usd=None))
    row = await store.run(a_run().id)
    assert (row["cost_usd"], row["finished_at"], row["output"]) == (None, 0, None)


async def test_a_run_nobody_recorded_is_none(store: Store):
    assert await store.run("agent-jobs/never@1") is None


async def test_an_attempt_updates_its_own_run(store: Store):
    assert await store.record(running())
    assert await store.record(a_run())
    assert (await store.run(a_run().id))["status"] == "completed"


async def test_recording_twice_changes_nothing(store: Store, url: str):
    assert await store.record(a_run())
    before = await sql(url, "select * from oxherd.runs")
    assert await store.record(a_run())
    assert await sql(url, "select * from oxherd.runs") == before


async def test_a_zombie_cannot_overwrite_a_later_attempt(store: Store):
    assert (await store.begin(running(fence=2, started_at=NOON + 60_000))).allowed
    assert not await store.record(a_run(fence=1, output='"stale"'))
    row = await store.run(a_run().id)
    assert (row["fence"], row["status"], row["output"]) == (2, "running", None)


async def test_a_zombie_cannot_overwrite_an_ended_run_either(store: Store):
    assert await store.record(a_run(fence=2, attempt=2))
    assert not await store.record(a_run(fence=1, output='"stale"'))
    assert (await store.run(a_run().id))["output"] == {"answer": 42}


async def test_a_zombie_cannot_add_steps(store: Store):
    assert (await store.begin(running(fence=2))).allowed
    assert not await store.save_step(a_run().id, 1, a_step(), attempt_started_at=NOON + 1)
    assert (await store.begin(running(fence=3))).steps == []


async def test_a_zombie_cannot_begin(store: Store):
    assert await store.record(running(fence=3))
    begun = await store.begin(running(fence=2))
    assert (begun.allowed, begun.output, begun.steps) == (False, None, [])
    assert (await store.run(a_run().id))["fence"] == 3


async def test_a_later_attempt_gets_the_finished_steps_in_their_order(store: Store):
    keys = [f"step-{number}" for number in (3, 1, 2)]
    for key in keys:
        assert await store.save_step(a_run().id, 1, a_step(key))
    begun = await store.begin(running(fence=2, attempt=2))
    assert (begun.allowed, begun.output) == (True, None)
    assert begun.steps == [a_step(key) for key in keys]
    assert (await store.run(a_run().id))["status"] == "running"


async def test_steps_of_one_batch_keep_their_order(store: Store):
    keys = [f"step-{number}" for number in (7, 3, 9, 1)]
    await asyncio.gather(*(store.save_step(a_run().id, 1, a_step(key)) for key in keys))
    begun = await store.begin(running(fence=2))
    assert [step.key for step in begun.steps] == keys


@pytest.mark.parametrize(
    "step",
    [
        a_step(usage=None, kind="step"),
        a_step(usage=Usage(calls=1, cost_usd=None)),
        a_step(output=b"null"),
        a_step(output='{"text":"\\u0000 and ü 🐂", "n": 12345678901234567890.10}'.encode()),
        a_step(output=b'"' + b"x" * 300_000 + b'"'),
        a_step("näme/with 'quotes' \" and 🐂"),
    ],
    ids=["unpaid", "unknown cost", "null", "escapes", "large", "odd key"],
)
async def test_a_step_replays_to_the_byte(store: Store, step: Step):
    assert await store.save_step(a_run().id, 1, step)
    assert (await store.begin(running(fence=2))).steps == [step]


async def test_saving_a_step_twice_keeps_one(store: Store):
    for _ in range(2):
        assert await store.save_step(a_run().id, 1, a_step())
    assert len((await store.begin(running(fence=2))).steps) == 1


async def test_a_step_that_a_later_attempt_had_to_run_again_replaces_the_older_one(store: Store):
    older, newer = a_step(output=b'"old"'), a_step(output=b'"new"', attempt=2)
    assert await store.save_step(a_run().id, 2, newer)
    assert await store.save_step(a_run().id, 1, older)
    assert (await store.begin(running(fence=3))).steps == [newer]


async def test_a_run_nobody_knows_can_begin(store: Store):
    begun = await store.begin(running(fence=2))
    assert (begun.allowed, begun.output, begun.steps) == (True, None, [])


async def test_a_begin_may_be_repeated(store: Store):
    await store.save_step(a_run().id, 1, a_step())
    assert await store.begin(running(fence=2)) == await store.begin(running(fence=2))


async def test_a_result_stored_before_a_crash_is_handed_to_the_next_fetch(store: Store):
    assert await store.record(a_run(output='{"answer":  42}'))
    begun = await store.begin(running(fence=2))
    assert (begun.allowed, begun.output) == (True, '{"answer":  42}')
    assert (await store.run(a_run().id))["status"] == "completed"


async def test_a_stored_null_is_a_result(store: Store):
    assert await store.record(a_run(output="null"))
    assert (await store.begin(running(fence=2))).output == "null"


async def test_a_completed_attempts_result_is_final_for_that_attempt(store: Store):
    assert await store.record(a_run())
    assert not await store.record(a_run(fence=2, status="failed", output=None))
    assert (await store.run(a_run().id))["status"] == "completed"


async def test_a_further_attempt_of_a_completed_run_runs_again(store: Store):
    assert await store.record(a_run())
    begun = await store.begin(running(fence=2, attempt=2))
    assert (begun.allowed, begun.output) == (True, None)


class TestAJobRetriedByHandWithItsCountersReset:
    ENDED = a_run(fence=3, attempt=3, status="failed", output=None, error="boom")
    AFTER = NOON + 500_000

    async def test_may_record_with_its_low_fence(self, store: Store):
        assert await store.record(self.ENDED)
        assert await store.record(a_run(fence=1, started_at=self.AFTER, finished_at=self.AFTER + 5))
        assert (await store.run(a_run().id))["fence"] == 1

    async def test_may_begin_with_its_low_fence(self, store: Store):
        await store.save_step(a_run().id, 1, a_step())
        assert await store.record(self.ENDED)
        begun = await store.begin(running(fence=2, started_at=self.AFTER))
        assert (begun.allowed, begun.output, len(begun.steps)) == (True, None, 1)

    async def test_runs_anew_though_the_same_attempt_had_completed(self, store: Store):
        assert await store.record(a_run(fence=3))
        begun = await store.begin(running(fence=2, started_at=self.AFTER))
        assert (begun.allowed, begun.output) == (True, None)

    async def test_may_save_steps_with_its_low_fence(self, store: Store):
        assert await store.record(self.ENDED)
        assert await store.save_step(a_run().id, 1, a_step(), attempt_started_at=self.AFTER)

    async def test_is_told_from_a_zombie_by_its_start(self, store: Store):
        assert await store.record(self.ENDED)
        assert not await store.record(a_run(fence=1))
        assert not await store.save_step(a_run().id, 1, a_step(), attempt_started_at=NOON + 1_001)
        assert not await store.save_step(a_run().id, 1, a_step())
        assert not (await store.begin(running(fence=2))).allowed


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("nul \0 byte", "nul \\u0000 byte"),
        ("half \ud83d pair", "half \\ud83d pair"),
        ("Grüße, 世界, 🐂", "Grüße, 世界, 🐂"),
        ('not JSON: {"', 'not JSON: {"'),
        ("", ""),
        ("x" * 2_000_000, "x" * 2_000_000),
    ],
    ids=["nul", "surrogate", "unicode", "no json", "empty", "large"],
)
async def test_any_payload_can_be_stored(store: Store, text: str, stored: str):
    assert await store.record(a_run(input=text, error=text))
    row = await store.run(a_run().id)
    assert (row["input"], row["error"]) == (stored, stored)


async def test_a_claim_with_a_nul_in_its_payload_goes_through(store: Store):
    assert (await store.begin(running(fence=2, input="a\0b"))).allowed
    assert (await store.run(a_run().id))["input"] == "a\\u0000b"


async def test_one_bad_row_fails_alone(store: Store):
    bad = {3, 17, 40}
    runs = [a_run(number, output="{not json" if number in bad else "1") for number in range(50)]
    steps = [a_step(f"step-{number}", output=b"{no" if number in bad else b"1") for number in range(50)]
    done = await asyncio.gather(
        *(store.record(run) for run in runs),
        *(store.save_step(a_run().id, 1, step) for step in steps),
        return_exceptions=True,
    )
    refused = [place % 50 for place, answer in enumerate(done) if isinstance(answer, StoreRefused)]
    assert refused == [3, 17, 40, 3, 17, 40]
    assert sum(answer is True for answer in done) == 94
    assert store.waiting == 0
    assert store.away_seconds == 0


async def test_the_error_of_a_bad_row_does_not_quote_it(store: Store):
    with pytest.raises(StoreRefused, match=r"22P02") as caught:
        await store.record(a_run(output="{confidential"))
    assert "confidential" not in str(caught.value)


async def test_a_thousand_writers_share_a_few_statements(store: Store):
    with heard(StoreFlushed) as flushes:
        done = await asyncio.gather(*(store.record(a_run(number)) for number in range(1_000)))
    assert all(done)
    assert len(flushes) <= 3
    assert sum(flush.rows for flush in flushes) == 1_000


async def test_runs_and_steps_that_wait_together_are_written_together(store: Store):
    with heard(StoreFlushed) as flushes:
        await asyncio.gather(
            *(store.record(a_run(number)) for number in range(20)),
            *(store.save_step(a_run(number).id, 1, a_step()) for number in range(20)),
        )
    assert [flush.rows for flush in flushes] == [40]


async def test_a_run_written_twice_in_one_batch_keeps_its_last_state(store: Store):
    done = await asyncio.gather(store.record(running()), store.record(a_run()))
    assert done == [True, True]
    assert (await store.run(a_run().id))["status"] == "completed"


async def test_two_attempts_of_one_run_in_one_batch_keep_their_order(store: Store):
    second = a_run(fence=2, attempt=2, output="2")
    done = await asyncio.gather(store.record(running()), store.record(second), store.record(a_run(output="1")))
    assert done == [True, True, False]
    assert (await store.run(a_run().id))["output"] == 2


async def test_a_writer_that_was_cancelled_does_not_disturb_the_others(store: Store):
    writers = [asyncio.create_task(store.record(a_run(number))) for number in range(10)]
    await asyncio.sleep(0)
    writers[4].cancel()
    done = await asyncio.gather(*writers, return_exceptions=True)
    assert [answer is True for answer in done] == [number != 4 for number in range(10)]


async def test_agents_that_the_app_keeps_are_found_by_name(store: Store, url: str):
    definition = '{"model": "openai/gpt-5-mini", "tools": [], "limits": {"usd": 0.05}}'
    await sql(url, "insert into oxherd.agents (name, definition) values ($1, $2::jsonb)", "Süpport & co", definition)
    assert await store.agent("Süpport & co") == KeptAgent(
        1, {"model": "openai/gpt-5-mini", "tools": [], "limits": {"usd": 0.05}}
    )
    assert await store.agent("nobody") is None
    assert await store.agent("nobody", 1) is None


async def test_every_edit_of_an_agent_is_a_version_that_stays(store: Store, url: str):
    await sql(url, "insert into oxherd.agents (name, definition) values ('a', '{\"model\": \"one\"}')")
    await sql(url, 'update oxherd.agents set definition = \'{"model": "two"}\'')
    assert await store.agent("a") == KeptAgent(2, {"model": "two"})
    assert await store.agent("a", 1) == KeptAgent(1, {"model": "one"})
    await sql(url, "delete from oxherd.agents")
    assert await store.agent("a") is None
    assert await store.agent("a", 2) == KeptAgent(2, {"model": "two"})
    await sql(url, "insert into oxherd.agents (name, definition) values ('a', '{\"model\": \"three\"}')")
    assert await store.agent("a") == KeptAgent(3, {"model": "three"})


async def test_an_edit_that_changes_nothing_is_no_version(store: Store, url: str):
    upsert = (
        "insert into oxherd.agents (name, definition, version) values ('a', $1::text::jsonb, 7) "
        "on conflict (name) do update set definition = excluded.definition, version = excluded.version"
    )
    for model in ("one", "one", "two", "two", "one"):
        await sql(url, upsert, f'{{"model": "{model}"}}')
    assert await store.agent("a") == KeptAgent(3, {"model": "one"})
    assert len(await sql(url, "select from oxherd.agent_versions")) == 3


async def test_two_edits_of_an_agent_at_once_get_two_numbers(store: Store, url: str):
    await sql(url, "insert into oxherd.agents (name, definition) values ('a', '{}')")
    edit = "update oxherd.agents set definition = jsonb_build_object('model', $1::text) where name = 'a'"
    await asyncio.gather(*(sql(url, edit, f"m{number}") for number in range(20)))
    rows = await sql(url, "select definition ->> 'model' as model from oxherd.agent_versions order by version")
    assert sorted(row["model"] or "" for row in rows) == sorted(["", *(f"m{number}" for number in range(20))])
    assert (await store.agent("a")).version == 21


async def test_an_agent_that_is_renamed_goes_on_as_another_one(store: Store, url: str):
    await sql(url, "insert into oxherd.agents (name, definition) values ('a', '{}')")
    await sql(url, "update oxherd.agents set name = 'b'")
    assert (await store.agent("a"), await store.agent("b")) == (None, KeptAgent(1, {}))
    assert await store.agent("a", 1) == KeptAgent(1, {})


def an_envelope(value: str = "secret", key: str = "0a1b2c3d") -> str:
    return f"oxherd1.{key}.{len(value) + 28}.{value}"


async def test_a_credential_reads_back_as_it_was_put(store: Store):
    assert await store.put_credential("acme & co", "stripe", an_envelope())
    assert await store.get_credential("acme & co", "stripe") == an_envelope()
    assert await store.get_credential("acme & co", "other") is None
    assert await store.get_credential("", "stripe") is None


async def test_a_put_replaces_what_is_there_and_says_so(store: Store, url: str):
    assert await store.put_credential("acme", "stripe", an_envelope("old"))
    await sql(url, "update oxherd.credentials set created_at = '2026-01-01Z', updated_at = '2026-01-01Z'")
    assert not await store.put_credential("acme", "stripe", an_envelope("new", "ffffffff"))
    (row,) = await store.list_credentials(limit=9)
    assert (row.envelope, row.key_id) == (an_envelope("new", "ffffffff"), "ffffffff")
    assert row.created_at == 1_767_225_600_000 < row.updated_at


async def test_a_removed_credential_is_gone(store: Store):
    await store.put_credential("acme", "stripe", an_envelope())
    assert not await store.remove_credential("acme", "other")
    assert await store.remove_credential("acme", "stripe")
    assert not await store.remove_credential("acme", "stripe")
    assert await store.get_credential("acme", "stripe") is None


async def test_credentials_are_listed_in_pages(store: Store):
    everything = [(tenant, f"n{number}") for tenant in ("", "acme", "Ümlaut") for number in range(3)]
    for tenant, name in reversed(everything):
        await store.put_credential(tenant, name, an_envelope())
    found, after = [], None
    while page := await store.list_credentials(limit=2, after=after):
        assert len(page) <= 2
        found += [(row.tenant, row.name) for row in page]
        after = found[-1]
    assert found == everything
    assert [row.name for row in await store.list_credentials(limit=9, tenant="acme")] == ["n0", "n1", "n2"]
    assert len(await store.list_credentials(limit=9, tenant="")) == 3


async def test_credentials_are_counted_and_found_by_the_key_that_sealed_them(store: Store):
    assert await store.count_credentials() == {}
    for number in range(5):
        await store.put_credential("acme", f"n{number}", an_envelope(key="aaaaaaaa" if number < 2 else "bbbbbbbb"))
    assert await store.count_credentials() == {"aaaaaaaa": 2, "bbbbbbbb": 3}
    left = await store.list_credentials(limit=9, but_key="bbbbbbbb")
    assert [row.name for row in left] == ["n0", "n1"]


async def test_only_an_envelope_that_is_still_the_one_that_was_read_is_swapped(store: Store, url: str):
    for name in ("a", "b", "c"):
        await store.put_credential("acme", name, an_envelope(f"old-{name}"))
    before = await sql(url, "select updated_at from oxherd.credentials order by name")
    swaps = [("acme", name, an_envelope(f"old-{name}"), an_envelope(f"new-{name}")) for name in ("a", "b", "c")]
    await store.put_credential("acme", "b", an_envelope("put-meanwhile"))
    await store.remove_credential("acme", "c")
    assert await store.swap_credentials(swaps) == 1
    assert await store.swap_credentials(swaps) == 0
    assert await store.get_credential("acme", "a") == an_envelope("new-a")
    assert await store.get_credential("acme", "b") == an_envelope("put-meanwhile")
    assert await store.get_credential("acme", "c") is None
    assert (await sql(url, "select updated_at from oxherd.credentials where name = 'a'"))[0] == before[0]


@pytest.mark.parametrize("value", ["sk-live-in-the-clear", "", "oxherd1.0a1b2c3d.33.sk live", "oxherd1.0A1B2C3D.33.x"])
async def test_nothing_but_an_envelope_can_be_stored_as_a_credential(store: Store, value: str):
    with pytest.raises(StoreRefused) as caught:
        await store.put_credential("acme", "stripe", value)
    assert "sk" not in str(caught.value)


@pytest.mark.parametrize("tenant", ["nul \0 byte", "half \ud83d pair"])
async def test_a_tenant_that_can_not_be_stored_is_refused(store: Store, tenant: str):
    with pytest.raises(StoreRefused):
        await store.put_credential(tenant, "stripe", an_envelope())


async def test_a_stop_writes_what_waits(store: Store, url: str):
    writers = [asyncio.create_task(store.record(a_run(number))) for number in range(100)]
    await asyncio.sleep(0)
    assert store.waiting == 100
    await store.stop()
    assert await asyncio.gather(*writers) == [True] * 100
    assert (await sql(url, "select count(*) from oxherd.runs"))[0][0] == 100
    await store.stop()
    with pytest.raises(StoreUnreachable, match="stopped"):
        await store.record(a_run())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_that_turned_read_only_is_waited_for(kind: str, own_url: str):
    admin = await asyncpg.connect(own_url, server_settings={"default_transaction_read_only": "off"})
    await turn(admin, "set default_transaction_read_only = on")
    lost = asyncio.Event()
    async with opened(kind, own_url) as store:
        with heard(StoreLost, StoreBack) as events:
            detach = attach(lambda _: lost.set(), StoreLost)
            writer = asyncio.create_task(store.record(a_run()))
            await lost.wait()
            detach()
            assert not writer.done()
            await turn(admin, "reset default_transaction_read_only")
            assert await writer
    await admin.close()
    assert [type(event) for event in events] == [StoreLost, StoreBack]
    assert "read-only" in events[0].error


async def turn(admin: asyncpg.Connection, setting: str) -> None:
    """Change a setting of the database, and end the sessions that still have the old one."""
    name = await admin.fetchval("select current_database()")
    await admin.execute(f"alter database {name} {setting}")
    others = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    await admin.execute(f"select pg_terminate_backend(pid) {others}")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_killed_in_the_middle_loses_nothing(kind: str):
    with Postgres() as server:
        await set_up(server.url)
        async with opened(kind, server.url) as store:
            await _survive_a_kill(store, server)


async def _survive_a_kill(store: Store, server: Postgres) -> None:
    lost, kill = asyncio.Event(), asyncio.Event()
    written: list[str] = []

    async def writer(number: int) -> None:
        for job in range(number * 30, number * 30 + 30):
            assert await store.save_step(a_run(job).id, 1, a_step())
            assert await store.record(a_run(job))
            written.append(a_run(job).id)
            if len(written) == 300:
                kill.set()

    with heard(StoreLost, StoreBack) as events:
        detach = attach(lambda _: lost.set(), StoreLost)
        writers = asyncio.gather(*(writer(number) for number in range(40)))
        await kill.wait()
        await asyncio.to_thread(server.kill)
        await lost.wait()
        detach()
        claim = asyncio.create_task(store.begin(running(5_000, fence=2)))
        await asyncio.sleep(0.01)
        assert store.waiting == 41
        assert store.away_seconds > 0
        with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1"):
            await store.run("agent-jobs/1@1")
        await asyncio.to_thread(server.start)
        await writers
        assert (await claim).allowed
    assert [type(event) for event in events] == [StoreLost, StoreBack]
    assert events[0].waiting > 0
    assert events[1].seconds > 0
    assert (store.waiting, store.away_seconds) == (0, 0.0)
    stored = await sql(server.url, "select id from oxherd.runs r join oxherd.steps s on s.run_id = r.id")
    assert sorted(row["id"] for row in stored) == sorted(written)
    assert len(written) == 1_200


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_while_the_database_is_away_ends_and_says_what_was_given_up(kind: str, monkeypatch):
    monkeypatch.setattr("oxherd.store.flush.LAST_FLUSH_SECONDS", 0.2)
    with Postgres() as server:
        await set_up(server.url)
        async with opened(kind, server.url) as store:
            await asyncio.to_thread(server.kill)
            writers = [asyncio.create_task(store.record(a_run(number))) for number in range(3)]
            await asyncio.sleep(0)
            await store.stop()
            done = await asyncio.gather(*writers, return_exceptions=True)
    assert [type(answer) for answer in done] == [StoreUnreachable] * 3
    assert "3 writes" in str(done[0])
    assert store.waiting == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_that_is_not_there_is_named_without_its_secrets(kind: str):
    store = (
        PostgresStore("postgresql://me:hunter2@127.0.0.1:1/app")
        if kind == "postgres"
        else SupabaseStore("http://127.0.0.1:1", "sb_secret_hunter2")
    )
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:1") as caught:
        await store.start()
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    await store.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_missing_migrations_are_told_with_the_command(kind: str, database_url: str):
    await sql(database_url, MAKE_ROLES)
    with pytest.raises(UsageError) as caught:
        async with opened(kind, database_url):
            pass
    assert "oxherd db migrate" in caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
async def test_a_schema_older_than_the_release_is_refused(kind: str, own_url: str):
    *_, before, newest = (migration.number for migration in migrations())
    await sql(own_url, "delete from oxherd.migrations where number = $1", newest)
    with pytest.raises(UsageError, match=f"lacks migrations {before + 1} to {newest}"):
        async with opened(kind, own_url):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_a_schema_newer_than_the_release_is_fine(kind: str, own_url: str):
    await sql(own_url, "insert into oxherd.migrations (number, name, checksum) values (999, '999_later', '')")
    async with opened(kind, own_url) as store:
        assert await store.record(a_run())


async def test_a_login_with_the_grants_of_the_docs_is_enough(own_url: str):
    worker = re.sub(r"//.*?@", "//oxherd_worker:word@", own_url)
    grants = documented("create role").replace("'…'", "'word'")
    await sql_script(own_url, grants)
    try:
        async with opened("postgres", worker) as store:
            assert await store.save_step(a_run().id, 1, a_step())
            assert (await store.begin(running(fence=2))).steps
            assert await store.record(a_run(fence=2))
            assert (await store.runs(queue="agent-jobs")).runs
            assert await store.agent("nobody") is None
            await store.write_spend([])
            assert await store.spend_report(by="day", since=0, until=NOON) == []
    finally:
        await sql_script(own_url, "drop owned by oxherd_worker; drop role oxherd_worker")


async def test_a_login_without_grants_is_told_so(own_url: str):
    await sql_script(own_url, "create role bare login password 'word'")
    try:
        with pytest.raises(UsageError, match="permission denied") as caught:
            async with opened("postgres", re.sub(r"//.*?@", "//bare:word@", own_url)):
                pass
        assert "docs/database.md" in caught.value.hint
    finally:
        await sql_script(own_url, "drop role bare")


async def test_old_runs_go_with_their_steps_as_the_docs_say(store: Store, url: str):
    for number in (1, 2):
        await store.save_step(a_run(number).id, 1, a_step())
    await store.record(a_run(1))
    await store.record(a_run(2, finished_at=time.time_ns() // 1_000_000))
    await sql_script(url, documented("with gone"))
    for table, column in (("runs", "id"), ("steps", "run_id")):
        assert [row[0] for row in await sql(url, f"select {column} from oxherd.{table}")] == [a_run(2).id]


def documented(beginning: str) -> str:
    """The SQL of docs/database.md that begins so."""
    page = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
    return next(block for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if block.startswith(beginning))


class TestOverSupabase:
    async def test_a_legacy_key_works_as_well_as_a_secret_one(self, url: str):
        async with opened("supabase", url, key=LEGACY_KEY) as store:
            assert await store.record(a_run())

    async def test_a_thousand_runs_are_a_few_requests(self, url: str):
        async with PostgrestDouble(url) as double:
            store = SupabaseStore(double.url, SECRET_KEY)
            await store.start()
            await asyncio.gather(*(store.record(a_run(number)) for number in range(1_000)))
            await store.stop()
        assert double.requests.count("POST /rest/v1/rpc/write_batch") <= 3

    async def test_the_anon_key_is_refused_at_the_start(self, url: str):
        with pytest.raises(UsageError, match="42501") as caught:
            async with opened("supabase", url, key=ANON_KEY):
                pass
        assert "service_role" in caught.value.hint

    async def test_a_wrong_key_is_refused_at_the_start(self, url: str):
        with pytest.raises(StoreUnreachable, match="Invalid API key") as caught:
            async with opened("supabase", url, key="sb_secret_wrong"):
                pass
        assert "SUPABASE_SERVICE_ROLE_KEY" in caught.value.hint

    async def test_a_schema_that_is_not_exposed_is_told_with_the_remedy(self, url: str):
        async with PostgrestDouble(url, exposed=("public",)) as double:
            store = SupabaseStore(double.url, SECRET_KEY)
            with pytest.raises(UsageError, match="Invalid schema: oxherd") as caught:
                await store.start()
        assert "exposed schemas" in caught.value.hint

    async def test_an_address_that_is_no_supabase_is_told(self, url: str):
        async with PostgrestDouble(url) as double:
            store = SupabaseStore(f"{double.url}/elsewhere", SECRET_KEY)
            with pytest.raises(StoreUnreachable) as caught:
                await store.start()
        assert "SUPABASE_URL" in caught.value.hint

    @pytest.mark.parametrize("table", ["runs", "steps", "agents", "agent_versions", "credentials", "migrations"])
    async def test_anon_reads_nothing(self, url: str, table: str):
        status, body = await self._as_anon(url, "GET", f"{table}?select=*")
        assert (status, body["code"]) == (401, "42501")

    async def test_anon_writes_nothing(self, url: str):
        status, body = await self._as_anon(url, "POST", "rpc/write_batch", json={"runs": [], "steps": None})
        assert (status, body["code"]) == (401, "42501")

    async def test_anon_still_gets_nothing_when_somebody_grants_it_the_tables(self, own_url: str):
        async with opened("supabase", own_url) as store:
            assert await store.record(a_run())
        await sql(own_url, "grant usage on schema oxherd to anon")
        await sql(own_url, "grant select on all tables in schema oxherd to anon")
        assert await self._as_anon(own_url, "GET", "runs?select=id") == (200, [])
        status, body = await self._as_anon(own_url, "POST", "rpc/write_batch", json={"runs": [], "steps": None})
        assert (status, body["code"]) == (401, "42501")

    async def _as_anon(self, url: str, method: str, path: str, **options):
        headers = {"apikey": ANON_KEY, "Accept-Profile": "oxherd", "Content-Profile": "oxherd"}
        async with (
            PostgrestDouble(url) as double,
            aiohttp.ClientSession(f"{double.url}/rest/v1/", headers=headers) as session,
            session.request(method, path, **options) as response,
        ):
            return response.status, await response.json()
