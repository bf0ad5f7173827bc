from __future__ import annotations

import orders
import pytest

from oxherd.testing import calls, fails, replay_every_step, run_job, says, serving

QUESTION = {"text": "Where is A-17?"}


@pytest.fixture
def model(oxherd_model, monkeypatch):
    monkeypatch.setenv("OPENROUTER_BASE_URL", oxherd_model.base_url)
    return oxherd_model


async def test_a_crash_behind_any_step_pays_for_nothing_twice(model):
    model.script(calls(("find_order", {"number": "A-17"})), says("It arrives tomorrow."))
    run = await replay_every_step(orders.herd, "order.question", QUESTION, model=model)
    assert run.result == "It arrives tomorrow."
    assert [step.kind for step in run.steps] == ["model", "tool", "model"]
    assert run.usage.calls == 2


async def test_the_next_attempt_goes_on_where_the_last_one_failed(model):
    model.script(calls(("find_order", {"number": "A-17"})), fails(400, "out of order"))
    first = await run_job(orders.herd, "order.question", QUESTION, model=model)
    assert len(first.steps) == 2
    model.script(says("It arrives tomorrow."))
    second = await first.again()
    assert (second.result, second.ran) == ("It arrives tomorrow.", ["model-2"])


async def test_a_worker_runs_it(model, oxherd_redis_url, oxherd_database_url):
    model.script(calls(("find_order", {"number": "A-17"})), says("It arrives tomorrow."))
    async with serving(orders.herd, redis_url=oxherd_redis_url, database_url=oxherd_database_url) as worker:
        job = await worker.add("order.question", QUESTION)
        assert await worker.result(job) == "It arrives tomorrow."
    assert "on its way" in model.asked[1].text
