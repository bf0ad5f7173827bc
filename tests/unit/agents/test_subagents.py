"""Agents as tools of other agents: their steps, their bills, their limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import BaseModel

from fakes.journal import attempt_of
from fakes.openrouter import PRICE, Refuses, calls, says
from oxherd.agents import Agent, Agents, Budget, tool
from oxherd.agents.nesting import MAX_DEPTH
from oxherd.errors import AgentError, BudgetExceeded, DailyCapReached, ModelRefused, RetryLater, UsageError


class Finding(BaseModel):
    city: str


@pytest.fixture
def run(llm, journal):
    """Runs an agent in a further attempt of the same job; returns the run and what the job has used."""
    agents = Agents(llm, known={})

    async def run(agent: Agent, agents=agents, words="Where?"):
        ctx = attempt_of(journal, agents.run)
        return await ctx.run(agent, words), ctx.usage

    return run


def scout(*tools, **fields) -> Agent:
    return Agent("scout", "small", tools=tools, description="Finds places.", **fields)


def lead(*tools, **fields) -> Agent:
    return Agent("lead", "large", tools=tools, **fields)


def asks(words="Find Oslo", name="scout"):
    return calls((name, {"input": words}))


async def test_an_agent_is_a_tool_that_another_asks_in_words(run, fake, journal):
    fake.script(asks(), says("North."), says("It is in the north."))
    result, _ = await run(lead(scout(instructions="Be brief.")))
    assert result.output == "It is in the north."
    offered = fake.requests[0]["tools"][0]["function"]
    assert (offered["name"], offered["description"]) == ("scout", "Finds places.")
    assert offered["parameters"]["required"] == ["input"]
    assert "it sees nothing else" in offered["parameters"]["properties"]["input"]["description"]
    assert [message["content"] for message in fake.requests[1]["messages"]] == ["Be brief.", "Find Oslo"]
    assert fake.requests[2]["messages"][-1]["content"] == "North."
    assert list(journal.steps) == [
        "lead/model-1", "lead/tool-1-scout/scout/model-1", "lead/tool-1-scout", "lead/model-2",
    ]  # fmt: skip


async def test_its_calls_count_for_the_agent_around_it_on_each_attempt_alike(run, fake):
    agent = lead(scout())
    fake.script(calls(("scout", {"input": "a"}), ("scout", {"input": "b"})), says("A."), says("B."), says("ok"))
    first, used = await run(agent)
    assert (first.usage.calls, first.steps, first.usage.cost_usd) == (4, 2, fake.bill)
    assert used == first.usage
    again, used_again = await run(agent)
    assert again == first
    assert used_again == used
    assert len(fake.requests) == 4


async def test_a_typed_answer_is_read_as_json_by_the_asking_model(run, fake):
    fake.script(asks(), says('{"city": "Oslo"}'), says("ok"))
    result, _ = await run(lead(scout(output=Finding)))
    assert result.messages[-2]["content"] == '{"city":"Oslo"}'


async def test_what_an_agent_inside_has_done_is_not_paid_again_after_a_crash(run, fake, journal):
    ran = []

    @tool
    async def look(place: str) -> str:
        """Look."""
        ran.append(place)
        return "there"

    agent = lead(scout(look))
    fake.script(asks(), calls(("look", {"place": "map"})), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run(agent)
    assert "lead/tool-1-scout" not in journal.steps
    fake.script(says("North."), says("ok"))
    result, usage = await run(agent)
    assert (result.output, ran) == ("ok", ["map"])
    assert len(fake.requests) == 2 + 4 + 2
    assert result.usage.cost_usd == usage.cost_usd == fake.bill
    assert (await run(agent))[0] == result


async def test_a_run_started_by_a_tools_own_code_counts_the_same(run, fake):
    inner = scout()

    @tool
    async def find(ctx, place: str) -> str:
        """Find."""
        return (await ctx.run(inner, place)).output

    fake.script(calls(("find", {"place": "Oslo"})), says("North."), says("ok"))
    result, usage = await run(lead(find))
    assert result.usage == usage
    assert usage.calls == 3


@pytest.mark.parametrize(
    ("fields", "answers", "why"),
    [
        ({"budget": Budget(steps=1)}, [calls(("look", {}))], "'scout' had no answer after 1 calls of the model"),
        ({"output": Finding}, [says("?")] * 3, "'scout' did not answer in its form"),
        ({"loop_limit": 2}, [calls(("look", {}))] * 3, "'scout' called 'look' 3 times"),
        ({}, [calls(("look", {"n": n})) for n in range(5)], "every tool call failed in 5 turns"),
    ],
)
async def test_the_asking_model_is_told_when_the_agent_gives_up(run, fake, fields, answers, why):
    @tool
    async def look() -> str:
        """Look."""
        return "nothing"

    fake.script(asks(), *answers, says("Sorry."))
    agent = lead(scout(look, **fields))
    result, usage = await run(agent)
    assert result.output == "Sorry."
    assert result.messages[-2]["content"].startswith("Error: the agent gave up: agent 'scout'")
    assert why in result.messages[-2]["content"]
    assert usage.calls == result.usage.calls == 2 + len(answers)
    assert (await run(agent))[0] == result


async def test_a_refusal_of_the_model_service_ends_the_whole_run(run, fake):
    fake.script(asks(), Refuses(404, "no such model"))
    with pytest.raises(ModelRefused):
        await run(lead(scout()))


async def test_the_day_s_cap_of_everything_ends_the_whole_run(run, fake, llm):
    class Closed(Agents):
        async def run(self, ctx, agent, input):  # noqa: A002
            if agent.name == "scout":
                raise DailyCapReached("enough")
            return await super().run(ctx, agent, input)

    fake.script(asks())
    with pytest.raises(DailyCapReached):
        await run(lead(scout()), Closed(llm, known={}))


async def test_calls_of_agents_inside_count_toward_the_cap_on_calls(run, fake):
    fake.script(asks("a"), says("A."), asks("b"), says("B."))
    with pytest.raises(BudgetExceeded, match="'lead' had no answer after 4 calls of the model, 2 of them by agents"):
        await run(lead(scout(), budget=Budget(steps=4)))


async def test_agents_inside_stop_at_the_caps_of_those_around_them(run, fake):
    @tool
    async def look(place: int) -> str:
        """Look."""
        return "nothing"

    turns = [calls(("look", {"place": number})) for number in range(3)]
    fake.script(asks(), *turns)
    with pytest.raises(BudgetExceeded, match=r"'lead' has spent \$0.0008 of \$0.0007"):
        await run(lead(scout(look), budget=Budget(usd=PRICE * Decimal("3.5"))))


async def test_agents_side_by_side_never_pass_the_cap_on_calls_of_the_one_around(run, fake):
    fake.script(calls(*(("scout", {"input": str(n)}) for n in range(6))), says("a"), says("b"), says("c"))
    with pytest.raises(BudgetExceeded):
        await run(lead(scout(), budget=Budget(steps=4)))
    assert len(fake.requests) == 4


async def test_an_agent_inside_itself_is_refused(run, fake):
    holder = {}

    @tool
    async def again(ctx) -> str:
        """Ask yourself."""
        return (await ctx.run(holder["agent"], "?")).output

    holder["agent"] = scout(again)
    fake.script(asks(), calls(("again", {})))
    with pytest.raises(AgentError, match="'scout' is run by a tool of its own: lead → scout → scout"):
        await run(lead(holder["agent"]))


async def test_agents_are_not_nested_without_end(run, fake):
    agent = Agent("a0", "m")
    for number in range(1, MAX_DEPTH + 1):
        agent = Agent(f"a{number}", "m", tools=[agent])
    fake.script(*(asks(name=f"a{number}") for number in reversed(range(MAX_DEPTH))))
    with pytest.raises(AgentError, match="more than 5 agents inside one another: a5 → a4 → a3 → a2 → a1 → a0"):
        await run(agent)


async def test_the_depth_and_the_bills_of_runs_side_by_side_are_their_own(llm, journal, fake):
    ctx = attempt_of(journal, Agents(llm, known={}).run)
    fake.script(*[says("ok")] * 4)
    runs = await asyncio.gather(*(ctx.run(scout(), str(number)) for number in range(4)))
    assert [run.usage.calls for run in runs] == [1] * 4


def test_the_tool_can_be_named_and_described_otherwise():
    made = scout().as_tool(name="geo", description="Knows places.", timeout="5m", approve=True)
    assert (made.name, made.description, made.timeout, made.approve) == ("geo", "Knows places.", 300.0, True)
    assert Agent("sup port.reply", "m").as_tool().name == "sup_port_reply"
    assert Agent("scout", "m").as_tool().description == "Ask the agent 'scout'."
    with pytest.raises(UsageError, match="two tools are called 'scout'"):
        lead(scout(), scout())


async def test_definitions_may_name_the_product_s_agents_that_are_tools(llm, journal, fake):
    inner = scout()
    agents = Agents(llm, known={"lead": lead(inner), "other": replace(lead(inner), name="other"), "scout": inner})
    ctx = attempt_of(journal, agents.run)
    fake.script(asks(), says("North."), says("ok"))
    run = await ctx.run({"model": "m", "tools": ["scout"]}, "?")
    assert run.usage.calls == 3
