from __future__ import annotations

from dataclasses import dataclass

import pytest

from fakes import railway as fakes
from fakes.railway import ABSENT, CONTRACT, FakeRailway
from oxherd.cloud.railway import Railway
from oxherd.errors import NotFound, OxherdError
from oxherd.ops import deploy
from oxherd.ops.diagnosis import Cause
from oxherd.settings import Secret

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
OLD, NEW = fakes.COMMIT, "b" * 40


@dataclass
class Check:
    name: str = "test job"
    outcome: str = "failed"
    found: str = "nobody ran it within 60 s"
    fix: str = "open the gate"


@dataclass
class Report:
    ok: bool
    checks: tuple[Check, ...] = ()


@pytest.fixture
async def service():
    async with FakeRailway(REDIS_URL="redis://one") as fake:
        fake.commits = [OLD, NEW]
        fake.deploy(commit=OLD)
        await fake.sleep(3600)
        yield fake


@pytest.fixture
async def api(service):
    async with Railway(service.url, project_token=Secret(service.token), sleep=service.sleep) as api:
        yield api


@pytest.fixture
async def place(api):
    return await api.place()


def verifying(*answers: bool):
    """A verification that answers so, one after the other, and keeps what it was asked of."""
    left = list(answers)

    async def verify(deployment):
        verify.asked.append(deployment.id)
        return Report(left.pop(0), (Check(),))

    verify.asked = []
    return verify


async def ended(api, made, **more):
    told: list[str] = []
    done = await deploy.watch(api, await api.deployment(made.id), told=told.append, **more)
    return done, told


async def test_a_deploy_is_told_stage_by_stage_and_verified_when_it_stays_up(service, api):
    made, verify = service.deploy(commit=NEW), verifying(True)
    done, told = await ended(api, made, verify=verify)
    assert told == ["initializing", "building", "deploying", "success", "up; watching it for 30 s more", "verifying"]
    assert (done.diagnosis, done.deployment.status, verify.asked) == (None, "SUCCESS", [made.id])


async def test_a_deploy_of_five_minutes_costs_few_requests(service, api):
    window = [*fakes.BUILD, fakes.Beat(300, "SUCCESS")]
    before = len(service.requests)
    await ended(api, service.deploy(play=window))
    assert len(service.requests) - before < 35


async def test_a_success_that_crashes_in_the_settle_window_is_no_success(service, api):
    made, verify = service.deploy(play=fakes.crashed_later("KeyError: 'STRIPE_KEY'")), verifying()
    done, _ = await ended(api, made, verify=verify)
    assert (done.deployment.status, done.diagnosis.cause, verify.asked) == ("CRASHED", Cause.VARIABLE, [])
    assert done.diagnosis.exit_code == 11


async def test_one_that_crashes_while_it_is_verified_is_told_by_its_log_not_by_the_checks(service, api):
    made = service.deploy(play=fakes.crashed_later("Killed", after=100))

    async def verify(_):
        await service.sleep(100)
        return Report(False, (Check(),))

    done, _ = await ended(api, made, verify=verify)
    assert done.diagnosis.cause is Cause.MEMORY


@pytest.mark.parametrize(
    ("play", "cause"),
    [
        (fakes.failed_build("ERROR: No matching distribution found for nothing==1"), Cause.BUILD),
        (fakes.crashed("ModuleNotFoundError: No module named 'numpy'"), Cause.IMPORT),
        (fakes.never_healthy("[worker] up"), Cause.HEALTHCHECK),
        (fakes.crashed("Error: can't reach Redis at redis://r:6379/0: refused"), Cause.REDIS),
        (fakes.crashed("Error: Postgres at 10.0.0.1:5432/app: refused"), Cause.POSTGRES),
        (fakes.crashed("RuntimeError: no licence"), Cause.CRASH),
        (fakes.SKIPPED, Cause.NOT_RUN),
        (fakes.NEEDS_APPROVAL, Cause.NOT_RUN),
        ((*fakes.SUCCESS, fakes.Beat(40, stopped=True, log="all done")), Cause.CRASH),
        ((*fakes.SUCCESS, fakes.Beat(40, "SLEEPING")), Cause.NOT_RUN),
    ],
)
async def test_each_way_to_end_badly_has_its_cause(service, api, play, cause):
    done, _ = await ended(api, service.deploy(play=play))
    assert done.diagnosis.cause is cause


async def test_a_log_that_railway_has_no_more_leaves_the_rest_of_the_diagnosis(service, api, monkeypatch):
    from oxherd.errors import ServiceRefused

    async def refuse(*_, **__):
        raise ServiceRefused("Problem processing request")

    monkeypatch.setattr(api, "build_logs", refuse)
    done, _ = await ended(api, service.deploy(play=fakes.crashed("Killed")))
    assert done.diagnosis.cause is Cause.MEMORY


async def test_a_deploy_that_takes_too_long_is_left_and_told(service, api):
    made = service.deploy(play=fakes.BUILD)
    done, _ = await ended(api, made, timeout=120)
    assert (done.diagnosis.cause, done.diagnosis.summary) == (Cause.NOT_RUN, "still DEPLOYING after 120 s")


async def test_the_deployment_of_a_commit_is_waited_for_and_found_by_its_first_digits(service, api, place):
    async def pushed(seconds):
        await service.sleep(seconds)
        if len(service.deployed) == 1:
            service.deploy(commit=NEW)

    api.sleep = pushed
    assert (await deploy.newest(api, place, commit="BBBBBBB", timeout=60)).commit == NEW
    with pytest.raises(
        NotFound, match="no deployment of commit ccc appeared within 9 s; the newest are of: bbbbbbbbbbbb, "
    ):
        await deploy.newest(api, place, commit="ccc", timeout=9)


async def test_the_deployment_that_a_redeploy_makes_is_found(service, api, place):
    made = await deploy.follow_up(api, place, lambda: api.redeploy(place))
    assert made.id == service.deployed[-1].id


async def way(api, place, **more):
    return await deploy.way_back(api, place, **more)


async def test_a_rollback_is_railway_s_own_where_no_variable_was_written(service, api, place):
    service.deploy(commit=NEW)
    await service.sleep(60)
    found = await way(api, place)
    assert (found.target.id, found.restores_variables, found.changed) == (service.deployed[0].id, True, ())


async def test_across_a_rotation_the_old_commit_is_deployed_with_the_new_secret(service, api, place):
    service.write(REDIS_URL="redis://new-password")
    service.deploy(commit=NEW)
    await service.sleep(60)
    found = await way(api, place)
    assert (found.restores_variables, found.changed) == (False, ("REDIS_URL",))
    (step,) = deploy.rollback_plan(place, found).steps
    assert step.action == "deploy commit"
    assert (
        "REDIS_URL were written since: a rollback would bring their old values back, also revoked secrets"
        in step.detail
    )
    made = await deploy.go_back(api, place, found)
    assert made.commit == OLD
    assert service.deployed[-1].variables["REDIS_URL"] == "redis://new-password"
    assert deploy.forced(found).restores_variables


async def test_a_push_of_variables_alone_is_taken_back_with_its_variables(service, api, place):
    service.write(REDIS_URL="redis://typo")
    service.deploy(commit=OLD)
    await service.sleep(60)
    found = await way(api, place)
    assert found.restores_variables
    await deploy.go_back(api, place, found)
    assert service.variables["REDIS_URL"] == "redis://one"


async def test_without_an_image_only_the_commit_is_left(service, api, place):
    await service.sleep(6 * fakes.DAY)
    service.deploy(commit=NEW)
    await service.sleep(60)
    with pytest.raises(NotFound, match="no earlier deployment whose image Railway still has"):
        await way(api, place)
    found = await way(api, place, to=service.deployed[0].id)
    assert not found.restores_variables
    with pytest.raises(OxherdError, match="no image"):
        deploy.forced(found)


async def guarded(api, place, made, verify):
    told: list[str] = []
    done = await deploy.guard(api, place, await api.deployment(made.id), verify=verify, told=told.append)
    return done, told


async def test_a_guard_leaves_a_good_deployment_alone(service, api, place):
    done, _ = await guarded(api, place, service.deploy(commit=NEW), verifying(True))
    assert (done.way, service.writes) == (None, [])


async def test_a_guard_rolls_back_what_is_up_and_does_not_work(service, api, place):
    verify = verifying(False, True)
    done, told = await guarded(api, place, service.deploy(commit=NEW), verify)
    assert done.watched.diagnosis.cause is Cause.VERIFICATION
    assert done.watched.diagnosis.summary == "it is up, but does not work: test job: nobody ran it within 60 s"
    assert done.watched.diagnosis.fix == "open the gate"
    assert done.way.target.id == service.deployed[0].id
    assert (done.after.diagnosis, done.after.deployment.commit) == (None, OLD)
    assert verify.asked == [service.deployed[1].id, service.deployed[2].id]
    assert any(line.startswith("going back: roll back to") for line in told)


async def test_a_guard_rolls_back_a_crash_after_success(service, api, place):
    done, _ = await guarded(api, place, service.deploy(commit=NEW, play=fakes.crashed_later("Killed")), verifying(True))
    assert done.watched.diagnosis.cause is Cause.MEMORY
    assert done.after.deployment.commit == OLD


async def test_a_guard_takes_nothing_back_where_the_old_one_serves_on(service, api, place):
    done, told = await guarded(api, place, service.deploy(play=fakes.failed_build("ERROR: no")), verifying())
    assert (done.way, done.still_serving.id) == (None, service.deployed[0].id)
    assert told[-1].endswith("serves on: nothing to take back")
    assert service.writes == []


async def test_a_guard_does_not_fight_with_a_newer_push(service, api, place):
    made = service.deploy(commit=NEW, play=fakes.crashed_later("Killed"))
    await service.sleep(55)
    service.deploy(commit=OLD)
    done, told = await guarded(api, place, made, verifying())
    assert (done.way, service.writes) == (None, [])
    assert "is newer" in told[-1]


async def test_settings_that_hurt_a_worker_are_named(service, api, place):
    instance = await api.service_instance(place)
    assert deploy.concerns(instance, grace=25) == []
    (concern,) = deploy.concerns(instance, grace=120)
    assert "set RAILWAY_DEPLOYMENT_DRAINING_SECONDS to 130" in concern
