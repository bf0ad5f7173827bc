from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from fakes.tls import certificate
from oxherd.app import servers_of
from oxherd.cloud.certificates import SSL_REQUEST, Server
from oxherd.settings import Secret, parse_redis_url
from oxherd.worker import probes
from oxherd.worker.probes import backup_probe, certificate_probe

HOUR, DAY = 3600, 86_400


@asynccontextmanager
async def listening(context: ssl.SSLContext | None, *, postgres: bool = False):
    """A server on this machine; gives its port, and how often somebody came."""
    seen = SimpleNamespace(port=0, visits=0)

    async def greet(reader, writer):
        seen.visits += 1
        if postgres and await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST:
            writer.write(b"S" if context else b"N")
            if context:
                await writer.start_tls(context)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=None if postgres else context)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen


@pytest.mark.parametrize("postgres", [False, True])
@pytest.mark.parametrize(
    ("life", "left", "says"),
    [
        (90, 10.04, "expires in 10.0 days"),
        (90, 20, None),
        (6, 2, None),  # short lives are meant to be short
        (6, 1.04, "expires in 1.0 days"),
        (90, -2.04, "expired 2.0 days ago"),
    ],
)
async def test_a_certificate_that_ends_soon_is_told_and_read_once_a_day(tmp_path, life, left, says, postgres):
    async with listening(certificate(tmp_path, life=life, left=left), postgres=postgres) as server:
        probe = certificate_probe({"REDIS_URL": Server("127.0.0.1", server.port, postgres)})
        found = [await probe(), await probe()]
        assert server.visits == 1
    words = [] if says is None else [f"the certificate of 127.0.0.1:{server.port} {says}"]
    assert [[each.summary for each in finding] for finding in found] == [words, words]


async def test_a_server_without_tls_or_that_is_away_has_no_certificate_to_worry_about():
    async with listening(None, postgres=True) as server:
        probe = certificate_probe({
            "DATABASE_URL": Server("127.0.0.1", server.port, postgres=True), "REDIS_URL": Server("127.0.0.1", 9),
        })  # fmt: skip
        assert await probe() == []
        assert server.visits == 1


def test_the_servers_that_are_asked_are_those_that_speak_tls():
    known = SimpleNamespace(
        redis_url=parse_redis_url("rediss://:p@redis.example:6380"), supabase_url="https://x.supabase.co",
        database_url=Secret("postgresql://u:p@ss/word@[::1]:6543/app?sslmode=require"),
        openrouter_base_url="http://localhost:1/v1",
    )  # fmt: skip
    assert servers_of(known) == {
        "REDIS_URL": Server("redis.example", 6380), "DATABASE_URL": Server("::1", 6543, postgres=True),
        "SUPABASE_URL": Server("x.supabase.co", 443),
    }  # fmt: skip
    known.redis_url, known.database_url = (
        parse_redis_url("unix:///run/redis.sock"),
        Secret("postgresql:///app?host=/run/pg"),
    )
    assert set(servers_of(known)) == {"SUPABASE_URL"}


class Kept:
    """What a store says of operations: hours since their snapshots, and outcomes; all ended just now."""

    def __init__(self, **kinds: list[tuple[float, str]]) -> None:
        self.kinds = kinds

    async def operations(self, kind, *, limit):
        now = probes.wall_ms()
        rows = [
            {
                "at": now, "outcome": outcome, "target": "night-7",
                "summary": {"taken_at": now - int(hours * HOUR * 1000)} if outcome == "ok" else {"error": "away"},
            }
            for hours, outcome in self.kinds.get(kind, [])
        ]  # fmt: skip
        return rows[:limit]


class Schedules:
    def __init__(self, *found: dict) -> None:
        self.found = found

    async def all(self):
        return self.found


def schedule(**more) -> dict:
    return {"id": "nightly", "name": "oxherd.backup", "paused": False, "count": 5} | more


@pytest.mark.parametrize(
    ("kept", "schedules", "told"),
    [
        (Kept(), Schedules(), []),
        (Kept(backup=[(2, "ok"), (26, "ok")]), Schedules(), []),
        (Kept(backup=[(27, "ok")]), Schedules(), ["backup-old: the last good backup is 27 hours old"]),
        (Kept(backup=[(1, "failed"), (25, "ok")]), Schedules(), []),
        (Kept(backup=[(1, "failed"), (27, "ok")]), Schedules(), ["backup-old: the last good backup is 27 hours old"]),
        (Kept(backup=[(1, "failed")]), Schedules(), ["backup-old: none of the last 1 backups was good"]),
        (Kept(), Schedules(schedule(count=1), schedule(paused=True), schedule(name="report")), []),
        (Kept(), Schedules(schedule()), ["backup-old: the schedule nightly has fired, and there is no backup"]),
        (
            Kept(backup=[(1, "ok")], verify=[(1, "failed"), (25, "ok")]), Schedules(),
            ["backup-unproven: the verification of night-7 failed"],
        ),
        (Kept(backup=[(1, "ok")], verify=[(1, "ok"), (25, "failed")]), Schedules(), []),
    ],
)  # fmt: skip
async def test_backups_that_are_too_old_or_not_proven_are_told_once_there_were_any(kept, schedules, told):
    probe = backup_probe(kept, schedules, 26 * HOUR)
    for _ in range(2):
        assert [f"{each.kind}: {each.summary}" for each in await probe()] == told
