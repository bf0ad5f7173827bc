"""The engine, by way of OPENROUTER_API_KEY, with services on Railway and with people as its consumers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import threading
from contextlib import suppress

import asyncpg
import pytest

from fakes import key_services
from fakes import railway as railways
from fakes.key_services import FakeOpenRouterKeys
from fakes.railway import FakeRailway, crashed
from fakes.rotating import Died, Rotating, Says
from oxherd.cloud.railway import Railway
from oxherd.errors import OperationUnderWay, RotationStopped, ServiceRefused, UsageError
from oxherd.ops.lock import held
from oxherd.ops.rotate_state import Locks, Progress, Stage, StateFile
from oxherd.settings import Secret, load

pytestmark = pytest.mark.skipif(
    not (railways.CONTRACT.exists() and key_services.OPENROUTER.path.exists()), reason=key_services.OPENROUTER.absent
)
NAME = "OPENROUTER_API_KEY"
STAGES = ["new", "install", "prove", "switch", "retire", "bury", "record"]
KEY, OTHER = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))


@pytest.fixture
async def router():
    async with FakeOpenRouterKeys() as fake:
        fake.make("somebody else's")
        yield fake


@pytest.fixture
async def railway(router):
    async with FakeRailway(OPENROUTER_API_KEY=router.make("first", limit=20, limit_reset="monthly")) as fake:
        fake.deploy()
        await fake.sleep(60)
        yield fake


@pytest.fixture
def rig(tmp_path, router, railway):
    environ = {
        "OPENROUTER_MANAGEMENT_KEY": router.management_key, "OPENROUTER_BASE_URL": router.url, "ENCRYPTION_KEY": KEY,
        **railway.environ,
    }  # fmt: skip
    return Rotating(tmp_path / "state", environ, railway.sleep)


async def test_a_key_is_replaced_and_the_old_one_is_dead(rig, router, railway, oxherd_database_url):
    rig.environ["DATABASE_URL"] = oxherd_database_url
    old, before = railway.variables[NAME], len(railway.deployed)
    assert await rig.run(NAME) == STAGES
    new = railway.variables[NAME]
    assert {row["name"] for row in router.rows.values()} == {"somebody else's", next(
        row["name"] for key, row in router.rows.items() if router.values[key] == new
    )}  # fmt: skip
    (row,) = [row for key, row in router.rows.items() if router.values[key] == new]
    assert (new != old, row["limit"], row["limit_reset"], row["disabled"]) == (True, 20, "monthly", False)
    assert len(railway.deployed) == before + 1
    assert railway.deployed[-1].variables[NAME] == new
    assert [name for name, _ in railway.requests].count("WriteVariables") == 1
    assert not rig.begun(NAME)
    connection = await asyncpg.connect(oxherd_database_url)
    audit = await connection.fetchrow("select * from oxherd.audit_log")
    operation = await connection.fetchrow("select kind, target, outcome from oxherd.operations")
    await connection.close()
    assert (audit["actor"], audit["action"], audit["target"], audit["outcome"]) == ("cli", "rotate", NAME, 200)
    assert tuple(operation) == ("rotation", NAME, "ok")
    for value in (old, new):
        assert value not in str(audit) + str(rig.told)


async def test_a_dry_run_changes_nothing_and_says_all_there_is_to_say(rig, router, railway):
    plan = await rig.plan(NAME)
    assert [step.action for step in plan.steps] == STAGES
    words = " ".join(step.detail for step in plan.steps)
    assert "its limit of $20 begins anew" in words
    assert "herd/production/worker" in words
    assert "never roll a deployment back" in words
    assert (router.writes, railway.writes, rig.folder.exists()) == ([], [], False)


async def test_processes_that_die_before_they_save_leave_no_second_key_and_lose_none(rig, router, railway, monkeypatch):
    before = len(railway.deployed)
    assert await rig.die_at_every_save(NAME, monkeypatch) >= len(STAGES) - 2
    names = sorted(row["name"] for row in router.rows.values())
    assert (len(names), names[1]) == (2, "somebody else's")
    assert railway.variables[NAME] in router.values.values()
    assert len(railway.deployed) == before + 1


async def test_a_proof_that_fails_stops_before_anything_is_switched(rig, router, railway):
    router.refuses_new_keys = True
    old = railway.variables[NAME]
    with pytest.raises(RotationStopped, match="does not take the key that it has just made") as stopped:
        await rig.run(NAME)
    assert "--rollback" in stopped.value.hint
    assert (railway.writes, railway.variables[NAME]) == ([], old)
    await rig.roll_back(NAME)
    assert sorted(row["name"] for row in router.rows.values()) == ["first", "somebody else's"]
    assert railway.writes == []


async def test_a_deployment_that_fails_stops_the_rotation_with_both_keys_good_and_the_next_try_deploys_again(
    rig, router, railway
):
    railway.plays.append(crashed("no such model"))
    with pytest.raises(RotationStopped, match="CRASHED"):
        await rig.run(NAME)
    assert not any(row["disabled"] for row in router.rows.values())
    assert await rig.run(NAME, resume=True) == STAGES[3:]


async def test_until_it_is_retired_the_old_key_comes_back_and_the_new_one_goes(rig, router, railway):
    old = railway.variables[NAME]
    railway.plays.append(crashed("it is broken"))
    with pytest.raises(RotationStopped):
        await rig.run(NAME)
    assert railway.variables[NAME] != old
    await rig.roll_back(NAME)
    assert (railway.variables[NAME], railway.deployed[-1].variables[NAME]) == (old, old)
    assert sorted(row["name"] for row in router.rows.values()) == ["first", "somebody else's"]
    assert "Rollback" not in railway.writes  # Railway's own would bring back all variables of then
    assert await rig.run(NAME) == STAGES


async def test_once_it_is_retired_there_is_no_way_back(rig, router, monkeypatch):
    save = StateFile.save

    def dying(file, progress):
        save(file, progress)
        if progress.retiring:
            raise Died

    with monkeypatch.context() as patched, suppress(Died):
        patched.setattr(StateFile, "save", dying)
        await rig.run(NAME)
    with pytest.raises(RotationStopped, match="no way back"):
        await rig.roll_back(NAME)
    assert await rig.run(NAME, resume=True) == ["retire", "bury", "record"]


async def test_a_reference_to_another_service_is_not_overwritten(rig, railway):
    railway.write(OPENROUTER_API_KEY="${{shared.KEY}}")
    with pytest.raises(RotationStopped, match="refers to a variable of another service"):
        await rig.run(NAME)
    assert railway.writes == []


async def test_a_value_that_differs_from_the_one_in_use_is_not_rotated(rig, router, railway):
    rig.environ[NAME] = "sk-or-v1-another"
    with pytest.raises(RotationStopped, match="not the one that is in use"):
        await rig.run(NAME)
    assert router.writes == []


async def test_what_is_under_way_is_not_begun_a_second_time(rig, router):
    router.refuses_new_keys = True
    with pytest.raises(RotationStopped):
        await rig.run(NAME)
    with pytest.raises(RotationStopped, match="under way; next is: prove"):
        await rig.run(NAME)
    one, other = (StateFile(rig.folder, NAME, Locks()) for _ in range(2))
    with one.locked(), pytest.raises(RotationStopped, match="by another process"), other.locked():
        pass


async def test_a_key_for_model_calls_can_t_stand_for_a_management_key(rig, router, railway):
    rig.environ["OPENROUTER_MANAGEMENT_KEY"] = railway.variables[NAME]
    with pytest.raises(ServiceRefused, match="Only management keys"):
        await rig.run(NAME)


async def test_people_get_a_file_that_only_they_can_read_and_it_goes_when_they_are_done(rig, router, railway):
    rig.environ[NAME] = railway.variables[NAME]
    rig.person = Says(yes=False)
    with pytest.raises(RotationStopped, match="waits for you"):
        await rig.run(NAME, consumers=("manual",))
    file = rig.folder / f"{NAME}.env"
    value = file.read_text().strip().removeprefix(f"{NAME}=")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert value in router.values.values()
    assert value not in str(rig.told) + str(rig.person.asked)
    rig.person = Says()
    assert await rig.run(NAME, consumers=("manual",), resume=True) == STAGES[3:]
    assert not file.exists()
    assert railway.writes == []


async def test_who_said_too_early_that_all_is_set_gets_the_file_again(rig, router, railway, redis_url, queue_name):
    rig.environ |= {NAME: railway.variables[NAME], "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name}
    rig.test_job, rig.patience = True, 0.1  # no worker is there to prove that it has the new key
    file, values = rig.folder / f"{NAME}.env", []
    for _ in range(2):
        rig.person = Says(yes=False)
        with pytest.raises(RotationStopped, match="waits for you"):
            await rig.run(NAME, consumers=("manual",), resume=rig.begun(NAME))
        values.append(file.read_text())
        rig.person = Says()
        with pytest.raises(RotationStopped, match="no worker ran a test job"):
            await rig.run(NAME, consumers=("manual",), resume=True)
        assert not file.exists()
    assert values[0] == values[1]


async def test_a_named_pipe_gets_the_value_instead_of_a_file(rig, railway, tmp_path):
    rig.environ[NAME] = railway.variables[NAME]
    os.mkfifo(pipe := tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append(pipe.read_text()))
    thread.start()
    await rig.run(NAME, consumers=("manual",), target=pipe)
    await asyncio.to_thread(thread.join)
    assert read[0].startswith(f"{NAME}=sk-or-v1-")


def a_file(folder, *keys, passphrase=None):
    return StateFile(folder, "X", Locks(tuple(map(Secret, keys)), passphrase and Secret(passphrase)))


def test_a_state_opens_with_the_key_or_the_passphrase_it_was_kept_with_and_with_nothing_else(tmp_path):
    progress = Progress.begin("X")
    progress.new = {"X": Secret("the new value")}
    progress.stage = Stage.SWITCH
    a_file(tmp_path, KEY, passphrase="open sesame").save(progress)
    for good in (a_file(tmp_path, KEY), a_file(tmp_path, OTHER, KEY), a_file(tmp_path, passphrase="open sesame")):
        loaded = good.load()
        assert (loaded.stage, loaded.new["X"].reveal()) == (Stage.SWITCH, "the new value")
    for bad in (a_file(tmp_path, OTHER), a_file(tmp_path, passphrase="open barley"), a_file(tmp_path)):
        with pytest.raises(UsageError, match="opens with"):
            bad.load()
    text = (tmp_path / "X.rotation").read_text()
    assert "the new value" not in text
    assert json.loads(text)["stage"] == "switch"
    assert stat.S_IMODE((tmp_path / "X.rotation").stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="nothing to encrypt it with"):
        a_file(tmp_path).save(progress)


def test_the_state_of_a_new_encryption_key_opens_with_the_old_and_the_new_one(tmp_path):
    progress = Progress.begin("X")
    progress.old, progress.new = {"ENCRYPTION_KEY": Secret(KEY)}, {"ENCRYPTION_KEY": Secret(OTHER)}
    a_file(tmp_path, KEY).save(progress)
    for key in (KEY, OTHER):
        assert a_file(tmp_path, key).load().id == progress.id


async def test_a_secret_that_waits_for_a_person_is_not_rotated_from_another_folder_until_it_is_over(
    rig, router, railway, redis_url, tmp_path
):
    rig.environ |= {NAME: railway.variables[NAME], "REDIS_URL": redis_url}
    rig.person = Says(yes=False)
    elsewhere = Rotating(tmp_path / "elsewhere", rig.environ, railway.sleep)
    with pytest.raises(RotationStopped, match="waits for you"):
        await rig.run(NAME, consumers=("manual",))
    made = len(router.rows)
    with pytest.raises(
        OperationUnderWay, match=f"{NAME} is being rotated elsewhere: `oxherd rotate {NAME}` of"
    ) as told:
        await elsewhere.run(NAME, consumers=("manual",))
    assert "redis-cli DEL oxherd:bull:operating:rotation:" in told.value.hint
    assert (len(router.rows), elsewhere.begun(NAME)) == (made, False)
    rig.person = Says()
    await rig.run(NAME, consumers=("manual",), resume=True)
    rig.environ[NAME] = next(router.values[key] for key, row in router.rows.items() if row["name"] != "somebody else's")
    assert await elsewhere.run(NAME, consumers=("manual",)) == STAGES


async def test_a_service_that_somebody_else_changes_is_not_switched(rig, railway, redis_url):
    rig.environ["REDIS_URL"] = redis_url
    settings = load(rig.environ, needs=())
    async with Railway.of(settings) as api:
        place = await api.place()
    async with held(settings, place, "deploy guard", "watching", print):
        with pytest.raises(OperationUnderWay, match="`oxherd deploy guard` of") as stopped:
            await rig.run(NAME)
    assert "--resume" in stopped.value.hint
    assert railway.writes == []
