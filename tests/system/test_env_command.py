"""`oxherd env` as its own process: against the fake Railway with a real worker as the deployment, and real services."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path

import pytest
from aiohttp import web
from deployed import DeployedWorker

from fakes.railway import ABSENT, CONTRACT, FakeRailway
from oxherd.cloud.railway import Place, Railway
from oxherd.ops.env import new_key
from oxherd.ops.lock import held
from oxherd.settings import Secret, load
from oxherd.store.postgres import PostgresStore
from oxherd.vault.keyring import KeyRing
from oxherd.vault.vault import Vault

needs_contract = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
MODEL_KEY = secrets.token_hex(24)
SERVICE_KEY, PUBLIC_KEY = f"sb_secret_{secrets.token_hex(16)}", f"sb_publishable_{secrets.token_hex(16)}"
TOKEN = "obviously-fake-token-0123"


@pytest.fixture
async def railway(tmp_path, redis_url, queue_name):
    (tmp_path / "good.py").write_text("from oxherd import Herd\n\nherd = Herd()\n")

    async def start(variables, say):
        return await DeployedWorker("good:herd", tmp_path, variables, say).start()

    async with FakeRailway(start=start, REDIS_URL=redis_url, JOB_QUEUE_NAME=queue_name, SEALED="kept") as fake:
        fake.sealed = {"SEALED"}
        fake.tick = 5.0
        yield fake


async def oxherd(*words: str, folder: Path, stdin: str = "", **variables: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oxherd", "env", *words, cwd=folder, env={"PATH": os.environ["PATH"], **variables},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(stdin.encode())
    return process.returncode or 0, out.decode(), err.decode()


@needs_contract
async def test_variables_are_pushed_in_one_write_deployed_once_and_the_worker_is_proven(
    railway, tmp_path, redis_url, queue_name
):
    (tmp_path / "new.env").write_text(f"API_TOKEN={TOKEN}\nJOB_CONCURRENCY=2\n")
    here = {**railway.environ, "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name}

    code, out, _ = await oxherd("push", "--from-file", "new.env", "--dry-run", folder=tmp_path, **here)
    assert code == 0
    assert "create  API_TOKEN" in out

    settings = load(here, needs=("RAILWAY",))
    async with Railway.of(settings) as api:
        place = await api.place()
    async with held(settings, place, "deploy guard", "watching", print):
        code, _, err = await oxherd("push", "--from-file", "new.env", "--yes", folder=tmp_path, **here)
        assert (code, "is being changed: `oxherd deploy guard`" in err, railway.writes) == (1, True, []), err

    code, out, err = await oxherd("push", "--from-file", "new.env", "--yes", "--settle", "0s", folder=tmp_path, **here)
    assert code == 0, out + err
    assert "verified" in out
    assert TOKEN not in out + err
    assert railway.variables["JOB_CONCURRENCY"] == "2"
    assert railway.variables["SEALED"] == "kept"
    assert len(railway.deployed) == 1
    written = [sent["input"] for name, sent in railway.requests if name == "WriteVariables"]
    assert [sorted(each["variables"]) for each in written] == [["API_TOKEN", "JOB_CONCURRENCY"]]
    assert written[0]["skipDeploys"] is True

    code, out, _ = await oxherd("diff", "--from-file", "new.env", "--json", folder=tmp_path, **here)
    states = {each["name"]: each["state"] for each in json.loads(out)["variables"]}
    assert code == 1
    assert {name: states[name] for name in ("API_TOKEN", "SEALED", "REDIS_URL")} == {
        "API_TOKEN": "same", "SEALED": "unknown", "REDIS_URL": "only there",
    }  # fmt: skip


async def test_what_another_operator_changes_is_not_changed_through_the_dashboard(tmp_path, redis_url):
    (tmp_path / "new.env").write_text("JOB_CONCURRENCY=2\n")
    ids = ("project", "environment", "service")
    here = {"REDIS_URL": redis_url, **{f"RAILWAY_{each.upper()}_ID": each for each in ids}}
    async with held(load(here, needs=()), Place(*ids, *ids), "deploy guard", "watching", print):
        code, _, err = await oxherd("push", "--from-file", "new.env", "--via", "browser", folder=tmp_path, **here)
    assert (code, "project/environment/service is being changed: `oxherd deploy guard`" in err) == (1, True), err


@needs_contract
async def test_what_is_pulled_is_encrypted_and_opens_again(railway, tmp_path, redis_url):
    pytest.importorskip("pyrage")
    phrase = "correct horse battery\n"
    here = railway.environ
    code, _, err = await oxherd("pull", "all.age", folder=tmp_path, stdin=phrase, **here)
    assert code == 0, err
    assert "since sealed: SEALED" in err
    assert redis_url.encode() not in (tmp_path / "all.age").read_bytes()
    assert (tmp_path / "all.age").stat().st_mode & 0o777 == 0o600
    code, out, _ = await oxherd("open", "all.age", folder=tmp_path, stdin=phrase)
    assert f"REDIS_URL={redis_url}" in out.splitlines()
    assert code == 0
    (tmp_path / "all.age").write_bytes(b"damaged")
    code, out, err = await oxherd("open", "all.age", folder=tmp_path, stdin=phrase)
    assert (code, out) == (2, "")
    assert "another passphrase, or it is damaged" in err


@needs_contract
async def test_a_command_that_fails_changes_nothing(railway, tmp_path):
    words = ("push", "--from-command", f"{sys.executable} -c 'raise SystemExit(3)'", "--yes")
    code, _, err = await oxherd(*words, folder=tmp_path, **railway.environ)
    assert code == 1
    assert "ended with exit code 3; nothing was changed" in err
    assert "WriteVariables" not in [name for name, _ in railway.requests]


async def test_the_services_are_asked_and_a_stored_credential_tells_a_wrong_key(tmp_path, redis_url, runs_url):
    key = new_key()
    store = PostgresStore(runs_url)
    await store.start()
    await Vault(KeyRing.of(Secret(key)), store).put("acme", "shop", Secret("their-key"))
    await store.stop()

    async def told(request: web.Request) -> web.Response:
        if request.headers["authorization"] != f"Bearer {MODEL_KEY}":
            return web.json_response({"error": {"code": 401, "message": "User not found."}}, status=401)
        return web.json_response({"data": {"limit": 10, "limit_remaining": 7.5, "is_management_key": False}})

    async def rest(request: web.Request) -> web.Response:
        known = request.headers["apikey"] in {SERVICE_KEY, PUBLIC_KEY}
        return web.json_response({}, status=200 if known else 401)

    async def users(request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if request.headers["apikey"] == SERVICE_KEY else 403)

    server = web.Application()
    server.router.add_get("/api/v1/key", told)
    server.router.add_get("/rest/v1/", rest)
    server.router.add_get("/auth/v1/admin/users", users)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    base = {
        "REDIS_URL": redis_url, "DATABASE_URL": runs_url, "SUPABASE_URL": address,
        "OPENROUTER_BASE_URL": f"{address}/api/v1",
    }  # fmt: skip
    good = {**base, "ENCRYPTION_KEY": key, "OPENROUTER_API_KEY": MODEL_KEY}
    good["SUPABASE_SERVICE_ROLE_KEY"] = SERVICE_KEY
    bad = {**base, "ENCRYPTION_KEY": new_key(), "OPENROUTER_API_KEY": new_key()}
    bad["SUPABASE_SERVICE_ROLE_KEY"] = PUBLIC_KEY
    try:
        (fine, out, _), (wrong, said, _) = await asyncio.gather(
            oxherd("check", "--probe", "--json", folder=tmp_path, **good),
            oxherd("check", "--probe", folder=tmp_path, **bad),
        )
    finally:
        await runner.cleanup()
    assert fine == 0, out
    probes = {each["name"]: (each["outcome"], each["found"]) for each in json.loads(out)["probes"]}
    assert probes["redis"][0] == "passed"
    assert probes["redis"][1].endswith(", noeviction")
    assert probes["database"] == ("passed", "postgres answers, and is migrated")
    assert probes["encryption key"] == ("passed", "it opens a stored credential")
    assert probes["openrouter"] == ("passed", "valid, with $7.50 left")
    assert probes["supabase"] == ("passed", "REST answers with HTTP 200; the key acts as service_role")
    assert key not in out
    assert wrong == 1
    assert "it does not open a stored credential" in said
    assert "the key is refused with HTTP 401" in said
    assert "the key is no service key (HTTP 403)" in said


async def test_values_go_to_pipes_and_keys_are_made_that_fit(tmp_path):
    code, out, _ = await oxherd("export", "--raw", folder=tmp_path, REDIS_URL="redis://h:1/0", UNRELATED="x")
    assert (code, out) == (0, "REDIS_URL=redis://h:1/0\n")
    code, out, _ = await oxherd("generate-key", folder=tmp_path)
    assert load({"ENCRYPTION_KEY": out.strip().removeprefix("ENCRYPTION_KEY=")}, needs=()).encryption_key
