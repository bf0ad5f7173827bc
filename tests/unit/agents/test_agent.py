from __future__ import annotations

from decimal import Decimal

import pytest

from oxherd.agents import Agent, Budget, tool
from oxherd.errors import PayloadInvalid, UsageError


@tool
def look(place: str) -> str:
    """Look somewhere."""
    return place


def test_the_budget_takes_dollars_as_they_are_written():
    assert Budget(usd=0.05).cap == Decimal("0.05")
    assert Budget().cap is None


def test_plain_functions_are_taken_as_tools():
    def peek(place: str) -> str:
        return place

    assert list(Agent("a", "m", tools=[look, peek]).toolbox) == ["look", "peek"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": ""}, "agent.model: must not be empty"),
        ({"temperature": 3}, "agent.temperature: must be from 0 to 2"),
        ({"max_output_tokens": 0}, "agent.max_output_tokens: must be at least 1"),
        ({"tools": [look, look]}, "two tools are called 'look'"),
        ({"tool_choice": "peek", "tools": [look]}, "agent.tool_choice: must be auto, required, none or one of"),
        ({"tool_choice": "required"}, "the agent has no tools"),
    ],
)
def test_a_definition_that_can_not_work_is_refused(fields, why):
    with pytest.raises(UsageError, match=why):
        Agent(**{"name": "a", "model": "m", **fields})


@pytest.mark.parametrize("limits", [{"steps": 0}, {"usd": -1}, {"usd": "cheap"}, {"usd": float("nan")}])
def test_a_budget_that_can_not_work_is_refused(limits):
    with pytest.raises(UsageError, match="budget"):
        Budget(**limits)


def test_an_inline_definition_becomes_an_agent():
    definition = {
        "model": "m",
        "instructions": "Be brief.",
        "tools": ["look"],
        "output": {"type": "object"},
        "budget": {"usd": 0.1, "steps": 3},
        "temperature": 0,
        "models": ["n"],
        "tool_choice": "look",
    }
    agent = Agent.inline(definition, tools={"look": look})
    assert agent == Agent(
        name="inline",
        model="m",
        instructions="Be brief.",
        tools=(look,),
        output={"type": "object"},
        budget=Budget(usd=0.1, steps=3),
        temperature=0,
        models=["n"],
        tool_choice="look",
    )


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        ({}, "agent.model: Field required"),
        ({"model": 5}, "agent.model: Input should be a valid string"),
        ({"model": "m", "instruction": "x"}, "agent.instruction: Extra inputs are not permitted"),
        ({"model": "m", "budget": {"steps": "many"}}, "agent.budget.steps: Input should be a valid integer"),
        ({"model": "m", "output": "text"}, "agent.output: Input should be a valid dictionary"),
        ({"model": "m", "output": {"type": "objekt"}}, "output: not a JSON schema"),
        ({"model": "m", "tools": ["find"]}, "agent.tools: no tool 'find'; this worker has: look"),
        ({"model": "m", "temperature": 9}, "agent.temperature: must be from 0 to 2"),
        ({"model": "", "budget": {"steps": 0}}, "must"),
    ],
)
def test_an_inline_definition_that_does_not_fit_names_the_field_and_what_was_expected(definition, why):
    with pytest.raises(PayloadInvalid, match=why):
        Agent.inline(definition, tools={"look": look})
