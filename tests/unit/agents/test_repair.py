"""Whatever arguments a model makes up, its run ends within its bounds, and replays to the letter."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fakes.journal import MemoryJournal, attempt_of
from oxherd.agents import Agent, Budget, tool
from oxherd.agents.chat import Reply, Request
from oxherd.agents.loop import MAX_FAULT_TEXT, TOOL_FAULTS, run_agent
from oxherd.agents.tools import Tool
from oxherd.context import Usage
from oxherd.errors import AgentError, BudgetExceeded, LoopDetected, ToolsFailed

STEPS = 12


class Point(BaseModel):
    x: int
    label: str = ""


TYPES = st.recursive(
    st.sampled_from([int, str, bool, float, Point, Literal["a", "b"], int | None, dict[str, int]]),
    lambda inner: inner.map(lambda each: list[each]) | inner.map(lambda each: each | None),
    max_leaves=3,
)
SIGNATURES = st.dictionaries(st.sampled_from(["a", "b", "json", "copy", "class_"]), TYPES, max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "json", "copy", "class_", "z"]), JSON, max_size=4)


@st.composite
def arguments(draw) -> str:
    """JSON as models write it: right, wrong, cut off, wrapped, doubled, or none at all."""
    text = json.dumps(draw(OBJECTS | JSON))
    return draw(
        st.just(text)
        | st.integers(0, len(text)).map(lambda at: text[:at])
        | st.just(f"```json\n{text}\n```")
        | st.just(text + text)
        | st.just(json.dumps(text))
        | st.text(max_size=30)
    )


CALLS = st.tuples(st.sampled_from(["work", "break_down", "no_such_tool", "", "work\n", "🐂" * 200]), arguments())
TURNS = st.lists(st.lists(CALLS, min_size=1, max_size=4), max_size=STEPS + 2)


def tool_of(types: dict[str, Any], ran: list[Any]) -> Tool:
    """A tool with such parameters, which notes what it was called with."""

    async def work(**given: Any) -> str:
        """Work."""
        ran.append(given)
        return "done"

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in types]
    work.__signature__ = inspect.Signature(named)
    work.__annotations__ = types
    return tool(work)


class Scripted:
    """A model that makes one turn of calls after the other, then answers."""

    def __init__(self, turns: list[list[tuple[str, str]]]) -> None:
        self._turns = turns
        self.asked = 0

    async def chat(self, request: Request, _: Any, **__: Any) -> Reply:
        self.asked += 1
        for message in request.messages:
            if message["role"] == "tool":
                assert len(message["content"]) <= MAX_FAULT_TEXT + len("Error: ")
            for call in message.get("tool_calls", ()):
                assert isinstance(json.loads(call["function"]["arguments"]), dict), "providers refuse the rest"
        turn = sum(message["role"] == "assistant" for message in request.messages)
        message: dict[str, Any] = {"role": "assistant", "content": "ok"}
        if turn < len(self._turns):
            message["tool_calls"] = [
                {"id": f"{turn}-{number}", "type": "function", "function": {"name": name, "arguments": given}}
                for number, (name, given) in enumerate(self._turns[turn])
            ]
        return Reply(message, None, "m", None, None, Usage(1, 10, 2, None))

    base_url = "http://scripted"


async def attempt(agent: Agent, model: Scripted, journal: MemoryJournal) -> Any:
    try:
        return await run_agent(attempt_of(journal), agent, "?", model)
    except AgentError as error:
        return type(error), str(error)


@settings(max_examples=150, deadline=None)
@given(types=SIGNATURES, turns=TURNS)
def test_any_calls_end_within_the_bounds_and_replay_to_the_letter(types, turns):
    ran: list[Any] = []

    @tool
    async def break_down(a: int = 0) -> str:
        """Fail."""
        raise ValueError("broken " + "x" * 10_000)

    agent = Agent("any", "m", tools=[tool_of(types, ran), break_down], budget=Budget(steps=STEPS))
    model, journal = Scripted(turns), MemoryJournal()
    first = asyncio.run(attempt(agent, model, journal))
    asked, worked, steps = model.asked, list(ran), dict(journal.steps)

    assert asked <= min(STEPS, len(turns) + 1)
    if isinstance(first, tuple):
        assert first[0] in {BudgetExceeded, ToolsFailed, LoopDetected}
        assert (first[0] is BudgetExceeded) <= (asked == STEPS)
        assert (first[0] is ToolsFailed) <= (asked >= TOOL_FAULTS)
    else:
        assert first.output == "ok"
        answered = [message["tool_call_id"] for message in first.messages if message["role"] == "tool"]
        assert answered == [f"{turn}-{n}" for turn, calls in enumerate(turns) for n in range(len(calls))]
    assert all(given.keys() == types.keys() for given in worked)

    assert asyncio.run(attempt(agent, model, journal)) == first
    assert (model.asked, ran, journal.steps) == (asked, worked, steps)
