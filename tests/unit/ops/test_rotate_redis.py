"""REDIS_URL on a real Valkey: ACL users side by side, and Upstash's reset with its one password."""

from __future__ import annotations

import asyncio
import base64

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from fakes import key_services
from fakes import railway as railways
from fakes.key_services import FakeUpstash
from fakes.railway import FakeRailway, crashed
from fakes.rotating import Rotating
from oxherd.app import queue_client
from oxherd.embedded.valkey import Valkey
from oxherd.errors import RotationStopped
from oxherd.settings import load

pytestmark = pytest.mark.skipif(not railways.CONTRACT.exists(), reason=railways.ABSENT)
NAME = "REDIS_URL"
KEY = base64.b64encode(bytes(32)).decode()
RULES = "sanitize-payload ~* &* +@all -flushall"


@pytest.fixture
def valkey_with_users(tmp_path):
    file = tmp_path / "users.acl"
    file.write_text(f"user default on nopass ~* &* +@all\nuser app on >first {RULES}\n")
    with Valkey(tcp=True, config={"aclfile": str(file)}) as engine:
        engine.file = file
        yield engine


def login(url: str, user: str, password: str) -> str:
    return url.replace("redis://", f"redis://{user}:{password}@")


@pytest.fixture
async def railway(valkey_with_users):
    async with FakeRailway(REDIS_URL=login(valkey_with_users.url, "app", "first")) as fake:
        fake.deploy()
        await fake.sleep(60)
        yield fake


@pytest.fixture
def rig(tmp_path, railway):
    environ = {NAME: railway.variables[NAME], "ENCRYPTION_KEY": KEY, **railway.environ}
    return Rotating(tmp_path / "state", environ, railway.sleep)


async def can_log_in(url: str) -> bool:
    async with Redis.from_url(url) as client:
        try:
            return bool(await client.ping())
        except AuthenticationError:
            return False


async def users(engine) -> list[str]:
    async with Redis.from_url(engine.url) as client:
        return await client.acl_users()


async def test_a_second_user_with_the_same_rules_takes_over_and_the_first_is_deleted(rig, railway, valkey_with_users):
    old = railway.variables[NAME]
    await rig.run(NAME)
    new = railway.variables[NAME]
    assert (await can_log_in(new), await can_log_in(old)) == (True, False)
    (user,) = [each for each in await users(valkey_with_users) if each != "default"]
    async with Redis.from_url(valkey_with_users.url) as client:
        (line,) = [each for each in await client.acl_list() if f"user {user} " in each]
    assert "-flushall" in line
    assert user in valkey_with_users.file.read_text()  # it outlives a restart
    assert len(railway.deployed) == 2


async def test_processes_that_die_before_they_save_leave_one_user(rig, railway, valkey_with_users, monkeypatch):
    assert await rig.die_at_every_save(NAME, monkeypatch) > 5
    assert await can_log_in(railway.variables[NAME])
    assert len(await users(valkey_with_users)) == 2


async def test_while_somebody_works_as_the_old_user_it_is_not_retired(rig, railway, valkey_with_users):
    old = railway.variables[NAME]
    async with Redis.from_url(old) as busy:
        await busy.ping()
        with pytest.raises(RotationStopped, match="somebody still works in Redis as app"):
            await rig.run(NAME)
        assert await can_log_in(old)
    assert await rig.run(NAME, resume=True) == ["retire", "bury", "record"]
    assert not await can_log_in(old)


async def test_a_rollback_deletes_the_new_user(rig, railway, valkey_with_users):
    old = railway.variables[NAME]
    railway.plays.append(crashed("?"))
    with pytest.raises(RotationStopped):
        await rig.run(NAME)
    await rig.roll_back(NAME)
    assert (railway.variables[NAME], await users(valkey_with_users)) == (old, ["app", "default"])


async def test_a_rollback_while_somebody_still_works_as_the_old_user_frees_the_secret_for_another_rotation(
    rig, railway, valkey_with_users
):
    async with Redis.from_url(railway.variables[NAME]) as old:
        await old.ping()
        with pytest.raises(RotationStopped, match="somebody still works"):
            await rig.run(NAME)
        assert len(await old.keys("oxherd:*:operating:rotation:REDIS_URL")) == 1
        await rig.roll_back(NAME)
        assert await old.keys("oxherd:*:operating:*") == []
    assert await users(valkey_with_users) == ["app", "default"]


async def test_users_that_a_restart_would_forget_are_refused_before_anything_is_done(redis_url, tmp_path):
    rig = Rotating(tmp_path / "state", {NAME: redis_url, "ENCRYPTION_KEY": KEY}, asyncio.sleep)
    with pytest.raises(RotationStopped, match="keeps its users in memory only"):
        await rig.run(NAME)
    assert not rig.folder.exists()


@pytest.fixture
async def upstash():
    with Valkey(tcp=True, config={"requirepass": "first"}) as engine:
        url = login(engine.url, "default", "first")

        async def reset(password: str) -> None:
            async with Redis.from_url(login(engine.url, "default", fake.password_before)) as client:
                await client.config_set("requirepass", password)
            fake.password_before = password

        async with FakeUpstash("127.0.0.1", "first", reset) as fake:
            fake.password_before, fake.engine, fake.redis_url = "first", engine, url
            yield fake


@pytest.fixture
async def upstash_rig(tmp_path, upstash, monkeypatch):
    """As `_redis` chooses for a host at Upstash; this one is here."""
    async with FakeRailway(REDIS_URL=upstash.redis_url) as railway:
        railway.deploy()
        await railway.sleep(60)
        environ = {
            NAME: upstash.redis_url, "ENCRYPTION_KEY": KEY, "UPSTASH_EMAIL": upstash.email,
            "UPSTASH_API_KEY": upstash.key, "UPSTASH_API_URL": upstash.url, **railway.environ,
        }  # fmt: skip
        monkeypatch.setattr("oxherd.ops.rotate_known.UPSTASH", "127.0.0.1")
        rig = Rotating(tmp_path / "state", environ, railway.sleep)
        rig.railway = railway
        yield rig


@pytest.mark.skipif(not key_services.UPSTASH.path.exists(), reason=key_services.UPSTASH.absent)
async def test_upstash_s_reset_is_announced_as_irreversible_and_closes_intake_around_it(upstash_rig, upstash):
    plan = await upstash_rig.plan(NAME)
    assert "IRREVERSIBLE" in next(step.detail for step in plan.steps if step.action == "switch")
    assert upstash.writes == []
    await upstash_rig.run(NAME)
    new = upstash_rig.railway.variables[NAME]
    assert (await can_log_in(new), await can_log_in(upstash.redis_url)) == (True, False)
    async with queue_client(load({NAME: new})) as (_, admin):
        assert await admin.gate() is None
    assert upstash.resets == 1


@pytest.mark.skipif(not key_services.UPSTASH.path.exists(), reason=key_services.UPSTASH.absent)
async def test_a_process_that_dies_after_the_reset_finds_the_password_instead_of_resetting_again(
    upstash_rig, upstash, monkeypatch
):
    assert await upstash_rig.die_at_every_save(NAME, monkeypatch) > 5
    assert upstash.resets == 1
    assert await can_log_in(upstash_rig.railway.variables[NAME])


@pytest.mark.skipif(not key_services.UPSTASH.path.exists(), reason=key_services.UPSTASH.absent)
async def test_after_a_reset_there_is_no_way_back_and_the_next_try_goes_on(upstash_rig, upstash):
    upstash_rig.railway.plays.append(crashed("?"))
    with pytest.raises(RotationStopped, match="CRASHED"):
        await upstash_rig.run(NAME)
    with pytest.raises(RotationStopped, match="no way back"):
        await upstash_rig.roll_back(NAME)
    assert await upstash_rig.run(NAME, resume=True) == ["switch", "retire", "bury", "record"]
    assert upstash.resets == 1
