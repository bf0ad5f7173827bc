"""A job of ours that waits for a person, as Node and Bull Board see it and what they may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.context import Context
from oxherd.embedded.postgres import Postgres
from oxherd.errors import ApprovalClosed
from oxherd.queue.answers import Answers
from oxherd.store import WaitRow
from oxherd.store.migrate import migrate
from oxherd.store.postgres import PostgresStore
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Links
from oxherd.worker.approvals import Approvals

HOUR = 3_600_000


async def ask(ctx: Context, payload: dict[str, Any]) -> str:
    return (await ctx.wait_for("refund", timeout="1h", about={"order": "A-1"})).by


@pytest.fixture(scope="module")
def asked_url(postgres: Postgres) -> Iterator[str]:
    """A database with Oxherd's tables, for this file."""
    url = postgres.create_database("node_approvals")
    asyncio.run(migrate(url))
    yield url
    postgres.drop_database("node_approvals")


@pytest.fixture
async def store(asked_url: str, queue: Queue) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(asked_url)
    await store.start()
    yield store
    await queue.rest()
    await store.stop()


@pytest.fixture
def people(queue: Queue, store: PostgresStore) -> Approvals:
    answers = Answers(queue.link, queue.keys)
    return Approvals(store, answers, queue=queue.name, links=Links(KeyRing(None), None))


async def parked(queue: Queue, people: Approvals, job: str, *, times: int = 1) -> WaitRow:
    await queue.event("delayed", times=times, jobId=job)
    (row,) = await people.list()
    return row


async def test_node_sees_it_as_delayed_until_its_question_expires_and_then_as_any_job(
    queue: Queue, store: PostgresStore, people: Approvals
):
    await queue.work(store=store, ask=ask)
    job = await queue.add("ask", {"n": 1}, attempts=3)
    row = await parked(queue, people, job)
    (delayed,) = queue.seen("delayed", jobId=job)
    assert abs(int(delayed.args["delay"]) - wall_ms() - HOUR) < 60_000
    assert await queue.counts() == {"delayed": 1}
    seen = await queue.job(job)
    assert (seen["attemptsMade"], seen.get("failedReason")) == (0, None)

    query = {"activeQueue": queue.name, "status": "delayed", "page": "1", "jobsPerPage": "10"}
    board = await queue.node("board", queue.name, "get", "/api/queues", {"query": query})
    [shown] = board["body"]["queues"][0]["jobs"]
    assert (shown["id"], shown["isFailed"]) == (job, False)

    await people.answer(row.id, approved=True, by="ana")
    assert await queue.finish(job) == {"value": "ana"}
    assert queue.seen("waiting", jobId=job, prev="delayed")
    assert not queue.seen("failed", jobId=job)
    assert (await queue.job(job))["attemptsMade"] == 1


async def test_a_job_that_somebody_promotes_early_goes_on_waiting(
    queue: Queue, store: PostgresStore, people: Approvals
):
    await queue.work(store=store, ask=ask)
    job = await queue.add("ask")
    row = await parked(queue, people, job)
    await queue.on_job(job, "promote")
    assert (await parked(queue, people, job, times=2)).id == row.id
    await people.answer(row.id, approved=True, by="ana")
    assert await queue.finish(job) == {"value": "ana"}


async def test_a_job_that_node_removed_takes_its_question_with_it(
    queue: Queue, store: PostgresStore, people: Approvals
):
    await queue.work(store=store, ask=ask)
    job = await queue.add("ask")
    row = await parked(queue, people, job)
    await queue.on_job(job, "remove")
    with pytest.raises(ApprovalClosed, match="its job is gone"):
        await people.answer(row.id, approved=True, by="ana")
    assert await people.list() == []
    assert await queue.raw("EXISTS", queue.keys.answers) == 0


async def test_an_answer_during_a_pause_of_node_s_is_taken_and_the_job_goes_on_when_it_ends(
    queue: Queue, store: PostgresStore, people: Approvals
):
    await queue.work(store=store, ask=ask)
    job = await queue.add("ask")
    row = await parked(queue, people, job)
    await queue.call("pause")
    await people.answer(row.id, approved=True, by="ana")
    assert await queue.counts("delayed") == {}
    await queue.call("resume")
    assert await queue.finish(job) == {"value": "ana"}
