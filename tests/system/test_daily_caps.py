"""Money in a whole worker: the day's cap closes the gate, and the ledger is what the model service billed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from functools import partial

import pytest
from typer.testing import CliRunner

from fakes.openrouter import KEY, PRICE, FakeOpenRouter, Refuses, calls, says
from oxherd.cli import app
from oxherd.herd import Herd
from oxherd.telemetry.events import BudgetReached, GateChanged
from oxherd.testing import serving

AGENT = {"name": "support", "model": "m", "instructions": "Be short."}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def environ(redis_url, queue_name, fake, runs_url) -> dict[str, str]:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name}
    return variables | {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY, "DATABASE_URL": runs_url}


@pytest.fixture
def working(redis_url, queue_name, fake, runs_url):
    """A worker with further variables."""
    return partial(
        serving, Herd(), redis_url=redis_url, queue=queue_name, database_url=runs_url, model=fake.url,
        OPENROUTER_API_KEY=KEY,
    )  # fmt: skip


async def test_the_day_s_cap_ends_the_run_closes_the_gate_and_tells(working, fake):
    fake.script(says("Hi"))
    async with working(BUDGET_DAILY_USD=str(PRICE)) as worker:
        first = await worker.add("agent.run", {"agent": AGENT, "input": "hello"})
        assert (await worker.ended(first)).outcome == "completed"

        refused = await worker.add("agent.run", {"agent": AGENT, "input": "hello"})
        (reached,) = await worker.events.wait(BudgetReached)
        assert (reached.scope, reached.agent, reached.cap_usd) == ("global", "support", float(PRICE))
        (closed,) = await worker.events.wait(GateChanged)
        assert "BUDGET_DAILY_USD" in closed.reason
        assert "oxherd gate open" in closed.reason
        assert (await worker.ended(refused)).outcome == "failed"

        waiting = await worker.add("agent.run", {"agent": AGENT, "input": "hello"})
        assert await worker.admin.state(waiting) == "wait"
        assert len(fake.requests) == 1


async def test_what_a_run_had_when_its_budget_ended_it_is_kept_in_its_record(working, environ, fake, monkeypatch):
    fake.script(calls(("look", {"what": "an ox"}), content="I look it up."))
    async with working() as worker:
        job_id = await worker.add(
            "agent.run", {"agent": {**AGENT, "budget": {"steps": 1}}, "input": "How big?"}, attempts=3
        )
        ended = await worker.ended(job_id)
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


async def test_the_report_agrees_with_the_bill_of_completed_and_failed_jobs(working, environ, fake, monkeypatch):
    fake.script(says("Hi"), says("Hi"), Refuses(400))
    async with working(BUDGET_TENANT_DAILY_USD="5") as worker:
        for tenant in ("acme", "umbrella", "acme"):
            await worker.ended(await worker.add("agent.run", {"agent": AGENT, "input": "hello", "tenant": tenant}))

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
