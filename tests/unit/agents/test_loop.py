from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from pydantic import BaseModel

from fakes.openrouter import DONE, PRICE, Refuses, Streams, answer, calls, chunk, says
from oxherd.agents import Agent, Budget, loop, tool
from oxherd.agents.loop import TOOL_FAULTS, run_agent
from oxherd.errors import (
    BudgetExceeded,
    Fatal,
    JobCancelled,
    ModelRefused,
    OutputInvalid,
    PayloadInvalid,
    RetryLater,
    ToolsFailed,
)


class Answer(BaseModel):
    city: str
    degrees: int


class Tools:
    """Two tools that count how often they really ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

        @tool
        async def find_order(email: str) -> dict:
            """Find an order."""
            self.ran.append(f"find_order {email}")
            return {"order": "A-17"}

        @tool
        async def refund(order: str) -> str:
            """Pay back."""
            self.ran.append(f"refund {order}")
            return "done"

        self.find_order, self.refund = find_order, refund


@pytest.fixture
def tools() -> Tools:
    return Tools()


def support(*given, **fields) -> Agent:
    return Agent("support", "openai/gpt-5-mini", tools=given, **fields)


async def test_a_question_gets_its_answer(ctx, fake, llm):
    fake.script(says("Blue."))
    run = await run_agent(ctx, support(instructions="Be brief.", temperature=0.5), "What colour?", llm)
    assert (run.output, run.agent, run.model, run.steps, run.finish_reason) == (
        "Blue.", "support", "openai/gpt-5-mini", 1, "stop",
    )  # fmt: skip
    assert [message["role"] for message in run.messages] == ["system", "user", "assistant"]
    assert fake.requests[0]["temperature"] == 0.5


async def test_model_and_tools_take_turns_until_there_is_an_answer(ctx, fake, llm, tools, journal):
    fake.script(
        calls(("find_order", {"email": "ada@example.com"})),
        calls(("refund", {"order": "A-17"}), finish_reason="stop"),
        says("Refunded."),
    )
    run = await run_agent(ctx, support(tools.find_order, tools.refund), "Pay me back", llm)
    assert run.output == "Refunded."
    assert tools.ran == ["find_order ada@example.com", "refund A-17"]
    assert list(journal.steps) == [
        "support/model-1", "support/tool-1-find_order", "support/model-2", "support/tool-2-refund", "support/model-3",
    ]  # fmt: skip
    assert [step.kind for step in journal.steps.values()] == ["model", "tool", "model", "tool", "model"]
    assert fake.requests[1]["messages"][-1] == {
        "role": "tool", "tool_call_id": "call_0_find_order", "content": '{"order":"A-17"}',
    }  # fmt: skip


async def test_usage_is_added_up_for_the_run_and_for_the_job(ctx, fake, llm, tools):
    fake.script(calls(("find_order", {"email": "a"})), says("ok"))
    run = await run_agent(ctx, support(tools.find_order), "?", llm)
    assert (run.usage.calls, run.usage.tokens, run.usage.cost_usd) == (2, 30, 2 * PRICE)
    assert ctx.usage == run.usage


async def test_an_unknown_cost_stays_unknown(ctx, fake, llm, tools):
    fake.script(calls(("find_order", {"email": "a"})) | {"usage": {"prompt_tokens": 1}}, says("ok"))
    run = await run_agent(ctx, support(tools.find_order, budget=Budget(usd=0.01)), "?", llm)
    assert run.usage.cost_usd is None


async def test_the_next_attempt_pays_for_nothing_twice(attempt, fake, llm, tools):
    agent = support(tools.find_order, tools.refund)
    fake.script(calls(("find_order", {"email": "a"})), calls(("refund", {"order": "A-17"})), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), agent, "?", llm)
    sent, ran = len(fake.requests), list(tools.ran)

    fake.script(says("Refunded."))
    second = attempt()
    run = await run_agent(second, agent, "?", llm)
    assert (run.output, run.steps) == ("Refunded.", 3)
    assert len(fake.requests) == sent + 1
    assert tools.ran == ran
    assert run.usage.cost_usd == second.usage.cost_usd == fake.bill

    third = await run_agent(attempt(), agent, "?", llm)
    assert third == run
    assert len(fake.requests) == sent + 1


async def test_a_replayed_conversation_is_the_same_to_the_letter(attempt, fake, llm, tools):
    details = [{"type": "reasoning.text", "text": "hm", "signature": "c2ln"}]
    agent = support(tools.find_order)
    fake.script(calls(("find_order", {"email": "a"}), reasoning_details=details), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), agent, "?", llm)
    fake.script(says("ok"))
    await run_agent(attempt(), agent, "?", llm)
    assert fake.requests[-1] == fake.requests[-2]


async def test_the_same_agent_can_run_twice_in_a_job(ctx, attempt, fake, llm, journal):
    fake.script(says("one"), says("two"), says("three"))
    for context in (ctx, attempt()):
        outputs = [(await run_agent(context, support(), str(i), llm)).output for i in range(3)]
        assert outputs == ["one", "two", "three"]
    assert list(journal.steps) == ["support/model-1", "support#2/model-1", "support#3/model-1"]


async def test_an_agent_inside_a_tool_keeps_its_steps_below_the_tools(attempt, fake, llm, journal):
    def team(context) -> Agent:
        @tool
        async def research(topic: str) -> str:
            """Look into it."""
            return (await run_agent(context, Agent("support", "openai/gpt-5-mini"), topic, llm)).output

        return support(research)

    async def handler(context):
        await run_agent(context, team(context), "?", llm)
        return (await run_agent(context, support(), "again", llm)).output

    fake.script(calls(("research", {"topic": "x"})), says("found"), says("done"), says("second run"))
    assert await handler(attempt()) == await handler(attempt()) == "second run"
    assert set(journal.steps) == {
        "support/model-1", "support/tool-1-research/support/model-1", "support/tool-1-research", "support/model-2",
        "support#2/model-1",
    }  # fmt: skip


async def test_parallel_calls_run_at_the_same_time_and_answer_in_order(ctx, fake, llm):
    both = asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> str:
        """Wait for the other."""
        async with asyncio.timeout(5):
            await both.wait()
        return name

    fake.script(calls(("meet", {"name": "a"}), ("meet", {"name": "b"})), says("ok"))
    run = await run_agent(ctx, support(meet), "?", llm)
    assert [message["content"] for message in run.messages if message["role"] == "tool"] == ["a", "b"]


async def test_when_one_parallel_call_asks_for_later_the_others_are_waited_for_and_kept(attempt, fake, llm, journal):
    failed, ran = asyncio.Event(), []

    @tool
    async def fetch() -> str:
        """Fetch."""
        if not failed.is_set():
            failed.set()
            raise RetryLater(5)
        return "fetched"

    @tool
    async def pay() -> str:
        """Pay, which takes longer than the failure of the other."""
        await failed.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        ran.append("pay")
        return "paid"

    fake.script(calls(("fetch", {}), ("pay", {})))
    with pytest.raises(RetryLater):
        await run_agent(attempt(), support(fetch, pay), "?", llm)
    assert list(journal.steps) == ["support/model-1", "support/tool-2-pay"]
    fake.script(says("ok"))
    assert (await run_agent(attempt(), support(fetch, pay), "?", llm)).output == "ok"
    assert ran == ["pay"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("find", {}), "there is no tool 'find'; the tools are: find_order"),
        (("find_order", {"mail": "a"}), "email: Field required"),
        (("find_order", '{"email": "a'), "Invalid JSON"),
        (("find_order", {"email": "boom"}), "ValueError: no such customer"),
    ],
)
async def test_the_model_is_told_what_went_wrong_with_a_call_and_may_do_better(ctx, fake, llm, call, told):
    @tool
    async def find_order(email: str) -> str:
        """Find an order."""
        if email == "boom":
            raise ValueError("no such customer")
        return "A-17"

    fake.script(calls(call), calls(("find_order", {"email": "a"})), says("ok"))
    run = await run_agent(ctx, support(find_order), "?", llm)
    answers = [message["content"] for message in run.messages if message["role"] == "tool"]
    assert answers[0].startswith("Error: ")
    assert told in answers[0]
    assert answers[1] == "A-17"


async def test_a_tool_that_failed_is_not_run_again_by_the_next_attempt(attempt, fake, llm):
    ran = []

    @tool
    def pay() -> str:
        """Pay."""
        ran.append(1)
        raise OSError("card declined")

    fake.script(calls(("pay", {})), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), support(pay), "?", llm)
    fake.script(says("ok"))
    await run_agent(attempt(), support(pay), "?", llm)
    assert ran == [1]


async def test_errors_are_told_to_the_model_in_few_words(ctx, fake, llm):
    @tool
    def fail() -> str:
        """Fail."""
        raise ValueError("x" * 100_000)

    fake.script(calls(("fail", {})), says("ok"))
    run = await run_agent(ctx, support(fail), "?", llm)
    assert len(run.messages[-2]["content"]) < 600


async def test_calls_that_keep_failing_end_the_run(ctx, fake, llm, tools):
    fake.script(*(calls(("find_order", {"mail": number})) for number in range(TOOL_FAULTS)))
    with pytest.raises(ToolsFailed, match="every tool call failed in 5 turns in a row, the last of 'find_order'"):
        await run_agent(ctx, support(tools.find_order), "?", llm)
    assert tools.ran == []


async def test_calls_that_fail_side_by_side_can_all_be_repaired(ctx, fake, llm, tools):
    wrong = [("find_order", {"mail": number}) for number in range(TOOL_FAULTS + 1)]
    fake.script(calls(*wrong), calls(*wrong[:2], ("find_order", {"email": "a"})), says("ok"))
    assert (await run_agent(ctx, support(tools.find_order), "?", llm)).output == "ok"
    assert tools.ran == ["find_order a"]


@pytest.mark.parametrize("error", [Fatal("stop"), RetryLater(3), JobCancelled("no")])
async def test_a_tool_may_end_the_job(ctx, fake, llm, error):
    @tool
    def end() -> str:
        """End."""
        raise error

    fake.script(calls(("end", {})))
    with pytest.raises(type(error)):
        await run_agent(ctx, support(end), "?", llm)


async def test_a_run_stops_at_its_cap_on_calls(ctx, fake, llm, tools):
    fake.script(*[calls(("find_order", {"email": "a"}))] * 3)
    with pytest.raises(BudgetExceeded, match="no answer after 3 calls of the model"):
        await run_agent(ctx, support(tools.find_order, budget=Budget(steps=3)), "?", llm)


async def test_a_run_stops_at_its_cap_on_money(ctx, fake, llm, tools):
    fake.script(*[calls(("find_order", {"email": "a"}))] * 2)
    with pytest.raises(BudgetExceeded, match=r"has spent \$0.0004 of \$0.0003"):
        await run_agent(ctx, support(tools.find_order, budget=Budget(usd=Decimal("0.0003"))), "?", llm)


async def test_a_typed_answer_is_asked_for_by_schema_and_comes_back_as_that_type(ctx, fake, llm):
    fake.script(says('{"city": "Oslo", "degrees": 4}'))
    run = await run_agent(ctx, support(output=Answer), "?", llm)
    assert run.output == Answer(city="Oslo", degrees=4)
    assert fake.requests[0]["response_format"]["json_schema"]["schema"]["required"] == ["city", "degrees"]


async def test_an_answer_that_does_not_fit_is_sent_back_with_what_is_wrong(ctx, fake, llm):
    fake.script(says("It is cold"), says('{"city": "Oslo", "degrees": "cold"}'), says('{"city": "Oslo", "degrees": 4}'))
    run = await run_agent(ctx, support(output=Answer), "?", llm)
    assert run.output.degrees == 4
    sent_back = [request["messages"][-1]["content"] for request in fake.requests[1:]]
    assert "Invalid JSON" in sent_back[0]
    assert "degrees: Input should be a valid integer" in sent_back[1]
    assert '"degrees"' in sent_back[1]


async def test_an_answer_that_never_fits_ends_the_run(ctx, fake, llm):
    fake.script(*[says("cold")] * 2, answer({"role": "assistant", "content": '{"city": "Os'}, "length"))
    with pytest.raises(OutputInvalid, match=r"after 2 corrections: Invalid JSON.*cut at the output limit"):
        await run_agent(ctx, support(output=Answer), "?", llm)


async def test_a_demanded_call_comes_first_and_only_once(ctx, fake, llm, tools):
    fake.script(calls(("find_order", {"email": "a"})), says('{"city": "Oslo", "degrees": 4}'))
    await run_agent(ctx, support(tools.find_order, tool_choice="find_order", output=Answer), "?", llm)
    first, second = fake.requests
    assert first["tool_choice"] == {"type": "function", "function": {"name": "find_order"}}
    assert "response_format" not in first
    assert "tool_choice" not in second
    assert second["response_format"]["type"] == "json_schema"


async def test_the_input_may_be_a_conversation(ctx, fake, llm):
    fake.script(says("ok"))
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    await run_agent(ctx, support(instructions="Be brief."), talk, llm)
    assert fake.requests[0]["messages"] == [{"role": "system", "content": "Be brief."}, *talk]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "input: must be text or a list of at least one message"),
        (5, "input: must be text"),
        (["hi"], "input.0: must be an object whose role"),
        (
            [{"role": "user", "content": "x"}, {"role": "boss"}],
            "input.1: must be an object whose role is one of system",
        ),
    ],
)
async def test_an_input_of_another_kind_is_refused(ctx, llm, given, why):
    with pytest.raises(PayloadInvalid, match=why):
        await run_agent(ctx, support(), given, llm)


async def test_a_refusal_of_the_model_service_ends_the_run(ctx, fake, llm):
    fake.script(Refuses(400, "acme/fake is not a valid model ID"))
    with pytest.raises(ModelRefused):
        await run_agent(ctx, support(), "?", llm)


async def test_a_cancelled_job_makes_no_further_call(ctx, fake, llm, tools):
    @tool
    def cancel() -> str:
        """Cancel the job from elsewhere."""
        ctx.cancel("the user changed their mind")
        return "ok"

    fake.script(calls(("cancel", {})))
    with pytest.raises(JobCancelled):
        await run_agent(ctx, support(cancel), "?", llm)


async def test_fallbacks_and_the_output_limit_are_sent(ctx, fake, llm):
    fake.script(says("ok") | {"model": "other/model"})
    run = await run_agent(ctx, support(models=["other/model"], max_output_tokens=77), "?", llm)
    assert (fake.requests[0]["models"], fake.requests[0]["max_tokens"]) == (["other/model"], 77)
    assert run.model == "other/model"


async def test_how_to_think_and_where_is_sent_and_all_calls_of_a_job_are_one_session(attempt, fake, llm, tools):
    fields = {"reasoning": {"effort": "low"}, "seed": 7, "provider": {"order": ["azure"]}, "cache": True}
    fake.script(calls(("find_order", {"email": "a"})), says("ok"), says("ok"))
    await run_agent(attempt(), support(tools.find_order, **fields), "?", llm)
    await run_agent(attempt(), Agent("other", "m", **fields), "?", llm)
    first = fake.requests[0]
    assert (first["reasoning"], first["seed"], first["provider"]["order"]) == ({"effort": "low"}, 7, ["azure"])
    assert first["cache_control"] == {"type": "ephemeral"}
    assert len({request["session_id"] for request in fake.requests}) == 1


async def test_a_job_that_was_delayed_before_is_delayed_for_longer(attempt, fake, llm):
    fake.script(Refuses(429, headers={"Retry-After": "60"}))
    context = attempt()
    context.job.attempts_started = 6
    with pytest.raises(RetryLater) as caught:
        await run_agent(context, support(), "?", llm)
    assert caught.value.seconds >= 30 * 2**5


async def test_a_reply_that_goes_on_for_long_is_a_sign_of_life(ctx, fake, llm, monkeypatch):
    heard = asyncio.Event()

    def note() -> float:
        heard.set()
        return 7.0

    monkeypatch.setattr(loop, "mono", note)
    fake.script(Streams(chunk({"content": "o"}), heard, chunk({"content": "k"}, "stop"), DONE))
    ctx.alive_at = 0.0
    await run_agent(ctx, support(), "?", llm)
    assert ctx.alive_at > 0


async def test_the_journal_grows_with_the_conversation_and_not_with_its_square(ctx, fake, llm, tools, journal):
    fake.script(*(calls(("find_order", {"email": str(number)})) for number in range(20)), says("ok"))
    await run_agent(ctx, support(tools.find_order, budget=Budget(steps=30)), "x" * 1000, llm)
    sizes = [len(step.output) for step in journal.steps.values() if step.kind == "model"]
    assert max(sizes) < 400


async def test_what_a_tool_failed_with_is_told_to_the_model_without_the_jobs_secrets(attempt, fake, llm, journal):
    @tool
    def charge(amount: int) -> str:
        """Charge."""
        raise OSError(f"https://api.example/?key=sk-live-1 refused {amount}")

    fake.script(calls(("charge", {"amount": 5})), says("Sorry."))
    ctx = attempt(hide=lambda text: text.replace("sk-live-1", "***"))
    await run_agent(ctx, support(charge), "Charge 5", llm)
    assert b"key=*** refused 5" in journal.steps["support/tool-1-charge"].output
    assert "sk-live-1" not in str((fake.requests, journal.steps))
