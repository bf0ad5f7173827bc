"""Money in a whole worker: the day's cap closes the gate, and the ledger is what the model service billed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from typer.testing import CliRunner

from fakes.openrouter import KEY, PRICE, FakeOpenRouter, Refuses, calls, says
from oxherd import settings
from oxherd.app import Service, build_store, queue_client
from oxherd.cli import app
from oxherd.herd import Herd
from oxherd.store.migrate import migrate
from oxherd.telemetry.events import BudgetReached, GateChanged, JobEnded, attach

AGENT = {"name": "support", "model": "m", "instructions": "Be short."}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def environ(redis_url, queue_name, fake, database_url) -> dict[str, str]:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    return variables | {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY, "DATABASE_URL": database_url}


class Heard:
    """What the worker said, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue = asyncio.Queue()
        self.stop = attach(self.events.put_nowait, JobEnded, GateChanged, BudgetReached)

    async def next(self, kind):
        async with asyncio.timeout(10):
            while not isinstance(event := await self.events.get(), kind):
                pass
        return event


async def test_the_day_s_cap_ends_the_run_closes_the_gate_and_tells(environ, fake, database_url):
    await migrate(database_url)
    known = settings.load(environ | {"BUDGET_DAILY_USD": str(PRICE)})
    fake.script(says("Hi"))
    heard = Heard()
    service = Service(known, Herd(), store=build_store(known))
    await service.start()
    try:
        async with queue_client(known) as (producer, admin):
            await producer.add("agent.run", {"agent": AGENT, "input": "hello"})
            assert (await heard.next(JobEnded)).outcome == "completed"

            refused = await producer.add("agent.run", {"agent": AGENT, "input": "hello"})
            reached = await heard.next(BudgetReached)
            assert (reached.scope, reached.agent, reached.cap_usd) == ("global", "support", float(PRICE))
            closed = await heard.next(GateChanged)
            assert "BUDGET_DAILY_USD" in closed.reason
            assert "oxherd gate open" in closed.reason
            ended = await heard.next(JobEnded)
            assert (ended.id, ended.outcome) == (refused, "failed")

            waiting = await producer.add("agent.run", {"agent": AGENT, "input": "hello"})
            assert await admin.state(waiting) == "wait"
            assert len(fake.requests) == 1
    finally:
        heard.stop()
        await service.close()


async def test_what_a_run_had_when_its_budget_ended_it_is_kept_in_its_record(environ, fake, database_url, monkeypatch):
    await migrate(database_url)
    known = settings.load(environ)
    fake.script(calls(("look", {"what": "an ox"}), content="I look it up."))
    heard = Heard()
    service = Service(known, Herd(), store=build_store(known))
    await service.start()
    try:
        async with queue_client(known) as (producer, _):
            job_id = await producer.add(
                "agent.run", {"agent": {**AGENT, "budget": {"steps": 1}}, "input": "How big?"}, attempts=3
            )
            ended = await heard.next(JobEnded)
    finally:
        heard.stop()
        await service.close()
    assert (ended.outcome, ended.kind) == ("failed", "budget")

    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def show(*options: str) -> str:
        return CliRunner().invoke(app, ["runs", "show", job_id, *options], catch_exceptions=False).stdout

    run = json.loads(await asyncio.to_thread(show, "--json"))
    assert (run["status"], run["kind"]) == ("failed", "budget")
    assert (run["output"]["output"], run["output"]["steps"]) == ("I look it up.", 1)
    assert Decimal(run["output"]["usage"]["cost_usd"]) == fake.bill
    assert 'partial      {"output":"I look it up."' in await asyncio.to_thread(show)


async def test_the_report_agrees_with_the_bill_of_completed_and_failed_jobs(environ, fake, database_url, monkeypatch):
    await migrate(database_url)
    known = settings.load(environ | {"BUDGET_TENANT_DAILY_USD": "5"})
    fake.script(says("Hi"), says("Hi"), Refuses(400))
    heard = Heard()
    service = Service(known, Herd(), store=build_store(known))
    await service.start()
    try:
        async with queue_client(known) as (producer, _):
            for tenant in ("acme", "umbrella", "acme"):
                await producer.add("agent.run", {"agent": AGENT, "input": "hello", "tenant": tenant})
                await heard.next(JobEnded)
    finally:
        heard.stop()
        await service.close()

    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def report(*options: str):
        return CliRunner().invoke(app, ["spend", "report", *options], catch_exceptions=False)

    by_tenant = await asyncio.to_thread(report, "--by", "tenant", "--json")
    lines = {line["key"]: line for line in json.loads(by_tenant.stdout)}
    assert {key: (line["calls"], Decimal(line["cost_usd"])) for key, line in lines.items()} == {
        "acme": (2, PRICE), "umbrella": (1, PRICE),
    }  # fmt: skip
    assert sum(Decimal(line["cost_usd"]) for line in lines.values()) == fake.bill
    table = await asyncio.to_thread(report, "--by", "model")
    assert table.stdout.split("\n")[1].split() == ["m", "3", "20", "10", "$0.000400"]
