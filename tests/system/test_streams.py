"""What a run says while it runs reaches those who follow it: through deaths, outages and whenever they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest
from stage import eventually

from fakes.openrouter import DONE, KEY, FakeOpenRouter, Streams, chunk
from oxherd import Context, Fatal, Herd, settings
from oxherd.agents import Agent
from oxherd.app import Service, build_store, keys_of, queue_client
from oxherd.errors import JobNotFound, UsageError
from oxherd.job import Job
from oxherd.queue import feed
from oxherd.queue.connection import Link
from oxherd.queue.consumer import STALLED_TOO_OFTEN
from oxherd.queue.feed import Entry, Transcript, follow, publish
from oxherd.queue.scripts import script
from oxherd.settings import Settings
from oxherd.telemetry.events import RedisBack, attach

SUPPORT = {"name": "support", "model": "m"}
ASKED = {"agent": SUPPORT, "input": "hello"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.0002}


def reply(*pieces: Any) -> Streams:
    """A reply that streams: text, and events that are waited for."""
    parts = [chunk({"content": piece}) if isinstance(piece, str) else piece for piece in pieces]
    return Streams(*parts, chunk({}, "stop", usage=USAGE), DONE)


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def known(redis_url, queue_name, fake) -> Settings:
    return known_of(redis_url, queue_name, fake)


def known_of(redis_url: str, queue_name: str, fake: FakeOpenRouter, **more: str) -> Settings:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    return settings.load(variables | {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY} | more)


@contextlib.asynccontextmanager
async def serving(known: Settings, herd: Herd | None = None) -> AsyncIterator[Service]:
    service = Service(known, herd or Herd(), store=build_store(known))
    await service.start()
    try:
        yield service
    finally:
        await service.close()


class Reader:
    """Follows a job beside the test."""

    def __init__(self, known: Settings, job_id: str, since: str = "0") -> None:
        self.entries: list[Entry] = []
        self.seen = Transcript()
        self._known = known
        self._job_id = job_id
        self._since = since
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._link = Link(self._known.redis_url, "reader")
        await self._link.start()
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._link.stop()

    async def _read(self) -> None:
        async for entry in follow(self._link, keys_of(self._known), self._job_id, since=self._since):
            self.entries.append(entry)
            self.seen.add(entry)
            self._news.set()

    async def until(self, look: Callable[[Reader], Any]) -> None:
        async with asyncio.timeout(15):
            while not look(self):
                self._news.clear()
                await self._news.wait()

    async def says(self, text: str) -> None:
        await self.until(lambda reader: reader.seen.text.endswith(text))

    async def end(self) -> dict[str, Any]:
        """Wait for the end; the last entry."""
        async with asyncio.timeout(15):
            await self._task
        assert [entry.type for entry in self.entries].count("end") == 1
        return self.entries[-1].data

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [entry.data for entry in self.entries if entry.type in types]


async def added(known: Settings, name: str, data: dict[str, Any], **opts: Any) -> str:
    async with queue_client(known) as (producer, _):
        return await producer.add(name, data, **opts)


async def output_of(known: Settings, job_id: str) -> str:
    async with queue_client(known) as (_, admin):
        return (await admin.job(job_id))["returnvalue"]["output"]


async def test_a_worker_killed_in_mid_stream_is_followed_by_another_and_the_reader_has_exactly_the_reply(
    start, known, fake, runs_url, queue_name
):
    more = {"database_url": runs_url, "OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY}
    first = await start(**more)
    fake.script(reply("The answer ", "is most pro", asyncio.Event()), reply("The answer", " is 42."))
    job_id = await added(known, "agent.run", {**ASKED, "stream": True}, attempts=3)
    async with Reader(known, job_id) as reader:
        second = await start(ready=False, **more)
        await reader.says("is most pro")
        seen_by_then = reader.entries[-1].id
        await second.said("worker.started")
        first.kill()
        assert (await reader.end())["outcome"] == "completed"
        async with Reader(known, job_id, since=seen_by_then) as later:
            await later.end()
    assert reader.seen.text == later.seen.text == await output_of(known, job_id) == "The answer is 42."
    assert [entry["fence"] for entry in reader.of("attempt")] == [1, 2]


async def test_a_redis_that_restarts_in_mid_stream_costs_the_reader_nothing(own_valkey, queue_name, fake):
    known = known_of(own_valkey.url, queue_name, fake)
    go_on, back = asyncio.Event(), asyncio.Event()
    detach = attach(lambda event: back.set() if event.purpose == "worker" else None, RedisBack)
    fake.script(reply("One, ", "two, ", go_on, "three."))
    async with serving(known):
        job_id = await added(known, "agent.run", {**ASKED, "stream": True})
        async with Reader(known, job_id) as reader:
            await reader.says("two, ")
            own_valkey.kill()
            go_on.set()
            own_valkey.start()
            async with asyncio.timeout(15):
                await back.wait()
            assert (await reader.end())["outcome"] == "completed"
        assert reader.seen.text == await output_of(known, job_id) == "One, two, three."
    detach()


async def test_when_nobody_asks_redis_hears_of_nothing(known, fake):
    fake.script(*(reply("Hi ", "there") for _ in range(3)))
    async with serving(known) as service, commands(known) as heard:
        for number in range(3):
            await added(known, "agent.run", ASKED)
            await eventually(lambda number=number: finished(service, number + 1))
    sha = script("publish").sha.decode()
    assert any("EVALSHA" in line for line in heard)
    assert [line for line in heard if sha in line or "stream:" in line or "readers" in line] == []


async def test_who_asks_by_the_payload_costs_a_few_scripts_and_nothing_else(known, fake):
    fake.script(reply(*("word " for _ in range(50))))
    async with serving(known) as service, commands(known) as heard:
        await added(known, "agent.run", {**ASKED, "stream": True})
        await eventually(lambda: finished(service, 1))
    ours = [line for line in heard if "stream:" in line and '"EVALSHA"' in line]
    assert 1 <= len(ours) <= 6
    assert not [line for line in heard if "readers" in line]


async def finished(service: Service, count: int) -> bool:
    return service.worker.finished >= count


@contextlib.asynccontextmanager
async def commands(known: Settings) -> AsyncIterator[list[str]]:
    """What Redis is told meanwhile, commands inside scripts left out."""
    heard: list[str] = []

    def hear(line: Any) -> None:
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else str(line)
        if " lua] " not in text:
            heard.append(text)

    link = Link(known.redis_url, "monitor", on_push=hear)
    await link.start()
    await link.call(b"MONITOR")
    yield heard
    await link.stop()


async def test_a_reader_that_waits_for_a_job_in_the_queue_gets_all_of_it(known, fake):
    fake.script(reply("Hello ", "you"))
    job_id = await added(known, "agent.run", ASKED)
    async with Reader(known, job_id) as reader:
        await eventually(lambda: somebody_reads(known, job_id))
        async with serving(known):
            await reader.end()
    assert reader.seen.text == "Hello you"
    assert not reader.of("attempt")[0]["late"]


async def test_a_job_added_after_its_reader_was_heard_is_published_from_its_start(known, fake):
    fake.script(reply("Hello ", "you"))
    async with serving(known) as service:
        job_id = await added(known, "agent.run", ASKED, delay=600_000)
        async with Reader(known, job_id) as reader:
            await eventually(lambda: heard_by(service, job_id))
            async with queue_client(known) as (_, admin):
                await admin.promote(job_id)
            await reader.end()
    assert reader.seen.text == "Hello you"
    assert not reader.of("attempt")[0]["late"]


async def somebody_reads(known: Settings, job_id: str) -> bool:
    async with queue_client(known) as (_, admin):
        return await admin._link.call(b"ZSCORE", keys_of(known).readers, job_id) is not None


async def heard_by(service: Service, job_id: str) -> bool:
    return job_id in service.worker._readers


async def test_a_reader_that_comes_in_the_middle_is_told_what_was_before(redis_url, queue_name, fake, runs_url):
    known = known_of(redis_url, queue_name, fake, DATABASE_URL=runs_url)
    herd, middle, go_on = Herd(), asyncio.Event(), asyncio.Event()

    @herd.job("talk")
    async def talk(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        await ctx.step("history", int, "7")
        await ctx.run(Agent("first", "m"), "hello")
        return (await ctx.run(Agent("second", "m"), "hello")).summary()

    def reached(body: dict[str, Any]) -> Streams:
        middle.set()
        return reply("To be ", go_on, "or not to be")

    fake.script(reply("Before."), reached)
    async with serving(known, herd):
        job_id = await added(known, "talk", {})
        await middle.wait()
        async with Reader(known, job_id) as reader:
            await reader.until(lambda reader: len(reader.of("step")) == 3)
            go_on.set()
            await reader.end()
    steps = {(entry["step"], entry["state"]) for entry in reader.of("step")}
    assert steps == {
        ("history", "replayed"), ("first/model-1", "replayed"),
        ("second/model-1", "started"), ("second/model-1", "finished"),
    }  # fmt: skip
    assert reader.seen.of("first/model-1") == "Before."
    assert reader.seen.text == "To be or not to be"
    assert reader.of("attempt")[0]["late"]


async def test_without_a_store_a_late_reader_is_told_that_something_is_missing(known, fake):
    go_on = asyncio.Event()
    fake.script(reply("To be ", go_on, "or not to be"))
    async with serving(known) as service:
        job_id = await added(known, "agent.run", ASKED)
        await eventually(lambda: says_something(service))
        async with Reader(known, job_id) as reader:
            await reader.until(lambda reader: reader.of("gap"))
            go_on.set()
            await reader.end()
    assert "no store is configured" in reader.of("gap")[0]["reason"]
    assert reader.seen.text == "To be or not to be"


async def says_something(service: Service) -> bool:
    return any(running.context and running.context.open_steps for running in service.worker.running.values())


async def test_what_a_handler_says_itself_is_in_the_stream_in_order(known):
    herd = Herd()

    @herd.job("talk", stream=True)
    async def talk(ctx: Context, payload: dict[str, Any]) -> None:
        await ctx.progress(50)
        await ctx.log("half way")
        await ctx.publish({"preview": [1, 2]})

    async with serving(known, herd):
        job_id = await added(known, "talk", {})
        async with Reader(known, job_id) as reader:
            await reader.end()
    assert [entry.data for entry in reader.entries[1:]] == [
        {"type": "progress", "value": 50}, {"type": "log", "text": "half way"},
        {"type": "data", "data": {"preview": [1, 2]}}, {"type": "end", "outcome": "completed"},
    ]  # fmt: skip


# -- ends


async def test_a_job_that_fails_ends_its_stream_after_each_attempt_was_told(known):
    herd = Herd()

    @herd.job("fails", stream=True)
    async def fails(ctx: Context, payload: dict[str, Any]) -> None:
        raise ValueError("not today")

    async with serving(known, herd):
        job_id = await added(known, "fails", {}, attempts=2)
        async with Reader(known, job_id) as reader:
            end = await reader.end()
    assert end == {"type": "end", "outcome": "failed", "kind": "failed", "reason": "ValueError: not today"}
    assert [entry.get("outcome") for entry in reader.of("attempt")] == [None, "retried", None]


@pytest.mark.parametrize("name", ["nobody-runs-this", "quarantined"])
async def test_a_job_that_is_failed_unrun_ends_its_stream_too(known, name):
    async with queue_client(known) as (producer, admin):
        job_id = await producer.add(name, {"stream": True})
        if name == "quarantined":
            await admin._link.call(b"HSET", keys_of(known).job(job_id), b"defa", STALLED_TOO_OFTEN)
    async with Reader(known, job_id) as reader, serving(known):
        end = await reader.end()
    assert (end["outcome"], end["kind"]) == (
        "failed", "quarantined" if name == "quarantined" else "unknown_job",
    )  # fmt: skip


async def test_a_cancelled_run_ends_the_stream(known, fake):
    fake.script(reply("On and on", asyncio.Event()))
    async with serving(known):
        job_id = await added(known, "agent.run", {**ASKED, "stream": True})
        async with Reader(known, job_id) as reader:
            await reader.says("On and on")
            async with queue_client(known) as (_, admin):
                await admin.cancel(job_id)
            end = await reader.end()
    assert (end["outcome"], end["kind"]) == ("failed", "cancelled")


async def test_a_run_that_a_deploy_interrupts_goes_on_in_the_same_stream(known, fake):
    fake.script(reply("Half a ", asyncio.Event()), reply("A whole reply"))
    async with serving(known) as service:
        job_id = await added(known, "agent.run", {**ASKED, "stream": True})
        async with Reader(known, job_id) as reader:
            await reader.says("Half a ")
            await service.worker.stop(grace=0)
            await reader.until(lambda reader: len(reader.of("attempt")) == 2)
            async with serving(known):
                await reader.end()
    assert [entry.get("outcome") for entry in reader.of("attempt")] == [None, "handed_back", None]
    assert reader.seen.text == "A whole reply"


async def test_the_end_of_a_job_that_nobody_could_tell_is_found_out(known, monkeypatch):
    monkeypatch.setattr(feed, "LOOK", 0.1)
    job_id = await added(known, "nobody-is-here", {})
    async with Reader(known, job_id) as reader:
        await eventually(lambda: somebody_reads(known, job_id))
        async with queue_client(known) as (_, admin):
            await admin.remove(job_id)
        assert await reader.end() == {"type": "end", "outcome": "removed"}
    failed = await added(known, "nobody-is-here", {})
    async with serving(known):
        await eventually(lambda: has_failed(known, failed))
    async with Reader(known, failed) as reader:
        end = await reader.end()
    assert (end["outcome"], "no handler" in end["reason"]) == ("failed", True)


async def has_failed(known: Settings, job_id: str) -> bool:
    async with queue_client(known) as (_, admin):
        return await admin.state(job_id) == "failed"


async def test_a_failed_job_that_somebody_retries_goes_on_in_the_same_stream(known):
    herd, times = Herd(), []

    @herd.job("flaky", stream=True)
    async def flaky(ctx: Context, payload: dict[str, Any]) -> None:
        times.append(ctx.attempt)
        if len(times) == 1:
            raise Fatal("not yet")

    async with serving(known, herd):
        job_id = await added(known, "flaky", {})
        async with Reader(known, job_id) as reader:
            await reader.end()
        async with queue_client(known) as (_, admin):
            await admin.retry(job_id)
        async with Reader(known, job_id, since=reader.entries[-1].id) as again:
            assert (await again.end())["outcome"] == "completed"


async def test_a_job_that_never_was_can_not_be_followed(known):
    async with Reader(known, "none") as reader:
        with pytest.raises(JobNotFound):
            await reader.end()
    async with Reader(known, "none", since="yesterday") as reader:
        with pytest.raises(UsageError, match="no id of an entry"):
            await reader.end()


# -- the stream in Redis


async def test_a_stream_is_capped_expires_and_takes_nothing_from_who_lost_the_job(known):
    keys = keys_of(known)
    link = Link(known.redis_url, "test")
    await link.start()
    job = Job(id="1", name="x", raw=b"{}", opts={}, token="mine")
    await link.call(b"SCRIPT", b"LOAD", script("publish").body)
    assert await publish(link, keys, job, [b"{}"] * 3, keep=10) == 3  # nobody has the job: it was just settled
    await link.call(b"SET", keys.lock("1"), "mine")
    for _ in range(10):
        await publish(link, keys, job, [b"{}"] * 100, keep=10)
    assert await link.call(b"XLEN", keys.stream("1")) <= 210  # Redis drops whole nodes of a hundred
    assert 0 < await link.call(b"PTTL", keys.stream("1")) <= feed.KEPT_MS
    await link.call(b"SET", keys.lock("1"), "another's")
    before = await link.call(b"XLEN", keys.stream("1"))
    assert await publish(link, keys, job, [b"{}"], keep=10) == 0
    assert await link.call(b"XLEN", keys.stream("1")) == before
    await link.stop()
