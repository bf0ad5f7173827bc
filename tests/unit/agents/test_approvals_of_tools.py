"""Tools that a person has to approve."""

from __future__ import annotations

import asyncio

import pytest

from fakes.journal import MemoryJournal
from fakes.openrouter import calls, says
from fakes.waits import MemoryWaits
from oxherd.agents import Agent, tool
from oxherd.agents.loop import run_agent
from oxherd.errors import Fatal, JournalMismatch, Waiting

REFUND = "shop/approve-1-refund"


class Till:
    """What the tools did, and the agent that has them."""

    def __init__(self) -> None:
        self.done: list[str] = []

        @tool(approve=True)
        async def refund(order: str, cents: int = 500) -> str:
            """Pay back."""
            self.done.append(f"{order} {cents}")
            return "paid back"

        @tool
        async def look(order: str) -> str:
            """Look an order up."""
            await asyncio.sleep(0)
            self.done.append(f"looked {order}")
            return "sent"

        @tool
        async def explode() -> str:
            """Fail for good."""
            raise Fatal("boom")

        self.agent = Agent("shop", "m", tools=[refund, look, explode])


@pytest.fixture
def till() -> Till:
    return Till()


@pytest.fixture
def waits() -> MemoryWaits:
    return MemoryWaits()


@pytest.fixture
def go(attempt, waits, llm):
    """Runs an agent as a further attempt of the same job."""

    async def on(agent: Agent):
        return await run_agent(attempt(waits=waits), agent, "?", llm)

    return on


async def test_a_call_waits_for_approval_and_is_then_made_with_what_was_shown(till, go, fake, waits):
    fake.script(calls(("refund", {"order": "A-1"})), says("Done."))
    with pytest.raises(Waiting):
        await go(till.agent)
    assert till.done == []
    assert waits.asked[REFUND][1] == {"agent": "shop", "tool": "refund", "arguments": {"order": "A-1", "cents": 500}}
    waits.answer(REFUND)
    run = await go(till.agent)
    assert (run.output, till.done) == ("Done.", ["A-1 500"])
    assert len(fake.requests) == 2, "the model's call was not paid for again"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"approved": False, "message": "too much"}, "Error: a person denied this call; it was not made: too much"),
        ({"approved": False}, "Error: a person denied this call; it was not made"),
        (
            {"expired": True},
            "Error: this call needs a person's approval, and nobody answered in time; it was not made",
        ),
    ],
    ids=["denied with words", "denied", "expired"],
)
async def test_the_model_is_told_that_a_call_was_not_approved(till, go, fake, waits, answer, told):
    fake.script(calls(("refund", {"order": "A-1"})), says("Sorry."))
    waits.answer(REFUND, **answer)
    run = await go(till.agent)
    assert run.messages[-2]["content"] == told
    assert (run.output, till.done) == ("Sorry.", [])


async def test_calls_beside_it_are_made_and_the_job_is_parked_once(till, go, fake, waits, journal: MemoryJournal):
    fake.script(
        calls(("refund", {"order": "A-1"}), ("look", {"order": "A-2"}), ("refund", {"order": "A-3"})), says("OK")
    )
    with pytest.raises(Waiting):
        await go(till.agent)
    assert till.done == ["looked A-2"]
    assert list(waits.asked) == [REFUND, "shop/approve-3-refund"]
    assert "shop/tool-2-look" in journal.steps
    waits.answer("shop/approve-3-refund")
    with pytest.raises(Waiting):
        await go(till.agent)
    assert till.done == ["looked A-2", "A-3 500"], "what is approved is done, though another question is open"
    waits.answer(REFUND, approved=False)
    run = await go(till.agent)
    assert [message["content"] for message in run.messages[-4:-1]] == [
        "Error: a person denied this call; it was not made", "sent", "paid back",
    ]  # fmt: skip
    assert till.done == ["looked A-2", "A-3 500"]


async def test_arguments_that_do_not_fit_are_nobody_s_to_approve(till, go, fake, waits):
    fake.script(calls(("refund", {"cents": "many"})), says("Sorry."))
    run = await go(till.agent)
    assert "the arguments do not fit" in run.messages[-2]["content"]
    assert waits.asked == {}


async def test_an_approval_is_for_the_arguments_that_were_shown(till, go, fake, waits):
    fake.script(calls(("refund", {"order": "A-1"})))
    with pytest.raises(Waiting):
        await go(till.agent)
    waits.answer(REFUND)

    @tool(approve=True)
    async def refund(order: str, cents: int = 50_000) -> str:
        """Pay back, by a later release with another default."""
        till.done.append(f"{order} {cents}")
        return "paid back"

    with pytest.raises(JournalMismatch):
        await go(Agent("shop", "m", tools=[refund]))
    assert till.done == []


async def test_what_fails_for_good_beside_it_ends_the_run_without_asking_in_vain(till, go, fake):
    fake.script(calls(("refund", {"order": "A-1"}), ("explode", {})))
    with pytest.raises(Fatal, match="boom"):
        await go(till.agent)


async def test_a_question_of_an_agent_that_is_a_tool_parks_the_whole_run(till, attempt, fake, waits, llm):
    @tool
    async def ask_the_shop(ctx, wish: str) -> str:
        """Have the shop do it."""
        return (await run_agent(ctx, till.agent, wish, llm)).output

    boss = Agent("boss", "m", tools=[ask_the_shop])
    fake.script(calls(("ask_the_shop", {"wish": "refund A-1"})), calls(("refund", {"order": "A-1"})), says("Did."))
    with pytest.raises(Waiting):
        await run_agent(attempt(waits=waits), boss, "?", llm)
    (key,) = waits.asked
    assert key == "boss/tool-1-ask_the_shop/shop/approve-1-refund"
    waits.answer(key)
    fake.script(says("All done."))
    run = await run_agent(attempt(waits=waits), boss, "?", llm)
    assert (run.output, till.done) == ("All done.", ["A-1 500"])
