from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import pytest
from pydantic import BaseModel

from oxherd import Budget, Fatal, Herd, RetryLater, WaitForChildren, tool
from oxherd.clock import mono
from oxherd.context import Answer
from oxherd.errors import UsageError
from oxherd.job import Delay, Done, Fail, Park, Retry, Wait
from oxherd.telemetry.events import SpendUnknown, emit
from oxherd.testing import calls, fails, run_job, says


class Ticket(BaseModel):
    text: str
    tenant: str | None = None


@tool
async def find_order(email: str) -> dict[str, str]:
    """Find an order."""
    return {"order": f"A-17 of {email}"}


@pytest.fixture
def herd() -> Herd:
    herd = Herd()
    support = herd.agent("support", model="m", tools=[find_order], budget=Budget(usd=0.05))

    @herd.job("support.reply", retries=2)
    async def reply(ctx, ticket: Ticket) -> str:
        history = await ctx.step("history", lambda: ["once bitten"])
        run = await ctx.run(support, f"{history} {ticket.text}")
        await ctx.progress(100)
        await ctx.log("answered")
        return run.output

    return herd


async def test_a_job_runs_with_its_agents_steps_and_spend(herd, oxherd_model):
    oxherd_model.script(calls(("find_order", {"email": "ada@example.com"})), says("It is on its way."))
    run = await run_job(herd, "support.reply", Ticket(text="Where is it?"), model=oxherd_model)
    assert run.result == "It is on its way."
    assert isinstance(run.outcome, Done)
    assert list(run.outputs) == ["history", "support/model-1", "support/tool-1-find_order", "support/model-2"]
    assert run.outputs["history"] == ["once bitten"]
    assert run.ran == list(run.outputs)
    assert (run.usage.calls, run.usage.cost_usd) == (2, Decimal("0.002"))
    assert (run.progress, run.logs) == ([100], ["answered"])
    assert oxherd_model.asked[1].text == '{"order":"A-17 of ada@example.com"}'


async def test_the_built_in_job_runs_too(herd, oxherd_model):
    oxherd_model.script("Hi.")
    run = await run_job(herd, "agent.run", {"agent": "support", "input": "Hello"}, model=oxherd_model)
    assert run.result["output"] == "Hi."


async def test_the_next_attempt_replays_what_was_paid_for(herd, oxherd_model):
    oxherd_model.script(calls(("find_order", {"email": "a"})), fails(400, "out of order"))
    first = await run_job(herd, "support.reply", {"text": "?"}, model=oxherd_model)
    assert isinstance(first.outcome, Fail)
    with pytest.raises(AssertionError, match=r"(?s)has no result, but Fail \(failed\).*out of order"):
        _ = first.result
    oxherd_model.script(says("Found."))
    second = await first.again()
    assert (second.result, second.ran) == ("Found.", ["support/model-2"])
    assert len(second.steps) == 4


async def test_pauses_of_the_model_client_are_not_waited_for(herd, oxherd_model):
    oxherd_model.script(fails(503), fails(503), fails(503, retry_after=9), says("ok"))
    begun = mono()
    assert (await run_job(herd, "support.reply", {"text": "?"}, model=oxherd_model)).result == "ok"
    assert mono() - begun < 9


async def test_a_call_too_many_fails_at_once_with_the_conversation(herd, oxherd_model):
    oxherd_model.script(calls(("find_order", {"email": "a"})))
    with pytest.raises(AssertionError, match=r"(?s)asked once more than its script of 1.*tool +.*A-17 of a"):
        await run_job(herd, "support.reply", {"text": "?"}, model=oxherd_model)


async def test_a_payload_that_does_not_fit_is_refused_as_by_a_worker(herd):
    run = await run_job(herd, "support.reply", {"txt": "?"})
    assert isinstance(run.outcome, Fail)
    assert run.outcome.kind == "invalid"
    assert "text: Field required" in run.outcome.reason


async def test_a_job_without_its_model_says_so(herd):
    run = await run_job(herd, "agent.run", {"agent": "support", "input": "Hello"})
    assert isinstance(run.outcome, Delay)
    assert "model-is-missing" in run.outcome.reason


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [(ValueError("x"), [Retry, Retry, Fail]), (Fatal("x"), [Fail]), (RetryLater(5), [Delay, Delay, Delay, Delay])],
)
async def test_attempts_are_counted_as_by_a_worker(error, outcomes):
    herd, seen = Herd(), []

    @herd.job("fails")
    async def fail(ctx, payload):
        seen.append(ctx.attempt)
        raise error

    run = await run_job(herd, "fails", attempts=3)
    for expected in outcomes:
        assert isinstance(run.outcome, expected)
        run = run if expected is Fail else await run.again()
    assert seen == ([1, 1, 1, 1, 1] if isinstance(error, RetryLater) else list(range(1, len(outcomes) + 1)))


@dataclass
class Part:
    number: int


@pytest.fixture
def fan() -> Herd:
    herd = Herd()

    @herd.job("whole")
    async def whole(ctx, payload):
        if not (done := await ctx.children()):
            for number in range(2):
                await ctx.spawn("part", Part(number), attempts=3)
            raise WaitForChildren
        return sorted(done.values())

    return herd


async def test_children_are_seen_and_their_results_given(fan):
    first = await run_job(fan, "whole")
    assert isinstance(first.outcome, Park)
    assert [(child.name, child.data, child.opts) for child in first.children] == [
        ("part", {"number": number}, {"attempts": 3}) for number in range(2)
    ]
    assert (await first.again(children={"part": 1})).result == [1, 1]
    by_id = {child.id: child.data["number"] for child in first.children}
    assert (await first.again(children=by_id)).result == [0, 1]
    with pytest.raises(UsageError, match="added no child 'prat', but: child-"):
        await first.again(children={"prat": 1})


async def test_credentials_are_found_and_hidden():
    herd = Herd()

    @herd.job("charge")
    async def charge(ctx, payload):
        key = await ctx.credential("stripe")
        await ctx.log(f"with {key.reveal()}")
        return [str(key), key.reveal()[:3]]

    run = await run_job(herd, "charge", {"tenant": "acme"}, credentials={"stripe": "sesame-open"})
    assert (run.result, run.logs) == (["***", "ses"], ["with ***"])
    refused = await run_job(herd, "charge", {"tenant": "acme"}, credentials={"other": "sesame-open"})
    assert "stripe" in refused.outcome.reason


async def test_events_of_the_run_are_kept():
    herd = Herd()

    @herd.job("tells")
    async def tell(ctx, payload):
        emit(SpendUnknown(run="r", step="s", model="m"))

    run = await run_job(herd, "tells")
    assert run.events.all(SpendUnknown, run="r")


@pytest.fixture
def refunds() -> Herd:
    herd = Herd()

    @tool(approve=True)
    async def refund(order: str, cents: int = 100) -> str:
        """Pay back."""
        return f"{cents} paid back for {order}"

    agent = herd.agent("support", model="m", tools=[refund])

    @herd.job("support.reply")
    async def reply(ctx, payload):
        first = await ctx.wait_for("begin", about=payload, timeout="1h")
        return f"{first.approved} {first.by}: {(await ctx.run(agent, 'Pay me back')).output}"

    return herd


async def test_questions_are_seen_and_answered(refunds, oxherd_model):
    oxherd_model.script(calls(("refund", {"order": "A-17"})), lambda asked: asked.text)
    asks = await run_job(refunds, "support.reply", {"ticket": 4}, model=oxherd_model)
    assert isinstance(asks.outcome, Wait)
    assert [(ask.name, ask.about) for ask in asks.questions] == [("begin", {"ticket": 4})]
    begun = await asks.again(answers={"begin": Answer(True, None, "ada", False, 0)})
    (ask,) = begun.questions
    assert (ask.name, ask.about["arguments"]) == ("support/approve-1-refund", {"order": "A-17", "cents": 100})
    with pytest.raises(UsageError, match=r"the job asks no 'refund', but: .*support/approve-1-refund"):
        await begun.again(answers={"refund": True})
    assert (await begun.again(answers={ask.id: True})).result == "True ada: 100 paid back for A-17"
    oxherd_model.rewind(1)
    assert "approval, and nobody answered in time" in (await begun.again(answers={ask.name: None})).result
    oxherd_model.rewind(1)
    assert isinstance((await begun.again()).outcome, Wait)
    denied = await begun.again(answers={ask.name: Answer(False, None, "bob", False, 0, "too much")})
    assert "too much" in denied.result


async def test_people_are_told_of_questions_as_by_a_worker(refunds):
    told = []
    refunds.on_approval(lambda ctx, ask: told.append(ask.name))
    asks = await run_job(refunds, "support.reply", {})
    assert told == ["begin"]
    await asks.again()
    assert told == ["begin"]
