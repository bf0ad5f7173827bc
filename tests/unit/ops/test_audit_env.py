"""`oxherd audit env` and `oxherd audit report`, against real engines."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from bench.audit.planted import Repository, jwt, openrouter, uuid
from redis import Redis
from typer.testing import CliRunner

from fakes.railway import ABSENT, CONTRACT, Elsewhere, FakeRailway
from oxherd.cli import app
from oxherd.ops import audit_report
from oxherd.ops.audit_env import (
    HERE,
    RIGHTS,
    Environment,
    Fault,
    Inventory,
    Row,
    ask_postgres,
    ask_redis,
    inventory,
    is_private,
    secrets_page,
)
from oxherd.ops.audit_railway import environments
from oxherd.ops.audit_report import Evidence
from oxherd.ops.audit_rules import Level
from oxherd.ops.audit_secrets import Report
from oxherd.settings import Secret, load, parse_redis_url
from oxherd.store import Operation, migrate
from oxherd.store.postgres import PostgresStore

DAY = 86_400_000
NOW = 1_795_000_000_000
run = CliRunner().invoke


def found(environ, *others, rotations=None):
    places = {HERE: environ, **{f"place {number}": other for number, other in enumerate(others, 1)}}
    places = {
        place: Environment({name: Secret(value) for name, value in values.items()}) for place, values in places.items()
    }
    return inventory(places, load(environ, needs=()), rotations=rotations, now_ms=NOW, asked={})


def words(inventory):
    return {(each.control, each.variable, each.level.word) for each in inventory.faults if each.control != "token"}


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"REDIS_URL": "redis://:a-password@eu1.upstash.io:6379"}, ("tls", "REDIS_URL", "error")),
        ({"REDIS_URL": "rediss://eu1.upstash.io:6379"}, ("privilege", "REDIS_URL", "error")),
        ({"DATABASE_URL": "postgresql://u:p@db.example.com/app?sslmode=disable"}, ("tls", "DATABASE_URL", "error")),
        ({"DATABASE_URL": "postgresql://u:p@db.example.com/app"}, ("tls", "DATABASE_URL", "warning")),
        (
            {"SUPABASE_SERVICE_ROLE_KEY": jwt("anon"), "SUPABASE_URL": "https://a.supabase.co"},
            ("privilege", "SUPABASE_SERVICE_ROLE_KEY", "error"),
        ),
        (
            {"SUPABASE_SERVICE_ROLE_KEY": jwt("service_role"), "SUPABASE_URL": "https://a.supabase.co"},
            ("age", "SUPABASE_SERVICE_ROLE_KEY", "note"),
        ),
        (
            {"SUPABASE_SERVICE_ROLE_KEY": "x" * 20, "DATABASE_URL": "postgresql://u:p@localhost/app"},
            ("privilege", "SUPABASE_SERVICE_ROLE_KEY", "warning"),
        ),
    ],
)
def test_a_variable_that_allows_too_much_is_told(environ, fault):
    assert fault in words(found(environ))


@pytest.mark.parametrize(
    "environ",
    [
        {"REDIS_URL": "rediss://:a-password@eu1.upstash.io:6379"},
        {"REDIS_URL": "redis://:a-password@redis.railway.internal:6379"},
        {"REDIS_URL": "unix:///run/redis.sock"},
        {"DATABASE_URL": "postgresql://u:p@db.example.com/app?sslmode=verify-full"},
        {"DATABASE_URL": "postgresql://u:p@10.0.0.4/app"},
    ],
)
def test_a_variable_that_is_as_it_should_be_is_not_told(environ):
    assert found(environ).failing == ()


def test_a_host_is_private_where_nobody_outside_can_listen():
    private = ("localhost", "::1", "10.1.2.3", "192.168.0.1", "fd12::1", "redis", "db.railway.internal")
    assert all(map(is_private, private))
    assert not any(map(is_private, ("db.example.com", "8.8.8.8", "2606:4700::1111")))


def test_a_secret_that_two_environments_share_is_told_without_its_value():
    token = secrets.token_hex(20)
    made = found({"API_TOKEN": token}, {"API_TOKEN": token}, {"API_TOKEN": secrets.token_hex(20)})
    (fault,) = made.failing
    assert (fault.control, fault.message) == ("sharing", f"the same in {HERE} and place 1")
    assert token not in repr(made) + secrets_page(made)


def test_an_app_s_own_secrets_are_compared_too():
    token = secrets.token_hex(20)
    own = {"STRIPE_API_KEY": token, "COUCH": f"https://u:{token}@couch.example.com", "LOG_LEVEL": "debug", "PORT": "1"}
    made = found({}, own, own)
    shared = [(each.variable, each.message) for each in made.failing if each.control == "sharing"]
    assert shared == [
        ("COUCH", "the same in place 1 and place 2"),
        ("STRIPE_API_KEY", "the same in place 1 and place 2"),
    ]
    assert token not in repr(made) + secrets_page(made)


@pytest.fixture
async def railway():
    """Production and staging: what they share, what is old, what is too much, what is written and not deployed."""
    shared, own = secrets.token_hex(20), secrets.token_hex(20)
    async with FakeRailway(API_TOKEN=shared, OPENROUTER_API_KEY=own, RAILWAY_API_TOKEN=uuid(), HIDDEN_KEY="s") as fake:
        fake.sealed = {"HIDDEN_KEY"}
        fake.written = dict.fromkeys(fake.variables, fake.now - 200 * 86_400)
        (staging,) = fake.others
        staging.variables = {"API_TOKEN": shared, "REDIS_URL": f"redis://:{secrets.token_hex(8)}@eu1.upstash.io:6379"}
        staging.written = dict.fromkeys(staging.variables, fake.now - 10 * 86_400)
        fake.deploy()
        await fake.sleep(60)
        staging.deployed = [fake.deployed[0]]
        staging.written["REDIS_URL"] = fake.now
        fake.values = (shared, own)
        yield fake


@pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
async def test_every_environment_on_railway_is_looked_at_and_compared(railway, tmp_path):
    environ = {
        "RAILWAY_API_TOKEN": railway.api_token, "RAILWAY_API_URL": railway.url, "RAILWAY_PROJECT_ID": "herd",
        "RAILWAY_TOKEN": railway.token,
    }  # fmt: skip
    done = await asyncio.to_thread(run, app, ["audit", "env", "--railway", "--offline", "--json"], env=environ)
    assert done.exit_code == 1, done.output
    made = json.loads(done.stdout)
    told = {(each["control"], each["variable"], each["message"]) for each in made["faults"]}
    assert ("sharing", "API_TOKEN", "the same in Railway production and Railway staging") in told
    assert ("sharing", "HIDDEN_KEY", "is sealed in Railway production: nobody can compare it") in told
    assert ("age", "OPENROUTER_API_KEY", "was last written 200 days ago in Railway production") in told
    assert ("age", "REDIS_URL", "was written in Railway staging after what runs there was deployed") in told
    assert ("privilege", "RAILWAY_API_TOKEN", "is set in Railway production, and no worker needs it") in told
    public = "goes over a public network without TLS, password and all (Railway staging)"
    assert ("tls", "REDIS_URL", public) in told
    rows = {row["variable"]: row for row in made["variables"]}
    assert rows["API_TOKEN"]["where"] == ["Railway production", "Railway staging"]
    assert rows["API_TOKEN"]["written_days"] == {"Railway production": 200, "Railway staging": 10}
    assert rows["HIDDEN_KEY"]["where"] == ["Railway production"]
    assert not any(name.startswith("RAILWAY_SERVICE") for name in rows)
    report = ["audit", "report", str(tmp_path), "--railway", "--offline", "--json"]
    scored = await asyncio.to_thread(run, app, report, env=environ)
    (sharing,) = [each for each in json.loads(scored.stdout)["controls"] if each["name"].startswith("Environments")]
    assert (sharing["score"], sharing["evidence"]) == (
        50, "API_TOKEN: the same in Railway production and Railway staging"
    )  # fmt: skip
    for secret in (*railway.values, railway.api_token, railway.token):
        assert secret not in done.output + scored.output
    assert railway.writes == []


@pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
async def test_a_project_token_looks_at_its_own_environment_and_says_so(railway):
    environ = {**railway.environ, "RAILWAY_ENVIRONMENT_NAME": "production"}
    done = await asyncio.to_thread(run, app, ["audit", "env", "--railway", "--offline"], env=environ)
    assert "RAILWAY_TOKEN sees its own environment only" in done.stderr
    assert "Railway production (written 200 d ago)" in done.stdout
    assert "staging" not in done.output
    assert HERE not in done.stdout


@pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
async def test_an_environment_that_can_t_be_read_is_told_and_stops_nothing(railway):
    settings = load({"RAILWAY_API_TOKEN": railway.api_token, "RAILWAY_API_URL": railway.url,
                     "RAILWAY_PROJECT_ID": "herd"}, needs=("RAILWAY",))  # fmt: skip
    railway.others += [Elsewhere("closed", is_open=False), Elsewhere("broken", has_service=False)]
    found, away = await environments(settings)
    assert list(found) == ["Railway production", "Railway staging"]
    (words,) = away
    assert words.startswith("Railway broken could not be asked: Railway refused Variables")


def test_the_age_of_a_secret_is_that_of_its_last_rotation_that_succeeded():
    rotations = [
        {"target": "API_TOKEN", "outcome": "failed", "at": NOW - 1 * DAY},
        {"target": "API_TOKEN", "outcome": "ok", "at": NOW - 200 * DAY},
        {"target": "API_TOKEN", "outcome": "ok", "at": NOW - 400 * DAY},
    ]
    made = found({"API_TOKEN": "t" * 20, "OPENROUTER_API_KEY": "k"}, rotations=rotations)
    rows = {row.variable: row.rotated_days for row in made.rows}
    assert (rows["API_TOKEN"], rows["OPENROUTER_API_KEY"]) == (200, None)
    assert [(each.variable, each.control) for each in made.failing] == [("API_TOKEN", "age")]


def test_the_inventory_has_every_secret_and_no_value():
    token = secrets.token_hex(20)
    page = secrets_page(found({"API_TOKEN": token}))
    assert "| `API_TOKEN` |" in page
    assert "| nowhere | - | `oxherd rotate OPENROUTER_API_KEY` |" in page
    assert "by hand: make a second client key in the project" in page
    assert token not in page


async def test_a_superuser_and_tables_without_row_level_security_are_told(database_url):
    await migrate.migrate(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("create table public.open (id int); alter table oxherd.runs disable row level security")
    await connection.execute("grant select on oxherd.steps to public")
    role, password = f"limited_{secrets.token_hex(4)}", secrets.token_hex(8)
    await connection.execute(f"create role {role} login password '{password}'")
    try:
        faults = await ask_postgres(Secret(database_url))
        told = {(each.control, each.level.word, each.message) for each in faults}
        assert ("rls", "warning", "table public.open has no row-level security") in told
        assert ("rls", "error", "table oxherd.runs has no row-level security") in told
        assert ("rls", "error", "table oxherd.steps is granted to anon or everybody") in told
        assert [each.control for each in faults].count("privilege") == 1
        parts = urlsplit(database_url)
        limited = parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
        theirs = await ask_postgres(Secret(limited))
        assert not [each for each in theirs if each.control == "privilege"]
        assert [each.message for each in theirs if "granted" in each.message] == [
            "table oxherd.steps is granted to anon or everybody"
        ]
    finally:
        await connection.execute(f"drop role {role}")
        await connection.close()


async def test_the_schema_as_it_is_migrated_has_row_level_security_everywhere(database_url):
    await migrate.migrate(database_url)
    assert not [each for each in await ask_postgres(Secret(database_url)) if each.control == "rls"]


async def test_a_redis_user_that_may_flush_is_told_and_one_that_may_not_is_not(redis_url):
    (fault,) = await ask_redis(parse_redis_url(redis_url))
    assert (fault.control, fault.level.word) == ("privilege", "warning")
    assert "FLUSHALL" in fault.message
    assert RIGHTS in Path("docs/audit.md").read_text()
    password = secrets.token_hex(8)
    with Redis.from_url(redis_url) as client:
        client.execute_command(*f"ACL SETUSER worker on >{password} ~* &* {RIGHTS}".split())
        try:
            limited = replace(parse_redis_url(redis_url), username="worker", password=Secret(password))
            assert await ask_redis(limited) == []
            client.execute_command("ACL", "SETUSER", "worker", "-acl|dryrun")
            (untold,) = await ask_redis(limited)
            assert (untold.level.word, untold.message) == ("note", "Redis does not tell what this user may do")
        finally:
            client.acl_deluser("worker")


def evidence(**changes):
    base = Evidence(
        datetime.fromtimestamp(NOW / 1000, UTC),
        Report("app", (), (3, 100), (), date(2026, 11, 28)), "", Inventory((), (), ("postgres",)),
        {}, {"at": NOW}, ("uv.lock",), (True, True), (True, False),
    )  # fmt: skip
    return replace(base, **changes)


def scores(**changes):
    return {each.name: each.score for each in audit_report.controls(evidence(**changes))}


@pytest.mark.parametrize(("days", "points"), [(0.5, 100), (3, 50), (30, 0)])
def test_a_backup_s_score_falls_with_its_age(days, points):
    backup = {"outcome": "ok", "target": "b", "at": NOW - days * DAY}
    assert scores(operations={"backup": [backup]})["There is a backup of the last day"] == points


def test_an_operation_that_failed_proves_nothing():
    backup = {"outcome": "failed", "target": "b", "at": NOW}
    assert scores(operations={"backup": [backup]})["There is a backup of the last day"] == 0


def test_what_could_not_be_found_out_has_no_score_and_does_not_count():
    table = audit_report.controls(evidence(operations=None, secrets=None, unable="no scanner"))
    unknown = [each for each in table if each.score is None]
    assert "no scanner" in {each.evidence for each in unknown}
    assert audit_report.score(table) == 100
    assert f"{len(unknown)} could not be found out" in audit_report.markdown(table, evidence())


def test_a_history_that_was_not_all_looked_through_is_not_known(tmp_path):
    name, report = "No secret is in the repository, its history or its image", evidence().secrets
    assert scores()[name] == 100
    part = replace(report, skipped=("lib is a submodule",))
    assert scores(secrets=part)[name] is None
    assert scores(unable="app is in no git repository")[name] is None
    (tmp_path / "a.txt").write_text("nothing\n")
    done = run(app, ["audit", "report", str(tmp_path), "--offline", "--json"])
    told = {each["name"]: each for each in json.loads(done.stdout)["controls"]}
    assert told[name]["verdict"] == "not known"
    assert "is in no git repository" in told[name]["evidence"]


@pytest.mark.parametrize(
    ("control", "name"),
    [
        ("privilege", "Credentials may do what they must and no more"),
        ("sharing", "Environments share no secrets"),
        ("tls", "What crosses public networks is encrypted"),
    ],
)
def test_what_nobody_could_tell_is_not_passed(control, name):
    rows = (Row("REDIS_URL", "", "", ("here", "there"), None, {}, ()),)
    untold = Fault(control, "REDIS_URL", Level.NOTE, "does not tell", "")
    asked = ("postgres", "redis")
    assert scores(variables=Inventory(rows, (), asked, 2))[name] == 100
    assert scores(variables=Inventory(rows, (untold,), asked, 2))[name] is None


def test_an_environment_without_a_secret_is_not_compared_with(tmp_path):
    (tmp_path / "staging.env").write_text(f"API_TOKEN={secrets.token_hex(24)}\n")
    (tmp_path / "production.env").write_text(f"API_TOKEN={secrets.token_hex(24)}\n")
    for files, verdict in ((("staging.env",), "not known"), (("staging.env", "production.env"), "passed")):
        named = [word for file in files for word in ("--file", str(tmp_path / file))]
        done = run(app, ["audit", "report", str(tmp_path), "--offline", "--json", *named])
        told = {each["name"]: each["verdict"] for each in json.loads(done.stdout)["controls"]}
        assert told["Environments share no secrets"] == verdict


def test_an_empty_lock_file_locks_nothing(tmp_path):
    (tmp_path / "uv.lock").write_text("")
    assert audit_report.locks_of(tmp_path) == ()


def test_a_requirements_file_locks_only_with_hashes(tmp_path):
    (tmp_path / "requirements.txt").write_text("redis==6.2\n")
    assert audit_report.locks_of(tmp_path) == ()
    (tmp_path / "requirements.txt").write_text("redis==6.2 --hash=sha256:00\n")
    assert audit_report.locks_of(tmp_path) == ("requirements.txt",)


@pytest.fixture
def installation(database_url, redis_url, monkeypatch, tmp_path):
    for name, value in {
        "DATABASE_URL": database_url, "REDIS_URL": redis_url, "API_TOKEN": secrets.token_hex(20),
        "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    repo = Repository(tmp_path / "app")
    repo.commit("uv.lock", 'version = 1\nhash = "sha256:00"\n')
    return repo


async def prepared(database_url):
    await migrate.migrate(database_url)
    store = PostgresStore(database_url)
    await store.start()
    for kind, target in (("backup", "b1"), ("verify", "b1"), ("rotation", "API_TOKEN"), ("drill", "redis-lost")):
        await store.write_operation(Operation(kind, target, "ok", 1.0, {}))
    await store.stop()


def test_the_report_of_a_real_installation_rests_on_what_was_asked(installation, database_url, monkeypatch, tmp_path):
    asyncio.run(prepared(database_url))
    done = run(app, ["audit", "report", str(installation.folder), "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    by_name = {each["name"]: each for each in made["controls"]}
    assert by_name["There is a backup of the last day"]["score"] == 100
    assert by_name["Row-level security is on"]["score"] == 100
    assert by_name["No secret is in the repository, its history or its image"]["score"] == 100
    assert by_name["Credentials may do what they must and no more"]["verdict"] == "partly"
    assert by_name["Secrets are replaced within 180 days"]["evidence"] == "1 of 4 have been"
    assert 0 < made["score"] < 100
    installation.commit("a.env", f"KEY={openrouter()}\n")
    page = tmp_path / "audit.html"
    done = run(app, ["audit", "report", str(installation.folder), "--output", str(page)])
    assert done.exit_code == 1
    assert "1 secret to deal with" in page.read_text()


def test_the_command_lists_secrets_and_faults(installation, tmp_path, monkeypatch):
    import os

    token = os.environ["API_TOKEN"]
    other = tmp_path / ".env.staging"
    other.write_text(f'API_TOKEN="{token}" # of staging\n')
    done = run(app, ["audit", "env", "--offline", "--file", str(other), "--json"])
    assert done.exit_code == 1
    assert [each["control"] for each in json.loads(done.stdout)["faults"] if each["level"] == "warning"] == ["sharing"]
    assert token not in done.output
    page = run(app, ["audit", "env", "--offline", "--inventory"])
    assert page.exit_code == 0
    assert page.stdout.startswith("# Secrets\n")
    assert run(app, ["audit", "env", "--file", "nowhere"]).exit_code == 2
    other.write_text(f"API_TOKEN {token}\n")
    done = run(app, ["audit", "env", "--offline", "--file", str(other)])
    assert done.exit_code == 2
    assert token not in done.output


def test_a_service_that_is_away_is_told_and_stops_nothing(installation, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://:a-password@127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/app")
    done = run(app, ["audit", "env"])
    assert done.exit_code == 3, done.output
    assert "redis could not be asked" in done.stderr
    assert "postgres could not be asked" in done.stderr


def test_nothing_passes_that_was_not_looked_at():
    table = audit_report.controls(evidence(variables=Inventory((), (), ()), operations=None))
    known = {each.name for each in table if each.score is not None}
    assert known == {
        "No secret is in the repository, its history or its image",
        "Customers' credentials are encrypted, with one key",
        "The HTTP API asks who is there",
        "Dependencies are locked, with hashes",
    }
