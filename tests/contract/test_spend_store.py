"""The ledger in both stores: the same suite over Postgres and over Supabase's REST."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from test_store import KINDS, NOON, opened, set_up, sql

from oxherd.embedded.postgres import Postgres
from oxherd.store import SpendRow

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
