"""The ledger says what the model service billed, however a call ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal

import pytest

from fakes.journal import attempt_of
from fakes.openrouter import KEY, PRICE, Refuses, Streams, calls, chunk, says
from oxherd.agents import LLM, Agent, Agents, Budget, tool
from oxherd.agents.budget import Caps, Payer, Purse
from oxherd.agents.chat import Request
from oxherd.agents.ledger import GIVE_UP_MS, OVERDUE_MS, Ledger
from oxherd.agents.loop import run_agent
from oxherd.agents.prices import Prices
from oxherd.clock import wall_ms
from oxherd.errors import BudgetExceeded, DailyCapReached, ModelRefused, RetryLater, StoreRefused, StoreUnreachable
from oxherd.queue.connection import Link
from oxherd.settings import Secret, parse_redis_url
from oxherd.store import SpendRow
from oxherd.telemetry.events import InternalFault, SpendUnknown, attach

MODELS = {"data": [{"id": "m", "context_length": 9000, "pricing": {"prompt": "0.000001", "completion": "0.000001"}}]}


class Rows:
    """The store's part of the ledger, in memory."""

    def __init__(self) -> None:
        self.rows = {}
        self.history = []
        self.away = 0
        self.refuses = False
        self.id_known = asyncio.Event()

    async def write_spend(self, rows):
        if self.refuses:
            raise StoreRefused("no")
        if self.away > 0:
            self.away -= 1
            raise StoreUnreachable("away")
        for row in rows:
            self.history.append(row)
            if row.generation_id is not None:
                self.id_known.set()
            if row.id not in self.rows or self.rows[row.id].state != "settled":
                self.rows[row.id] = row

    async def unsettled_spend(self, *, before, run_id=None, limit=100):
        rows = [row for row in self.rows.values() if row.state == "reserved" and row.at < before]
        return [row for row in rows if run_id in (None, row.run_id)][:limit]

    @property
    def all(self):
        return list(self.rows.values())


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
async def purse(redis_url) -> AsyncIterator[Purse]:
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield Purse(link, b"money:", Caps())
    await link.stop()


@pytest.fixture
async def ledger(llm, purse, rows) -> AsyncIterator[Ledger]:
    ledger = Ledger(llm, queue="q", purse=purse, store=rows)
    yield ledger
    await ledger.stop()


def agent(*tools, usd=None, **fields) -> Agent:
    return Agent("support", "m", tools=tools, budget=Budget(usd=usd), **({"max_output_tokens": 100} | fields))


def run(ctx, ledger, given=None, **options):
    return run_agent(ctx, given or agent(), "Hello", ledger.llm, ledger=ledger, **options)


@tool
async def look() -> str:
    """Look."""
    return "seen"


async def test_a_call_is_booked_before_it_is_sent_with_its_id_before_it_is_read_and_settled_after(
    ctx, fake, ledger, rows
):
    seen = []

    def answer(body):
        seen.append(rows.all[0])
        return says("Hi")

    fake.script(answer)
    await run(ctx, ledger)
    await ledger.stop()
    assert (seen[0].state, seen[0].generation_id) == ("reserved", None)
    assert [(row.state, row.generation_id) for row in rows.history] == [
        ("reserved", None), ("reserved", "gen-1"), ("settled", "gen-1"),
    ]  # fmt: skip
    (row,) = rows.all
    assert (row.cost_usd, row.input_tokens, row.output_tokens) == (PRICE, 10, 5)
    assert (row.run_id, row.step, row.agent, row.model, row.fence) == ("q/1@0", "support/model-1", "support", "m", 1)
    assert row.reserved_usd is None, "no cap, so nobody asked for prices"


async def test_every_try_is_in_the_ledger_and_the_refused_ones_were_free(ctx, fake, ledger, rows):
    fake.script(Refuses(503), Refuses(429), says("Hi"))
    await run(ctx, ledger)
    await ledger.stop()
    assert [row.cost_usd for row in rows.all] == [0, 0, PRICE]
    assert sum(row.cost_usd for row in rows.all) == fake.bill


async def test_a_stream_that_breaks_off_is_settled_from_the_record_of_its_generation(ctx, fake, ledger, rows):
    fake.script(Streams(chunk({"content": "I"}), cut=True), says("Hi"))
    await run(ctx, ledger)
    await ledger.stop()
    assert [(row.state, row.cost_usd) for row in rows.all] == [("settled", PRICE)] * 2
    assert sum(row.cost_usd for row in rows.all) == fake.bill == 2 * PRICE
    assert (rows.all[0].input_tokens, rows.all[0].output_tokens) == (11, 6), "as the provider counts"


async def test_a_cancelled_call_is_settled_too(ctx, fake, ledger, rows):
    never = asyncio.Event()
    fake.script(Streams(chunk({"content": "I"}), never))
    task = asyncio.create_task(run(ctx, ledger))
    await asyncio.wait_for(rows.id_known.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.stop()
    assert [(row.state, row.cost_usd) for row in rows.all] == [("settled", PRICE)]
    assert fake.bill == PRICE


async def test_a_failed_run_is_in_the_ledger(ctx, fake, ledger, rows):
    fake.script(Refuses(400))
    with pytest.raises(ModelRefused):
        await run(ctx, ledger)
    await ledger.stop()
    assert [(row.state, row.cost_usd) for row in rows.all] == [("settled", 0)]


async def test_a_broken_call_that_nobody_can_trace_is_unknown_and_not_0(ctx, fake, ledger, rows):
    drops = Refuses(504)
    fake.script(drops, drops, drops, drops)
    events = []
    detach = attach(events.append, SpendUnknown)
    with pytest.raises(RetryLater):
        await run(ctx, ledger)
    await ledger.stop()
    detach()
    assert [(row.state, row.cost_usd) for row in rows.all] == [("unknown", None)] * 4
    assert [(event.run, event.step) for event in events] == [("q/1@0", "support/model-1")] * 4


async def test_money_is_set_aside_before_a_call_and_what_is_left_over_comes_back(ctx, fake, ledger, rows, purse):
    fake.script(MODELS, says("Hi"))
    await run(ctx, ledger, agent(usd="0.01"))
    (row,) = {row.id: row for row in rows.history if row.state == "reserved"}.values()
    assert Decimal("0.001") < row.reserved_usd < Decimal("0.002")
    used = await purse.used(Payer("q/1@0/support", "support"))
    assert used["run"] == PRICE


async def test_a_run_ends_before_the_call_that_could_pass_its_cap_and_keeps_what_it_has(ctx, fake, ledger):
    fake.script(MODELS, calls(("look", {}), content="Let me look."))
    cap = Decimal("0.0019")  # enough for one call, and then for none that costs as much
    with pytest.raises(
        BudgetExceeded, match=r"this run of agent 'support' is \$0\.0019: \$0\.0002 is spent"
    ) as refused:
        await run(ctx, ledger, agent(look, usd=cap, max_output_tokens=500))
    partial = refused.value.partial
    assert (partial.usage.cost_usd, partial.steps) == (PRICE, 2)
    assert [message["role"] for message in partial.messages] == ["user", "assistant", "tool"]
    assert fake.bill == PRICE


async def test_the_day_s_cap_of_everything_is_told_apart(ctx, fake, ledger, purse):
    purse.caps = Caps(all=Decimal("0.000001"))
    fake.script(MODELS)
    with pytest.raises(DailyCapReached):
        await run(ctx, ledger)
    assert fake.requests == []


async def test_a_cap_is_not_kept_by_guessing_what_a_model_costs(ctx, fake, ledger):
    fake.script({"data": []})
    with pytest.raises(BudgetExceeded, match="nobody knows what a call of m can cost"):
        await run(ctx, ledger, agent(usd=1))
    assert fake.requests == []


async def test_a_service_without_prices_is_counted_by_what_its_replies_say(ctx, fake, purse, rows):
    local = LLM(fake.url, Secret(KEY), openrouter=False)
    ledger = Ledger(local, queue="q", purse=purse, store=rows)
    fake.script(says("Hi"))
    await run(ctx, ledger, agent(usd=1))
    await ledger.stop()
    await local.close()
    assert (await purse.used(Payer("q/1@0/support", "support")))["run"] == PRICE


async def test_a_local_model_s_cost_is_unknown_and_does_not_stop_its_run(ctx, fake, purse, rows):
    local = LLM(fake.url, Secret(KEY), openrouter=False)
    ledger = Ledger(local, queue="q", purse=purse, store=rows)
    fake.script(says("Hi") | {"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    await run(ctx, ledger, agent(usd=1))
    await ledger.stop()
    await local.close()
    (row,) = rows.all
    assert (row.state, row.cost_usd, row.input_tokens, row.output_tokens) == ("unknown", None, 3, 2)


async def test_without_a_store_caps_hold_all_the_same(ctx, fake, llm, purse):
    ledger = Ledger(llm, queue="q", purse=purse, store=None)
    fake.script(MODELS, says("Hi"))
    await run(ctx, ledger, agent(usd="0.01"))
    await ledger.stop()
    assert (await purse.used(Payer("q/1@0/support", "support")))["run"] == PRICE


async def test_replayed_calls_are_neither_paid_nor_booked_again(attempt, fake, ledger, rows):
    fake.script(says("Hi"))
    await run(attempt(), ledger)
    await run(attempt(), ledger)
    await ledger.stop()
    assert len(rows.all) == len(fake.requests) == 1


async def test_an_attempt_first_settles_what_a_dead_worker_had_set_aside(attempt, fake, ledger, rows, purse):
    payer = Payer("q/1@0/support", "support", cap=Decimal("0.002"))
    fake.script(says("lost"), MODELS, says("Hi"))
    await ledger.llm.chat(ledger_request())
    dead = replace(a_row(), run_id="q/1@0", generation_id="gen-1", at=wall_ms() - 1000)
    await purse.reserve(dead.id, payer, Decimal("0.0019"))
    rows.rows[dead.id] = dead
    ctx = attempt()
    ctx.job.attempts_started = 2
    await run(ctx, ledger, agent(usd="0.002"))
    await ledger.stop()
    assert [(row.state, row.cost_usd) for row in rows.all] == [("settled", PRICE)] * 2
    assert sum(row.cost_usd for row in rows.all) == fake.bill


async def test_what_dead_workers_left_is_settled_or_said_to_be_unknown(fake, ledger, rows):
    fake.script(says("lost"))
    await ledger.llm.chat(ledger_request())
    now = wall_ms()
    known, lost = replace(a_row("known"), generation_id="gen-1"), a_row("lost")
    forgotten = replace(a_row("forgotten"), generation_id="gen-9", at=now - GIVE_UP_MS - 1000)
    late = replace(forgotten, id="late", at=now - OVERDUE_MS - 1000)
    running = replace(a_row("running"), at=now)
    await rows.write_spend([known, lost, forgotten, late, running])
    await ledger.settle_overdue()
    states = {row.id: (row.state, row.cost_usd) for row in rows.all}
    assert states == {
        "known": ("settled", PRICE), "lost": ("unknown", None), "forgotten": ("unknown", None),
        "late": ("reserved", None), "running": ("reserved", None),
    }  # fmt: skip


async def test_rows_of_calls_that_begin_together_are_written_together(fake, ledger, rows):
    batches = []
    write = rows.write_spend

    async def counted(batch):
        batches.append(len(batch))
        await write(batch)

    rows.write_spend = counted
    await asyncio.gather(*(ledger.write(a_row(str(number))) for number in range(20)))
    assert batches == [20]


async def test_who_writes_waits_for_his_own_row_and_not_for_all_that_others_write_meanwhile(ledger, rows):
    write, later = rows.write_spend, []

    async def slow(batch):
        if len(later) < 20:  # there is always another one
            later.append(asyncio.create_task(ledger.write(a_row(f"later-{len(later)}"))))
        await asyncio.sleep(0)
        await write(batch)

    rows.write_spend = slow
    await ledger.write(a_row("mine"))
    assert len(rows.all) < 5
    await asyncio.gather(*later)


async def test_a_row_that_the_database_refuses_takes_no_other_with_it(ledger, rows):
    write = rows.write_spend

    async def picky(batch):
        if any(row.id == "bad" for row in batch):
            raise StoreRefused("no")
        await write(batch)

    rows.write_spend = picky
    await asyncio.gather(*(ledger.write(a_row(name)) for name in ("a", "bad", "b")))
    assert set(rows.rows) == {"a", "b"}


async def test_a_ledger_that_is_away_is_waited_for(ctx, fake, ledger, rows, monkeypatch):
    rows.away = 2
    fake.script(says("Hi"))
    await run(ctx, ledger)
    await ledger.stop()
    assert [row.state for row in rows.all] == ["settled"]


async def test_a_row_that_the_database_refuses_does_not_fail_the_job(ctx, fake, ledger, rows):
    rows.refuses = True
    fake.script(says("Hi"))
    events = []
    detach = attach(events.append, InternalFault)
    assert (await run(ctx, ledger)).output == "Hi"
    detach()
    assert events


def a_row(name: str = "dead"):
    return SpendRow(
        id=name, run_id="q/9@0", step="support/model-1", fence=1, tenant=None, agent="support", model="m",
        state="reserved", at=wall_ms() - OVERDUE_MS - 1000,
    )  # fmt: skip


def ledger_request():
    return Request("m", [{"role": "user", "content": "hi"}], 100)


async def test_what_an_agent_inside_a_tool_spends_is_set_aside_from_the_cap_around_it(
    journal, fake, ledger, rows, purse
):
    agents = Agents(ledger.llm, known={})
    agents.ledger = ledger
    scout = Agent("scout", "m", max_output_tokens=100)
    lead = Agent("lead", "m", tools=[scout], budget=Budget(usd="0.01"), max_output_tokens=100)
    fake.script(MODELS, calls(("scout", {"input": "?"})), says("Here."), says("ok"))
    await attempt_of(journal, agents.run).run(lead, "?")
    assert (await purse.used(Payer("q/1@0/lead", "lead")))["run"] == 3 * PRICE
    assert (await purse.used(Payer("q/1@0/lead/tool-1-scout/scout", "scout")))["run"] == PRICE
    steps = {row.step: (row.agent, row.reserved_usd is not None) for row in rows.history}
    assert steps["lead/tool-1-scout/scout/model-1"] == ("scout", True)
    fake.script(calls(("scout", {"input": "?"})))
    tight = replace(lead, name="tight", budget=Budget(usd="0.0019"), tools=[replace(scout, max_output_tokens=700)])
    with pytest.raises(BudgetExceeded, match=r"run of agent 'tight' is \$0\.0019: \$0\.000[24] is spent"):
        await attempt_of(journal, agents.run).run(tight, "?")


async def test_how_much_a_model_takes_is_looked_up_once_a_conversation_is_long(ctx, fake, ledger):
    said = {"role": "assistant", "content": "x" * 20_000}
    talk = [{"role": "user", "content": "Hello"}, said, {"role": "user", "content": "And?"}, said]
    fake.script(says("short"), MODELS, says("ok"), Refuses(404), says("whole"))
    await run_agent(ctx, agent(), talk[:3], ledger.llm, ledger=ledger)
    await run_agent(ctx, agent(), [*talk, {"role": "user", "content": "?"}], ledger.llm, ledger=ledger)
    assert [len(request["messages"]) for request in fake.requests] == [3, 3]
    ledger.prices = Prices(ledger.llm.models)
    await run_agent(ctx, agent(), [*talk, {"role": "user", "content": "!"}], ledger.llm, ledger=ledger)
    assert len(fake.requests[-1]["messages"]) == 5, "a list that can't be had is no reason not to call"
