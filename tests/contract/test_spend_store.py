"""The ledger in both stores: the same suite over Postgres and over Supabase's REST."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import KINDS, NOON, opened, set_up, sql

from oxherd.embedded.postgres import Postgres
from oxherd.store import SpendRow, SpendSum
from oxherd.store.migrate import migrate, migrations
from oxherd.store.postgres import PostgresStore

DAY = 86_400_000


def a_row(name: str = "a", **changes) -> SpendRow:
    row = SpendRow(
        id=name, run_id=f"agent-jobs/1@{NOON}", step="support/model-1", fence=1, tenant="acme", agent="support",
        model="m", state="reserved", at=NOON, reserved_usd=Decimal("0.0123456789012345"),
    )  # fmt: skip
    return replace(row, **changes)


def settled(row: SpendRow, cost: str = "0.002") -> SpendRow:
    return replace(
        row, state="settled", cost_usd=Decimal(cost), generation_id="gen-1", input_tokens=10, output_tokens=5
    )


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> Iterator[str]:
    yield asyncio.run(set_up(postgres.create_database("spend_suite")))
    postgres.drop_database("spend_suite")


@pytest.fixture(params=KINDS)
async def store(request, shared_url: str):
    await sql(shared_url, "truncate oxherd.spend")
    async with opened(request.param, shared_url) as store:
        yield store


async def test_a_call_whose_bill_is_not_known_yet_is_found_again_with_all_it_has(store):
    row = a_row(generation_id="gen-1")
    await store.write_spend([row, a_row("b", at=NOON + 5), settled(a_row("c"))])
    assert await store.unsettled_spend(before=NOON + 1) == [row]
    assert [found.id for found in await store.unsettled_spend(before=NOON + DAY)] == ["a", "b"]
    assert [found.id for found in await store.unsettled_spend(before=NOON + DAY, limit=1)] == ["a"]
    assert await store.unsettled_spend(before=NOON + DAY, run_id="agent-jobs/2@1") == []


async def test_a_settled_call_is_final(store):
    await store.write_spend([a_row()])
    await store.write_spend([settled(a_row())])
    for late in (a_row(), replace(a_row(), state="unknown"), settled(a_row(), "9")):
        await store.write_spend([late])
    (line,) = await store.spend_report(by="model", since=NOON, until=NOON + 1)
    assert (line.cost_usd, line.open, line.unknown) == (Decimal("0.002"), 0, 0)


async def test_a_bill_that_was_given_up_can_still_be_settled_but_is_not_open_again(store):
    await store.write_spend([a_row()])
    await store.write_spend([replace(a_row(), state="unknown")])
    await store.write_spend([a_row()])
    assert await store.unsettled_spend(before=NOON + DAY) == []
    await store.write_spend([settled(a_row())])
    (line,) = await store.spend_report(by="agent", since=NOON, until=NOON + 1)
    assert (line.unknown, line.cost_usd) == (0, Decimal("0.002"))


async def test_the_report_tells_what_is_known_open_and_unknown_apart(store):
    await store.write_spend([
        settled(a_row("a")), settled(a_row("b", tenant=None, agent="editor"), "0.5"), a_row("c"),
        a_row("d", reserved_usd=None, state="unknown"), settled(a_row("e", model="n", at=NOON + DAY), "0"),
    ])  # fmt: skip
    report = {line.key: line for line in await store.spend_report(by="tenant", since=0, until=NOON + 2 * DAY)}
    acme = report["acme"]
    assert (acme.calls, acme.cost_usd, acme.open, acme.reserved_usd, acme.unknown, acme.input_tokens) == (
        4, Decimal("0.002"), 1, Decimal("0.0123456789012345"), 1, 20,
    )  # fmt: skip
    assert report[None].cost_usd == Decimal("0.5")
    days = await store.spend_report(by="day", since=0, until=NOON + 2 * DAY)
    assert [(line.key, line.calls) for line in days] == [("2025-11-23", 4), ("2025-11-24", 1)]
    agents = await store.spend_report(by="agent", since=0, until=NOON + DAY)
    assert agents[0].key == "editor", "the dearest first"
    assert [line.key for line in await store.spend_report(by="model", since=NOON + DAY, until=NOON + DAY + 1)] == ["n"]


async def test_texts_that_no_database_can_hold_do_not_stop_the_ledger(store):
    await store.write_spend([a_row(agent="a\0b", tenant="\ud83d")])
    (line,) = await store.spend_report(by="agent", since=NOON, until=NOON + 1)
    assert line.key == "a\\u0000b"


# -- the sums by day, which reports are made from


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), writers=st.integers(1, 8), zone=st.sampled_from(["UTC", "Pacific/Kiritimati"]))
def test_every_report_is_the_sum_of_the_ledger_s_rows_whoever_wrote_them_at_once(shared_url, seed, writers, zone):
    asyncio.run(write_at_once(shared_url, random.Random(seed), writers, zone))


async def write_at_once(url: str, chance: random.Random, writers: int, zone: str) -> None:
    """Several writers with the same ids in several orders; somebody changes and deletes rows by hand meanwhile."""
    await sql(url, "truncate oxherd.spend")
    await sql(url, f"alter database spend_suite set timezone = '{zone}'")
    store = PostgresStore(url)
    await store.start()
    try:
        await asyncio.gather(
            *(writes(store, random.Random(chance.random())) for _ in range(writers)),
            edits(url, random.Random(chance.random())),
        )
        rows = await sql(url, "select * from oxherd.spend")
        for by in ("day", "tenant", "agent", "model"):
            for _ in range(5):
                since, until = sorted((NOON + int(chance.uniform(-4, 4) * DAY)) // part * part for part in (1, DAY))
                found = await store.spend_report(by=by, since=since, until=until)
                assert {line.key: line for line in found} == summed(rows, by, since, until), (by, since, until)
    finally:
        await store.stop()
        await sql(url, "alter database spend_suite reset timezone")


async def writes(store: PostgresStore, chance: random.Random) -> None:
    for _ in range(12):
        rows = [some_row(chance, name) for name in chance.sample([f"call-{number}" for number in range(40)], 8)]
        await store.write_spend(rows)


def some_row(chance: random.Random, name: str) -> SpendRow:
    row = a_row(
        name, tenant=chance.choice([None, "", "acme", "globex"]), agent=chance.choice(["support", "editor"]),
        model=chance.choice(["m", "n" * 3_000]), at=NOON + int(chance.uniform(-3, 3) * DAY),
    )  # fmt: skip
    changed = chance.choice([row, replace(row, state="unknown"), settled(row, str(chance.randrange(1000) / 1000))])
    return replace(changed, reserved_usd=chance.choice([None, Decimal("0.01")]))


async def edits(url: str, chance: random.Random) -> None:
    for _ in range(10):
        await sql(url, "delete from oxherd.spend where id = $1", f"call-{chance.randrange(40)}")
        changed = "agent = 'by hand', at = at + interval '1 day', input_tokens = 7"
        await sql(url, f"update oxherd.spend set {changed} where id = $1", f"call-{chance.randrange(40)}")


def summed(rows: list[asyncpg.Record], by: str, since: int, until: int) -> dict[str | None, SpendSum]:
    """What a report must say, added up row by row."""
    nothing = SpendSum(None, 0, 0, 0, Decimal(0), 0, Decimal(0), 0)
    found: dict[str | None, dict[str, Any]] = defaultdict(lambda: asdict(nothing))
    for row in rows:
        if not datetime.fromtimestamp(since / 1000, UTC) <= row["at"] < datetime.fromtimestamp(until / 1000, UTC):
            continue
        key = row["at"].astimezone(UTC).strftime("%Y-%m-%d") if by == "day" else row[by]
        line = found[key]
        line["key"] = key
        line["calls"] += 1
        for name in ("input_tokens", "output_tokens", "cost_usd"):
            line[name] += row[name] or 0
        line["unknown"] += row["state"] == "unknown"
        line["open"] += row["state"] == "reserved"
        line["reserved_usd"] += (row["reserved_usd"] or 0) if row["state"] == "reserved" else 0
    return {key: SpendSum(**line) for key, line in found.items()}


async def test_calls_from_before_there_were_sums_by_day_are_in_them(database_url, monkeypatch):
    earlier = [each for each in migrations() if each.number < 13]
    monkeypatch.setattr("oxherd.store.migrate.migrations", lambda: tuple(earlier))
    await set_up(database_url)
    chance = random.Random(1)
    async with opened("postgres", database_url) as store:
        await store.write_spend([some_row(chance, str(number)) for number in range(100)])
        before = await store.spend_report(by="model", since=0, until=NOON + 9 * DAY)
        monkeypatch.undo()
        await migrate(database_url)
        assert await store.spend_report(by="model", since=0, until=NOON + 9 * DAY) == before
        await store.write_spend([settled(some_row(chance, str(number))) for number in range(100)])
        rows = await sql(database_url, "select * from oxherd.spend")
        found = await store.spend_report(by="tenant", since=0, until=NOON + 9 * DAY)
        assert {line.key: line for line in found} == summed(rows, "tenant", 0, NOON + 9 * DAY)


async def test_whole_days_are_reported_without_reading_the_ledger(store, shared_url):
    await store.write_spend([settled(a_row()), settled(a_row("b", at=NOON + DAY))])
    connection = await asyncpg.connect(shared_url)
    try:
        await connection.execute("set session_replication_role = replica")  # no trigger hears of it
        await connection.execute("delete from oxherd.spend")
    finally:
        await connection.close()
    days = await store.spend_report(by="day", since=NOON - NOON % DAY, until=NOON + DAY)
    assert [(line.key, line.calls) for line in days] == [("2025-11-23", 1)], "of a part of a day, the ledger is read"
