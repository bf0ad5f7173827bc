"""Approvals as people meet them: workers that die at the worst moments, the command line, and links."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from process import Start, WorkerProcess
from redis import Redis
from stage import Stage, eventually
from typer.testing import CliRunner

from oxherd.cli import app
from oxherd.embedded.engine import free_port
from oxherd.queue.answers import Answers
from oxherd.store import WaitRow
from oxherd.store.postgres import PostgresStore
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Links
from oxherd.worker.approvals import Approvals

DIES_WHILE_ASKING = ("asked", "before-settle", "park-sent")


@asynccontextmanager
async def people(stage: Stage, runs_url: str) -> AsyncIterator[Approvals]:
    store = PostgresStore(runs_url)
    await store.start()
    try:
        answers = Answers(stage.link, stage.keys)
        yield Approvals(store, answers, queue=stage.keys.queue, links=Links(KeyRing(None), None))
    finally:
        await store.stop()


async def parked(stage: Stage, approvals: Approvals, job: str) -> WaitRow:
    async def is_parked() -> bool:
        return await stage.admin.state(job) == "delayed" and bool(await approvals.list())

    await eventually(is_parked, within=20.0)
    (row,) = await approvals.list()
    return row


async def test_a_worker_killed_around_a_question_loses_neither_question_nor_answer_and_pays_once(
    redis_url: str, queue_name: str, start: Start, witness: Redis, runs_url: str
):
    async def at(point: str) -> None:
        async with Stage(redis_url, f"{queue_name}-{point}") as stage, people(stage, runs_url) as approvals:
            worker = {"database_url": runs_url, "queue": stage.keys.queue, "JOB_CONCURRENCY": "1"}
            victim = await start(**worker)
            witness.set(f"kill:{victim.pid}:{point}", "now")
            job = await stage.add("asks", attempts=2)
            if point in DIES_WHILE_ASKING:
                assert await victim.exited() == -9
                await start(**worker)
            row = await parked(stage, approvals, job)
            await approvals.answer(row.id, approved=True, by="ana")
            if point not in DIES_WHILE_ASKING:
                assert await victim.exited() == -9
                await start(**worker)
            await stage.settle_ledger(job)
            (answered,) = await approvals.list(state="answered")
            assert (answered.id, answered.by) == (row.id, "ana"), point
            shown = await stage.job(job)
            assert (shown["returnvalue"], shown["attempts_made"]) == ([1, 1, "ana"], 1), point
            # A person is told again only where the worker died before it could keep that it had told one.
            told = "2" if point == "asked" else "1"
            assert witness.get(f"saw:told:{stage.keys.queue}:{job}") == told, point
            for paid in ("first", "second"):
                assert witness.get(f"saw:paid-{paid}:{stage.keys.queue}:{job}") == "1", point

    for points in (("asked", "before-settle"), ("park-sent", "answered")):  # more at once are slow to start
        await asyncio.gather(*map(at, points))


async def oxherd(*words: str, exit_code: int = 0, given: str | None = None) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["approvals", *words], given)
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.output


@pytest.fixture
def environ(redis_url, runs_url, queue_name, monkeypatch) -> dict[str, str]:
    """What the worker and the commands share."""
    port = free_port()
    environ = {
        "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "PORT": str(port),
    }
    commands = {"REDIS_URL": redis_url, "DATABASE_URL": runs_url, "JOB_QUEUE_NAME": queue_name}
    for name, value in (environ | commands).items():
        monkeypatch.setenv(name, value)
    return environ


@pytest.fixture
async def worker(start: Start, runs_url: str, environ: dict[str, str]) -> WorkerProcess:
    return await start(database_url=runs_url, **environ)


async def listed(*, state: str = "open", count: int = 1) -> list[dict[str, Any]]:
    async def found() -> list[dict[str, Any]]:
        rows = json.loads(await oxherd("list", "--state", state, "--json"))
        return rows if len(rows) == count else []

    return await eventually(found)


async def test_questions_are_listed_shown_and_answered_on_the_command_line(stage: Stage, worker: WorkerProcess):
    jobs = [await stage.add("asks") for _ in range(3)]
    for job in jobs:
        await stage.on_stream(job, "delayed")
    rows = {row["job_id"]: row for row in await listed(count=3)}
    first = rows[jobs[0]]
    assert (first["job"], first["key"], first["state"], first["about"]) == ("asks", "refund", "open", {"order": "A-1"})
    assert first["expires_at"] - first["asked_at"] == 3_600_000
    assert "nonce" not in first
    line = next(line for line in (await oxherd("list")).splitlines() if first["id"] in line)
    assert f"asks {jobs[0]}" in line
    assert '{"order":"A-1"}' in line
    assert f"job       asks {jobs[0]}" in await oxherd("show", first["id"])

    said = await oxherd("approve", first["id"], "--by", "ana", "--message", "fine")
    assert said == f"approved refund of job {jobs[0]} (asks)\n"
    denied = json.loads(await oxherd("deny", rows[jobs[1]]["id"], "--by", "bob", "-m", "no", "--json"))
    assert (denied["approved"], denied["by"], denied["message"]) == (False, "bob", "no")
    await oxherd("answer", rows[jobs[2]]["id"], "-", "--by", "cy", given='{"amount": 5}')
    assert await stage.finished(*jobs) == ["completed"] * 3
    assert [(await stage.job(job))["returnvalue"][2] for job in jobs] == ["ana", "bob", "cy"]
    assert json.loads(await oxherd("show", rows[jobs[2]]["id"], "--json"))["value"] == {"amount": 5}
    assert "no open questions" in await oxherd("list")

    late = await oxherd("deny", first["id"], exit_code=1)
    assert f"Error: question {first['id']} can't be answered: it was approved before, by ana" in late
    assert "there is no question 'nothing'" in await oxherd("show", "nothing", exit_code=1)
    assert "the value is not JSON" in await oxherd("answer", first["id"], "{", exit_code=2)
    assert "there is no link" in await oxherd("show", first["id"], "--url", exit_code=2)


async def test_whoever_has_the_link_answers_once_and_it_is_nowhere_in_the_log(
    stage: Stage, worker: WorkerProcess, witness: Redis
):
    job = await stage.add("asks")
    await stage.on_stream(job, "delayed")
    url = witness.get(f"url:{job}")
    (row,) = await listed()
    assert (await oxherd("show", row["id"], "--url")).strip() == url
    async with aiohttp.ClientSession() as browser:
        async with browser.get(url) as page:
            text = await page.text()
            assert page.status == 200
        assert "A-1" in text
        assert await stage.admin.state(job) == "delayed", "looking is no answer"
        async with browser.get(url[:-1] + ("A" if url[-1] != "A" else "B")) as page:
            assert page.status == 404
        async with browser.post(url, data={"decision": "deny", "message": "not <today>"}) as page:
            assert page.status == 200
        async with browser.post(url, data={"decision": "approve"}) as page:
            assert page.status == 409
            assert "denied before, by link" in await page.text()
        async with browser.get(url) as page:
            assert page.status == 410
        assert await stage.finished(job) == ["completed"]
        async with browser.get(f"{url.partition('/approvals')[0]}/metrics") as page:
            assert 'oxherd_approvals_total{name="asks",outcome="denied"} 1.0' in await page.text()
    (answered,) = await listed(state="answered")
    assert (answered["by"], answered["message"], answered["approved"]) == ("link", "not <today>", False)
    token = url.rpartition("/")[2]
    log = json.dumps(worker.lines) + worker.stderr
    assert token not in log
    assert [line["event"] for line in worker.lines if re.match(r"approval\.", line["event"])] == [
        "approval.requested", "approval.answered",
    ]  # fmt: skip
