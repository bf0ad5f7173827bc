"""Conversations that near the context window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.openrouter import PRICE, Refuses, calls, says
from oxherd.agents import Agent, Budget, tool
from oxherd.agents.history import LEFT_OUT, TO_SUM_UP, History, room
from oxherd.agents.loop import run_agent
from oxherd.context import Usage
from oxherd.errors import BudgetExceeded, ContextTooLong, RetryLater, UsageError

TOO_LONG = Refuses(400, "too long", metadata={"error_type": "context_length_exceeded"})


@pytest.fixture
def look():
    @tool
    async def look(place: str) -> str:
        """Look somewhere."""
        return f"{place}: " + "x" * 400

    return look


def agent(*tools, **fields) -> Agent:
    options = {
        "instructions": "Be brief.",
        "context_window": 1000,
        "max_output_tokens": 100,
        "budget": Budget(steps=30),
    }
    return Agent("scout", "m", tools=tools, **(options | fields))


def looks(place, tokens=10):
    return used(calls(("look", {"place": place})), tokens)


def used(answer, tokens):
    return answer | {"usage": {"prompt_tokens": tokens, "completion_tokens": 5, "cost": float(PRICE)}}


def sent(request) -> list[str]:
    """The messages of a request, each in a word or two."""
    return [str(each["content"])[:9] if each["role"] != "assistant" else "calls" for each in request["messages"]]


async def test_a_conversation_that_fits_is_sent_whole(ctx, fake, llm, look):
    fake.script(looks("a", 300), looks("b", 500), says("ok"))
    await run_agent(ctx, agent(look), "Where?", llm)
    assert sent(fake.requests[-1]) == ["Be brief.", "Where?", "calls", "a: xxxxxx", "calls", "b: xxxxxx"]


async def test_the_oldest_turns_are_left_out_and_the_model_is_told(ctx, fake, llm, look, journal):
    fake.script(looks("a"), looks("b"), looks("c"), looks("d", 780), looks("e", 300), says("ok"))
    run = await run_agent(ctx, agent(look), "Where?", llm)
    shortened = fake.requests[4]["messages"]
    assert [message["role"] for message in shortened] == ["system", "user", "assistant", "tool"]
    assert shortened[1]["content"] == f"Where?\n\n{LEFT_OUT}"
    assert shortened[3]["content"].startswith("d: ")
    assert sent(fake.requests[5])[3:] == ["d: xxxxxx", "calls", "e: xxxxxx"]
    assert len(run.messages) == 2 + 2 * 5 + 1, "the run has them all"


async def test_a_replay_leaves_out_the_same(attempt, fake, llm, look, journal):
    fake.script(looks("a"), looks("b"), looks("c", 780), looks("d", 300), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), agent(look), "Where?", llm)
    tried = fake.requests[-1]
    fake.script(says("ok"))
    await run_agent(attempt(), agent(look, context_window=9_000_000), "Where?", llm)
    assert fake.requests[-1]["messages"] == tried["messages"]
    assert max(len(step.output) for step in journal.steps.values()) < 600


async def test_the_task_itself_stays_whatever_is_left_out(ctx, fake, llm, look):
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "x" * 1000},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    fake.script(looks("a"), looks("b", 780), says("ok"))
    await run_agent(ctx, agent(look), talk, llm)
    shortened = fake.requests[-1]["messages"]
    assert [message["content"] for message in shortened[1:3]] == [f"Hello\n\n{LEFT_OUT}", talk[2]["content"]]
    assert [message["role"] for message in shortened[3:]] == ["assistant", "tool"]


async def test_a_summary_takes_the_place_of_what_is_left_out(ctx, fake, llm, look, journal):
    fake.script(
        looks("a"), looks("b"), looks("c"), looks("d", 780), says("Nothing in a to c."), looks("e", 780),
        says("Nothing in a to d."), says("ok"),
    )  # fmt: skip
    run = await run_agent(ctx, agent(look, history="summarise"), "Where?", llm)
    first, second = (request["messages"] for request in fake.requests if request["messages"][0]["content"] == TO_SUM_UP)
    assert "user: Where?" in first[1]["content"]
    assert 'assistant: [calls look({"place": "a"})]' in first[1]["content"]
    assert "tool: c: xxx" in first[1]["content"]
    assert "tool: d: xxx" not in first[1]["content"]
    assert "summary of what came before:\nNothing in a to c." in second[1]["content"]
    assert "tools" not in fake.requests[4]
    question = fake.requests[-1]["messages"][1]["content"]
    assert question == f"Where?\n\n{LEFT_OUT}\n[What they said, in short: Nothing in a to d.]"
    assert [key for key in journal.steps if "summary" in key] == ["scout/model-5/summary", "scout/model-6/summary"]
    assert (run.usage.calls, run.usage.cost_usd) == (8, fake.bill)
    assert ctx.usage == run.usage


async def test_a_summary_is_not_paid_again_when_the_call_after_it_fails(attempt, fake, llm, look):
    asked = agent(look, history="summarise")
    fake.script(looks("a"), looks("b"), looks("c", 780), says("Nothing."), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), asked, "Where?", llm)
    fake.script(says("ok"))
    context = attempt()
    run = await run_agent(context, asked, "Where?", llm)
    assert "Nothing." in fake.requests[-1]["messages"][1]["content"]
    assert len(fake.requests) == 4 + 4 + 1
    assert run.usage == context.usage
    assert run.usage.cost_usd == fake.bill
    again = attempt()
    assert await run_agent(again, asked, "Where?", llm) == run
    assert again.usage == context.usage


async def test_summaries_count_toward_the_cap_on_calls(ctx, fake, llm, look):
    fake.script(looks("a"), looks("b", 780), says("Nothing."), looks("c"))
    with pytest.raises(BudgetExceeded, match="after 4 calls"):
        await run_agent(ctx, agent(look, history="summarise", budget=Budget(steps=4)), "Where?", llm)


async def test_a_conversation_that_turns_out_too_long_is_trimmed_once_and_sent_again(attempt, fake, llm, look):
    asked = agent(look, context_window=None)
    fake.script(looks("a"), looks("b"), looks("c"), TOO_LONG, looks("d"), says("ok"))
    run = await run_agent(attempt(), asked, "Where?", llm)
    assert sent(fake.requests[4]) == ["Be brief.", "Where?\n\n[", "calls", "c: xxxxxx"]
    assert sent(fake.requests[5])[2:] == ["calls", "c: xxxxxx", "calls", "d: xxxxxx"]
    assert await run_agent(attempt(), asked, "Where?", llm) == run


async def test_a_conversation_that_stays_too_long_ends_the_run(ctx, fake, llm, look):
    fake.script(looks("a"), looks("b"), TOO_LONG, TOO_LONG)
    with pytest.raises(ContextTooLong):
        await run_agent(ctx, agent(look), "Where?", llm)
    fake.script(TOO_LONG)
    with pytest.raises(ContextTooLong):
        await run_agent(ctx, agent(look), "Where?", llm, scope="nothing-to-leave-out")


async def test_without_a_history_setting_nothing_is_ever_left_out(ctx, fake, llm, look):
    fake.script(looks("a"), looks("b"), looks("c", 5000), TOO_LONG)
    with pytest.raises(ContextTooLong):
        await run_agent(ctx, agent(look, history=None), "Where?", llm)
    assert len(fake.requests[-1]["messages"]) == 2 + 2 * 3


async def test_a_summary_that_does_not_fit_either_is_done_without(ctx, fake, llm, look):
    fake.script(looks("a"), looks("b", 780), TOO_LONG, says("ok"))
    run = await run_agent(ctx, agent(look, history="summarise"), "Where?", llm)
    assert fake.requests[-1]["messages"][1]["content"] == f"Where?\n\n{LEFT_OUT}"
    assert run.usage.calls == 3


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"history": "forget"}, "agent.history: must be 'trim'"),
        ({"context_window": 0}, "agent.context_window: must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, why):
    with pytest.raises(UsageError, match=why):
        agent(**fields)


def test_at_most_half_of_a_small_window_is_set_aside_for_the_answer():
    assert (room(10_000, 1000), room(4096, 4096)) == (8100, 1843)


def test_an_image_counts_the_same_whatever_its_size():
    def size(data):
        image = {"type": "image_url", "image_url": {"url": data}}
        return History([{"role": "user", "content": [{"type": "text", "text": "?"}, image]}]).tokens()

    assert size("data:" + "A" * 1_000_000) == size("data:A") > 1000


TURNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2000)), min_size=1, max_size=12)


@given(turns=TURNS, steps=st.lists(st.integers(10, 3000), max_size=4), talk=st.integers(0, 3))
def test_whatever_is_left_out_what_is_sent_is_a_conversation(turns, steps, talk):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "first"}]
    for number in range(talk):
        messages += [{"role": "assistant", "content": "a"}, {"role": "user", "content": f"q{number}"}]
    history, last = History(messages), messages[-1]["content"]
    for turn, (count, size) in enumerate(turns):
        made = [{"id": f"{turn}-{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(count)]
        messages.append({"role": "assistant", "content": "x" * size, **({"tool_calls": made} if made else {})})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": "y" * size} for call in made]
        history.count(Usage(1, sum(len(str(each)) for each in history.view()) // 4, 0))
    for goal in steps:
        before = len(history.view())
        cut = history.shorter(goal)
        if cut is None:
            continue
        history.restore(history.kept(cut))
        view = history.view()
        assert len(view) < before
        assert view[0] == messages[0]
        assert view[1]["content"].startswith("first")
        assert any(str(each["content"]).startswith(last) for each in view if each["role"] == "user")
        assert view[-1] == messages[-1]
        called = {call["id"] for each in view for call in each.get("tool_calls", ())}
        assert called == {each["tool_call_id"] for each in view if each["role"] == "tool"}
