from __future__ import annotations

import base64
from types import SimpleNamespace

import orjson
import pytest

from oxherd.clock import wall_ms
from oxherd.errors import StoreUnreachable
from oxherd.queue import alertbook, indicators
from oxherd.queue.admin import REOPEN, Admin
from oxherd.queue.alertbook import AlertBook
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Indicators
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.settings import Secret, parse_redis_url
from oxherd.telemetry.alerts import CALM, Finding, Silence
from oxherd.telemetry.channels import Undelivered
from oxherd.telemetry.events import AlertFired, AlertResolved, AlertUndelivered, attach
from oxherd.telemetry.slo import Objective, Promises, Sli
from oxherd.worker import probes, watchdogs
from oxherd.worker.probes import expiry_probe, spend_probe
from oxherd.worker.watchdogs import Watchdogs

MINUTE = 60
SUCCESS = Objective("success", Sli.SUCCESS, 0.99)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = float(wall_ms() // 1000)

    for module in (alertbook, indicators, probes, watchdogs):
        monkeypatch.setattr(module, "wall_ms", lambda: int(Clock.now * 1000))
    return Clock


@pytest.fixture
async def link(redis_url):
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield link
    await link.stop()


@pytest.fixture
def heard():
    """What the log was told."""
    kept: list = []
    detach = attach(kept.append, AlertFired, AlertResolved, AlertUndelivered)
    yield kept
    detach()


class Phone:
    name = "phone"

    def __init__(self) -> None:
        self.rings: list[str] = []
        self.broken = False

    async def send(self, words) -> None:
        if self.broken:
            raise Undelivered("no signal")
        self.rings.append(words.title)


class Stage:
    """A queue, what happened on it, and watchdogs that look at it."""

    def __init__(self, link: Link, queue: str, clock) -> None:
        self.keys = Keys(queue)
        self.clock = clock
        self.link = link
        self.phone = Phone()
        self.wrong: list[Finding] = []
        self.done = Indicators(link, self.keys)
        self.admin = Admin(link, self.keys)
        self.producer = Producer(link, self.keys)

    def dogs(self, **promises) -> Watchdogs:
        async def probe() -> list[Finding]:
            return self.wrong

        return Watchdogs(
            self.link, self.keys, promises=Promises((SUCCESS,), **promises),
            channels=[self.phone], runbooks="docs/runbooks", watching=lambda: True, busy_at=lambda: 0.0, probes=[probe],
        )  # fmt: skip

    async def look(self) -> list[str]:
        return [f"{notice.what} {notice.alert.key}" for notice in await self.dogs().look()]


@pytest.fixture
def stage(link, queue_name, clock):
    return Stage(link, queue_name, clock)


async def test_an_empty_queue_has_nothing_wrong(stage):
    assert await stage.look() == []


async def test_jobs_that_wait_while_none_ends_are_told_and_their_end_too(stage, heard):
    await stage.done.write({"echo|a": 1, "echo|c": 1})
    await stage.producer.add("echo", {})
    stage.clock.now += 11 * MINUTE
    assert await stage.look() == ["fired queue-age"]
    stage.clock.now += 10 * MINUTE
    assert await stage.look() == ["fired no-progress"]
    assert "1 jobs wait and none has ended for 15 min" in heard[-1].summary
    await stage.link.call(b"DEL", stage.keys.wait)
    assert await stage.look() == []
    stage.clock.now += CALM
    assert sorted(await stage.look()) == ["resolved no-progress", "resolved queue-age"]
    assert len(stage.phone.rings) == 4


async def test_what_waits_behind_a_closed_gate_or_a_pause_is_no_alarm(stage):
    await stage.producer.add("echo", {})
    stage.clock.now += 60 * MINUTE
    await stage.admin.close_gate("a backup")
    assert await stage.look() == []
    await stage.admin.open_gate()
    await stage.link.call(b"HSET", stage.keys.meta, b"paused", 1)
    assert await stage.look() == []


async def test_a_job_that_ran_before_does_not_count_as_waiting_since_it_was_added(stage):
    job_id = await stage.producer.add("echo", {})
    await stage.link.call(b"HSET", stage.keys.job(job_id), b"ats", 1)
    stage.clock.now += 60 * MINUTE
    assert await stage.look() == []


async def test_a_gate_that_a_worker_closed_is_told_at_once_and_one_that_a_person_closed_after_a_while(stage):
    await stage.admin.close_gate(f"no credit for model calls; {REOPEN}")
    assert await stage.look() == ["fired intake-stopped"]
    await stage.admin.close_gate("a backup")
    assert await stage.look() == []
    stage.clock.now += 31 * MINUTE
    assert sorted(await stage.look()) == ["fired gate-closed", "resolved intake-stopped"]


async def test_far_more_failures_than_usual_are_told_and_the_usual_ones_are_not(stage):
    await stage.done.write({"echo|c": 900, "echo|f": 100, "echo|a": 1000, "echo|e": 100})
    stage.clock.now += 30 * MINUTE
    await stage.done.write({"echo|c": 15, "echo|f": 5, "echo|a": 20, "echo|e": 5})
    stage.clock.now += 1
    assert "fired failure-spike" not in await stage.look()
    await stage.done.write({"echo|f": 20, "echo|a": 20, "echo|e": 20})
    assert "fired failure-spike" in await stage.look()


def sign(**said):
    usual = {"host": "h", "draining": False, "draining_s": 0.0, "grace_s": 25.0, "consuming": True, "in_flight": 0}
    return orjson.dumps(usual | said)


async def test_workers_that_are_there_and_do_not_work_are_told_apart_from_those_that_do(stage):
    now = wall_ms()
    for worker, ago, said in (
        ("fine", 0, sign()),
        ("vanished", 120_000, sign()),
        ("stuck", 0, sign(consuming=False)),
        ("stopping", 0, sign(draining=True, draining_s=30.0)),
        ("hanging", 0, sign(draining=True, draining_s=60.0)),
    ):
        await stage.link.call(b"ZADD", stage.keys.workers_seen, now - ago, worker)
        await stage.link.call(b"HSET", stage.keys.workers, worker, said)
    assert sorted(await stage.look()) == [
        "fired silent-worker/stuck", "fired silent-worker/vanished", "fired stuck-drain/hanging",
    ]  # fmt: skip
    severities = {alert.subject: alert.severity for alert in await AlertBook(stage.link, stage.keys).alerts()}
    assert severities == {"stuck": "page", "vanished": "ticket", "hanging": "ticket"}


async def test_a_quarantined_job_is_told(stage):
    await stage.done.write({"echo|f": 1, "echo|a": 1, "echo|e": 1, "echo|q": 1})
    stage.clock.now += 1
    assert "fired quarantined" in await stage.look()


async def test_a_token_that_ends_soon_is_told_by_its_variable_s_name(stage):
    def token(days: float) -> Secret:
        claims = orjson.dumps({"role": "service_role", "exp": stage.clock.now + days * 86_400})
        return Secret(f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln")

    probe = expiry_probe({"OLD": token(3), "NEW": token(400), "OPAQUE": Secret("sb_secret_fake.a.b"), "UNSET": None})
    assert [(each.subject, each.summary) for each in await probe()] == [("OLD", "OLD expires in 3.0 days")]


async def test_an_hour_that_costs_far_more_than_usual_is_told(stage):
    class Spent:
        def __init__(self, last: float, before: float) -> None:
            self.sums = {True: last, False: before}

        async def spend_report(self, *, by, since, until):
            return [SimpleNamespace(cost_usd=self.sums[until - since == probes.HOUR_MS])]

    assert await spend_probe(Spent(0.9, 0.1))() == []
    assert await spend_probe(Spent(5.0, 46.0))() == []
    assert await spend_probe(Spent(9.0, 0.0))() == []  # the first hour ever
    (found,) = await spend_probe(Spent(9.0, 46.0))()
    assert found.summary == "$9.00 in the last hour; usual is $2.00"


async def test_a_budget_that_burns_is_told_with_the_promise(stage, heard):
    await stage.done.write({"echo|c": 1000, "echo|a": 1000})
    stage.clock.now += 120 * MINUTE
    await stage.done.write({"echo|c": 50, "echo|f": 50, "echo|a": 100, "echo|e": 50})
    stage.clock.now += 1
    assert "fired slo-burn-fast/success" in await stage.look()
    fired = next(event for event in heard if event.alert == "slo-burn-fast")
    assert "99 % of jobs complete, over 30 d" in fired.summary
    assert fired.runbook == "docs/runbooks/slo-burn-fast.md"


async def test_another_worker_goes_on_where_the_first_left_off(stage):
    stage.wrong = [Finding("store-away", "", "x"), Finding("key-expiring", "w1", "x")]
    assert await stage.look() == ["fired key-expiring/w1"]
    stage.clock.now += 2 * MINUTE
    assert await stage.look() == ["fired store-away"]  # it has lasted since the first look
    assert await stage.look() == []


async def test_what_no_channel_took_is_told_at_the_next_look(stage, heard, monkeypatch):
    async def at_once(*args, **_more):
        return await deliver(*args, pause=no_pause)

    async def no_pause(_seconds):
        pass

    deliver = watchdogs.deliver
    monkeypatch.setattr(watchdogs, "deliver", at_once)
    stage.wrong, stage.phone.broken = [Finding("key-expiring", "", "x")], True
    assert await stage.look() == []
    assert any(isinstance(event, AlertUndelivered) for event in heard)
    stage.phone.broken = False
    assert await stage.look() == ["fired key-expiring"]


async def test_a_silence_keeps_people_in_peace_until_it_ends(stage):
    book = AlertBook(stage.link, stage.keys)
    await book.silence(Silence("key-*", stage.clock.now + 60, "me", "moving"))
    stage.wrong = [Finding("key-expiring", "", "x")]
    assert await stage.look() == []
    assert [each.pattern for each in await book.silences()] == ["key-*"]
    stage.clock.now += 61
    assert await book.silences() == []
    assert await stage.look() == ["fired key-expiring"]
    await book.silence(Silence("queue-age", stage.clock.now + 60))
    assert await book.unsilence("queue-age")
    assert not await book.unsilence("queue-age")


async def test_a_database_that_is_away_keeps_nobody_from_hearing_of_the_rest(stage):
    async def away():
        raise StoreUnreachable("no answer")

    async def full():
        return [Finding("key-expiring", "", "x")]

    dogs = stage.dogs()
    dogs._probes = (away, full)
    assert [notice.alert.key for notice in await dogs.look()] == ["key-expiring"]
