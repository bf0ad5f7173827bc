"""A run's steps for people, and cutting them: the same suite over Postgres and over Supabase's REST."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest
from test_store import KINDS, NOON, a_run, a_step, heard, opened, running, set_up, sql

from oxherd.embedded.postgres import Postgres
from oxherd.errors import StoreRefused
from oxherd.job import Done, Job
from oxherd.telemetry.events import StoreFlushed
from oxherd.worker.executor import Executor, Running
from oxherd.worker.handlers import make_handler

RUN = a_run().id


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> Iterator[str]:
    yield asyncio.run(set_up(postgres.create_database("timeline_suite")))
    postgres.drop_database("timeline_suite")


@pytest.fixture(params=KINDS)
async def store(request, shared_url: str):
    await sql(shared_url, "truncate oxherd.runs, oxherd.steps")
    async with opened(request.param, shared_url) as store:
        yield store


async def keep(store, *keys: str, **changes) -> None:
    for key in keys:
        assert await store.save_step(RUN, 1, a_step(key, **changes))


async def keys(store) -> list[object]:
    return [step["key"] for step in await store.steps(RUN)]


async def test_a_steps_place_comes_back_to_the_next_attempt(store):
    steps = [a_step("a", place="1"), a_step("a/b", place="1.2"), a_step("beside")]
    for step in steps:
        assert await store.save_step(RUN, 1, step)
    assert (await store.begin(running(fence=2))).steps == steps


async def test_steps_are_shown_in_the_order_in_which_they_finished(store):
    await keep(store, "c", "a", "b")
    assert await keys(store) == ["c", "a", "b"]
    assert await store.steps("agent-jobs/nobody@1") == []


async def test_a_step_is_shown_with_all_that_is_known_of_it(store):
    await keep(store, "model-1", place="1")
    (step,) = await store.steps(RUN)
    assert step == {
        "key": "model-1", "kind": "model", "place": "1", "inputs": "ab" * 16, "attempt": 1,
        "started_at": NOON + 1_500, "ms": 12.5, "model_calls": 1, "input_tokens": 150, "output_tokens": 20,
        "cost_usd": Decimal("0.00006"), "size": 13,
    }  # fmt: skip


async def test_results_are_shown_where_they_are_asked_for(store):
    await keep(store, "a", output=b"null", usage=None)
    (step,) = await store.steps(RUN, outputs=True)
    assert (step["output"], step["cost_usd"], step["model_calls"], step["place"]) == (None, None, None, None)
    await keep(store, "b", output=b'{"n": [1, "\\u00fc"]}')
    assert (await store.steps(RUN, outputs=True))[1]["output"] == {"n": [1, "ü"]}


async def test_the_newest_run_of_a_job_id_is_found(store):
    for number, enqueued_at in ((1, NOON), (1, NOON + 9_000_000_000_000), (1, NOON + 1), (10, NOON), ("1-x", NOON)):
        assert await store.record(a_run(number, id=f"agent-jobs/{number}@{enqueued_at}", enqueued_at=enqueued_at))
    assert await store.find_run("agent-jobs", "1") == f"agent-jobs/1@{NOON + 9_000_000_000_000}"
    assert await store.find_run("agent-jobs", "10") == f"agent-jobs/10@{NOON}"
    assert await store.find_run("agent-jobs", "%") is None
    assert await store.find_run("agent", "1") is None


async def test_a_step_is_dropped_with_all_that_finished_after_it(store, shared_url):
    await keep(store, "a", "b", "c", "d")
    assert await store.save_step("agent-jobs/2@1", 1, a_step("c"))
    assert await store.drop_steps(RUN, "c") == ["c", "d"]
    assert await keys(store) == ["a", "b"]
    assert len(await store.steps("agent-jobs/2@1")) == 1


async def test_a_step_is_dropped_with_those_inside_it(store):
    await keep(store, "a", "outer/x", "outer-else", "outer/y", "outer", "z")
    assert await store.drop_steps(RUN, "outer") == ["outer/x", "outer/y", "outer", "z"]
    assert await keys(store) == ["a", "outer-else"]


async def test_a_step_inside_another_is_dropped_with_the_one_around_it(store):
    await keep(store, "a", "outer/x", "outer/y", "outer", "z")
    assert await store.drop_steps(RUN, "outer/y") == ["outer/y", "outer", "z"]
    assert await keys(store) == ["a", "outer/x"]


async def test_a_step_that_is_not_there_drops_nothing(store):
    await keep(store, "a")
    assert await store.drop_steps(RUN, "b") == []
    assert await keys(store) == ["a"]


async def test_a_text_that_can_not_be_sent_is_refused(store):
    with pytest.raises(StoreRefused):
        await store.drop_steps(RUN, "half \ud83d pair")


async def test_500_runs_at_once_share_a_few_statements_per_step(store):
    ran: Counter[str] = Counter()

    async def four_steps(ctx, payload) -> int:
        async def count(number: int) -> int:
            ran[f"{ctx.job.id}/{number}"] += 1
            return number

        return sum([await ctx.step(f"step-{number}", count, number) for number in range(4)])

    async def no_agents(*_) -> None: ...

    executor = Executor(
        {"a": make_handler("a", four_steps)}, store=store, wire=None, runner=no_agents, worker="w", queue="q",
        timeout=0, idle_timeout=0, threads=1, crash_limit=2,
    )  # fmt: skip
    jobs = [Running(Job(id=str(n), name="a", raw=b"{}", opts={}, token="t", timestamp=NOON)) for n in range(500)]
    with heard(StoreFlushed) as flushes:
        outcomes = await asyncio.gather(*(executor.execute(job) for job in jobs))
    executor.close()
    assert outcomes == [Done(b"6")] * 500
    assert (len(ran), set(ran.values())) == (2_000, {1})
    assert sum(flush.rows for flush in flushes) == 2_500
    assert len(flushes) <= 15  # five writes of each of them, three statements at most for each of the five
