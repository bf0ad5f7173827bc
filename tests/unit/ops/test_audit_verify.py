"""`oxherd audit secrets --verify`: real Postgres and Valkey, and doubles that refuse what the services refuse."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sys
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import kingfisher_sdk
import pytest
from bench.audit.planted import alnum, jwt, openrouter, uuid

from fakes import key_services, railway, sentry_api
from fakes.key_services import FakeOpenRouterKeys, FakeSupabaseApi, FakeUpstash
from fakes.railway import FakeRailway
from fakes.sentry_api import FakeSentry
from fakes.tls import certificate
from oxherd.cloud.certificates import SSL_REQUEST
from oxherd.embedded.valkey import Valkey
from oxherd.ops import audit_formats, audit_reach, audit_verify
from oxherd.ops.audit_known import Known, Marker
from oxherd.ops.audit_reach import Doors, Login
from oxherd.ops.audit_secrets import audit
from oxherd.ops.audit_sources import Scope
from oxherd.settings import Secret, load

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))

from postgrest_double import MAKE_ROLES, PostgrestDouble

CONTRACTS = (key_services.OPENROUTER, key_services.SUPABASE, key_services.UPSTASH, sentry_api.PUBLISHED)
pytestmark = pytest.mark.skipif(
    not (railway.CONTRACT.exists() and all(each.path.exists() for each in CONTRACTS)), reason=railway.ABSENT
)


@pytest.fixture
def told(tmp_path):
    """What `--verify` says of the secrets in a text, by their values: live and why."""

    async def tell(text, **environ):
        (tmp_path / "found.txt").write_text(text)
        settings = load({name.upper(): value for name, value in environ.items()}, needs=())
        report = audit(
            tmp_path, Scope(), Marker(None), Known(), installed=settings.named_secrets, today=date(2026, 11, 28)
        )
        assert {(each.live, each.answer) for each in report.findings} == {(None, "")}
        report = await audit_verify.verified(report, settings)
        shown = audit_formats.text(report) + json.dumps(audit_formats.data(report), default=str)
        for each in report.findings:
            assert each.value.reveal() not in shown
        return {each.value.reveal(): (each.live, each.answer) for each in report.findings}

    return tell


async def test_openrouter_tells_the_live_from_the_dead_and_what_a_key_may(told):
    dead = openrouter()
    async with FakeOpenRouterKeys() as router:
        capped, free = router.make("one", limit=20), router.make("two")
        said = await told(f"A={capped}\nB={free}\nC={dead}\n", openrouter_base_url=router.url)
        assert said == {
            capped: (True, "OpenRouter takes it, up to 20 US dollars"),
            free: (True, "OpenRouter takes it, without a limit"), dead: (False, "OpenRouter refuses it"),
        }  # fmt: skip
        router.next_answers.append((500, {"error": f"what is {capped}?"}))
        assert await told(f"A={capped}\n", openrouter_base_url=router.url) == {
            capped: (None, "OpenRouter answers HTTP 500")
        }
        assert router.writes == []


async def test_a_service_that_is_away_leaves_it_open(told, monkeypatch):
    monkeypatch.setattr("oxherd.cloud.railway_wire.TRIES", 1)
    key, token, uid = openrouter(), f"sntryu_{secrets.token_hex(32)}", uuid()
    nowhere = "http://127.0.0.1:1"
    said = await told(
        f"A={key}\nB={token}\nRAILWAY_TOKEN={uid}\n", openrouter_base_url=nowhere, sentry_url=nowhere,
        railway_api_url=nowhere,
    )  # fmt: skip
    assert said == {
        key: (None, "OpenRouter did not answer"), token: (None, "Sentry did not answer"),
        uid: (None, "Railway did not answer"),
    }  # fmt: skip


async def test_sentry_tells_its_token_s_scopes_and_another_s_is_left_open(told):
    async with FakeSentry() as sentry:

        def made(url):
            about = base64.b64encode(json.dumps({"iat": 1.5, "url": url, "org": "acme"}).encode()).decode().rstrip("=")
            return f"sntrys_{about}_{secrets.token_urlsafe(32)}"

        sentry.token, dead, other = made(sentry.url), made(sentry.url), made("https://sentry.example.org")
        of_user = f"sntryu_{secrets.token_hex(32)}"
        said = await told(f"{sentry.token}\n{dead}\n{other}\n{of_user}", sentry_url=sentry.url)
        assert said[sentry.token] == (True, "Sentry takes it, for org:ci")
        assert said[dead] == (False, "Sentry refuses it")
        assert said[other] == (None, "it belongs to a Sentry that SENTRY_URL does not name")
        assert said[of_user] == (None, "SENTRY_URL does not take it; another Sentry may")
        assert sentry.writes == []


async def test_supabase_s_keys_are_tried_where_they_may_belong_and_die_only_where_they_do(
    told, database_url, monkeypatch
):
    key, other, role = f"sb_secret_{alnum(31)}", f"sb_secret_{alnum(31)}", jwt("service_role")
    connection = await asyncpg.connect(database_url)
    await connection.execute(MAKE_ROLES)
    await connection.close()
    async with PostgrestDouble(database_url, secret_keys={key}, jwts={role: "service_role"}) as project:
        text = f"A={key}\nB={other}\nC={role}\n"
        said = await told(text, supabase_url=project.url, supabase_service_role_key=key)
        assert said == {
            key: (True, "its Supabase project takes it"), role: (True, "its Supabase project takes it"),
            other: (None, "SUPABASE_URL does not take it; another project may"),
        }  # fmt: skip
        assert await told(f"B={other}\n") == {other: (None, "no project stands beside it")}
        monkeypatch.setattr(audit_verify, "PROJECT", project.url + "?{}")
        beside = f"url = 'https://{key_services.REF}.supabase.co'\n"
        assert await told(f"{beside}B={other}\n") == {other: (False, "its Supabase project refuses it")}
        assert {each.partition(" ")[0] for each in project.requests} == {"GET"}


async def test_the_keys_to_accounts_of_supabase_and_upstash(told):
    async def reset(_):
        raise AssertionError("a password was reset")

    async with FakeSupabaseApi() as supabase, FakeUpstash("eu1-a.upstash.io", "p", reset) as upstash:
        dead, wrong = f"sbp_{secrets.token_hex(20)}", uuid()
        where = {"supabase_api_url": supabase.url, "upstash_api_url": upstash.url}
        text = f"A={supabase.token}\nB={dead}\nUPSTASH_API_KEY={upstash.key}\n"
        said = await told(text + f"UPSTASH_EMAIL={upstash.email}\n", **where)
        assert said == {
            supabase.token: (True, "Supabase takes it: all that its owner may do"),
            dead: (False, "Supabase refuses it"), upstash.key: (True, "Upstash takes it: all databases of the account"),
        }  # fmt: skip
        assert await told(f"UPSTASH_API_KEY={wrong}\n", **where) == {wrong: (None, "it needs UPSTASH_EMAIL")}
        assert await told(f"UPSTASH_API_KEY={wrong}\n", upstash_email="a@b.c", **where) == {
            wrong: (None, "Upstash refuses it with the addresses that are known")
        }
        assert (supabase.writes, upstash.writes) == ([], [])


async def test_a_railway_token_is_tried_as_each_kind_that_there_is(told):
    async with FakeRailway() as fake:
        dead = uuid()
        text = "".join(f"RAILWAY_TOKEN={each}\n" for each in (fake.token, fake.api_token, fake.workspace_token, dead))
        assert await told(text, railway_api_url=fake.url) == {
            fake.token: (True, "Railway takes it: the environment production of the project herd"),
            fake.api_token: (True, "Railway takes it: all that its owner may do"),
            fake.workspace_token: (True, "Railway takes it: all of the workspace acme"),
            dead: (False, "Railway does not know it"),
        }  # fmt: skip
        assert set(fake.writes) <= {"Me", "ApiToken"}
        fake.next_answers += [(400, '{"errors": [{"message": "Rate limit"}]}', {})]
        assert await told(f"RAILWAY_TOKEN={dead}\n", railway_api_url=fake.url) == {
            dead: (None, "Railway answers something else")
        }


def login(url, user, password, **more):
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}", **more).geturl()


async def test_postgres_lets_a_live_password_in_and_refuses_a_dead_one(told, database_url):
    role, password = f"app_{secrets.token_hex(4)}", secrets.token_hex(12)
    live, dead = login(database_url, role, password), login(database_url, role, secrets.token_hex(12))
    shown = f"Postgres at {urlsplit(database_url).hostname}:{urlsplit(database_url).port}"
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"create role {role} login password '{password}'")
    try:
        said = await told(f"url = '{live}'\n", database_url=dead)
        assert said == {password: (True, f"{shown} lets it in")}
        said = await told(
            f"url = '{login(live, role, password, path='/nothing')}?sslmode=disable'\n", database_url=dead
        )
        assert said == {password: (True, f"{shown} takes it, though not for this database")}
        gone = urlsplit(dead).password
        assert await told(f"url = '{dead}'\n", database_url=live) == {gone: (False, f"{shown} refuses it")}
        said = await told(f"url = '{live}?sslmode=require'\n", database_url=dead)
        assert said == {password: (None, f"{urlsplit(live).hostname}:{urlsplit(live).port} did not answer")}
    finally:
        await connection.execute(f"drop role {role}")
        await connection.close()


async def test_redis_lets_a_live_password_in_and_refuses_a_dead_one(told, tmp_path):
    password, other = alnum(20), alnum(20)
    (tmp_path / "users").mkdir()
    file = tmp_path / "users" / "users.acl"
    file.write_text(f"user default off\nuser app on >{password} ~* &* +@all -ping\n")
    with Valkey(tcp=True, config={"aclfile": str(file)}) as engine:
        file.unlink()
        shown = f"Redis at 127.0.0.1:{urlsplit(engine.url).port}"
        live, dead = login(engine.url, "app", password), login(engine.url, "app", other)
        assert await told(f"A='{live}'\n", redis_url=dead) == {password: (True, f"{shown} lets it in")}
        assert await told(f"A='{dead}'\n", redis_url=live) == {other: (False, f"{shown} refuses it")}
        encoded = live.replace(password, f"%{ord(password[0]):02x}{password[1:]}")
        assert set((await told(f"A='{encoded}'\n", redis_url=dead)).values()) == {(True, f"{shown} lets it in")}


async def test_a_redis_without_a_password_says_nothing_of_one(told):
    with Valkey(tcp=True) as engine:
        password = alnum(20)
        url = engine.url.replace("redis://", f"redis://:{password}@")
        assert await told(f"A='{url}'\n", redis_url=url) == {
            password: (None, f"Redis at 127.0.0.1:{urlsplit(engine.url).port} asks nobody for a password")
        }


async def test_addresses_that_only_a_text_names_are_not_called_where_they_are_private(told):
    visits = []

    async def greet(reader, writer):
        visits.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            for url in (f"redis://:{alnum(20)}@{host}:{port}/0", f"postgres://app:{alnum(20)}@{host}:{port}/app"):
                ((live, answer),) = (await told(f"url = '{url}'\n")).values()
                why = f"{host}:{port} is private: set the variable to that address to have it asked"
                assert (live, answer) == (None, why)
        assert visits == []


@pytest.mark.parametrize(
    ("host", "is_called"),
    [("1.1.1.1", True), ("2606:4700::1111", True), ("10.0.0.1", False), ("169.254.169.254", False), ("::1", False),
     ("100.64.0.1", False), ("fd12::1", False), ("0.0.0.0", False), ("::ffff:127.0.0.1", False), ("224.0.0.1", False)],
)  # fmt: skip
async def test_only_public_addresses_are_called(host, is_called):
    doors = Doors(load({}, needs=()))
    address, why = await doors.open(Login(host, 6379, None, Secret("p"), None, "disable"))
    assert (bool(address), not why) == (is_called, is_called)


async def test_a_text_can_t_have_a_network_searched():
    doors = Doors(load({}, needs=()))
    opened = [
        await doors.open(Login("1.1.1.1", port, None, Secret("p"), None, "disable"))
        for port in range(1, audit_reach.MOST_PLACES + 2)
    ]
    assert [bool(address) for address, _ in opened] == [True] * audit_reach.MOST_PLACES + [False]
    assert "was left out" in opened[-1][1]


@asynccontextmanager
async def behind_tls(folder, port, *, postgres):
    """A port on which TLS is spoken, with a certificate for `localhost`, in front of one without."""
    context = certificate(folder)

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader, writer):
        if postgres:
            assert await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST
            writer.write(b"S")
            try:
                await writer.start_tls(context)
            except OSError:
                return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if postgres else context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_is_checked_by_the_host_s_name_though_its_ip_address_is_called(
    told, tmp_path_factory, database_url, monkeypatch
):
    folder, other, password = tmp_path_factory.mktemp("tls"), tmp_path_factory.mktemp("tls"), alnum(20)
    role, inner = f"app_{secrets.token_hex(4)}", urlsplit(database_url).port
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"create role {role} login password '{password}'")
    try:
        with Valkey(tcp=True, config={"requirepass": password}) as engine:
            valkey = urlsplit(engine.url).port
            async with (
                behind_tls(folder, valkey, postgres=False) as redis_port,
                behind_tls(other, inner, postgres=True) as database_port,
            ):
                redis = f"rediss://:{password}@localhost:{redis_port}"
                database = f"postgresql://{role}:{password}@localhost:{database_port}/postgres?sslmode=verify-full"
                for url, name, port in (
                    (redis, "redis_url", redis_port),
                    (database, "database_url", database_port),
                ):
                    (said,) = (await told(f"A='{url}'\n", **{name: url})).values()
                    assert said == (None, f"localhost:{port} shows a certificate that is not to be trusted")
                monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
                (said,) = (await told(f"A='{redis}'\n", redis_url=redis)).values()
                assert said == (True, f"Redis at localhost:{redis_port} lets it in")
                monkeypatch.setenv("SSL_CERT_FILE", str(other / "cert.pem"))
                (said,) = (await told(f"A='{database}'\n", database_url=database)).values()
                assert said == (True, f"Postgres at localhost:{database_port} lets it in")
    finally:
        await connection.execute(f"drop role {role}")
        await connection.close()


async def test_the_scanner_asks_with_both_parts_of_what_has_two(told, monkeypatch):
    missing = []

    class Offline(kingfisher_sdk.Validator):
        def validate(self, findings, **_):
            missing.extend(issue.code for issues in self.inspect(findings) for issue in issues)
            return []

    monkeypatch.setattr(kingfisher_sdk, "Validator", Offline)
    key_id = "AKIA" + alnum(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
    key = base64.b64encode(secrets.token_bytes(30)).decode()
    said = await told(f"aws_access_key_id = {key_id}\naws_secret_access_key = {key}\n")
    assert said == {key_id: (None, "there is nobody to ask"), key: (None, "there is nobody to ask")}
    assert missing == []


async def test_a_question_that_fails_stops_nothing_and_quotes_nothing(told, monkeypatch):
    key = openrouter()

    async def broken(_, finding):
        raise RuntimeError(f"can't ask with {finding.value.reveal()}")

    monkeypatch.setattr(audit_verify._Asker, "_openrouter", broken)
    assert await told(f"A={key}\n") == {key: (None, "asking failed: RuntimeError")}
