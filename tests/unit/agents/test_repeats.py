"""Loop detection: the same calls again and again."""

from __future__ import annotations

import pytest

from fakes.openrouter import Refuses, calls, says
from oxherd.agents import Agent, Budget, tool
from oxherd.agents.loop import run_agent
from oxherd.errors import LoopDetected, RetryLater, UsageError


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def look(ran):
    @tool
    async def look(place: str, deep: bool = False) -> str:
        """Look somewhere."""
        ran.append(place)
        return f"nothing in {place}, look {len(ran)}"

    return look


def agent(*tools, **fields) -> Agent:
    return Agent("scout", "m", tools=tools, budget=Budget(steps=30), **fields)


def looks(*places):
    return calls(*(("look", {"place": place}) for place in places))


async def test_the_model_is_told_of_a_repeated_call_instead_of_a_result(ctx, fake, llm, look, ran):
    fake.script(looks("attic"), looks("attic"), looks("attic"), says("Nothing there."))
    run = await run_agent(ctx, agent(look), "?", llm)
    assert (run.output, ran) == ("Nothing there.", ["attic"] * 2)
    told = run.messages[-2]["content"]
    assert told.startswith("Error: this call was not made: it is number 3 with the same arguments")


async def test_who_was_told_and_goes_on_ends_the_run(ctx, fake, llm, look, ran):
    fake.script(*[looks("attic")] * 4)
    with pytest.raises(LoopDetected, match="'scout' called 'look' 4 times with the same arguments") as caught:
        await run_agent(ctx, agent(look), "?", llm)
    assert "loop_limit" in caught.value.hint
    assert len(ran) == 2


async def test_the_limit_is_the_agents(ctx, fake, llm, look, ran):
    fake.script(*[looks("attic")] * 6, says("ok"), *[looks("attic")] * 3)
    await run_agent(ctx, agent(look, loop_limit=None), "?", llm)
    assert len(ran) == 6
    with pytest.raises(LoopDetected):
        await run_agent(ctx, agent(look, loop_limit=2), "?", llm)
    with pytest.raises(UsageError, match="loop_limit: must be at least 2"):
        agent(look, loop_limit=1)


async def test_arguments_are_the_same_however_they_are_written(ctx, fake, llm, look, ran):
    fake.script(
        *(calls(("look", given)) for given in ('{"place":"a","deep":true}', '{ "deep": true, "place": "a" }') * 2)
    )
    with pytest.raises(LoopDetected):
        await run_agent(ctx, agent(look), "?", llm)
    assert ran == ["a", "a"]


async def test_repetitions_with_something_new_in_between_are_no_loop(ctx, fake, llm, look, ran):
    turns = [looks(place) for number in range(5) for place in ("list", str(number))]
    fake.script(*turns, says("ok"))
    await run_agent(ctx, agent(look), "?", llm)
    assert len(ran) == 10


async def test_calls_in_turns_are_a_loop_too(ctx, fake, llm, look, ran):
    fake.script(*[looks(place) for _ in range(4) for place in ("attic", "cellar")][:7])
    with pytest.raises(LoopDetected):
        await run_agent(ctx, agent(look), "?", llm)
    assert ran == ["attic", "cellar"] * 2 + ["attic"]


async def test_repetitions_side_by_side_are_all_told_before_the_run_ends(ctx, fake, llm, look, ran):
    fake.script(*[looks("attic", "cellar")] * 3, says("ok"))
    run = await run_agent(ctx, agent(look), "?", llm)
    assert [message["content"][:6] for message in run.messages[-3:-1]] == ["Error:"] * 2
    assert ran == ["attic", "cellar"] * 2


async def test_a_replay_counts_the_same(attempt, fake, llm, look, ran, journal):
    fake.script(*[looks("attic")] * 3, *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), agent(look), "?", llm)
    fake.script(looks("attic"))
    for _ in range(2):
        with pytest.raises(LoopDetected):
            await run_agent(attempt(), agent(look), "?", llm)
    assert len(ran) == 2
    assert len(fake.requests) == 3 + 4 + 1
