from __future__ import annotations

import asyncio
import json
import sys
import time

import pytest

from fakes.sentry_api import CONTRACT, FakeSentry
from oxherd.cloud.sentry_api import SentryApi
from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.ops import sentry
from oxherd.settings import Secret, child_environ
from oxherd.telemetry.slo import DEFAULTS, Objective, Sli

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=f"{CONTRACT.name} is not here to check what is sent")
OBJECTIVES = (
    *DEFAULTS,
    Objective("reply-run", Sli.RUN, 0.95, threshold=30.0, job="support.reply"),
    Objective("tokens", Sli.FIRST_TOKEN, 0.9, threshold=2.0),
)


@pytest.fixture
async def service():
    async with FakeSentry() as fake:
        yield fake


@pytest.fixture
async def api(service):
    async with SentryApi(service.url, Secret(service.token), "acme") as api:
        yield api


def target(objectives=OBJECTIVES, environment=None):
    return sentry.wanted("agent-jobs", objectives, project_id=7, environment=environment)


async def pushed(api, wanted) -> list[str]:
    made = await sentry.plan(api, "worker", wanted)
    await made.run(lambda _: None)
    return [f"{step.action} {step.what}" for step in made.steps]


async def test_a_first_push_makes_all_and_a_second_finds_nothing_to_do(service, api):
    assert await pushed(api, target()) == [
        "create monitor 'Oxherd agent-jobs: success'",
        "create monitor 'Oxherd agent-jobs: wait'",
        "create monitor 'Oxherd agent-jobs: reply-run'",
        "create monitor 'Oxherd agent-jobs: errors'",
        "create dashboard 'Oxherd agent-jobs'",
        "create alert 'Oxherd agent-jobs'",
    ]
    (workflow,) = service.kept["workflows"].values()
    ours = [number for number, each in service.kept["detectors"].items() if each["name"].startswith("Oxherd")]
    assert workflow["detectorIds"] == ours
    before = len(service.writes)
    made = await sentry.plan(api, "worker", target())
    assert made.is_empty
    assert len(service.writes) == before


async def test_what_changed_is_brought_up_to_date_and_nothing_else_is_touched(service, api):
    await pushed(api, target())
    others = json.dumps(service.kept["detectors"]["1"])
    changed = [*OBJECTIVES[:3], Objective("reply-run", Sli.RUN, 0.95, threshold=60.0, job="support.reply")]
    said = await pushed(api, target(changed))
    assert [each for each in said if not each.startswith("keep")] == ["update monitor 'Oxherd agent-jobs: reply-run'"]
    (run,) = (each for each in service.kept["detectors"].values() if each["name"].endswith("reply-run"))
    assert run["conditionGroup"]["conditions"][0]["comparison"] == 60_000
    assert json.dumps(service.kept["detectors"]["1"]) == others


async def test_what_a_person_changed_is_put_back(service, api):
    await pushed(api, target())
    (dashboard,) = service.kept["dashboards"].values()
    dashboard["widgets"].pop()
    (workflow,) = service.kept["workflows"].values()
    workflow["detectorIds"] = []
    said = await pushed(api, target())
    assert [each for each in said if not each.startswith("keep")] == [
        "update dashboard 'Oxherd agent-jobs'", "update alert 'Oxherd agent-jobs'",
    ]  # fmt: skip
    assert (await sentry.plan(api, "worker", target())).is_empty


async def test_an_environment_is_in_all_of_it(service, api):
    await pushed(api, target(environment="production"))
    (workflow,) = service.kept["workflows"].values()
    (dashboard,) = service.kept["dashboards"].values()
    ours = [each for each in service.kept["detectors"].values() if each["name"].startswith("Oxherd")]
    seen = {each["dataSources"][0]["queryObj"]["snubaQuery"]["environment"] for each in ours}
    assert (workflow["environment"], dashboard["environment"], seen) == ("production", ["production"], {"production"})


async def test_a_refusal_has_sentry_s_words_and_says_what_to_check(service):
    async with SentryApi(service.url, Secret("wrong-one"), "acme") as api:
        with pytest.raises(ServiceRefused) as caught:
            await api.workflows()
    assert "Invalid org token" in caught.value.message
    assert "SENTRY_AUTH_TOKEN" in caught.value.hint
    assert "wrong-one" not in str(caught.value)


async def test_a_busy_sentry_is_asked_again_when_it_said(service, api):
    reset = str(int(time.time()))
    service.next_answers = [(429, {"detail": "slow down"}, {"X-Sentry-Rate-Limit-Reset": reset})] * 2
    assert await asyncio.wait_for(api.workflows(), 20) == []
    assert len(service.requests) == 3


async def test_a_write_that_may_have_been_done_is_not_repeated(service, api):
    service.next_answers = [(502, {}, {})]
    with pytest.raises(ServiceUnreachable):
        await api.create_workflow(target().workflow)
    assert len(service.writes) == 1


async def test_the_command_shows_the_plan_and_changes_nothing_on_a_dry_run(service, tmp_path):
    variables = child_environ(
        {
            "REDIS_URL": "redis://127.0.0.1:9",
            "SENTRY_URL": service.url,
            "SENTRY_ORG": "acme",
            "SENTRY_PROJECT": "worker",
            "SENTRY_AUTH_TOKEN": service.token,
        },
        inherit=False,
    )

    async def oxherd(*args: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "oxherd", "slo", "push", *args,
            cwd=tmp_path, env=variables, stdout=-1, stderr=-1, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    code, out, _ = await oxherd("--dry-run", "--json")
    assert code == 0
    assert {step["action"] for step in json.loads(out)["steps"]} == {"create"}
    assert service.writes == []
    code, out, err = await oxherd("--yes")
    assert (code, err.count("created: ")) == (0, 5), err
    assert service.token not in out + err
    assert len(service.writes) == 5
