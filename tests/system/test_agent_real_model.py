"""Agents against a real, tiny language model: what it says is of no interest, that the loop works with it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest
from pydantic import BaseModel

from fakes.journal import MemoryJournal, attempt_of
from oxherd.agents import LLM, Agent, tool
from oxherd.agents.loop import run_agent
from oxherd.embedded.model import Model
from oxherd.errors import ModelRefused


class Triage(BaseModel):
    topic: Literal["delivery", "invoice", "other"]
    urgent: bool


@pytest.fixture
async def llm(model: Model) -> AsyncIterator[LLM]:
    client = LLM(model.base_url, None)
    yield client
    await client.close()


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def agent(**fields) -> Agent:
    return Agent("tiny", Model.name, **{"temperature": 0.0, "max_output_tokens": 60, **fields})


async def test_it_answers_in_words_and_its_tokens_are_counted(llm, journal):
    run = await run_agent(attempt_of(journal), agent(instructions="You are a farmer."), "What is an ox good for?", llm)
    assert len(run.output) > 10
    assert run.usage.input_tokens > 5
    assert 0 < run.usage.output_tokens <= 60
    assert run.usage.cost_usd is None


async def test_it_answers_in_the_form_that_is_asked_for(llm, journal):
    run = await run_agent(attempt_of(journal), agent(output=Triage), "My parcel is three weeks late!", llm)
    assert isinstance(run.output, Triage)
    schema = {"type": "array", "items": {"enum": ["yoke", "plough"]}, "minItems": 1, "maxItems": 2}
    run = await run_agent(attempt_of(MemoryJournal()), agent(output=schema), "What do you sell?", llm)
    assert set(run.output) <= {"yoke", "plough"}


async def test_it_calls_a_tool_and_answers_with_its_result_and_the_next_attempt_does_neither_again(llm, journal):
    asked = []

    @tool
    def stock_of(item: Literal["yoke", "plough", "cart"]) -> int:
        """Look up how many pieces of an item are in stock."""
        asked.append(item)
        return 3

    clerk = agent(tools=[stock_of], tool_choice="stock_of")
    run = await run_agent(attempt_of(journal), clerk, "How many ploughs do you have?", llm)
    assert [step.kind for step in journal.steps.values()] == ["model", "tool", "model"]
    assert (len(asked), asked[0] in {"yoke", "plough", "cart"}, bool(run.output)) == (1, True, True)

    again = await run_agent(attempt_of(journal), clerk, "How many ploughs do you have?", llm)
    assert (again, len(asked)) == (run, 1)


async def test_a_conversation_too_long_for_it_fails_for_good(llm, journal):
    with pytest.raises(ModelRefused):
        await run_agent(attempt_of(journal), agent(), "word " * 20_000, llm)
