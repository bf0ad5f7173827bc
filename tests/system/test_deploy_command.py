from __future__ import annotations

import asyncio
import json
import sys

import pytest
from redis.asyncio import Redis

from fakes import railway as fakes
from fakes.railway import ABSENT, COMMIT, CONTRACT, FakeRailway
from oxherd.cloud.railway import Railway
from oxherd.ops import lock
from oxherd.ops.lock import held
from oxherd.ops.recording import operator
from oxherd.settings import child_environ, load
from oxherd.store.migrate import migrate
from oxherd.store.postgres import PostgresStore

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
NEW = "b" * 40


@pytest.fixture
async def service():
    async with FakeRailway(REDIS_URL="redis://one") as fake:
        fake.commits = [COMMIT, NEW]
        fake.deploy(commit=COMMIT)
        await fake.sleep(3600)
        fake.tick = 90  # what comes takes a request or two
        yield fake


@pytest.fixture
def oxherd(service, tmp_path):
    async def run(*args: str, **variables: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "oxherd", "deploy", *args, cwd=tmp_path, stdout=-1, stderr=-1,
            env=child_environ(service.environ | variables, inherit=False), stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert service.token not in out.decode() + err.decode()
        return process.returncode or 0, out.decode(), err.decode()

    return run


async def test_status_shows_what_runs_and_what_will_hurt(service, oxherd):
    code, out, err = await oxherd("status", SHUTDOWN_GRACE="2m")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == [service.deployed[0].id, "SUCCESS", "aaaaaaaaaaaa"]
    assert "herd/production/worker" in err
    assert "! draining is 60 s" in err
    service.deployed.clear()
    code, out, _ = await oxherd("status", "--json")
    assert (code, json.loads(out)["deployments"]) == (1, [])


async def test_a_bad_deploy_is_watched_and_its_exit_code_says_why(service, oxherd):
    service.deploy(commit=NEW, play=fakes.crashed("ModuleNotFoundError: No module named 'numpy'"))
    code, out, err = await oxherd("watch", "--commit", "bbbb", "--no-verify")
    assert code == 12
    assert "Cause: import error (exit code 12): a module is not in the image: numpy" in out
    assert "  | ModuleNotFoundError: No module named 'numpy'" in out
    assert "Commit bbbbbbb" in err
    code, out, _ = await oxherd("watch", "--no-verify", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["diagnosis"]["cause"]) == (12, False, "import error")
    assert found["deployment"]["commit"] == NEW


async def test_logs_are_printed_and_followed_to_their_end(service, oxherd):
    service.deploy(play=fakes.crashed("Boom"))
    await service.sleep(60)
    code, out, _ = await oxherd("logs", "--follow")
    assert (code, [line.split(maxsplit=2)[2] for line in out.splitlines()]) == (0, ["Starting Container", "Boom"])
    _, out, _ = await oxherd("logs", "--json")
    assert [json.loads(line)["severity"] for line in out.splitlines()] == ["info", "error"]
    _, out, _ = await oxherd("logs", "--build", "--lines", "1", service.deployed[0].id)
    assert out.endswith("=== Successfully Built! ===\n")


async def test_a_rollback_is_shown_then_done_and_recorded(service, oxherd, database_url):
    await migrate(database_url)
    service.deploy(commit=NEW)
    service.write(REDIS_URL="redis://new-password")
    await service.sleep(60)
    code, out, err = await oxherd("rollback", "--dry-run")
    assert (code, out, service.writes) == (0, "", [])
    assert "deploy commit herd/production/worker" in err
    assert "REDIS_URL were written since" in err
    code, out, err = await oxherd(
        "rollback", "--yes", "--no-verify", "--settle", "0", "--json", DATABASE_URL=database_url
    )
    assert (code, json.loads(out)["deployment"]["commit"], service.writes) == (0, COMMIT, ["DeployCommit"]), err
    store = PostgresStore(database_url)
    await store.start()
    (operation,), (line,) = await store.operations("deploy", limit=5), await store.audit(limit=5)
    await store.stop()
    assert (operation["target"], operation["outcome"]) == ("herd/production/worker", "ok")
    assert (line["action"], line["outcome"]) == ("deploy rollback", 200)


async def test_a_redeploy_is_watched_and_says_where_it_is_not_recorded(service, oxherd):
    code, out, err = await oxherd("redeploy", "--yes", "--no-verify", "--settle", "0")
    assert (code, service.writes) == (0, ["Redeploy"]), err
    assert f"{service.deployed[1].id} is SUCCESS" in out
    assert "not recorded: neither DATABASE_URL" in err


async def test_nothing_is_done_without_a_yes(service, oxherd):
    code, _, _ = await oxherd("redeploy")
    assert (code, service.writes) == (1, [])


async def test_a_guard_that_can_t_reach_redis_judges_nothing(service, oxherd):
    service.deploy(commit=NEW)
    code, _, err = await oxherd("guard", "--settle", "0", REDIS_URL="redis://127.0.0.1:9")
    assert (code, service.writes) == (3, [])
    assert "can't reach Redis" in err


@pytest.mark.parametrize(
    ("args", "variables", "words"),
    [
        (["status"], {"RAILWAY_TOKEN": ""}, "RAILWAY_TOKEN is missing (or RAILWAY_API_TOKEN"),
        (["watch", "--timeout", "soon"], {}, "--timeout must be a duration such as 30s, 10m or 1h"),
        (["logs", "--only", "@level:error", "--follow"], {}, "--only is for the process's log as it is"),
    ],
)
async def test_wrong_use_says_what_is_right(oxherd, args, variables, words):
    code, _, err = await oxherd(*args, **variables)
    assert code == 2
    assert words in err


async def test_two_operators_do_not_change_one_service_at_a_time(service, oxherd, redis_url):
    here = {"REDIS_URL": redis_url}
    said: list[str] = []
    async with Railway.of(load(service.environ, needs=("RAILWAY",))) as api:
        place = await api.place()
    async with held(load(service.environ | here, needs=()), place, "rotate API_TOKEN", "switching", said.append):
        code, _, err = await oxherd("redeploy", "--yes", "--no-verify", **here)
        assert (code, service.writes) == (1, []), err
        assert f"herd/production/worker is being changed: `oxherd rotate API_TOKEN` of {operator()} since 20" in err
        assert "its lock runs out in" in err
        code, _, err = await oxherd("rollback", "--dry-run", **here)
        assert "is being changed" not in err
    code, _, err = await oxherd("redeploy", "--yes", "--no-verify", "--settle", "0", **here)
    assert (code, service.writes, said) == (0, ["Redeploy"], []), err


async def test_an_operator_can_act_while_redis_is_away_and_is_told_that_there_is_no_lock(service, oxherd):
    code, _, err = await oxherd("redeploy", "--yes", "--no-verify", "--settle", "0", REDIS_URL="redis://127.0.0.1:1")
    assert (code, service.writes) == (0, ["Redeploy"]), err
    assert "without a lock: " in err


async def test_a_lock_is_renewed_and_only_its_holder_frees_it(service, redis_url, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.05)
    settings = load(service.environ | {"REDIS_URL": redis_url}, needs=())
    async with Railway.of(settings) as api:
        place = await api.place()
    said: asyncio.Queue[str] = asyncio.Queue()
    async with (
        asyncio.timeout(10), Redis.from_url(redis_url) as redis,
        held(settings, place, "env push", "one", said.put_nowait),
    ):  # fmt: skip
        (key,) = await redis.keys(f"oxherd:*:operating:{place.environment_id}:{place.service_id}")
        await redis.pexpire(key, 1000)
        async with redis.monitor() as monitor:
            async for seen in monitor.listen():
                if seen["command"].startswith(f"SET {key.decode()} "):
                    break
        assert await redis.pttl(key) > 1000
        await redis.set(key, b'{"command":"env push","who":"ada@home","since":"now","why":"two"}')
        told = await said.get()
    assert told == "the lock was lost while Redis was away: `oxherd env push` of ada@home since now (two)"
    async with Redis.from_url(redis_url) as redis:
        assert await redis.delete(key) == 1
