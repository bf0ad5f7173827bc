"""A job waits for a person without a slot or a lease, and each moment at which something could go wrong in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from stage import Stage, eventually

from oxherd.context import Ask, Context
from oxherd.errors import ApprovalClosed, ApprovalNotFound, UsageError, Waiting
from oxherd.job import Wait
from oxherd.queue import answers as module
from oxherd.queue.answers import Answers
from oxherd.queue.connection import Link
from oxherd.queue.consumer import READY_AT, Consumer
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.settings import parse_redis_url
from oxherd.store import WaitRow
from oxherd.store.postgres import PostgresStore
from oxherd.telemetry.events import ApprovalAnswered, ApprovalExpired, ApprovalRequested, JobEnded
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Links
from oxherd.worker.approvals import Approvals

NO_WATCHER = 3600.0  # seconds between its looks, where a test is not to be saved by it
NOTHING_SAID = {"approved": False, "value": None, "by": "", "expired": True}
NOWHERE = Links(KeyRing(None), None)


class Office:
    """A stage with a store, and the people who answer."""

    def __init__(self, stage: Stage, store: PostgresStore) -> None:
        self.stage = stage
        self.store = store
        self.answers = Answers(stage.link, stage.keys)
        self.people = Approvals(store, self.answers, queue=stage.keys.queue, links=NOWHERE)

    async def work(self, handler: Callable[..., Any], **limits: Any) -> Any:
        return await self.stage.worker({"ask": handler}, store=self.store, **limits)

    async def parked(self, job: str, *, times: int = 1) -> WaitRow:
        """Wait until the job waits for an answer and nothing else; the question."""
        await self.stage.happened.wait(JobEnded, count=times, id=job, outcome="waiting")
        rows = [row for row in await self.people.list() if row.job_id == job]
        return rows[0]

    async def result(self, job: str) -> Any:
        await self.stage.settle_ledger(job)
        assert await self.stage.link.call(b"EXISTS", self.stage.keys.answers) == 0, "a note was left"
        return (await self.stage.job(job))["returnvalue"]

    async def run_of(self, job: str) -> dict[str, Any]:
        run_id = await self.store.find_run(self.stage.keys.queue, job)
        return await self.store.run(run_id)


@pytest.fixture
async def office(stage: Stage, runs_url: str) -> AsyncIterator[Office]:
    store = PostgresStore(runs_url)
    await store.start()
    yield Office(stage, store)
    for worker in stage.workers:
        await worker.stop(grace=0)
    await store.stop()


async def die(*_: Any, **__: Any) -> None:
    """A process that ends here does no more, not even tidying up."""
    raise asyncio.CancelledError


async def may_i(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    """Asks, and returns what it was told."""
    answer = await ctx.wait_for("refund", timeout=payload.get("timeout", "1h"), about={"order": "A-1"})
    return {"approved": answer.approved, "value": answer.value, "by": answer.by, "expired": answer.expired}


async def test_a_job_that_waits_for_a_person_holds_neither_slot_nor_lease_and_goes_on_with_the_answer(office: Office):
    ran: list[str] = []

    async def handler(ctx: Context, payload: dict[str, Any]) -> list[Any]:
        async def look() -> str:
            ran.append(ctx.job.id)
            return "looked"

        seen = await ctx.step("look", look)
        answer = await ctx.wait_for("refund", timeout="1h", about={"order": "A-1"})
        return [seen, answer.approved, answer.value, answer.by, answer.message]

    worker = await office.work(handler, concurrency=1)
    job = await office.stage.add("ask", attempts=2)
    row = await office.parked(job)
    assert (row.key, row.about, row.state) == ("refund", {"order": "A-1"}, "open")
    assert worker.running == {}
    assert await office.stage.link.call(b"EXISTS", office.stage.keys.lock(job)) == 0
    shown = await office.stage.job(job)
    assert (shown["state"], shown["attempts_made"]) == ("delayed", 0)
    run = await office.run_of(job)
    assert (run["status"], run["error"]) == ("waiting", "waits for an answer to 'refund'")

    await office.people.answer(row.id, approved=True, by="ana", value={"amount": 5}, message="go on")
    await office.stage.settle_ledger(job)
    shown = await office.stage.job(job)
    assert shown["returnvalue"] == ["looked", True, {"amount": 5}, "ana", "go on"]
    assert (shown["attempts_made"], shown["attempts_started"], ran) == (1, 2, [job])
    steps = await office.store.steps(run["id"])
    assert [(step["key"], step["kind"]) for step in steps] == [("look", "step"), ("refund", "wait")]
    (asked,) = office.stage.happened.all(ApprovalRequested)
    (answered,) = office.stage.happened.all(ApprovalAnswered)
    ready_at = int(await office.stage.link.call(b"HGET", office.stage.keys.job(job), READY_AT))
    assert row.asked_at - 5_000 < ready_at < row.expires_at - 60_000, "its wait in the queue counts from the answer"
    assert (asked.approval, answered.approval, answered.approved, answered.by) == (row.id, row.id, True, "ana")
    assert await office.stage.link.call(b"EXISTS", office.stage.keys.answers) == 0


async def test_that_nobody_answers_is_an_outcome(office: Office):
    await office.work(may_i)
    job = await office.stage.add("ask", {"timeout": 0.3})
    await office.stage.settle_ledger(job)
    assert (await office.stage.job(job))["returnvalue"] == NOTHING_SAID
    assert len(office.stage.happened.all(ApprovalExpired)) == 1


async def test_an_answer_while_the_question_is_still_being_asked_is_not_lost(office: Office):
    """The question's row is there, the job is not parked: whoever answers finds nothing to promote."""

    async def answer_at_once(_: Context, ask: Ask) -> None:
        await office.people.answer(ask.id, approved=True, by="quick")

    async def handler(ctx: Context, payload: dict[str, Any]) -> str:
        return (await ctx.wait_for("refund", timeout="1h", notify=answer_at_once)).by

    await office.work(handler, stalled_interval=NO_WATCHER)
    assert await office.result(await office.stage.add("ask")) == "quick"


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_answer_while_the_job_is_being_parked_is_not_lost(office: Office, monkeypatch, moment: str):
    settle = Consumer.settle

    async def settle_meanwhile(self, job, outcome, *, fetch):
        async def answer() -> None:
            if isinstance(outcome, Wait):
                await office.people.answer(outcome.waits[0], approved=True, by="quick")

        if moment == "before":
            await answer()
        following = await settle(self, job, outcome, fetch=fetch)
        if moment == "after":
            await answer()
        return following

    monkeypatch.setattr(Consumer, "settle", settle_meanwhile)
    await office.work(may_i, stalled_interval=NO_WATCHER)
    assert (await office.result(await office.stage.add("ask")))["by"] == "quick"


async def test_an_answer_whose_giver_died_before_the_job_was_woken_is_noticed_by_a_worker(office: Office, monkeypatch):
    monkeypatch.setattr(module, "GRACE_MS", 50)
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    monkeypatch.setattr(office.answers, "wake", die)
    with pytest.raises(asyncio.CancelledError):
        await office.people.answer(row.id, approved=True, by="the late ana")
    assert (await office.result(job))["by"] == "the late ana"


async def test_an_answer_whose_giver_died_before_it_was_stored_leaves_the_question_open(office: Office, monkeypatch):
    monkeypatch.setattr(module, "GRACE_MS", 50)
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    with monkeypatch.context() as patched:
        patched.setattr(office.store, "answer_wait", die)
        with pytest.raises(asyncio.CancelledError):
            await office.people.answer(row.id, approved=True, by="the late ana")
    assert (await office.parked(job, times=2)).id == row.id
    await office.people.answer(row.id, approved=True, by="ana")
    assert (await office.result(job))["by"] == "ana"
    assert len(office.stage.happened.all(ApprovalRequested)) == 1


async def test_of_two_answers_at_once_one_counts_and_the_other_is_told_so(office: Office):
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    tried = await asyncio.gather(
        office.people.answer(row.id, approved=True, by="ana"),
        office.people.answer(row.id, approved=False, by="bob"),
        return_exceptions=True,
    )
    (refused,) = [one for one in tried if isinstance(one, ApprovalClosed)]
    (winner,) = [one.by for one in tried if isinstance(one, WaitRow)]
    assert str(refused).endswith(f"{'approved' if winner == 'ana' else 'denied'} before, by {winner}")
    assert (await office.result(job))["by"] == winner
    assert len(office.stage.happened.all(ApprovalAnswered)) == 1


async def test_an_answer_after_the_time_is_over_is_refused(office: Office):
    worker = await office.work(may_i)
    job = await office.stage.add("ask", {"timeout": 0.4})
    row = await office.parked(job)
    await worker.stop(grace=0)  # nobody is there to notice the time
    await eventually(lambda: expired(office, row.id))
    with pytest.raises(ApprovalClosed, match="its time is over") as caught:
        await office.people.answer(row.id, approved=True, by="late")
    assert caught.value.state == "expired"
    await office.work(may_i)
    assert await office.result(job) == NOTHING_SAID


async def expired(office: Office, wait_id: str) -> bool:
    return (await office.people.show(wait_id)).state == "expired"


@pytest.mark.parametrize("gone", ["cancelled", "removed by others", "failed"])
async def test_the_question_of_a_job_that_is_gone_can_not_be_answered(office: Office, gone: str):
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    if gone == "cancelled":
        assert await office.stage.admin.cancel(job) == "removed"
    elif gone == "removed by others":
        k = office.stage.keys
        await office.stage.link.call(b"ZREM", k.delayed, job)
        await office.stage.link.call(b"DEL", k.job(job))
    else:
        k = office.stage.keys
        await office.stage.link.call(b"ZREM", k.delayed, job)
        await office.stage.link.call(b"ZADD", k.failed, 1, job)
    with pytest.raises(ApprovalClosed, match="its job is gone"):
        await office.people.answer(row.id, approved=True, by="ana")
    assert await office.people.list() == []
    assert [each.id for each in await office.people.list(state="withdrawn")] == [row.id]
    assert await office.stage.link.call(b"EXISTS", office.stage.keys.answers) == 0


async def test_a_job_that_is_run_again_after_its_question_was_withdrawn_asks_anew(office: Office):
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    await office.store.withdraw_waits([row.id])
    await office.stage.admin.promote(job)
    again = await office.parked(job, times=2)
    assert (again.id, again.state) == (row.id, "open")
    assert again.nonce != row.nonce
    await office.people.answer(again.id, approved=True, by="ana")
    assert (await office.result(job))["by"] == "ana"


async def test_while_the_queue_is_paused_an_answer_is_taken_and_the_job_goes_on_afterwards(office: Office):
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    k, link = office.stage.keys, office.stage.link
    rest = (k.meta, k.prioritized, k.events, k.delayed, k.marker)
    await link.run(script("pause"), k.wait, k.paused, *rest, "paused")
    await office.people.answer(row.id, approved=True, by="ana")
    assert (await office.stage.job(job))["state"] == "wait"
    await link.run(script("pause"), k.paused, k.wait, *rest, "resumed")
    assert (await office.result(job))["by"] == "ana"


async def test_a_job_with_a_priority_keeps_it(office: Office):
    worker = await office.work(may_i)
    job = await office.stage.add("ask", priority=5)
    row = await office.parked(job)
    await worker.stop(grace=0)
    await office.people.answer(row.id, approved=True, by="ana")
    assert (await office.stage.job(job))["state"] == "prioritized"
    await office.work(may_i)
    assert (await office.result(job))["by"] == "ana"


async def test_several_open_questions_are_answered_one_by_one(office: Office):
    paid: list[str] = []

    async def handler(ctx: Context, payload: dict[str, Any]) -> list[str]:
        async def pay() -> str:
            paid.append(ctx.job.id)
            return "paid"

        answers = await asyncio.gather(
            ctx.wait_for("a", timeout="2h"), ctx.step("beside", pay), ctx.wait_for("b", timeout="1h")
        )
        return [one if isinstance(one, str) else one.by for one in answers]

    await office.work(handler)
    job = await office.stage.add("ask")
    await office.parked(job)
    rows = {row.key: row for row in await office.people.list()}
    assert list(rows) == ["b", "a"], "the most urgent first"
    delayed = await office.stage.link.call(b"ZSCORE", office.stage.keys.delayed, job)
    assert abs(float(delayed) / 4096 - rows["b"].expires_at) < 5_000, "it wakes when the first of them expires"
    await office.people.answer(rows["a"].id, approved=True, by="ana")
    await office.stage.happened.wait(JobEnded, count=2, id=job, outcome="waiting")
    await office.people.answer(rows["b"].id, approved=True, by="bob")
    assert await office.result(job) == ["ana", "paid", "bob"]
    assert paid == [job]


async def test_one_that_expires_does_not_end_the_others(office: Office):
    async def handler(ctx: Context, payload: dict[str, Any]) -> list[str]:
        answers = await asyncio.gather(ctx.wait_for("short", timeout=0.2), ctx.wait_for("long", timeout="1h"))
        return [one.by for one in answers]

    await office.work(handler)
    job = await office.stage.add("ask")
    await office.stage.happened.wait(ApprovalExpired)
    await office.stage.happened.wait(JobEnded, count=2, id=job, outcome="waiting")
    (row,) = await office.people.list()
    assert row.key == "long"
    await office.people.answer(row.id, approved=True, by="ana")
    assert await office.result(job) == ["", "ana"]


async def catches_and_returns(ctx: Context) -> str:
    try:
        return (await ctx.wait_for("refund", timeout="1h")).by
    except Waiting:
        return "went on"


async def wraps_it(ctx: Context) -> str:
    try:
        return (await ctx.wait_for("refund", timeout="1h")).by
    except Exception:  # noqa: BLE001  as frameworks do
        raise ValueError("something went wrong")  # noqa: B904  same


async def in_a_group(ctx: Context) -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ctx.wait_for("refund", timeout="1h"))
    return task.result().by


async def in_a_step(ctx: Context) -> str:
    async def ask() -> str:
        return (await ctx.wait_for("refund", timeout="1h")).by

    return await ctx.step("outer", ask)


@pytest.mark.parametrize("how", [catches_and_returns, wraps_it, in_a_group, in_a_step])
async def test_a_job_is_parked_whatever_its_handler_makes_of_it(office: Office, how: Callable[..., Any]):
    async def handler(ctx: Context, payload: dict[str, Any]) -> str:
        return await how(ctx)

    await office.work(handler)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    await office.people.answer(row.id, approved=True, by="ana")
    assert await office.result(job) == "ana"
    assert (await office.stage.job(job))["attempts_made"] == 1


async def test_an_error_of_another_kind_beside_a_question_counts_as_what_it_is(office: Office):
    async def handler(ctx: Context, payload: dict[str, Any]) -> None:
        results = await asyncio.gather(
            ctx.wait_for("refund", timeout="1h"), asyncio.sleep(0, ValueError("broken")), return_exceptions=True
        )
        raise results[1]

    await office.work(handler)
    job = await office.stage.add("ask")
    assert await office.stage.finished(job) == ["failed"]
    assert (await office.stage.job(job))["failed_reason"] == "ValueError: broken"


async def test_without_a_store_a_question_fails_the_job_with_the_remedy(office: Office):
    await office.stage.worker({"ask": may_i}, store=None)
    job = await office.stage.add("ask", attempts=5)
    assert await office.stage.finished(job) == ["failed"]
    assert "needs a store" in (await office.stage.job(job))["failed_reason"]
    assert "set DATABASE_URL" in (await office.stage.job(job))["failed_reason"]


async def test_a_question_of_another_queue_or_of_nobody_is_not_answered(office: Office):
    await office.work(may_i)
    row = await office.parked(await office.stage.add("ask"))
    other = Approvals(office.store, office.answers, queue="other", links=NOWHERE)
    with pytest.raises(UsageError, match=f"the question is of queue {office.stage.keys.queue}"):
        await other.answer(row.id, approved=True, by="ana")
    with pytest.raises(ApprovalNotFound):
        await office.people.answer("00" * 8, approved=True, by="ana")


async def test_an_answer_is_taken_although_redis_goes_away_before_the_job_can_be_woken(office: Office, monkeypatch):
    await office.work(may_i)
    job = await office.stage.add("ask")
    row = await office.parked(job)
    link = Link(parse_redis_url(office.stage.url), "answerer")
    await link.start()
    answers = Answers(link, Keys(office.stage.keys.queue))
    announce = answers.announce

    async def announce_and_lose(*of: str) -> None:
        await announce(*of)
        link.drop()
        await link.stop()

    monkeypatch.setattr(answers, "announce", announce_and_lose)
    monkeypatch.setattr(module, "GRACE_MS", 50)
    monkeypatch.setattr("oxherd.worker.approvals.REDIS_SECONDS", 0.1)
    people = Approvals(office.store, answers, queue=office.stage.keys.queue, links=NOWHERE)
    assert (await people.answer(row.id, approved=True, by="ana")).state == "answered"
    assert (await office.result(job))["by"] == "ana"
