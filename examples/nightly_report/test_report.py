from __future__ import annotations

import schedule
from report import herd

from oxherd.job import Fail, Park
from oxherd.telemetry.events import JobEnded
from oxherd.testing import Asked, ScriptedModel, replay_every_step, run_job, says, serving

THREE = {"regions": ["eu", "us", "asia"]}


def analyst(asked: Asked) -> str:
    """Regions run side by side, so the model answers by what it is asked."""
    lines = asked.text.splitlines()
    return f"{len(lines)} regions did well" if len(lines) > 1 else f"yokes did best in {asked.text.partition(':')[0]}"


async def test_a_region_is_summed_up_and_a_crash_repeats_nothing(oxherd_model):
    oxherd_model.script(says("Yokes did best."))
    run = await replay_every_step(herd, "report.region", {"region": "eu"}, model=oxherd_model)
    assert run.result == "eu: Yokes did best."
    assert run.outputs["figures"] == {"yokes": 20, "bells": 7}
    assert "yokes" in oxherd_model.asked[0].text


async def test_the_report_waits_for_one_child_a_region_and_sums_them_up(oxherd_model):
    oxherd_model.script(says("All is well."))
    first = await run_job(herd, "report.nightly", THREE, model=oxherd_model)
    assert isinstance(first.outcome, Park)
    assert [child.data["region"] for child in first.children] == ["eu", "us", "asia"]
    second = await first.again(children={child.id: child.data["region"] for child in first.children})
    assert second.result == "All is well."
    assert oxherd_model.asked[0].text == "asia\neu\nus"


async def test_a_report_of_nothing_is_refused():
    run = await run_job(herd, "report.nightly", {"regions": []})
    assert isinstance(run.outcome, Fail)
    assert "regions" in run.outcome.reason


async def test_the_schedule_makes_reports_on_real_engines(oxherd_redis_url, oxherd_database_url):
    with ScriptedModel(answer=analyst) as model:
        async with serving(herd, redis_url=oxherd_redis_url, database_url=oxherd_database_url, model=model) as worker:
            job = await worker.producer.schedule("nightly-report", schedule.MINUTE, schedule.REPORT)
            assert await worker.result(job) == "3 regions did well"
            assert len(worker.events.all(JobEnded, job="report.region", outcome="completed")) == 3
            assert (await worker.admin.counts())["delayed"] == 1  # the next report
    assert len(model.asked) == 4


async def test_the_night_s_schedule_is_at_three_in_berlin(oxherd_redis_url, oxherd_clock):
    oxherd_clock.freeze(1_900_000_000)  # 2030-03-17, 17:46:40 UTC
    async with serving(herd, redis_url=oxherd_redis_url) as worker:
        job = await worker.producer.schedule("nightly-report", schedule.NIGHT, schedule.REPORT)
        made = await worker.admin.job(job)
    assert made["timestamp"] + made["delay"] == 1_900_029_600_000  # 2030-03-18, 02:00 UTC
