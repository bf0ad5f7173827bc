from __future__ import annotations

import pytest

from fakes.openrouter import calls, says
from oxherd.agents import Agent, Agents, tool
from oxherd.codec import encode
from oxherd.errors import PayloadInvalid, UnknownAgent
from oxherd.worker.handlers import make_handler, read_payload


@tool
async def look(place: str) -> str:
    """Look somewhere."""
    return f"nothing in {place}"


SUPPORT = Agent("support", "m", tools=[look])


@pytest.fixture
def agents(llm) -> Agents:
    return Agents(llm, known={"support": SUPPORT})


def payload(agents, **fields):
    return read_payload(make_handler("agent.run", agents.handle), encode(fields))[0]


async def test_the_built_in_job_runs_an_agent_by_its_name(agents, ctx, fake):
    fake.script(calls(("look", {"place": "attic"})), says("Nothing there."))
    result = await agents.handle(ctx, payload(agents, agent="support", input="Look in the attic"))
    assert result == {
        "output": "Nothing there.",
        "agent": "support",
        "model": "m",
        "usage": {"calls": 2, "input_tokens": 20, "output_tokens": 10, "cost_usd": fake.bill},
        "steps": 2,
        "finish_reason": "stop",
    }


async def test_the_built_in_job_runs_an_inline_definition_with_the_products_tools(agents, ctx, fake):
    definition = {"model": "n", "tools": ["look"], "output": {"type": "object", "required": ["ok"]}}
    fake.script(says('{"ok": true}'))
    talk = [{"role": "user", "content": "?"}]
    result = await agents.handle(ctx, payload(agents, agent=definition, input=talk, tenant="acme", metadata={"a": 1}))
    assert (result["output"], result["agent"], result["model"]) == ({"ok": True}, "inline", "n")


async def test_agents_kept_elsewhere_are_looked_up_after_the_products_own(llm):
    asked = []

    async def lookup(name):
        asked.append(name)
        return {"model": "kept", "instructions": "x"} if name == "editor" else None

    agents = Agents(llm, known={"support": SUPPORT}, lookup=lookup)
    assert await agents.resolve("support") is SUPPORT
    assert asked == []
    editor = await agents.resolve("editor")
    assert (editor.name, editor.model) == ("editor", "kept")


@pytest.mark.parametrize("kept", [False, True])
async def test_an_unknown_agent_is_answered_with_those_there_are(llm, kept):
    async def nothing(_name):
        return None

    agents = Agents(llm, known={"support": SUPPORT, "editor": SUPPORT}, lookup=nothing if kept else None)
    with pytest.raises(UnknownAgent, match="no agent is called 'suport'; this worker's own are: editor, support"):
        await agents.resolve("suport")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"input": "x"}, "agent: "),
        ({"agent": "support"}, "input: "),
        ({"agent": 5, "input": "x"}, "agent: .*must be an agent's name or an object that defines one"),
        ({"agent": "support", "input": {}}, "input: .*must be text or a list of messages"),
        ({"agent": "support", "input": "x", "metadata": []}, "metadata: Input should be an object"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_field_and_what_was_expected(agents, fields, why):
    with pytest.raises(PayloadInvalid, match=why):
        payload(agents, **fields)


async def test_a_bad_inline_definition_names_its_field(agents, ctx):
    with pytest.raises(PayloadInvalid, match=r"agent\.model: Field required"):
        await agents.handle(ctx, payload(agents, agent={}, input="x"))


async def test_a_name_that_two_agents_use_for_different_tools_can_not_be_named_inline(llm):
    def look(place: str) -> str:
        return place

    agents = Agents(llm, known={"a": SUPPORT, "b": Agent("b", "m", tools=[look]), "c": Agent("c", "m", tools=[look])})
    with pytest.raises(PayloadInvalid, match="no tool 'look'; this worker has: none"):
        await agents.resolve({"model": "m", "tools": ["look"]})


async def test_handlers_run_agents_through_their_context(agents, attempt, fake):
    fake.script(says("one"), says("two"))
    ctx = attempt(runner=agents.run)
    assert (await ctx.run(SUPPORT, "?")).output == "one"
    assert (await ctx.run("support", "?")).output == "two"
    with pytest.raises(PayloadInvalid, match="agent: must be an Agent"):
        await ctx.run(5, "?")


async def test_closing_twice_is_fine():
    agents = Agents.build("http://127.0.0.1:1/v1", None, known={})
    await agents.close()
    await agents.close()
