from __future__ import annotations

import asyncio
import itertools

import graphql
import pytest

from fakes import railway as fakes
from fakes.railway import ABSENT, COMMIT, CONTRACT, FakeRailway, crashed, published
from oxherd.clock import wall_ms
from oxherd.cloud.railway import Railway
from oxherd.cloud.railway_wire import documents
from oxherd.errors import NotFound, ServiceRefused, ServiceUnreachable, UsageError
from oxherd.settings import Secret, load

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)


@pytest.fixture
async def service():
    async with FakeRailway(REDIS_URL="redis://one", SEALED="hidden") as fake:
        fake.sealed = {"SEALED"}
        fake.deploy()
        await fake.sleep(60)
        yield fake


def client(fake, *, project=True, **more):
    token = {"project_token": Secret(fake.token)} if project else {"api_token": Secret(fake.api_token)}
    return Railway(fake.url, sleep=fake.sleep, **(token | more))


@pytest.fixture
async def api(service):
    async with client(service) as api:
        yield api


@pytest.fixture
async def place(api):
    return await api.place()


@pytest.mark.parametrize("operation", documents())
def test_railway_s_published_schema_knows_what_is_sent(operation):
    assert graphql.validate(published(), graphql.parse(documents()[operation])) == []


def test_no_operation_can_replace_variables_or_forget_the_environment():
    assert "replace" not in " ".join(documents().values())
    for name in ("Variables", "Redeploy", "DeployCommit", "ServiceInstance"):
        assert "$environmentId: String!" in documents()[name]


async def test_a_project_token_finds_its_environment_and_the_only_service(service, api):
    place = await api.place()
    assert (place.project_id, place.environment_id, place.service_id) == (
        service.project_id,
        service.environment_id,
        service.service_id,
    )
    assert str(place) == "herd/production/worker"


async def test_a_project_token_is_refused_for_another_environment_before_anything_is_asked_there(api):
    with pytest.raises(UsageError, match=r"is for the environment 'production', and 'staging' was asked for"):
        await api.place(environment="staging")


@pytest.mark.parametrize("named", ["herd", "HERD", "by id"])
async def test_an_account_s_token_finds_a_project_by_name_or_id(service, named):
    async with client(service, project=False) as api:
        place = await api.place(project=service.project_id if named == "by id" else named, environment="production")
    assert place.project_id == service.project_id


async def test_an_account_s_token_has_to_be_told_which_project_and_environment(service):
    async with client(service, project=False) as api:
        with pytest.raises(UsageError, match=r"which project"):
            await api.place()
        with pytest.raises(NotFound, match=r"which environment. There are: production, staging"):
            await api.place(project="herd")
        with pytest.raises(NotFound, match="no project is called 'old'; there are: herd"):
            await api.place(project="old")


async def test_one_of_several_services_has_to_be_named(service, api):
    service.services["another"] = "web"
    with pytest.raises(NotFound, match=r"which service. There are: web, worker"):
        await api.place()
    assert (await api.place(service="Worker")).service_id == service.service_id


async def test_where_both_tokens_are_set_only_the_project_token_is_sent(service):
    environ = service.environ | {"RAILWAY_API_TOKEN": service.api_token}
    async with Railway.of(load(environ, needs=("RAILWAY",))) as api:
        assert (await api.place()).service == "worker"


async def test_a_service_is_found_in_every_environment_that_the_token_may_see(service, api):
    service.others.append(fakes.Elsewhere("closed", is_open=False))
    assert [str(each) for each in await api.places()] == ["herd/production/worker"]
    async with client(service, project=False) as wide:
        found = [str(each) for each in await wide.places(project="herd")]
    assert found == ["herd/production/worker", "herd/staging/worker"]


async def test_a_deployment_has_its_commit_and_what_can_be_done_with_it(service, api, place):
    (found,) = await api.deployments(place)
    assert (found.status, found.is_serving, found.can_rollback) == ("SUCCESS", True, True)
    assert (found.commit, found.message, found.branch) == (COMMIT, "Commit aaaaaaa", "main")
    assert (found.url, found.instances) == ("https://worker.up.railway.app", ("RUNNING",))
    assert found.created_at == pytest.approx((service.now - 60) * 1000, abs=2)
    assert await api.deployment(found.id) == found
    assert [each.step for each in await api.events(found.id)] == ["BUILD_IMAGE", "CREATE_CONTAINER"]


async def test_a_service_is_shown_with_its_restart_policy_and_what_runs(service, api, place):
    found = await api.service_instance(place)
    assert (found.healthcheck_path, found.healthcheck_timeout, found.draining) == ("/health", 300, 60)
    assert [each.id for each in found.active] == [service.deployed[-1].id]


async def test_logs_of_the_build_and_of_the_process_are_told_apart(service, api):
    made = service.deployed[-1].id
    assert [line.message for line in await api.build_logs(made)][-1] == "=== Successfully Built! ==="
    (line,) = await api.deploy_logs(made)
    assert (line.message, line.severity, line.instance) == ("Starting Container", "info", made[:8])


async def test_followed_lines_come_once_each_though_the_connection_is_lost_and_railway_sends_them_again(service, api):
    wanted = [f"line {number}" for number in range(6)]
    beats = [fakes.Beat(30 + number, log=line) for number, line in enumerate(wanted)]
    made = service.deploy(play=(*fakes.BUILD, *beats, fakes.Beat(40, "CRASHED", stopped=True)))
    await service.sleep(31)
    service.drops = 2

    async def time_passes():
        while True:
            await service.sleep(0.5)
            await asyncio.sleep(0.01)

    passing = asyncio.create_task(time_passes())
    told = [line.message async for line in api.follow_logs(made.id)]
    passing.cancel()
    assert told == ["Starting Container", *wanted]
    assert [name for name, _ in service.requests].count("FollowDeployLogs") == 3


async def test_the_log_of_a_finished_build_ends(service, api):
    made = service.deployed[-1].id
    found = api.follow_logs(made, build=True)
    first = await anext(found)
    await found.aclose()
    assert first.message == "using build driver dockerfile"


async def test_sealed_variables_have_a_name_and_no_value(api, place):
    values = await api.variables(place)
    assert values["REDIS_URL"].reveal() == "redis://one"
    assert "SEALED" not in values
    names = {each.name: each for each in await api.variable_names(place)}
    assert names["SEALED"].is_sealed
    assert not names["REDIS_URL"].is_sealed


async def test_a_write_redeploys_unless_told_not_to_and_leaves_the_rest_alone(service, api, place):
    await api.write_variables(place, {"A": Secret("1"), "B": Secret("2")}, skip_deploys=True)
    assert len(service.deployed) == 1
    await api.write_variables(place, {"A": Secret("3")}, skip_deploys=False)
    assert len(service.deployed) == 2
    assert service.variables == {"REDIS_URL": "redis://one", "SEALED": "hidden", "A": "3", "B": "2"}
    await api.delete_variable(place, "A")
    assert "A" not in service.variables
    scopes = [
        sent["input"]["environmentId"]
        for name, sent in service.requests
        if name.endswith(("Variables", "Variable")) and "input" in sent
    ]
    assert set(scopes) == {service.environment_id}


async def test_a_commit_is_deployed_under_a_new_id(service, api, place):
    new = await api.deploy_commit(place, COMMIT)
    assert new == service.deployed[-1].id
    with pytest.raises(ServiceRefused) as caught:
        await api.deploy_commit(place, "b" * 40)
    assert "Commit not found (at serviceInstanceDeployV2, trace 1234567890" in caught.value.message
    assert "pushed" in caught.value.hint


async def test_a_rollback_brings_old_variables_back(service, api, place):
    old = service.deployed[-1]
    service.write(REDIS_URL="redis://two")
    await api.redeploy(place)
    await api.rollback(old.id)
    assert service.deployed[-1].variables["REDIS_URL"] == "redis://one"
    await service.sleep(6 * fakes.DAY)
    with pytest.raises(ServiceRefused, match="Problem processing request"):
        await api.rollback(old.id)


async def test_a_restart_keeps_the_deployment(service, api):
    await api.restart(service.deployed[-1].id)
    assert len(service.deployed) == 1


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ({"project_token": Secret("wrong-one")}, "Project Token not found"),
        ({"api_token": Secret("wrong-one")}, "Not Authorized"),
    ],
)
async def test_a_wrong_token_is_a_refusal_though_railway_says_200(service, token, words):
    async with Railway(service.url, sleep=service.sleep, **token) as api:
        with pytest.raises(ServiceRefused) as caught:
            await api.deployment("any")
    assert words in caught.value.message
    assert "RAILWAY_API_TOKEN" in caught.value.hint
    assert "wrong-one" not in str(caught.value) + caught.value.hint
    assert len(service.requests) == 1


async def test_a_wrong_address_says_which_variable_to_look_at(service):
    async with Railway(service.url + "/no", project_token=Secret("x"), sleep=service.sleep) as api:
        with pytest.raises(ServiceRefused) as caught:
            await api.deployment("any")
    assert "HTTP 404: Not Found" in caught.value.message
    assert "RAILWAY_API_URL" in caught.value.hint


async def test_what_the_schema_refuses_is_a_fault_between_versions(service, api, monkeypatch):
    monkeypatch.setattr("oxherd.cloud.railway_wire.document", lambda name: f"query {name} {{ invented }}")
    with pytest.raises(ServiceRefused) as caught:
        await api.deployment("any")
    assert "HTTP 400" in caught.value.message
    assert "Cannot query field 'invented'" in caught.value.message
    assert "newer" in caught.value.hint


async def test_a_busy_railway_is_asked_again_when_it_said_also_for_a_write(service, api, place):
    service.next_answers = [(429, "Too Many Requests", {"Retry-After": "7"})]
    before = service.now
    await api.redeploy(place)
    assert service.now == before + 7
    assert len(service.deployed) == 2


async def test_a_limit_that_lasts_half_an_hour_is_told_not_waited_for(service, api):
    service.next_answers = [(429, "Too Many Requests", {"Retry-After": "1800"})]
    with pytest.raises(ServiceUnreachable, match="wants none for 1800 s"):
        await api.deployment("any")


@pytest.mark.parametrize(("status", "text"), [(502, "<html>bad gateway"), (200, "not JSON")])
async def test_a_read_is_repeated_and_a_write_whose_answer_was_lost_is_not(service, api, place, status, text):
    service.next_answers = [(status, text, {})] * 2
    assert len(await api.deployments(place)) == 1
    service.next_answers = [(status, text, {})]
    with pytest.raises(ServiceUnreachable):
        await api.redeploy(place)
    assert [name for name, _ in service.requests].count("Redeploy") == 1


async def test_polls_get_rarer_when_few_requests_are_left(service, api):
    assert api.pace(2) == 2
    service.limit = 100
    await api.deployment(service.deployed[-1].id)
    assert api.pace(2) == 2
    service.used = 89
    await api.deployment(service.deployed[-1].id)
    assert api.pace(2) == pytest.approx((service.now + 3600 - wall_ms() / 1000) / 10, abs=2)


@pytest.mark.parametrize("reset", ["90", "{epoch}", "{epoch}000", "2099-01-01T00:00:00Z", "soon"])
async def test_every_usual_form_of_the_time_of_renewal_is_read(service, api, reset):
    text = reset.format(epoch=wall_ms() // 1000 + 90)
    limits = {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "1", "X-RateLimit-Reset": text}
    service.next_answers = [(200, '{"data": {"deploymentEvents": {"edges": []}}}', limits)]
    await api.events("any")
    assert api.pace(2) >= 88


async def test_a_whole_deploy_can_be_watched_without_waiting(service, api, place):
    made = service.deploy(play=crashed("Boom"))
    seen = []
    for _ in range(40):
        seen.append((await api.deployment(made.id)).status)
        await api.sleep(1)
    assert [status for status, _ in itertools.groupby(seen)] == ["INITIALIZING", "BUILDING", "DEPLOYING", "CRASHED"]
