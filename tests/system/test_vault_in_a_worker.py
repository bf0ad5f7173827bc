"""Secrets through a real worker process: the handler gets them, and they are nowhere else in the clear."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis

from fakes.openrouter import KEY as ROUTER_KEY
from fakes.openrouter import FakeOpenRouter, says
from oxherd.app import build_store, build_vault, queue_client
from oxherd.embedded.engine import free_port
from oxherd.ops.child import WorkerProcess
from oxherd.settings import Secret, Settings, load
from oxherd.store.migrate import migrate
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import seal_field

KEY, OLD_KEY = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))
CARD = "4111-2222-3333-4444"
TOKEN = 'sk-live-"quoted"-0123456789'
APP = """
import hashlib
import logging
from pydantic import BaseModel
from oxherd import Context, Herd

herd = Herd()


class Card(BaseModel):
    number: str


class Payment(BaseModel):
    tenant: str
    card: Card
    fail: bool


@herd.job("pay")
async def pay(ctx: Context, payment: Payment) -> list[str]:
    token = (await ctx.credential("stripe")).reveal()
    values = [payment.card.number, token]
    await ctx.log(f"paying with {values}")
    logging.getLogger("stripe").warning("using %s", values)
    if payment.fail:
        raise ValueError(f"refused {payment.card!r} with {token}")
    return [hashlib.sha256(value.encode()).hexdigest() for value in values]
"""


def environ(settings: dict[str, str], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "shop.py").write_text(APP)
    return {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "PYTHONPATH": str(tmp_path),
        "LOG_LEVEL": "debug",
        **settings,
    }


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as fake:
        yield fake


@pytest.fixture
async def variables(redis_url: str, database_url: str, queue_name: str, fake: FakeOpenRouter) -> dict[str, str]:
    await migrate(database_url)
    return {
        "REDIS_URL": redis_url, "DATABASE_URL": database_url, "JOB_QUEUE_NAME": queue_name, "ENCRYPTION_KEY": KEY,
        "ENCRYPTION_KEYS_PREVIOUS": OLD_KEY, "OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": ROUTER_KEY,
    }  # fmt: skip


@pytest.fixture
async def worker(variables: dict[str, str], tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    process = WorkerProcess(environ(variables, tmp_path), app="shop:herd", log=tmp_path / "log", inherit=False)
    process.start()
    try:
        await asyncio.to_thread(process.wait_until_healthy)
        yield process
    finally:
        await asyncio.to_thread(process.stop, grace=1)


async def ended(settings: Settings, name: str, data: Any) -> dict[str, Any]:
    """Add a job and wait for its end."""
    async with queue_client(settings) as (producer, admin), queue_client(settings) as (_, watcher):
        since = await watcher.newest_event()
        job_id = await producer.add(name, data)
        async with asyncio.timeout(20):
            async for _, event in watcher.events(since):
                if event.get("jobId") == job_id and event["event"] in {"completed", "failed"}:
                    return await admin.job(job_id)
    raise AssertionError("the events have ended")


def payment(*, fail: bool, key: str = KEY) -> dict[str, Any]:
    ring = KeyRing.of(Secret(key))
    return {"tenant": "acme", "fail": fail,
            "card": {"number": seal_field(CARD, ring, job="pay", tenant="acme", path=("card", "number"))}}  # fmt: skip


async def put(settings: Settings) -> None:
    store = build_store(settings)
    await store.start()
    await build_vault(settings, store).put("acme", "stripe", Secret(TOKEN))
    await store.stop()


async def everything_kept(variables: dict[str, str]) -> str:
    """All that is in Redis and Postgres, as text."""
    with Redis.from_url(variables["REDIS_URL"]) as client:
        dumps = {"hash": client.hgetall, "list": lambda key: client.lrange(key, 0, -1),
                 "stream": client.xrange, "string": client.get}  # fmt: skip
        texts = [str(dumps[kind](key)) for key in client.scan_iter() if (kind := client.type(key).decode()) in dumps]
    connection = await asyncpg.connect(variables["DATABASE_URL"])
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'oxherd'")
    for table in tables:
        texts += map(str, await connection.fetch(f"table oxherd.{table['tablename']}"))
    await connection.close()
    return "\n".join(texts)


async def test_a_handler_gets_secrets_that_are_nowhere_else_in_the_clear(worker, variables, tmp_path):
    settings = load(variables)
    await put(settings)
    done = await ended(settings, "pay", payment(fail=False))
    assert done["returnvalue"] == [hashlib.sha256(value.encode()).hexdigest() for value in (CARD, TOKEN)]
    assert (await ended(settings, "pay", payment(fail=False, key=OLD_KEY)))["state"] == "completed"
    failed = await ended(settings, "pay", payment(fail=True))
    assert failed["failed_reason"] == "ValueError: refused Card(number='***') with ***"
    await asyncio.to_thread(worker.stop)

    kept, log = await everything_kept(variables), (tmp_path / "log").read_text()
    assert "paying with ['***', '***']" in kept
    assert "using ['***', '***']" in log
    for value in (CARD, TOKEN, KEY, OLD_KEY):
        for form in (value, json.dumps(value)[1:-1]):
            assert form not in kept
            assert form not in log


async def test_a_field_or_credential_that_can_not_be_had_fails_the_job_by_its_name(worker, variables):
    settings = load(variables)
    other = base64.b64encode(bytes(32)).decode()
    failed = await ended(settings, "pay", payment(fail=False, key=other))
    assert failed["failed_reason"].startswith("card.number: the envelope was sealed with key ")
    failed = await ended(settings, "pay", payment(fail=False))
    assert failed["failed_reason"].startswith("tenant 'acme' has no credential 'stripe'")


async def test_an_edited_agent_is_used_without_a_restart_and_the_run_says_which_version(worker, variables, fake):
    settings = load(variables)
    connection = await asyncpg.connect(variables["DATABASE_URL"])
    for number in (1, 2):
        definition = json.dumps({"model": f"model-{number}", "instructions": f"Version {number}."})
        await connection.execute(
            "insert into oxherd.agents (name, definition) values ('support', $1::text::jsonb) "
            "on conflict (name) do update set definition = excluded.definition", definition
        )  # fmt: skip
        fake.script(says(f"answer {number}"))
        done = await ended(settings, "agent.run", {"agent": "support", "input": "?"})
        assert done["returnvalue"]["output"] == f"answer {number}"
    query = "select kind, output::text from oxherd.steps where key = 'support/version' order by run_id"
    used = [tuple(row) for row in await connection.fetch(query)]
    await connection.close()
    assert sorted(used) == [("agent", "1"), ("agent", "2")]
    assert [request["messages"][0]["content"] for request in fake.requests] == ["Version 1.", "Version 2."]
