"""Questions and answers in both stores: the same suite over Postgres and over Supabase's REST."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_store import KINDS, NOON, a_run, a_step, opened, running, set_up, sql

from oxherd.embedded.postgres import Postgres
from oxherd.errors import StoreRefused
from oxherd.store import Question
from oxherd.worker.approvals import wait_id_of

HOUR = 3_600_000


def a_question(number: int = 1, key: str = "refund", **changes) -> Question:
    run = a_run(number)
    question = Question(
        run_id=run.id, key=key, id=wait_id_of(run.id, key), nonce="ab" * 8, queue="agent-jobs",
        job_id=run.job_id, job=run.name, tenant="acme", inputs="cd" * 16, about='{"order": "A-1", "note": "\\u0000ü"}',
        timeout_ms=HOUR,
    )  # fmt: skip
    return replace(question, **changes)


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> Iterator[str]:
    yield asyncio.run(set_up(postgres.create_database("waits_suite")))
    postgres.drop_database("waits_suite")


@pytest.fixture(params=KINDS)
async def store(request, shared_url: str):
    await sql(shared_url, "truncate oxherd.waits, oxherd.runs, oxherd.steps")
    async with opened(request.param, shared_url) as store:
        yield store


async def ask(store, number: int = 1, key: str = "refund", *, fence: int = 1, **changes):
    found = await store.open_wait(a_question(number, key, **changes), fence=fence, attempt_started_at=NOON + 1_001)
    assert found is not None
    return found


async def say(store, wait_id: str, *, approved: bool = True, value: bytes | None = None, by: str = "ana", **more):
    return await store.answer_wait(wait_id, approved=approved, value=value, message="fine", by=by, **more)


async def let_time_pass(url: str) -> None:
    await sql(url, "update oxherd.waits set expires_at = asked_at - interval '1 ms'")


async def test_a_question_is_kept_as_it_was_asked_first(store):
    row, created = await ask(store)
    assert created
    assert (row.state, row.about, row.by, row.approved) == ("open", {"order": "A-1", "note": "\0ü"}, "", None)
    assert HOUR - 60_000 < row.left_ms <= HOUR
    assert row.expires_at - row.asked_at == HOUR
    again, created = await ask(store, about='"other"', inputs="ee" * 16, timeout_ms=1, nonce="00" * 8)
    assert not created
    assert replace(again, left_ms=row.left_ms) == row


async def test_the_first_answer_wins(store):
    row, _ = await ask(store)
    answered, won = await say(store, row.id, value=b'{"amount": 5}')
    assert won
    assert (answered.state, answered.approved, answered.value, answered.by) == ("answered", True, {"amount": 5}, "ana")
    assert answered.message == "fine"
    assert answered.answered_at >= row.asked_at
    late, won = await say(store, row.id, approved=False, by="bob")
    assert not won
    assert replace(late, left_ms=answered.left_ms) == answered
    again, created = await ask(store)
    assert (again.state, again.by, created) == ("answered", "ana", False)


async def test_of_many_answers_at_once_one_wins(store):
    row, _ = await ask(store)
    tried = await asyncio.gather(*(say(store, row.id, by=f"p{n}", approved=n % 2 == 0) for n in range(12)))
    (winner,) = {answered.by for answered, won in tried if won}
    assert {answered.by for answered, _ in tried} == {winner}


async def test_no_answer_comes_after_the_time_is_over(store, shared_url):
    row, _ = await ask(store)
    await let_time_pass(shared_url)
    late, won = await say(store, row.id)
    assert (late.state, won, late.approved) == ("expired", False, None)
    assert await store.list_waits(queue="agent-jobs", state="open", limit=9) == []
    again, created = await ask(store)
    assert (again.state, created, again.left_ms) == ("expired", False, 0)
    assert [each.state for each in await store.list_waits(queue="agent-jobs", state="expired", limit=9)] == ["expired"]


async def test_an_answer_and_the_end_of_its_time_at_once_leave_one_of_them(store, shared_url):
    questions = [a_question(number, timeout_ms=40) for number in range(1, 9)]
    await asyncio.gather(*(store.open_wait(one, fence=1, attempt_started_at=NOON) for one in questions))

    async def insist(question: Question) -> str:
        while True:
            row, _ = await store.open_wait(question, fence=1, attempt_started_at=NOON)
            if row.state != "open":
                return row.state

    async def one_of(question: Question) -> tuple[str, bool]:
        seen, (_, won) = await asyncio.gather(insist(question), say(store, question.id))
        return seen, won

    for seen, won in await asyncio.gather(*map(one_of, questions)):
        assert (seen == "answered") is won


async def test_an_answer_to_an_earlier_asking_is_refused(store):
    row, _ = await ask(store)
    assert await say(store, row.id, nonce="00" * 8) is None
    _, won = await say(store, row.id, nonce=row.nonce)
    assert won


async def test_a_question_that_nobody_asked_can_not_be_answered_or_found(store):
    assert await say(store, "00" * 8) is None
    assert await store.get_wait("00" * 8) is None


async def test_a_worker_that_was_overtaken_asks_nothing(store):
    assert await store.record(running(fence=2))
    assert await store.open_wait(a_question(), fence=1, attempt_started_at=NOON + 1_001) is None
    assert await store.get_wait(a_question().id) is None
    _, created = await ask(store, fence=2)
    assert created


async def test_a_withdrawn_question_is_asked_anew(store):
    row, _ = await ask(store)
    answered, _ = await ask(store, 2)
    await say(store, answered.id)
    await store.withdraw_waits([row.id, answered.id])
    assert (await store.get_wait(answered.id)).state == "answered"
    late, won = await say(store, row.id)
    assert (late.state, won) == ("withdrawn", False)
    anew, created = await ask(store, nonce="11" * 8, inputs="ee" * 16, about="1")
    assert (created, anew.state, anew.nonce, anew.inputs, anew.about) == (True, "open", "11" * 8, "ee" * 16, 1)


async def test_open_questions_are_listed_by_when_they_expire_and_others_the_newest_first(store):
    for number, hours in ((1, 3), (2, 1), (3, 2)):
        await ask(store, number, timeout_ms=hours * HOUR)
    await ask(store, 4, queue="other")

    async def jobs(state: str, limit: int = 9) -> list[str]:
        return [row.job_id for row in await store.list_waits(queue="agent-jobs", state=state, limit=limit)]

    assert await jobs("open") == ["2", "3", "1"]
    assert await jobs("open", limit=1) == ["2"]
    for number in (2, 1):
        await say(store, a_question(number).id)
    assert await jobs("answered") == ["2", "1"]
    assert await jobs("open") == ["3"]


async def test_what_is_forked_from_is_asked_anew(store):
    for key in ("before", "refund", "after", "never-kept"):
        row, _ = await ask(store, key=key)
        await say(store, row.id)
    other, _ = await ask(store, 2)
    for key in ("before", "refund", "work", "after"):
        assert await store.save_step(a_run().id, 1, a_step(key))
    assert await store.drop_steps(a_run().id, "refund") == ["refund", "work", "after"]
    left = [key for key in ("before", "refund", "after", "never-kept") if await store.get_wait(a_question(key=key).id)]
    assert left == ["before"]
    assert await store.get_wait(other.id) is not None
    _, created = await ask(store)
    assert created


async def test_a_text_that_can_not_be_stored_is_refused(store):
    with pytest.raises(StoreRefused):
        await ask(store, job="half \ud83d pair")
    row, _ = await ask(store)
    answered, won = await store.answer_wait(row.id, approved=True, value=None, message="nul \0", by="a\ud83d")
    assert won
    assert (answered.message, answered.by) == ("nul \\u0000", "a\\ud83d")
