from __future__ import annotations

import asyncio
import itertools
import random
import uuid

import pytest

from oxherd import Herd, WaitForChildren, tool
from oxherd.agents import LLM
from oxherd.agents.chat import Request
from oxherd.errors import UsageError
from oxherd.job import Park, Wait
from oxherd.testing import ScriptedModel, calls, replay_every_step, says


def herd_of(handler) -> Herd:
    herd = Herd()
    herd.job("job")(handler)
    return herd


def plus_one(number: float) -> float:
    return number + 1


async def test_a_handler_that_keeps_to_its_steps_passes_and_each_step_runs_in_each_replay_before_it():
    ran = []

    async def handler(ctx, payload):
        value = 0
        for name in ("a", "b", "c"):
            value = await ctx.step(name, lambda number, name=name: ran.append(name) or number + 1, value)
        return value

    run = await replay_every_step(herd_of(handler), "job")
    assert (run.result, [step.key for step in run.steps]) == (3, ["a", "b", "c"])
    assert [ran.count(name) for name in "abc"] == [2, 3, 4]  # the first run, and the replays that begin before it


async def test_an_agent_passes_with_one_script_which_is_given_again_from_each_step_on(oxherd_model):
    @tool
    def find(order: str) -> str:
        """Find."""
        return f"{order} is found"

    herd = Herd()
    agent = herd.agent("support", model="m", tools=[find])

    @herd.job("job")
    async def handler(ctx, payload):
        return [(await ctx.run(agent, text)).output for text in ("one", "two")]

    oxherd_model.script(calls(("find", {"order": "A"}), ("find", {"order": "B"})), says("first"), says("second"))
    run = await replay_every_step(herd, "job", model=oxherd_model)
    assert run.result == ["first", "second"]
    assert len(run.steps) == 5
    assert oxherd_model.position == 3


async def test_agents_side_by_side_pass_with_a_function():
    herd = Herd()
    agent = herd.agent("echo", model="m")

    @herd.job("job")
    async def handler(ctx, payload):
        runs = await asyncio.gather(*(ctx.run(agent, text) for text in ("a", "b", "c")))
        return [run.output for run in runs]

    with ScriptedModel(answer=lambda asked: asked.text) as model:
        assert (await replay_every_step(herd, "job", model=model)).result == ["a", "b", "c"]


async def unsettled_arguments(ctx, payload):
    await ctx.step("load", plus_one, 1)
    return await ctx.step("pay", plus_one, random.random())


async def lost_state(ctx, payload):
    connection = []
    await ctx.step("open", lambda: connection.append("open"))
    await ctx.step("other", plus_one, 1)
    return await ctx.step("use", lambda: connection[0])


async def result_beside_the_steps(ctx, payload):
    seen = []
    await ctx.step("first", lambda: seen.append(1))
    return len(seen)


async def another_name(ctx, payload):
    async def pay() -> None:
        await ctx.step(f"pay-{uuid.uuid4()}", plus_one, 1)

    await asyncio.gather(pay())


async def another_way(ctx, payload):
    await ctx.step("load", plus_one, 1)
    for name in ways[next(turns) % 2]:
        await ctx.step(name, plus_one, 1)


ways = (("left", "right"), ("right", "left"))
turns = itertools.count()


async def children_by_chance(ctx, payload):
    for _ in range(next(turns)):
        await ctx.spawn("part")


@pytest.mark.parametrize(
    ("handler", "place", "told"),
    [
        (unsettled_arguments, "first 2 of 2 steps, the last of them 'pay'", "kept is step 2 'pay' with inputs"),
        (lost_state, "first 1 of 3 steps, the last of them 'open'", "IndexError"),
        (result_beside_the_steps, "first 1 of 1 steps, the last of them 'first'", "before: 1\nnow:    0"),
        (another_name, "first 1 of 1 steps", "runs step 'pay-"),
        (another_way, "first 3 of 3 steps", "kept is step 2 '"),
        (children_by_chance, "begun again before its first step", "adds other children"),
    ],
)
async def test_a_handler_that_does_not_is_told_the_step_and_what_was_different(handler, place, told):
    with pytest.raises(AssertionError) as caught:
        await replay_every_step(herd_of(handler), "job")
    assert place in str(caught.value)
    assert told in str(caught.value)


async def test_a_model_call_outside_of_steps_is_found():
    async def handler(ctx, payload):
        await ctx.step("first", plus_one, 1)
        llm = LLM(payload["model"], None)
        reply = await llm.chat(Request(model="m", messages=[{"role": "user", "content": "?"}], max_tokens=9))
        await llm.close()
        await ctx.step("last", plus_one, 1)
        return reply.text

    herd = herd_of(handler)
    with ScriptedModel("yes") as model, pytest.raises(AssertionError, match=r"asked once more than its script of 1"):
        await replay_every_step(herd, "job", {"model": model.base_url}, model=model)
    with (
        ScriptedModel(answer=lambda _: "yes") as model,
        pytest.raises(AssertionError, match="last of them 'last', asks the model 1 more times than before"),
    ):
        await replay_every_step(herd, "job", {"model": model.base_url}, model=model)


async def test_steps_may_return_something_else_each_time():
    async def handler(ctx, payload):
        number = await ctx.step("draw", random.random)
        await ctx.step("use", plus_one, number)
        return number

    assert 0 <= (await replay_every_step(herd_of(handler), "job")).result < 1


async def test_and_their_replays_are_still_compared_with_themselves():
    draws = itertools.count()

    async def handler(ctx, payload):
        seen = []
        drawn = await ctx.step("draw", lambda: seen.append(1) or next(draws))
        return len(seen) if drawn else "the first run goes well"

    with pytest.raises(AssertionError, match="ends differently"):
        await replay_every_step(herd_of(handler), "job")


async def test_a_job_that_waits_for_its_children_is_replayed_before_and_after_they_came():
    async def handler(ctx, payload):
        regions = await ctx.step("regions", lambda: ["eu", "us"])
        if not (done := await ctx.children()):
            for region in regions:
                await ctx.spawn("part", {"region": region})
            raise WaitForChildren
        return await ctx.step("sum", sum, list(done.values()))

    run = await replay_every_step(herd_of(handler), "job", children={"part": 2})
    assert (run.result, [step.key for step in run.steps]) == (4, ["regions", "sum"])
    assert isinstance((await replay_every_step(herd_of(handler), "job", children={})).outcome, Park)


async def test_a_model_call_outside_of_steps_is_found_after_the_children_came():
    herd = Herd()
    agent = herd.agent("echo", model="m")

    @herd.job("job")
    async def handler(ctx, payload):
        await ctx.run(agent, "before")
        if not await ctx.children():
            await ctx.spawn("part")
            raise WaitForChildren
        llm = LLM(payload["model"], None)
        await llm.chat(Request(model="m", messages=[{"role": "user", "content": "after"}], max_tokens=9))
        await llm.close()
        return await ctx.step("last", plus_one, 1)

    with (
        ScriptedModel(answer=lambda asked: asked.text) as model,
        pytest.raises(AssertionError, match="the last of them 'last', asks the model 1 more times"),
    ):
        await replay_every_step(herd, "job", {"model": model.base_url}, model=model, children={"part": 1})


async def test_a_job_that_fails_by_itself_is_no_job_to_replay():
    async def handler(ctx, payload):
        raise ValueError("broken")

    with pytest.raises(AssertionError, match=r"(?s)does not end well by itself: Fail \(failed\).*broken"):
        await replay_every_step(herd_of(handler), "job")


async def test_a_job_that_waits_for_people_is_replayed_before_and_after_their_answers(oxherd_model):
    @tool(approve=True)
    async def refund(order: str) -> str:
        """Pay back."""
        return f"{order} is paid back"

    herd = Herd()
    agent = herd.agent("support", model="m", tools=[refund])

    @herd.job("job")
    async def handler(ctx, payload):
        amount = await ctx.step("amount", plus_one, 1)
        if not (await ctx.wait_for("begin", about=amount)).approved:
            return "no"
        return (await ctx.run(agent, "?")).output

    oxherd_model.script(calls(("refund", {"order": "A"})), lambda asked: asked.text)
    answers = {"begin": True, "support/approve-1-refund": True}
    run = await replay_every_step(herd, "job", model=oxherd_model, answers=answers)
    assert run.result == "A is paid back"
    assert [step.key for step in run.steps] == [
        "amount", "begin", "support/model-1", "support/approve-1-refund", "support/tool-1-refund", "support/model-2",
    ]  # fmt: skip
    assert (await replay_every_step(herd, "job", answers={"begin": None})).result == "no"
    assert isinstance((await replay_every_step(herd, "job")).outcome, Wait)
    with pytest.raises(UsageError, match="the job does not ask 'begni'"):
        await replay_every_step(herd, "job", answers={"begni": True})


async def test_a_question_that_is_another_each_time_is_told():
    async def handler(ctx, payload):
        return (await ctx.wait_for("begin", about=random.random())).approved

    with pytest.raises(AssertionError, match=r"(?s)last of them 'begin', ends differently.*journal_mismatch"):
        await replay_every_step(herd_of(handler), "job", answers={"begin": True})
