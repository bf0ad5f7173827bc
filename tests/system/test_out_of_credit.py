"""When the model service wants to be paid, the worker stops taking jobs and loses none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fakes.openrouter import KEY, FakeOpenRouter, Refuses, says
from oxherd.herd import Herd
from oxherd.telemetry.events import GateChanged, JobEnded
from oxherd.testing import serving

AGENT = {"model": "m", "instructions": "Be short."}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.mark.parametrize("by_handler", [False, True], ids=["agent.run", "ctx.run"])
async def test_a_lack_of_credit_closes_the_gate_and_the_jobs_wait(redis_url, fake, by_handler):
    herd = Herd()

    @herd.job("mine")
    async def mine(ctx, payload):
        return (await ctx.run(payload["agent"], payload["input"])).output

    fake.script(Refuses(402, "Insufficient credits"))
    async with serving(herd, redis_url=redis_url, model=fake.url, OPENROUTER_API_KEY=KEY) as worker:
        name = "mine" if by_handler else "agent.run"
        first = await worker.add(name, {"agent": AGENT, "input": "hello"})

        (closed,) = await worker.events.wait(GateChanged)
        await worker.events.wait(JobEnded, id=first, outcome="delayed")
        assert (await worker.admin.job(first))["attempts_made"] == 0
        reason = await worker.admin.gate()
        assert (closed.closed, closed.reason) == (True, reason)
        assert "Insufficient credits" in reason
        assert "oxherd gate open" in reason

        second = await worker.add(name, {"agent": AGENT, "input": "hello"})
        assert await worker.admin.state(second) == "wait"
        assert len(fake.requests) == 1
        fake.script(says("Hi"))
        await worker.admin.open_gate()
        assert (await worker.ended(second)).outcome == "completed"
