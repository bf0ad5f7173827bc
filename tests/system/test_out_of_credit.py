"""When the model service wants to be paid, the worker stops taking jobs and loses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fakes.openrouter import KEY, FakeOpenRouter, Refuses, says
from oxherd import settings
from oxherd.app import Service, queue_client
from oxherd.herd import Herd
from oxherd.telemetry.events import GateChanged, JobEnded, attach

AGENT = {"model": "m", "instructions": "Be short."}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def known(redis_url, queue_name, fake, monkeypatch) -> settings.Settings:
    # Its address is not OpenRouter's, so the worker would leave out the fields that the fake insists on with tools.
    environ = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    return settings.load(environ | {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY})


class Heard:
    """What the worker said, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue = asyncio.Queue()
        self.stop = attach(self.events.put_nowait, JobEnded, GateChanged)

    async def next(self, kind):
        async with asyncio.timeout(10):
            while not isinstance(event := await self.events.get(), kind):
                pass
        return event


@pytest.mark.parametrize("by_handler", [False, True], ids=["agent.run", "ctx.run"])
async def test_a_lack_of_credit_closes_the_gate_and_the_jobs_wait(known, fake, by_handler):
    herd = Herd()

    @herd.job("mine")
    async def mine(ctx, payload):
        return (await ctx.run(payload["agent"], payload["input"])).output

    fake.script(Refuses(402, "Insufficient credits"))
    heard = Heard()
    service = Service(known, herd, store=None)
    await service.start()
    try:
        async with queue_client(known) as (producer, admin):
            name = "mine" if by_handler else "agent.run"
            first = await producer.add(name, {"agent": AGENT, "input": "hello"})

            closed = await heard.next(GateChanged)
            ended = await heard.next(JobEnded)
            assert (ended.outcome, (await admin.job(first))["attempts_made"]) == ("delayed", 0)
            reason = await admin.gate()
            assert (closed.closed, closed.reason) == (True, reason)
            assert "Insufficient credits" in reason
            assert "oxherd gate open" in reason

            second = await producer.add(name, {"agent": AGENT, "input": "hello"})
            assert await admin.state(second) == "wait"
            assert len(fake.requests) == 1
            fake.script(says("Hi"))
            await admin.open_gate()
            ended = await heard.next(JobEnded)
            assert (ended.id, ended.outcome) == (second, "completed")
    finally:
        heard.stop()
        await service.close()
