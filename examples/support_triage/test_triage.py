from __future__ import annotations

import json

import pytest
import triage

from oxherd.context import Answer
from oxherd.job import Wait
from oxherd.telemetry.events import ApprovalRequested
from oxherd.testing import ScriptedModel, calls, replay_every_step, run_job, says, serving

TICKET = {"email": "ada@example.com", "text": "My order never came!"}
DONE = says(json.dumps({"topic": "refund", "urgent": True, "reply": "We have paid you back."}))
SORRY = says(json.dumps({"topic": "delivery", "urgent": True, "reply": "A colleague will write to you."}))
REFUND = "support/approve-2-refund"


@pytest.fixture
def paid(monkeypatch):
    """What the payment service was asked for: each effect once, whatever was repeated."""
    effects: dict[str, tuple[str, int]] = {}

    async def pay_back(number: str, cents: int, *, key: str) -> str:
        effects[key] = (number, cents)
        return "paid back"

    monkeypatch.setattr(triage, "pay_back", pay_back)
    return effects


@pytest.fixture
def model(oxherd_model: ScriptedModel):
    """Looks the order up, then wants to pay it back."""
    oxherd_model.script(
        calls(("find_order", {"email": "ada@example.com"})), calls(("refund", {"number": "A-17", "cents": 4900}))
    )
    return oxherd_model


async def test_a_refund_waits_for_a_person_and_pays_nothing_until_then(model, paid):
    asks = await run_job(triage.herd, "ticket.triage", TICKET, model=model)
    assert isinstance(asks.outcome, Wait)
    (question,) = asks.questions
    assert question.name == REFUND
    assert question.about["arguments"] == {"number": "A-17", "cents": 4900}
    assert f"oxherd approvals approve {question.id}" in asks.logs[0]
    assert paid == {}

    model.script(DONE)
    answered = await asks.again(answers={REFUND: True})
    assert answered.result["reply"] == "We have paid you back."
    assert list(paid.values()) == [("A-17", 4900)]


async def test_the_model_is_told_why_a_refund_was_denied(model, paid):
    asks = await run_job(triage.herd, "ticket.triage", TICKET, model=model)
    model.script(SORRY)
    denied = await asks.again(answers={REFUND: Answer(False, None, "bob", False, 0, "ask the carrier first")})
    assert denied.result["topic"] == "delivery"
    assert "ask the carrier first" in model.asked[-1].text
    assert paid == {}


async def test_a_crash_at_any_moment_pays_back_once_and_asks_the_model_nothing_twice(model, paid):
    model.script(DONE)
    await replay_every_step(triage.herd, "ticket.triage", TICKET, model=model, answers={REFUND: True})
    assert list(paid.values()) == [("A-17", 4900)]


@pytest.mark.parametrize(
    ("answer", "result"), [(True, "paid back"), (None, "nothing paid: nobody looked at it in time")]
)
async def test_goodwill_needs_a_second_look(paid, answer, result):
    case = {"number": "A-17", "cents": 500, "why": "a long wait"}
    run = await replay_every_step(triage.herd, "ticket.goodwill", case, answers={"second-look": answer})
    assert run.result == result
    assert len(paid) == (1 if answer else 0)


async def test_an_answer_wakes_the_job_in_a_worker(model, paid, oxherd_redis_url, oxherd_database_url):
    model.script(DONE)
    async with serving(
        triage.herd, redis_url=oxherd_redis_url, database_url=oxherd_database_url, model=model
    ) as worker:
        job = await worker.add("ticket.triage", TICKET)
        (asked,) = await worker.events.wait(ApprovalRequested)
        await worker.approvals.answer(asked.approval, approved=True, by="ada")
        assert (await worker.result(job))["reply"] == "We have paid you back."
    assert list(paid.values()) == [("A-17", 4900)]
