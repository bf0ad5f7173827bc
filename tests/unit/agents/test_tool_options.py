"""Time limits, further tries and the approval flag of tools."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fakes.journal import attempt_of
from fakes.openrouter import calls, says
from oxherd.agents import Agent, tool, tools
from oxherd.agents.loop import run_agent
from oxherd.agents.tools import ArgumentsInvalid, ToolFailed
from oxherd.context import Context, Usage
from oxherd.errors import Fatal, JobCancelled, RetryLater, UsageError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(tools, "FIRST_PAUSE", 0.0)


def test_options_are_given_beside_the_function():
    @tool(timeout="1.5m", retries=2, approve=True)
    async def refund(order: str) -> str:
        """Pay back."""
        return order

    assert (refund.name, refund.timeout, refund.retries, refund.approve) == ("refund", 90.0, 2, True)
    assert (tool(len_of).timeout, tool(len_of).retries, tool(len_of).approve) == (None, 0, False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": "soon"}, "tool 'len_of': timeout: must be a duration such as 30s"),
        ({"timeout": 0}, "tool 'len_of': timeout: must be above 0"),
        ({"retries": -1}, "tool 'len_of': retries must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, why):
    with pytest.raises(UsageError, match=why):
        tool(**options)(len_of)


async def test_a_tool_that_takes_too_long_is_cancelled_and_the_model_is_told(ctx, fake, llm):
    ended = asyncio.Event()

    @tool(timeout=0.02, retries=5)
    async def wait() -> str:
        """Wait."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    fake.script(calls(("wait", {})), says("Sorry."))
    run = await run_agent(ctx, Agent("a", "m", tools=[wait]), "?", llm)
    assert run.output == "Sorry."
    assert run.messages[-2]["content"] == (
        "Error: the tool had not returned after 0.02 s and was given up; it may have had an effect"
    )
    assert ended.is_set()


async def test_a_plain_tool_that_never_returns_is_given_up_and_takes_no_place_from_others(ctx):
    forever = threading.Event()

    @tool(timeout=0.02)
    def hang() -> None:
        forever.wait()

    @tool(timeout=20)
    def quick() -> str:
        return threading.current_thread().name

    hung = await asyncio.gather(*(hang.run(ctx, "{}") for _ in range(40)), return_exceptions=True)
    assert {type(each) for each in hung} == {ToolFailed}
    assert await quick.run(ctx, "{}") == "oxherd-tool"
    forever.set()


async def test_what_a_plain_tool_raises_or_sees_of_its_step_is_the_same_with_a_time_limit(ctx):
    @tool(timeout=20)
    def where(ctx: Context) -> str:
        return ctx.key_of("inner")

    @tool(timeout=20)
    def stop() -> None:
        raise StopIteration(5)

    async def step() -> str:
        return await where.run(ctx, "{}")

    assert await ctx.step("outer", step) == "outer/inner"
    with pytest.raises(RuntimeError, match=r"StopIteration\(5\)"):
        await stop.run(ctx, "{}")


async def test_a_timeout_that_the_tool_itself_raised_is_one_of_its_errors(ctx):
    ran = []

    @tool(timeout=20, retries=1)
    async def ask() -> str:
        ran.append(1)
        raise TimeoutError("the shop is slow")

    with pytest.raises(TimeoutError, match="the shop is slow"):
        await ask.run(ctx, "{}")
    assert len(ran) == 2


async def test_a_tool_that_raised_is_called_again_within_its_step(attempt, fake, llm, journal):
    ran = []

    @tool(retries=2)
    def flaky() -> str:
        """Fail twice."""
        ran.append(1)
        if len(ran) < 3:
            raise OSError("away")
        return "here"

    agent = Agent("a", "m", tools=[flaky])
    fake.script(calls(("flaky", {})), says("ok"))
    run = await run_agent(attempt(), agent, "?", llm)
    assert (run.messages[-2]["content"], len(ran)) == ("here", 3)
    assert list(journal.steps) == ["a/model-1", "a/tool-1-flaky", "a/model-2"]
    assert await run_agent(attempt(), agent, "?", llm) == run
    assert len(ran) == 3


async def test_the_last_error_is_the_one_the_model_is_told(ctx, fake, llm):
    ran = []

    @tool(retries=2)
    def flaky() -> str:
        """Fail."""
        ran.append(1)
        raise OSError(f"away {len(ran)}")

    fake.script(calls(("flaky", {})), says("ok"))
    run = await run_agent(ctx, Agent("a", "m", tools=[flaky]), "?", llm)
    assert run.messages[-2]["content"] == "Error: OSError: away 3"


@pytest.mark.parametrize("error", [Fatal("stop"), RetryLater(3), JobCancelled("no"), ToolFailed("no such order")])
async def test_what_is_meant_for_the_worker_or_certain_is_not_tried_again(ctx, error):
    ran = []

    @tool(retries=3)
    async def end() -> str:
        ran.append(1)
        raise error

    with pytest.raises(type(error)):
        await end.run(ctx, "{}")
    with pytest.raises(ArgumentsInvalid):
        await end.run(ctx, '{"a": 1}')
    assert len(ran) == 1


async def test_a_cancelled_job_is_no_reason_for_another_try(ctx):
    ran = []

    @tool(retries=3)
    async def fail() -> str:
        ran.append(1)
        ctx.cancel("enough")
        raise OSError

    with pytest.raises(JobCancelled):
        await fail.run(ctx, "{}")
    assert len(ran) == 1


async def test_steps_that_finished_inside_a_tool_are_not_paid_again_by_its_next_try(journal):
    ran = []

    async def paid(name: str, usage: Usage) -> str:
        ran.append(name)
        usage.add(Usage(1, 10, 5, None))
        return name

    @tool(retries=2)
    async def work(ctx: Context) -> str:
        for name in ("first", "second"):
            usage = Usage()
            await ctx.step(name, paid, name, usage, usage=usage)
            keys.append((ctx.scope("again"), ctx.idempotency_key("effect")))
            if len(keys) == 1 or len(keys) == 3:
                raise OSError
        return "done"

    keys: list[tuple[str, str]] = []
    ctx = attempt_of(journal)
    assert await ctx.step("tool", work.run, ctx, "{}") == "done"
    assert ran == ["first", "second"]
    assert [name for name, _ in keys] == ["again", "again", "again#2", "again", "again#2"]
    assert len({key for _, key in keys}) == 1
    assert ctx.usage.calls == 2

    replayed = attempt_of(journal)
    assert await replayed.step("tool", work.run, replayed, "{}") == "done"
    assert replayed.usage == ctx.usage
    assert len(ran) == 2


def len_of(text: str) -> int:
    """Count."""
    return len(text)
