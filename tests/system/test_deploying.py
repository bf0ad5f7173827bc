"""From pushed variables to a proven worker, with the fake Railway and real processes as its deployments."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from deployed import DeployedWorker

from fakes.railway import ABSENT, COMMIT, CONTRACT, FakeRailway
from oxherd.app import queue_client
from oxherd.cloud.railway import Railway
from oxherd.ops import deploy
from oxherd.ops.diagnosis import Cause
from oxherd.ops.verify import Asked, verify
from oxherd.settings import Secret, child_environ, load

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
GOOD, BROKEN = COMMIT, "b" * 40
APPS = {GOOD: "good:herd", BROKEN: "broken:herd"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.py").write_text("from oxherd import Herd\n\nherd = Herd()\n")
    (tmp_path / "broken.py").write_text("import numpy_of_nobody\n")
    return tmp_path


@pytest.fixture
async def service(folder, redis_url, queue_name):
    async def start(variables, say):
        return await DeployedWorker(APPS[variables["RAILWAY_GIT_COMMIT_SHA"]], folder, variables, say).start()

    async with FakeRailway(start=start, REDIS_URL=redis_url, JOB_QUEUE_NAME=queue_name) as fake:
        fake.commits = [GOOD, BROKEN]
        fake.restart_retries = 1
        yield fake


@pytest.fixture
async def api(service):
    async with Railway(service.url, project_token=Secret(service.token), sleep=service.sleep) as api:
        yield api


@pytest.fixture
async def place(api):
    return await api.place()


@pytest.fixture
def prove(api, redis_url, queue_name):
    """`oxherd verify` of a deployment, with little patience."""
    settings = load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name})

    async def of(deployment):
        async def said():
            return [line.message for line in await api.deploy_logs(deployment.id)]

        asked = Asked(queue_name, deployment.url, settings, commit=deployment.commit, logs=said, patience=2.0)
        return await verify(asked)

    return of


@pytest.fixture
async def serving(service, api):
    """A good deployment to go back to."""
    made = service.deploy(commit=GOOD)
    done = await deploy.watch(api, await api.deployment(made.id), settle=0)
    assert done.diagnosis is None, done.diagnosis.text
    return done.deployment


async def guarded(api, place, made, prove):
    return await deploy.guard(api, place, await api.deployment(made.id), verify=prove, settle=4)


async def test_pushed_variables_are_deployed_once_watched_and_proven(service, api, place, serving, prove, queue_name):
    await api.write_variables(place, {"JOB_CONCURRENCY": Secret("2"), "LOG_LEVEL": Secret("debug")}, skip_deploys=True)
    made = await deploy.follow_up(api, place, lambda: api.redeploy(place))
    done = await deploy.watch(api, made, verify=prove)
    assert done.diagnosis is None, done.diagnosis.text
    assert {check.outcome for check in done.report.checks} <= {"passed", "skipped"}
    assert len(service.deployed) == 2
    assert (await api.deployment(serving.id)).status == "REMOVED"
    assert any(f"queue: {queue_name}" in line.message for line in await api.deploy_logs(made.id))


async def missing_variable(service):
    del service.variables["REDIS_URL"]
    return service.deploy()


async def crash_on_import(service):
    return service.deploy(commit=BROKEN)


async def port_that_nobody_asks(service):
    service.write(PORT="0")
    return service.deploy()


BAD = {
    missing_variable: Cause.VARIABLE,
    crash_on_import: Cause.IMPORT,
    port_that_nobody_asks: Cause.HEALTHCHECK,
}


@pytest.mark.parametrize(("make", "cause"), BAD.items())
async def test_behind_a_healthcheck_a_bad_deploy_is_explained_and_the_old_one_serves_on(
    service, api, place, serving, prove, make, cause
):
    done = await guarded(api, place, await make(service), prove)
    assert done.watched.diagnosis.cause is cause, done.watched.diagnosis.text
    assert (done.still_serving.id, done.way) == (serving.id, None)
    assert (await api.deployment(serving.id)).is_serving


@pytest.mark.parametrize("make", [missing_variable, crash_on_import])
async def test_without_a_healthcheck_it_replaces_the_old_one_and_the_guard_brings_that_back(
    service, api, place, serving, prove, make
):
    service.healthcheck = False
    done = await guarded(api, place, await make(service), prove)
    assert done.watched.diagnosis.cause is BAD[make], done.watched.diagnosis.text
    assert done.way.target.id == serving.id
    assert done.after.diagnosis is None, done.after.diagnosis.text
    assert done.after.deployment.is_serving


async def test_a_worker_that_is_up_and_takes_no_jobs_is_found_and_rolled_back(
    service, api, place, serving, prove, redis_url, queue_name
):
    service.write(JOB_QUEUE_NAME=f"{queue_name}-typo")
    done = await guarded(api, place, service.deploy(), prove)
    assert done.watched.diagnosis.cause is Cause.VERIFICATION
    assert done.way.restores_variables
    assert done.after.diagnosis is None, done.after.diagnosis.text
    assert service.variables["JOB_QUEUE_NAME"] == queue_name


async def test_a_closed_gate_fails_the_proof_and_says_how_to_open_it(
    service, api, place, serving, prove, redis_url, queue_name
):
    async with queue_client(load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name})) as (_, admin):
        await admin.close_gate("a restore")
    done = await deploy.watch(api, await api.deployment(serving.id), settle=0, verify=prove)
    assert done.diagnosis.cause is Cause.VERIFICATION
    assert "gate" in done.diagnosis.text


async def test_the_command_watches_and_proves_a_real_worker(service, serving, redis_url, queue_name, folder):
    variables = service.environ | {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oxherd", "deploy", "guard", "--settle", "0", "--commit", GOOD[:8], "--json",
        cwd=folder, env=child_environ(variables, inherit=False), stdout=-1, stderr=-1,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert (found["ok"], found["deployment"]["id"], found["went_back_to"]) == (True, serving.id, None)
    assert {"health", "version", "logs", "test job"} <= {
        each["name"] for each in found["checks"] if each["outcome"] == "passed"
    }
    assert b"verifying" in err
