"""DATABASE_URL on a real Postgres, and what Supabase has: one password, and keys."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path

import asyncpg
import pytest

from fakes import key_services
from fakes import railway as railways
from fakes.key_services import REF, FakeSupabaseApi
from fakes.railway import FakeRailway, crashed
from fakes.rotating import Rotating
from oxherd.errors import RotationStopped
from oxherd.store.migrate import migrate

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))

from postgrest_double import LEGACY_KEY, MAKE_ROLES, SECRET_KEY, PostgrestDouble

pytestmark = pytest.mark.skipif(
    not (railways.CONTRACT.exists() and key_services.SUPABASE.path.exists()), reason=key_services.SUPABASE.absent
)
NAME, KEY_NAME = "DATABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"
KEY = base64.b64encode(bytes(32)).decode()


def login(url: str, user: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"


async def sql(url: str, *statements: str) -> list:
    connection = await asyncpg.connect(url)
    try:
        return [await connection.fetch(each) for each in statements]
    finally:
        await connection.close()


async def can_log_in(url: str) -> bool:
    try:
        await sql(url, "select 1")
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    return True


@pytest.fixture
async def app(database_url, queue_name):
    """A database that a role of its own owns, and that role's URL."""
    role = f"app_{queue_name.replace('-', '_')}"
    await sql(database_url, f"create role {role} login password 'first'")
    name = database_url.rpartition("/")[2]
    await sql(database_url, f'alter database "{name}" owner to {role}')
    await migrate(login(database_url, role, "first"))
    yield login(database_url, role, "first")
    await sql(database_url, f"drop owned by {role} cascade")


@pytest.fixture
async def railway(app):
    async with FakeRailway(DATABASE_URL=app) as fake:
        fake.deploy()
        await fake.sleep(60)
        yield fake


@pytest.fixture
def rig(tmp_path, railway, database_url):
    environ = {
        NAME: railway.variables[NAME], "DATABASE_ADMIN_URL": database_url, "ENCRYPTION_KEY": KEY, **railway.environ,
    }  # fmt: skip
    return Rotating(tmp_path / "state", environ, railway.sleep)


async def test_a_second_role_acts_as_the_owner_and_so_does_the_third(rig, railway, app):
    first = railway.variables[NAME]
    await rig.run(NAME)
    second = railway.variables[NAME]
    assert (await can_log_in(second), await can_log_in(first)) == (True, False)
    owner = app.partition("://")[2].partition(":")[0]
    made = "select current_user::text", "create table made_by_the_second (n int)", "drop table made_by_the_second"
    assert (await sql(second, *made))[0][0][0] == owner
    rig.environ[NAME] = second
    await rig.run(NAME)
    third = railway.variables[NAME]
    assert (await can_log_in(third), await can_log_in(second)) == (True, False)
    gone = second.partition("://")[2].partition(":")[0]
    assert await sql(third, f"select from pg_roles where rolname = '{gone}'") == [[]]
    assert (await sql(third, "select count(*) from oxherd.operations"))[0][0][0] == 2


async def test_processes_that_die_before_they_save_leave_one_role(rig, railway, monkeypatch):
    assert await rig.die_at_every_save(NAME, monkeypatch) > 5
    new = railway.variables[NAME]
    (rows,) = await sql(new, "select count(*) from pg_roles where rolname like 'oxherd\\_%' and rolcanlogin"
                        " and exists (select from pg_auth_members where member = pg_roles.oid and"
                        " roleid = current_user::regrole)")  # fmt: skip
    assert rows[0][0] == 1


async def test_while_a_session_of_the_old_role_is_open_it_is_not_retired_and_a_rollback_drops_the_new_one(rig, railway):
    old = railway.variables[NAME]
    busy = await asyncpg.connect(old)
    with pytest.raises(RotationStopped, match="somebody still works in Postgres"):
        await rig.run(NAME)
    await busy.close()
    new = railway.variables[NAME]
    await rig.roll_back(NAME)
    assert (railway.variables[NAME], await can_log_in(old), await can_log_in(new)) == (old, True, False)


async def test_a_superuser_is_not_rotated(tmp_path, database_url):
    environ = {NAME: database_url, "DATABASE_ADMIN_URL": database_url, "ENCRYPTION_KEY": KEY}
    with pytest.raises(RotationStopped, match="is a superuser"):
        await Rotating(tmp_path, environ, asyncio.sleep).run(NAME)


# -- Supabase


@pytest.fixture
async def supabase(database_url):
    await sql(database_url, MAKE_ROLES)
    await migrate(database_url)
    async with PostgrestDouble(database_url) as rest:

        def changed(api: FakeSupabaseApi) -> None:
            rest.secret_keys = api.values
            rest.jwts = {LEGACY_KEY: "service_role"} if api.legacy else {}

        async with FakeSupabaseApi(changed=changed) as api:
            api.rest = rest
            api.make("first", SECRET_KEY)
            yield api


@pytest.fixture
async def key_rig(tmp_path, supabase):
    async with FakeRailway(SUPABASE_SERVICE_ROLE_KEY=SECRET_KEY) as railway:
        railway.deploy()
        await railway.sleep(60)
        environ = {
            "SUPABASE_URL": supabase.rest.url, KEY_NAME: SECRET_KEY, "SUPABASE_PROJECT_REF": REF,
            "SUPABASE_ACCESS_TOKEN": supabase.token, "SUPABASE_API_URL": supabase.url, "ENCRYPTION_KEY": KEY,
            **railway.environ,
        }  # fmt: skip
        rig = Rotating(tmp_path / "state", environ, railway.sleep)
        rig.railway = railway
        yield rig


async def test_a_secret_key_is_replaced_by_another_and_deleted(key_rig, supabase):
    await key_rig.run(KEY_NAME)
    assert supabase.values == {key_rig.railway.variables[KEY_NAME]}
    assert key_rig.railway.variables[KEY_NAME] != SECRET_KEY


async def test_processes_that_die_before_they_save_leave_one_secret_key(key_rig, supabase, monkeypatch):
    assert await key_rig.die_at_every_save(KEY_NAME, monkeypatch) > 5
    assert supabase.values == {key_rig.railway.variables[KEY_NAME]}


async def test_a_new_key_that_is_not_taken_stops_before_anything_is_switched(key_rig, supabase):
    supabase._changed = lambda _: None  # the gateway never hears of new keys
    with pytest.raises(RotationStopped, match="does not take the key that it has made"):
        await key_rig.run(KEY_NAME)
    assert key_rig.railway.writes == []
    await key_rig.roll_back(KEY_NAME)
    assert supabase.values == {SECRET_KEY}


async def test_an_old_jwt_is_switched_off_only_when_somebody_says_that_the_anon_key_is_unused(key_rig, supabase):
    key_rig.environ[KEY_NAME] = LEGACY_KEY
    key_rig.railway.write(SUPABASE_SERVICE_ROLE_KEY=LEGACY_KEY)
    with pytest.raises(RotationStopped, match="together with the anon key") as stopped:
        await key_rig.run(KEY_NAME)
    assert "--disable-legacy" in stopped.value.hint
    assert (supabase.legacy, key_rig.railway.variables[KEY_NAME] in supabase.values) == (True, True)
    assert await key_rig.run(KEY_NAME, resume=True, disable_legacy=True) == ["retire", "bury", "record"]
    assert supabase.legacy is False


@pytest.fixture
async def password_rig(tmp_path, database_url, redis_url, monkeypatch, queue_name):
    """Supabase's `postgres`, played by a role whose password the double sets."""
    await migrate(database_url)
    role = f"postgres.{queue_name}"
    await sql(database_url, f"create role \"{role}\" superuser login password 'first'")
    url = login(database_url, role, "first")

    class Api(FakeSupabaseApi):
        async def _set_password(self, request):
            answer = await super()._set_password(request)
            await sql(database_url, f"alter role \"{role}\" password '{self.password}'")
            self.writes_of_passwords = getattr(self, "writes_of_passwords", 0) + 1
            return answer

    async with Api() as api, FakeRailway(DATABASE_URL=url) as railway:
        railway.deploy()
        await railway.sleep(60)
        environ = {
            NAME: url, "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "SUPABASE_PROJECT_REF": REF,
            "SUPABASE_ACCESS_TOKEN": api.token, "SUPABASE_API_URL": api.url, "ENCRYPTION_KEY": KEY, **railway.environ,
        }  # fmt: skip
        monkeypatch.setattr("oxherd.ops.rotate_known.SUPABASE", ("127.0.0.1",))
        rig = Rotating(tmp_path / "state", environ, railway.sleep)
        rig.railway, rig.old, rig.api = railway, url, api
        yield rig
    await sql(database_url, f'drop role "{role}"')


async def test_supabase_s_database_password_is_reset_with_intake_closed(password_rig, monkeypatch):
    assert await password_rig.die_at_every_save(NAME, monkeypatch) > 5
    new = password_rig.railway.variables[NAME]
    assert (await can_log_in(new), await can_log_in(password_rig.old)) == (True, False)


async def test_a_deployment_that_fails_after_the_reset_leaves_intake_closed_until_the_next_try(
    password_rig, redis_url, queue_name
):
    from oxherd.app import queue_client
    from oxherd.settings import load

    password_rig.railway.plays.append(crashed("?"))
    with pytest.raises(RotationStopped, match="CRASHED"):
        await password_rig.run(NAME)
    settings = load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name})
    async with queue_client(settings) as (_, admin):
        assert await admin.gate() == "DATABASE_URL is being rotated"
        await password_rig.run(NAME, resume=True)
        assert await admin.gate() is None
