from __future__ import annotations

import asyncio

import pytest

from fakes.openrouter import calls, says
from oxherd.agents import Agent, Agents, tool
from oxherd.codec import encode
from oxherd.errors import PayloadInvalid, UnknownAgent
from oxherd.store import KeptAgent
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


class Kept:
    """The agents table with all its versions."""

    def __init__(self, **versions):
        self.versions = versions
        self.asked = []

    async def __call__(self, name, version):
        self.asked.append((name, version))
        there = self.versions.get(name, [])
        wanted = version or len(there)
        return KeptAgent(wanted, there[wanted - 1]) if there else None


async def test_agents_kept_elsewhere_are_looked_up_after_the_products_own(llm, ctx):
    kept = Kept(editor=[{"model": "kept", "instructions": "x"}])
    agents = Agents(llm, known={"support": SUPPORT}, lookup=kept)
    assert await agents.resolve(ctx, "support", "support") is SUPPORT
    assert kept.asked == []
    editor = await agents.resolve(ctx, "editor", "editor")
    assert (editor.name, editor.model) == ("editor", "kept")


@pytest.mark.parametrize("lookup", [None, Kept()])
async def test_an_unknown_agent_is_answered_with_those_there_are(llm, ctx, lookup):
    agents = Agents(llm, known={"support": SUPPORT, "editor": SUPPORT}, lookup=lookup)
    with pytest.raises(UnknownAgent, match="no agent is called 'suport'; this worker's own are: editor, support"):
        await agents.resolve(ctx, "suport", "suport")


async def test_a_run_records_the_version_it_uses_and_its_next_attempt_uses_the_same(llm, attempt, journal, fake):
    kept = Kept(editor=[{"model": "one"}])
    agents = Agents(llm, known={}, lookup=kept)
    fake.script(says("first"), says("second"))
    assert (await agents.run(attempt(), "editor", "?")).output == "first"
    version = journal.steps["editor/version"]
    assert (version.kind, version.output) == ("agent", b"1")

    kept.versions["editor"].append({"model": "two"})
    del journal.steps["editor/model-1"]
    assert (await agents.run(attempt(), "editor", "?")).output == "second"
    assert [request["model"] for request in fake.requests] == ["one", "one"]
    assert kept.asked == [("editor", None), ("editor", 1)]


async def test_another_run_uses_the_version_of_its_own_time(llm, attempt, journal, fake):
    kept = Kept(editor=[{"model": "one"}])
    agents = Agents(llm, known={}, lookup=kept)
    fake.script(says("first"), says("second"))
    await agents.run(attempt(), "editor", "?")
    kept.versions["editor"].append({"model": "two"})
    journal.steps.clear()
    await agents.run(attempt(), "editor", "?")
    assert [request["model"] for request in fake.requests] == ["one", "two"]
    assert journal.steps["editor/version"].output == b"2"


async def test_a_version_that_is_kept_no_more_is_told(llm, attempt, fake):
    kept = Kept(editor=[{"model": "one"}])
    agents = Agents(llm, known={}, lookup=kept)
    fake.script(says("first"))
    await agents.run(attempt(), "editor", "?")
    kept.versions.clear()
    with pytest.raises(UnknownAgent, match="version 1 of agent 'editor', which this run began with, is kept no more"):
        await agents.run(attempt(), "editor", "?")


async def test_of_two_runs_at_once_the_first_is_called_the_first_though_its_look_up_takes_longer(
    llm, ctx, journal, fake
):
    order, looked_up = [], asyncio.Event()

    async def lookup(name, version):
        order.append(name)
        if len(order) == 1:
            await looked_up.wait()
        looked_up.set()
        return KeptAgent(1, {"model": "m"})

    agents = Agents(llm, known={}, lookup=lookup)
    fake.script(*[lambda body: says(f"to {body['messages'][0]['content']}")] * 2)
    await asyncio.gather(agents.run(ctx, "editor", "one"), agents.run(ctx, "editor", "two"))
    assert b"to one" in journal.steps["editor/model-1"].output
    assert b"to two" in journal.steps["editor#2/model-1"].output


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


async def test_a_name_that_two_agents_use_for_different_tools_can_not_be_named_inline(llm, ctx):
    def look(place: str) -> str:
        return place

    agents = Agents(llm, known={"a": SUPPORT, "b": Agent("b", "m", tools=[look]), "c": Agent("c", "m", tools=[look])})
    with pytest.raises(PayloadInvalid, match="no tool 'look'; this worker has: none"):
        await agents.resolve(ctx, {"model": "m", "tools": ["look"]}, "inline")


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
