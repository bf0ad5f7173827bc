from __future__ import annotations

import asyncio

import pytest

from oxherd.embedded.valkey import Valkey
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.connection import Connection, Link, connect, refused
from oxherd.queue.scripts import script
from oxherd.settings import parse_redis_url
from oxherd.telemetry.events import RedisBack, RedisLost, attach


@pytest.fixture
async def link(redis_url):
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield link
    await link.stop()


async def test_commands_of_one_tick_share_a_few_writes(redis_url, monkeypatch):
    writes: list[bytes] = []
    flush = Connection._flush

    def counted(self):
        writes.append(b"".join(self._out))
        flush(self)

    monkeypatch.setattr(Connection, "_flush", counted)
    connection = await connect(parse_redis_url(redis_url), "test", lambda _: None)
    writes.clear()
    assert await asyncio.gather(*(connection.send(b"ECHO", str(i)) for i in range(100))) == [
        b"%d" % i for i in range(100)
    ]
    assert [write.count(b"ECHO") for write in writes if write] == [1, 32, 32, 32, 3]
    connection.close()


async def test_a_reply_that_nobody_waits_for_any_more_does_not_shift_the_others(link):
    first, second = link.send(b"ECHO", "a"), link.send(b"ECHO", "b")
    first.cancel()
    assert await second == b"b"


async def test_a_script_that_redis_forgot_is_loaded_again(link):
    args = (b"s", b"a", b"p:", 1000)
    assert await link.run(script("renewLeases"), *args) == []
    await link.call(b"SCRIPT", b"FLUSH")
    assert await link.run(script("renewLeases"), *args) == []


async def test_a_wrong_password_is_named_without_being_shown():
    with Valkey(tcp=True, config={"requirepass": "right-one"}) as engine:
        target = parse_redis_url(engine.url.replace("//", "//:wrong-one@", 1).replace(":right-one@", "", 1))
        with pytest.raises(RedisRefused) as caught:
            await Link(target, "test").start()
    assert caught.value.code == "WRONGPASS"
    assert "REDIS_URL" in caught.value.hint
    assert "wrong-one" not in str(caught.value)


async def test_nobody_there_is_unreachable_and_says_where():
    with pytest.raises(RedisUnreachable, match=r"127\.0\.0\.1:1"):
        await Link(parse_redis_url("redis://:sesame@127.0.0.1:1/0"), "test").start()


async def test_a_lost_reply_is_reported_not_repeated_and_the_link_comes_back(redis_url):
    events = []
    detach = attach(events.append, RedisLost, RedisBack)
    link, other = (Link(parse_redis_url(redis_url), name) for name in ("victim", "killer"))
    await asyncio.gather(link.start(), other.start())
    waiting = asyncio.ensure_future(link.call(b"BLPOP", b"nothing", 0))
    await other.call(b"CLIENT", b"KILL", b"ID", await link_id(other, "oxherd:victim"))
    with pytest.raises(RedisUnreachable):
        await waiting
    assert await link.call(b"PING") == b"PONG"
    assert [type(event) for event in events] == [RedisLost, RedisBack]
    detach()
    await asyncio.gather(link.stop(), other.stop())


async def link_id(link: Link, name: str) -> str:
    rows = (await link.call(b"CLIENT", b"LIST")).decode().splitlines()
    row = next(row for row in rows if f"name={name} " in row)
    return row.split("id=", 1)[1].split(" ", 1)[0]


@pytest.mark.parametrize("code", ["OOM", "READONLY", "LOADING", "BUSY", "MISCONF", "NOAUTH"])
def test_the_well_known_refusals_carry_a_hint(code):
    assert refused(f"{code} something happened").hint


async def test_stopping_twice_or_before_starting_is_fine(redis_url):
    link = Link(parse_redis_url(redis_url), "test")
    await link.stop()
    await link.start()
    await link.stop()
    await link.stop()
