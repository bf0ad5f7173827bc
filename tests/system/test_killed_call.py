"""A worker is killed in the middle of a reply: its call is billed, and the ledger finds out what it cost."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from fakes.journal import MemoryJournal, attempt_of
from fakes.openrouter import KEY, PRICE, FakeOpenRouter, Streams, chunk, says
from oxherd.agents import LLM, Agent, Budget
from oxherd.agents.budget import Caps, Payer, Purse
from oxherd.agents.ledger import Ledger
from oxherd.agents.loop import run_agent
from oxherd.queue.connection import Link
from oxherd.settings import Secret, parse_redis_url
from oxherd.store.migrate import migrate
from oxherd.store.postgres import PostgresStore

TESTS = Path(__file__).parents[1]
MODELS = {"data": [{"id": "m", "context_length": 9000, "pricing": {"prompt": "0.000001", "completion": "0.000001"}}]}
CAP = Decimal("0.0018")  # for one call at its dearest, and not for two
AGENT = Agent("support", "m", budget=Budget(usd=CAP), max_output_tokens=100)
CHILD = """
import asyncio, sys
from test_killed_call import attempt
asyncio.run(attempt(*sys.argv[1:], fence=1))
"""


async def attempt(url: str, redis_url: str, database_url: str, *, fence: int) -> str:
    link, store = Link(parse_redis_url(redis_url), "test"), PostgresStore(database_url)
    llm = LLM(url, Secret(KEY), openrouter=True)
    await link.start()
    await store.start()
    ledger = Ledger(llm, queue="q", purse=Purse(link, b"money:", Caps()), store=store)
    ctx = attempt_of(MemoryJournal())
    ctx.job.attempts_started = fence
    try:
        return (await run_agent(ctx, AGENT, "Hello", llm, ledger=ledger)).output
    finally:
        await ledger.stop()
        await llm.close()
        await store.stop()
        await link.stop()


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


async def test_what_a_killed_worker_s_call_cost_is_found_out_and_gives_its_reservation_back(
    fake, redis_url, database_url
):
    await migrate(database_url)
    where = (fake.url, redis_url, database_url)
    fake.script(MODELS, Streams(chunk({"content": "I"}), asyncio.Event()))
    path = os.pathsep.join((str(TESTS), str(TESTS / "system")))
    environ = {**os.environ, "PYTHONPATH": path}
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *where, env=environ)
    store = PostgresStore(database_url)
    await store.start()
    try:
        rows = await until_its_id_is_stored(store)
        assert [(row.generation_id, row.fence) for row in rows] == [("gen-1", 1)]
        child.kill()
        await child.wait()
        await asyncio.wait_for(fake.hung_up.wait(), 10)

        fake.script(MODELS, says("Hi"))
        assert await attempt(*where, fence=2) == "Hi"
        (line,) = await store.spend_report(by="agent", since=0, until=2**42)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        await store.stop()
    assert (line.calls, line.open, line.unknown) == (2, 0, 0)
    assert line.cost_usd == fake.bill == 2 * PRICE
    assert await used(redis_url) == fake.bill


async def until_its_id_is_stored(store: PostgresStore):
    async with asyncio.timeout(30):
        while True:
            rows = await store.unsettled_spend(before=2**42)
            if rows and rows[0].generation_id:
                return rows
            await asyncio.sleep(0.05)


async def used(redis_url: str) -> Decimal:
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    try:
        return (await Purse(link, b"money:", Caps()).used(Payer("q/1@0/support", "support")))["run"]
    finally:
        await link.stop()
