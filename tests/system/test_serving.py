"""`oxherd.testing.serving`: a whole worker inside a test."""

from __future__ import annotations

import pytest

from oxherd import Fatal, Herd
from oxherd.telemetry.events import JobStarted
from oxherd.testing import ScriptedModel, serving


@pytest.fixture
def herd() -> Herd:
    herd = Herd()
    agent = herd.agent("greeter", model="m")

    @herd.job("greet")
    async def greet(ctx, payload):
        if payload["whom"] == "nobody":
            raise Fatal("nobody to greet")
        return (await ctx.run(agent, payload["whom"])).output

    return herd


async def test_jobs_run_on_real_engines_and_their_results_are_waited_for(
    herd, oxherd_redis_url, oxherd_database_url, oxherd_model
):
    oxherd_model.script("Hello, Ada.")
    async with serving(
        herd, redis_url=oxherd_redis_url, database_url=oxherd_database_url, model=oxherd_model, JOB_CONCURRENCY="2"
    ) as worker:
        job = await worker.add("greet", {"whom": "Ada"})
        assert await worker.result(job) == "Hello, Ada."
        failed = await worker.add("greet", {"whom": "nobody"})
        with pytest.raises(AssertionError, match=r"(?s)job \w+ \(greet\) failed: nobody to greet"):
            await worker.result(failed)
        assert (await worker.ended(failed)).kind == "failed"
        assert len(worker.events.all(JobStarted)) == 2
        assert worker.service.worker.limits.concurrency == 2
        assert await worker.service._store.find_run(worker.queue, job)
    assert not worker.service.worker.running


async def test_two_workers_side_by_side_have_queues_of_their_own(herd, oxherd_redis_url):
    with ScriptedModel(answer=lambda asked: asked.text) as model:
        async with (
            serving(herd, redis_url=oxherd_redis_url, model=model) as one,
            serving(herd, redis_url=oxherd_redis_url, model=model, queue="named") as two,
        ):
            jobs = [await one.add("greet", {"whom": "one"}), await two.add("greet", {"whom": "two"})]
            assert [await one.result(jobs[0]), await two.result(jobs[1])] == ["one", "two"]
            assert two.queue == "named"
            assert (await one.admin.counts())["completed"] == (await two.admin.counts())["completed"] == 1
