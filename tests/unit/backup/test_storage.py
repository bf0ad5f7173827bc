from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import obstore
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from backup_helpers import execute, reachable, until, value
from obstore.store import S3Store

from oxherd.backup import catalogue, restore, runs, sealing, spool, tools
from oxherd.backup.storage import config_of, open_storage
from oxherd.embedded.engine import free_port
from oxherd.errors import JobStateError, ServiceRefused, ServiceUnreachable, UsageError
from oxherd.settings import child_environ, load

KEY, SECRET = "test-key-id", "test-secret-of-nobody"
SERVERS = {
    "moto": ["-m", "moto.server", "-H", "127.0.0.1", "-p"],
    "nanio": ["-m", "nanio", "serve", "--host", "127.0.0.1", "--no-access-log", "--port"],
}


@pytest.fixture(scope="module", params=SERVERS)
def s3(request, tmp_path_factory):
    """An S3-compatible server: moto keeps write-once conditions, nanio checks signatures."""
    port = free_port()
    folder = tmp_path_factory.mktemp(request.param)
    environ = {**os.environ, "NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET, "NANIO_DATA_DIR": str(folder)}
    server = subprocess.Popen(
        [sys.executable, *SERVERS[request.param], str(port)],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(until(lambda: answers(url)))
        make_bucket(url)
        yield request.param, url
    finally:
        server.kill()
        server.wait()


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def make_bucket(url):
    import boto3

    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="backups")


def settings_for(configured, url, **more):
    return configured(
        BACKUP_URL="s3://backups/oxherd", AWS_ENDPOINT_URL=url,
        **{"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, **more},
    )  # fmt: skip


async def test_a_backup_in_a_bucket_is_proven(s3, configured, shop, monkeypatch):
    monkeypatch.setattr(sealing, "PART", 50_000)
    settings = settings_for(configured, s3[1], DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    assert len(made.pieces[0].parts) > 1
    report = await runs.prove(settings, None)
    assert report.ok, report.checks
    entry = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries[0]
    assert entry.is_verified
    storage = open_storage(settings)
    for name in entry.objects:
        storage.delete(name)
    assert catalogue.read(storage, runs.ring_of(settings), now=time.time()).entries == ()


# The command with a part for each piece that age writes, whose third upload into the bucket never ends.
HANGS = """
import time
import obstore
from oxherd.backup import sealing
from oxherd.cli import main

real, stored = obstore.put, []

def put(store, name, data, **more):
    if isinstance(store, obstore.store.S3Store):
        stored.append(name)
        if len(stored) > 2:
            time.sleep(600)
    return real(store, name, data, **more)

obstore.put, sealing.PART, sealing.UNDER_WAY = put, 1, 1
main()
"""


async def test_an_upload_goes_on_where_a_killed_process_left_it(s3, configured, shop, keys, tmp_path, monkeypatch):
    """And what was killed before its dump was whole is thrown away, with a word."""
    folder = tmp_path / "spool"
    variables = {
        "DATABASE_URL": shop, "BACKUP_URL": "s3://backups/resumed", "AWS_ENDPOINT_URL": s3[1], "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET, "BACKUP_RECIPIENTS": keys[0], "BACKUP_SPOOL": str(folder),
    }  # fmt: skip
    settings = configured(**variables)
    storage = open_storage(settings)
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANGS, "backup", "create", "--no-queue",
        env=child_environ({**variables, "ENCRYPTION_KEY": settings.encryption_key.reveal()}, inherit=False),
    )  # fmt: skip
    await until(lambda: len(list(storage.objects())) == 2)
    with pytest.raises(JobStateError, match="by way of"):
        await runs.take(settings, None, with_queue=False)
    victim.kill()
    await victim.wait()
    stored = {each.name for each in storage.objects()}
    assert catalogue.read(storage, runs.ring_of(settings), now=time.time()).entries == ()
    (folder / "2026-11-28T01-02-03Z-abcd").mkdir()
    (folder / "2026-11-28T01-02-03Z-abcd" / "database.zst.00000.age").write_bytes(b"half")

    sent, told, real = [], [], obstore.put
    monkeypatch.setattr(
        obstore, "put", lambda store, name, *given, **more: sent.append(name) or real(store, name, *given, **more)
    )
    made = await runs.take(settings, None, with_queue=False, resume=True, note=told.append)
    assert told == [
        "2026-11-28T01-02-03Z-abcd is thrown away: the process that took it ended before its dump did",
        f"{made.name} is stored, which an earlier process had taken",
    ]
    parts = {f"{made.name}/{part.name}" for part in made.pieces[0].parts}
    assert stored < parts
    assert sorted(sent) == sorted((parts - stored) | {f"{made.name}/manifest.json"})
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert (await runs.prove(settings, None)).ok


async def test_what_waits_on_the_disk_is_stored_first_and_then_another_backup(configured, shop, tmp_path, monkeypatch):
    """Also where the manifest was written already; what was damaged on the disk keeps nobody from the next one."""
    settings = configured(DATABASE_URL=shop, BACKUP_SPOOL=str(tmp_path / "spool"))
    discard = spool.Spool.discard
    monkeypatch.setattr(spool.Spool, "discard", lambda *_: None)
    first = await runs.take(settings, None, with_queue=False)
    monkeypatch.setattr(spool.Spool, "discard", discard)
    told = []
    second = await runs.take(settings, None, with_queue=False, note=told.append)
    assert told == [f"{first.name} is stored, which an earlier process had taken"]
    found = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries
    assert {entry.name for entry in found} == {second.name, first.name}

    target = open_storage(settings)
    with monkeypatch.context() as patch:
        patch.setattr(target, "put", lambda *_: (_ for _ in ()).throw(ServiceUnreachable("away")))
        with pytest.raises(ServiceUnreachable):
            await runs.take(settings, None, with_queue=False, storage=target)
    (left,) = (tmp_path / "spool").glob("*-*")
    next(left.glob("*.age")).write_bytes(b"damaged")
    third = await runs.take(settings, None, with_queue=False, resume=True, note=told.append)
    assert third.name not in {first.name, second.name, left.name}
    assert told[1].startswith(f"{left.name} is thrown away: ")


def test_a_manifest_is_never_written_over(s3, configured):
    storage = open_storage(settings_for(configured, s3[1]))
    storage.create("one/manifest.json", b"first")
    with pytest.raises(ServiceRefused, match="not written over"):
        storage.create("one/manifest.json", b"second")
    assert storage.get("one/manifest.json") == b"first"


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        (None, True), ("https://bucket.vpce-1a2b.s3.eu-west-1.vpce.amazonaws.com", True),
        ("https://s3.eu-central-003.backblazeb2.com", False),
    ],
)  # fmt: skip
async def test_amazon_gets_the_checksum_that_its_object_lock_asks_for_and_others_get_none(configured, endpoint, told):
    seen = []

    async def take(request):
        seen.append((request.headers.get("x-amz-checksum-sha256"), await request.read()))
        return web.Response(headers={"ETag": '"x"'})

    more = {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}
    settings = configured(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, **more)
    application = web.Application()
    application.router.add_put("/{name:.*}", take)
    async with TestServer(application) as server:
        options = {name: value for name, value in config_of("s3://backups", settings).items() if value}
        url = str(server.make_url("/"))
        store = S3Store("backups", config={**options, "endpoint": url}, client_options={"allow_http": True})
        await obstore.put_async(store, "x", b"a part", use_multipart=False)
    digest = base64.b64encode(hashlib.sha256(b"a part").digest()).decode()
    assert seen == [(digest if told else None, b"a part")]


def test_a_wrong_key_is_refused_and_not_shown(s3, configured):
    if s3[0] == "moto":
        pytest.skip("moto checks no signatures; nanio does")
    storage = open_storage(
        settings_for(configured, s3[1], AWS_SECRET_ACCESS_KEY="another-secret-of-nobody"), patience=0
    )
    with pytest.raises(ServiceRefused) as caught:
        storage.put("x", b"y")
    assert "another-secret" not in f"{caught.value.message}{caught.value.hint}"


def test_an_upload_goes_on_where_it_was_after_an_outage(configured, keys, tmp_path):
    """Parts that were written stay; the one that failed is tried again."""
    storage = open_storage(configured(BACKUP_URL=str(tmp_path / "b")))
    raw, written, waited = os.urandom(1_000_000), [], []
    storage.on_wait = waited.append
    failures, real = [1, 2], obstore.put

    def unsteady(store, name, data, **named):
        if len(written) == 3 and failures:
            failures.pop()
            raise obstore.exceptions.GenericError("connection reset")
        written.append(name)
        return real(store, name, data, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "put", unsteady)
        patch.setattr(sealing, "PART", 100_000)
        patch.setattr("oxherd.backup.storage.PAUSES", (0.01, 0.02))
        recipients = sealing.recipients_of([keys[0]])
        piece = sealing.seal(
            sealing.as_stream(raw), storage, "b", "database", recipients=recipients, pace=sealing.Pace()
        )
    assert len(waited) == 2
    assert len(written) == len(set(written)) == len(piece.parts)
    with (tmp_path / "out").open("wb") as out:
        sealing.unseal(
            sealing.fetch(storage, "b", piece),
            out,
            identities=sealing.identities_of([keys[1]]),
            what="b",
            pace=sealing.Pace(),
        )
    assert (tmp_path / "out").read_bytes() == raw


@pytest.mark.parametrize("spooled", [False, True], ids=["straight", "spooled"])
async def test_a_backup_that_is_stopped_while_its_storage_is_away_ends_at_once(
    shop, configured, tmp_path, monkeypatch, spooled
):
    more = {"BACKUP_SPOOL": str(tmp_path / "spool")} if spooled else {}
    settings = configured(DATABASE_URL=shop, BACKUP_URL=str(tmp_path / "b"), **more)
    real, waited = obstore.put, asyncio.Event()

    def full(store, name, data, **named):
        if str(tmp_path / "b") in str(store.prefix):
            raise OSError(28, "No space left on device")
        return real(store, name, data, **named)

    monkeypatch.setattr(obstore, "put", full)
    loop = asyncio.get_running_loop()
    taking = asyncio.create_task(
        runs.take(settings, None, with_queue=False, note=lambda _: loop.call_soon_threadsafe(waited.set))
    )
    await asyncio.wait_for(waited.wait(), 20)
    taking.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await taking
        await loop.shutdown_default_executor()
    assert [path for path in (tmp_path / "b").rglob("*") if path.is_file()] == []


def test_a_storage_that_is_away_is_given_up_in_the_end(configured):
    url = f"http://127.0.0.1:{free_port()}"
    storage = open_storage(settings_for(configured, url), patience=0)
    with pytest.raises(ServiceUnreachable, match="s3://backups"):
        storage.put("x", b"y")


def test_what_a_killed_process_left_in_a_folder_is_swept(configured, tmp_path):
    storage = open_storage(configured(BACKUP_URL=str(tmp_path)))
    (tmp_path / "b").mkdir()
    for name in ("part.age#1", "fresh.age#1", "yours #1"):
        (tmp_path / "b" / name).write_bytes(b"half")
    os.utime(tmp_path / "b" / "part.age#1", (1, 1))
    os.utime(tmp_path / "b" / "yours #1", (1, 1))
    storage.put("b/part.age", b"whole")
    assert storage.sweep() == ["b/part.age#1"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["fresh.age#1", "part.age", "yours #1"]


def test_objects_of_others_under_the_same_prefix_are_never_deleted(configured, tmp_path):
    settings = configured(BACKUP_URL=str(tmp_path))
    storage = open_storage(settings)
    for name in ("photos/1.jpg", "2026-11-28/report.pdf", "2026-11-28T01-02-03Z-abcd/database.zst.00000.age"):
        storage.put(name, b"x")
    found = catalogue.read(storage, runs.ring_of(settings), now=time.time() + 2 * catalogue.ABANDONED)
    assert found.abandoned == ("2026-11-28T01-02-03Z-abcd/database.zst.00000.age",)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "BACKUP_URL is missing"),
        ({"BACKUP_URL": "/tmp/x", "BACKUP_RECIPIENTS": ""}, "BACKUP_RECIPIENTS is missing"),
        ({"BACKUP_URL": "/tmp/x", "BACKUP_RECIPIENTS": "age1nonsense"}, "key 1 of 1 is no age recipient"),
    ],
)
async def test_what_is_missing_is_named(variables, said, shop, tmp_path):
    given = {name: text.replace("/tmp/x", str(tmp_path)) for name, text in variables.items()}
    settings = load({"DATABASE_URL": shop, **given}, needs=())
    with pytest.raises(UsageError, match=said):
        await runs.take(settings, None, with_queue=False)


DEBIAN = tools.DEBIAN / "15" / "bin"


@pytest.fixture(scope="module")
def old_server(tmp_path_factory):
    """Debian's Postgres 15, which only takes connections with TLS; its certificate, and its URL."""
    if not (DEBIAN / "initdb").exists():
        pytest.skip("Debian's postgresql-15 is not installed: no other server here speaks TLS")
    folder = tmp_path_factory.mktemp("postgres15")
    reachable(folder)
    os.chown(folder, 65534, 65534)
    data, port = folder / "data", free_port()

    def as_nobody(*command):
        return subprocess.run(
            command, user=65534, group=65534, extra_groups=[], cwd="/", check=True, capture_output=True
        )

    (folder / "password").write_text("a-test-password")
    (folder / "password").chmod(0o644)
    as_nobody(
        str(DEBIAN / "initdb"), "-D", str(data), "-U", "owner", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync",
        f"--pwfile={folder / 'password'}",
    )  # fmt: skip
    as_nobody(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(data / "server.key"), "-out",
        str(data / "server.crt"), "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
    )  # fmt: skip
    (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
    server = subprocess.Popen(
        [DEBIAN / "postgres", "-D", data, "-p", str(port), "-c", "ssl=on", "-c", "fsync=off",
         "-c", f"unix_socket_directories={folder}"],
        user=65534, group=65534, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    certificate = folder / "server.crt"
    certificate.write_bytes((data / "server.crt").read_bytes())
    url = f"postgresql://owner:a-test-password@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={certificate}"

    def ready():
        try:
            asyncio.run(asyncio.wait_for(value(url, "select 1"), 2))
        except (OSError, TimeoutError, Exception):  # noqa: BLE001  it is still starting
            return False
        return True

    try:
        deadline = time.monotonic() + 20
        while not ready():
            assert time.monotonic() < deadline
        yield url
    finally:
        server.terminate()
        server.wait()


async def test_an_older_server_over_tls_is_backed_up_proven_and_restored_into(old_server, configured, monkeypatch):
    """By the wheel's programs with psycopg's libpq; the proof has stand-ins for what the scratch server lacks."""
    await execute(
        old_server,
        'create extension if not exists pgcrypto; create extension if not exists "uuid-ossp"; create table notes '
        "(id uuid primary key default uuid_generate_v4(), text text, digest bytea default digest('x', 'sha256'));"
        "insert into notes (text) select md5(i::text) from generate_series(1, 2000) i",
    )
    clients = [each for each in tools.found_clients() if each.version[0] == 18]
    monkeypatch.setattr(tools, "found_clients", lambda: clients)
    settings = configured(DATABASE_URL=old_server)
    made = await runs.take(settings, None, with_queue=False)
    assert made.database["server"].startswith("15.")
    assert "TLS by psycopg's libpq" in made.database["client"]
    report = await runs.prove(settings, None)
    assert report.ok, report.checks
    assert "stand-ins for pgcrypto, uuid-ossp" in {check.name: check.detail for check in report.checks}["extensions"]
    await execute(old_server, "drop database if exists copy")
    await execute(old_server, "create database copy template template0")
    opened = restore.unlock(made, open_storage(settings), sealing.identities_of(settings.backup_identity))
    address = tools.address_of(old_server.replace("/postgres?", "/copy?"))
    filled = await restore.fill(opened, address)
    assert await restore.compare(opened, address, filled) == []


async def test_a_server_that_is_newer_than_every_pg_dump_is_refused_with_the_reasons(shop):
    clients = [tools.Client(DEBIAN, (15, 18), tls=True, preload=None, origin="in a folder")]
    with pytest.raises(UsageError, match=r"older than the server \(18\)") as caught:
        tools.fitting(18, tls=False, clients=clients)
    assert "postgresql-client-18" in caught.value.hint
    with pytest.raises(UsageError, match="speaks no TLS"):
        tools.fitting(15, tls=True, clients=[tools.Client(DEBIAN, (18, 6), tls=False, preload=None, origin="x")])
    with pytest.raises(UsageError, match="too old"):
        tools.fitting(12, tls=False, clients=clients)
    with pytest.raises(UsageError, match="transaction pooler"):
        tools.address_of("postgresql://u:p@aws-0-eu.pooler.supabase.com:6543/postgres")
