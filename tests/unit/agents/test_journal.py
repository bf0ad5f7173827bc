from __future__ import annotations

import pytest

from fakes.openrouter import PRICE, Refuses, calls, says
from oxherd.agents import Agent, Budget, tool
from oxherd.agents.chat import Reply, Request
from oxherd.agents.loop import run_agent
from oxherd.context import Context, Usage
from oxherd.errors import JournalMismatch, RetryLater


@tool
async def look(ctx: Context, number: int) -> str:
    """Look."""
    return f"{number}: " + "x" * 1_000


def looker(*, tools=(look,), **fields) -> Agent:
    return Agent("looker", "m", tools=tools, budget=Budget(steps=500), **fields)


class Script:
    """A model that makes so many tool calls, one after the other; without the fake's checks of each request."""

    base_url = "http://scripted"

    def __init__(self, turns: int) -> None:
        self._turns = turns

    async def chat(self, request: Request, _: object, **__: object) -> Reply:
        turn = sum(message["role"] == "tool" for message in request.messages)
        message = {"role": "assistant", "content": "done"}
        if turn < self._turns:
            function = {"name": "look", "arguments": f'{{"number": {turn}}}'}
            message |= {"content": None, "tool_calls": [{"id": f"c{turn}", "type": "function", "function": function}]}
        return Reply(message, None, "m", f"gen-{turn}", "Fake", Usage(1, 100, 10, PRICE))


async def test_a_run_of_200_tool_calls_grows_by_the_same_each_time(ctx, journal):
    run = await run_agent(ctx, looker(), "?", Script(200))
    assert (run.output, run.steps, len(run.messages)) == ("done", 201, 402)
    sizes = [len(step.output) for step in journal.steps.values()]
    first, last = sum(sizes[:100]), sum(sizes[300:400])
    assert abs(last - first) < 0.02 * first
    assert sum(sizes) < 200 * 2_000


async def test_a_step_knows_what_is_new_in_the_conversation_alone(attempt, fake, llm, journal):
    """The digest of a model call covers what was said since the one before, which has its own."""
    asked = []

    class Watched(Context):
        async def step(self, name, function, *args, **more):
            if more.get("kind") == "model":
                asked.append([message["role"] for message in args[0]])
            return await super().step(name, function, *args, **more)

    plain = attempt()
    ctx = Watched(plain.job, journal=journal, wire=None, runner=None)
    fake.script(calls(("look", {"number": 1}), ("look", {"number": 2})), calls(("look", {"number": 3})), says("done"))
    await run_agent(ctx, looker(instructions="Be brief."), "?", llm)
    assert asked == [["user"], ["tool", "tool"], ["tool"]]


async def test_instructions_may_be_edited_between_attempts(attempt, fake, llm):
    fake.script(calls(("look", {"number": 1})), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), looker(instructions="Be brief."), "?", llm)
    fake.script(says("done"))
    run = await run_agent(attempt(), looker(instructions="Be clear.", temperature=0.5), "?", llm)
    assert run.output == "done"
    assert fake.requests[-1]["messages"][0]["content"] == "Be clear."


async def test_another_question_is_a_changed_program(attempt, fake, llm):
    fake.script(says("Blue."))
    await run_agent(attempt(), looker(), "What colour?", llm)
    with pytest.raises(JournalMismatch, match=r"'looker/model-1' with inputs \w+, asked for is step 'looker/model-1'"):
        await run_agent(attempt(), looker(), "What size?", llm)


async def test_a_tool_that_was_renamed_is_told_before_the_model_is_asked_on(attempt, fake, llm):
    @tool
    async def peek(number: int) -> str:
        """Peek."""
        return "seen"

    fake.script(calls(("look", {"number": 1})), says("done"))
    await run_agent(attempt(), looker(), "?", llm)
    sent = len(fake.requests)
    with pytest.raises(JournalMismatch, match="looker/model-2"):
        await run_agent(attempt(), looker(tools=(peek,)), "?", llm)
    assert len(fake.requests) == sent


async def test_a_tools_idempotency_key_is_the_calls_own_and_stays_the_same(attempt, fake, llm):
    keys: list[str] = []
    failing = True

    @tool
    async def pay(ctx: Context, order: int) -> str:
        """Pay."""
        keys.append(ctx.idempotency_key("pay"))
        if failing and order == 2:
            raise RetryLater(1)
        return "paid"

    fake.script(calls(("pay", {"order": 1})), calls(("pay", {"order": 2})))
    with pytest.raises(RetryLater):
        await run_agent(attempt(), looker(tools=(pay,)), "?", llm)
    failing = False
    fake.script(says("done"))
    await run_agent(attempt(), looker(tools=(pay,)), "?", llm)
    assert len(keys) == 3
    assert keys[0] != keys[1] == keys[2]
