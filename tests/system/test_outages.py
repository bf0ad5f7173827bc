"""Redis away, Redis refusing, replies lost: nothing is lost and nothing is finished twice."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from process import WorkerProcess
from redis import Redis
from redis.exceptions import ResponseError
from stage import Stage, eventually

import oxherd.queue.connection
from oxherd.context import Context
from oxherd.embedded.valkey import Valkey
from oxherd.errors import RedisUnreachable, RetryLater, WaitForChildren
from oxherd.queue.connection import insist_on
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobEnded, JobStarted, LeaseWasLost, RedisBack, RedisLost, RedisRefusedCommand
from oxherd.worker.worker import Worker

WAYS_TO_END = {
    "moveToFinished": {},
    "moveToDelayed": {"attempts": 2, "backoff": 50},
    "retryJob": {"attempts": 2},
}


class Effects:
    """What handlers did, counted outside of the queue."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.hold = asyncio.Event()

    async def ok(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        await asyncio.sleep(payload.get("takes", 0))
        return {"n": payload.get("n")}

    async def held(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        await self.hold.wait()
        return {"n": payload.get("n")}

    async def once_bad(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        if self.ran[ctx.job.id] == 1:
            raise ValueError("the first attempt fails")
        return "the second did it"

    async def later(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        if self.ran[ctx.job.id] == 1:
            raise RetryLater(0.05)
        return "later"


async def all_slots_free(worker: Worker) -> None:
    await worker.stop()
    assert worker._slots == 0


@pytest.fixture
async def effects() -> Effects:
    return Effects()


async def test_a_job_whose_fetch_got_no_reply_is_adopted_and_run_once(stage: Stage, proxy: Proxy, effects: Effects):
    job = await stage.add("ok")
    loss = proxy.lose_reply(script("moveToActive").sha)
    worker = await stage.worker({"ok": effects.ok}, url=proxy.url)
    assert await stage.finished(job) == ["completed"]
    assert await asyncio.to_thread(loss.done.wait, 5)
    assert effects.ran == {job: 1}
    assert sum(event.adopted for event in stage.happened.all(RedisBack)) == 1
    assert (await stage.job(job))["stalled"] == 0
    await stage.settle_ledger(job)
    await all_slots_free(worker)


@pytest.mark.parametrize("command", WAYS_TO_END)
async def test_a_settle_whose_reply_was_lost_is_not_repeated(
    stage: Stage, proxy: Proxy, effects: Effects, command: str
):
    handler = effects.ok if command == "moveToFinished" else effects.once_bad
    worker = await stage.worker({"job": handler}, url=proxy.url)
    loss = proxy.lose_reply(script(command).sha)
    job = await stage.add("job", **WAYS_TO_END[command])
    await stage.settle_ledger(job)
    assert await asyncio.to_thread(loss.done.wait, 5)
    assert effects.ran[job] == (1 if command == "moveToFinished" else 2)
    assert (await stage.job(job))["stalled"] == 0
    assert (await stage.job(job))["attempts_made"] == effects.ran[job]
    assert not stage.happened.all(LeaseWasLost)
    await all_slots_free(worker)


async def test_the_next_job_that_came_with_a_lost_reply_is_run(stage: Stage, proxy: Proxy, effects: Effects):
    worker = await stage.worker({"held": effects.held, "ok": effects.ok}, url=proxy.url, concurrency=1)
    first = await stage.add("held")
    await stage.happened.wait(JobStarted, id=first)
    second = await stage.add("ok")
    loss = proxy.lose_reply(script("moveToFinished").sha)
    effects.hold.set()
    await stage.settle_ledger(first, second)
    assert await asyncio.to_thread(loss.done.wait, 5)
    assert effects.ran == {first: 1, second: 1}
    assert (await stage.job(second))["stalled"] == 0
    await all_slots_free(worker)


async def test_a_job_put_back_and_fetched_again_in_the_same_breath_is_adopted(
    stage: Stage, proxy: Proxy, effects: Effects
):
    """Both replies are lost. The job is ours again while its first attempt still asks itself how its own end went."""
    worker = await stage.worker({"job": effects.once_bad}, url=proxy.url, lock_ms=20_000)
    retry = worker.consumer._retry_now
    taking: list[asyncio.Task[Any]] = []

    def retry_and_fetch(*args: Any) -> Any:
        told = asyncio.ensure_future(retry(*args))
        taking.append(asyncio.create_task(worker._take(1)))
        return told

    worker.consumer._retry_now = retry_and_fetch
    loss = proxy.lose_reply(script("retryJob").sha, more=1)
    job = await stage.add("job", attempts=2)
    await stage.settle_ledger(job)
    assert await asyncio.to_thread(loss.done.wait, 5)
    assert [event.adopted for event in stage.happened.all(RedisBack, purpose="worker")] == [1]
    assert effects.ran[job] == 2
    assert (await stage.job(job))["stalled"] == 0
    await all_slots_free(worker)


async def test_what_a_handler_asks_of_the_queue_survives_a_lost_reply(stage: Stage, proxy: Proxy, effects: Effects):
    async def parent(ctx: Context, payload: dict[str, Any]) -> Any:
        done = await ctx.children()
        if not done:
            for what in ("updateProgress", "addLog", "addStandardJob"):
                proxy.lose_reply(script(what).sha)
            await ctx.progress(50)
            await ctx.log("a line")
            await ctx.spawn("ok", {"n": 1})
            raise WaitForChildren
        return list(done.values())

    await stage.worker({"parent": parent, "ok": effects.ok}, url=proxy.url)
    job = await stage.add("parent")
    assert await stage.finished(job) == ["completed"]
    shown = await stage.job(job)
    assert shown["returnvalue"] == [{"n": 1}]
    assert shown["progress"] == 50
    assert "a line" in shown["logs"]
    assert list(effects.ran.values()) == [1]


async def test_many_jobs_over_a_network_that_is_cut_all_the_time(stage: Stage, proxy: Proxy, effects: Effects):
    await stage.worker({"ok": effects.ok, "bad": effects.once_bad}, url=proxy.url, concurrency=20, lock_ms=20_000)
    jobs = [await stage.add("ok", {"takes": 0.02}) for _ in range(200)]
    jobs += [await stage.add("bad", attempts=3, backoff=20) for _ in range(50)]

    async def cut() -> None:
        seen = 0
        while True:
            await stage.happened.wait(JobEnded, count=seen + 20, within=60)
            seen = len(stage.happened.all(JobEnded))
            proxy.cut()

    cutter = asyncio.create_task(cut())
    await stage.finished(*jobs, within=30)
    cutter.cancel()
    await stage.settle_ledger(*jobs)
    assert len(stage.happened.all(RedisBack, purpose="worker")) > 5
    assert Counter(effects.ran.values()) == {1: 200, 2: 50}


async def test_a_valkey_that_is_killed_and_comes_back_after_the_leases_ran_out(
    own_stage: Stage, own_valkey: Valkey, effects: Effects
):
    """An outage longer than the lease. Results are kept and delivered: nobody else has taken the jobs meanwhile."""
    worker = await own_stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=1000)
    await own_stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=1000, concurrency=1)
    jobs = [await own_stage.add("held", {"n": n}) for n in range(8)]
    await own_stage.happened.wait(JobStarted, count=6)
    await asyncio.to_thread(own_valkey.kill)
    effects.hold.set()  # they return while Redis is away
    await asyncio.sleep(2.0)  # the outage itself
    assert not own_stage.happened.all(JobEnded)
    await asyncio.to_thread(own_valkey.start)
    jobs += [await own_stage.add("ok") for _ in range(5)]
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}
    assert not own_stage.happened.all(LeaseWasLost)
    assert worker.consumer.link.reconnects == 1


async def test_leases_that_ran_out_in_an_outage_are_left_to_their_owners_for_a_moment(
    own_stage: Stage, own_valkey: Valkey, effects: Effects
):
    """The watcher is back before the owner is: taking the jobs at once would count the outage as their crash."""
    owner = await own_stage.worker({"held": effects.held}, lock_ms=3000)
    jobs = [await own_stage.add("held") for _ in range(3)]
    await own_stage.happened.wait(JobStarted, count=3)
    await own_stage.worker({"held": effects.held}, lock_ms=3000)
    connect = owner.leases._link._connect

    async def connect_late() -> int:
        await asyncio.sleep(0.5)
        return await connect()

    owner.leases._link._connect = connect_late
    await asyncio.to_thread(own_valkey.kill)
    await asyncio.sleep(3.0)
    await asyncio.to_thread(own_valkey.start)
    await own_stage.happened.wait(RedisBack, purpose="lease", count=2)
    effects.hold.set()
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}
    assert owner.finished == 3


async def test_handlers_go_on_during_an_outage_and_keep_their_leases(
    own_stage: Stage, own_valkey: Valkey, effects: Effects
):
    await own_stage.worker({"held": effects.held}, lock_ms=1000)
    jobs = [await own_stage.add("held") for _ in range(5)]
    await own_stage.happened.wait(JobStarted, count=5)
    await asyncio.to_thread(own_valkey.kill)
    await asyncio.sleep(1.5)
    await asyncio.to_thread(own_valkey.start)
    await own_stage.happened.wait(RedisBack, purpose="lease")
    await asyncio.sleep(1.5)  # longer than a lease: it must be renewed again
    effects.hold.set()
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}


async def test_valkey_restarted_again_and_again_under_load(own_stage: Stage, own_valkey: Valkey, effects: Effects):
    handlers = {"ok": effects.ok, "bad": effects.once_bad, "later": effects.later}
    for _ in range(2):
        await own_stage.worker(handlers, lock_ms=4000, concurrency=10)
    jobs = [await own_stage.add("ok", {"takes": 0.02}) for _ in range(150)]
    jobs += [await own_stage.add("bad", attempts=2, backoff=30) for _ in range(30)]
    jobs += [await own_stage.add("later", delay=50) for _ in range(20)]
    for enough in (30, 90, 150):
        await own_stage.happened.wait(JobEnded, count=enough)
        await asyncio.to_thread(own_valkey.kill)
        await asyncio.to_thread(own_valkey.start)
    await own_stage.settle_ledger(*jobs)
    assert all(effects.ran[job] == 1 for job in jobs[:150])
    assert all(effects.ran[job] == 2 for job in jobs[150:])


async def test_a_result_whose_lease_was_taken_during_the_outage_is_dropped(
    stage: Stage, proxy: Proxy, effects: Effects
):
    await stage.worker({"held": effects.held}, url=proxy.url, lock_ms=1000)
    job = await stage.add("held", {"n": 1})
    await stage.happened.wait(JobStarted, id=job)
    proxy.refuse()
    other = await stage.worker({"held": effects.held}, lock_ms=1000)
    await stage.happened.wait(JobStarted, count=2)
    effects.hold.set()
    assert await stage.finished(job) == ["completed"]
    proxy.allow()
    await stage.happened.wait(LeaseWasLost, id=job)
    await stage.settle_ledger(job)
    assert other.finished == 1
    assert effects.ran[job] == 2


@pytest.mark.parametrize("hangs_at", [b"SETNAME", b"LOAD", b"LRANGE", b"SUBSCRIBE"])
async def test_a_connection_that_hangs_while_it_is_made_is_given_up(
    stage: Stage, proxy: Proxy, effects: Effects, hangs_at: bytes, monkeypatch: pytest.MonkeyPatch
):
    """A network that forgets connections may forget the new ones, too: at the log-in, the scripts, the look around."""
    monkeypatch.setattr(oxherd.queue.connection, "CONNECT_TIMEOUT", 0.5)
    await stage.worker({"ok": effects.ok}, url=proxy.url)
    proxy.freeze_at(hangs_at)
    proxy.cut()
    job = await stage.add("ok")
    assert await stage.finished(job, within=5) == ["completed"]
    await stage.happened.wait(RedisBack, purpose="control")


async def test_a_connection_that_hangs_at_the_start_is_an_error(
    stage: Stage, proxy: Proxy, effects: Effects, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(oxherd.queue.connection, "CONNECT_TIMEOUT", 0.5)
    proxy.freeze_at(b"LOAD")
    with pytest.raises(RedisUnreachable):
        await stage.worker({"ok": effects.ok}, url=proxy.url)


async def test_clients_that_redis_kills_come_back(stage: Stage, effects: Effects):
    await stage.worker({"ok": effects.ok}, concurrency=10)
    jobs = [await stage.add("ok", {"takes": 0.01}) for _ in range(150)]
    for enough in (20, 50, 80):
        await stage.happened.wait(JobEnded, count=enough)
        with Redis.from_url(stage.url) as redis:
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
    await stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}


class Refusal:
    """A way to make Valkey refuse writes, and the code that it then answers with."""

    def __init__(self, code: str, begin: list[list[str]], end: list[list[str]]) -> None:
        self.code, self.begin, self.end = code, begin, end


REFUSALS = [
    Refusal("READONLY", [["REPLICAOF", "127.0.0.1", "1"]], [["REPLICAOF", "NO", "ONE"]]),
    Refusal("OOM", [["CONFIG", "SET", "maxmemory", "1"]], [["CONFIG", "SET", "maxmemory", "0"]]),
    Refusal(
        "NOREPLICAS",
        [["CONFIG", "SET", "min-replicas-to-write", "1"]],
        [["CONFIG", "SET", "min-replicas-to-write", "0"]],
    ),
    Refusal(
        "MASTERDOWN",
        [["CONFIG", "SET", "replica-serve-stale-data", "no"], ["REPLICAOF", "127.0.0.1", "1"]],
        [["REPLICAOF", "NO", "ONE"], ["CONFIG", "SET", "replica-serve-stale-data", "yes"]],
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
async def test_a_redis_that_refuses_writes_is_named_and_nothing_is_lost(
    own_stage: Stage, own_valkey: Valkey, effects: Effects, refusal: Refusal
):
    """Jobs that return while Redis refuses, and jobs that wait."""
    await own_stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=2000, concurrency=3)
    jobs = [await own_stage.add("held") for _ in range(3)]
    await own_stage.happened.wait(JobStarted, count=3)
    jobs += [await own_stage.add("ok") for _ in range(5)]
    with Redis.from_url(own_valkey.url) as redis:
        for command in refusal.begin:
            redis.execute_command(*command)
        effects.hold.set()
        named = await own_stage.happened.wait(RedisRefusedCommand, code=refusal.code)
        assert named[0].hint
        await asyncio.sleep(0.5)  # the refusal lasts
        for command in refusal.end:
            redis.execute_command(*command)
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}


async def test_a_redis_that_a_script_holds_is_waited_for(own_stage: Stage, own_valkey: Valkey, effects: Effects):
    await own_stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=3000, concurrency=3)
    jobs = [await own_stage.add("held") for _ in range(3)]
    await own_stage.happened.wait(JobStarted, count=3)
    jobs += [await own_stage.add("ok") for _ in range(5)]

    def hold() -> None:
        with Redis.from_url(own_valkey.url) as redis:
            redis.config_set("busy-reply-threshold", 50)
            with pytest.raises(ResponseError):
                redis.eval("while true do end", 0)

    holding = asyncio.create_task(asyncio.to_thread(hold))
    effects.hold.set()
    await own_stage.happened.wait(RedisRefusedCommand, code="BUSY")
    with Redis.from_url(own_valkey.url) as redis:
        redis.script_kill()
    await holding
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}


async def test_a_redis_that_is_loading_is_waited_for(queue_name: str, effects: Effects):
    with Valkey(tcp=True, append_only=True, config={"key-load-delay": "200"}) as valkey:
        async with Stage(valkey.url, queue_name) as stage:
            await stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=8000)
            jobs = [await stage.add("held") for _ in range(3)]
            await stage.happened.wait(JobStarted, count=3)
            with Redis.from_url(valkey.url) as redis, redis.pipeline(transaction=False) as ballast:
                for n in range(5000):
                    ballast.set(f"ballast:{n}", n)
                ballast.execute()
            await asyncio.to_thread(valkey.kill)
            effects.hold.set()
            await asyncio.to_thread(valkey.start)
            assert any("LOADING" in event.error for event in stage.happened.all(RedisLost))
            jobs += [await stage.add("ok") for _ in range(3)]
            await stage.settle_ledger(*jobs)
            assert set(effects.ran.values()) == {1}


async def test_a_redis_whose_disk_fails_is_named_and_nothing_is_lost(
    own_stage: Stage, own_valkey: Valkey, effects: Effects
):
    await own_stage.worker({"held": effects.held, "ok": effects.ok}, lock_ms=4000, concurrency=3)
    jobs = [await own_stage.add("held") for _ in range(3)]
    await own_stage.happened.wait(JobStarted, count=3)
    jobs += [await own_stage.add("ok") for _ in range(5)]
    with Redis.from_url(own_valkey.url) as redis:
        redis.config_set("save", "3600 100000")
        shutil.rmtree(own_valkey._data)
        await saved(redis, "err")
        effects.hold.set()
        await own_stage.happened.wait(RedisRefusedCommand, code="MISCONF")
        redis.config_set("save", "")
    await own_stage.settle_ledger(*jobs)
    assert set(effects.ran.values()) == {1}


async def saved(redis: Redis, how: str) -> None:
    """Until a snapshot has ended like this."""

    async def ended() -> bool:
        info = redis.info("persistence")
        return not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == how

    redis.bgsave()
    await eventually(ended)


@pytest.mark.parametrize("where", ["start", "later"])
async def test_a_wrong_password_is_named_without_being_shown(queue_name: str, effects: Effects, where: str):
    with Valkey(tcp=True, append_only=True, config={"requirepass": "right-one"}) as valkey:
        url = valkey.url.replace("//", "//:right-one@")
        async with Stage(url, queue_name) as stage:
            if where == "start":
                worker = WorkerProcess(url.replace("right", "wrong"), queue_name, witness_url=url)
                await worker.launch()
                assert await worker.exited() == 3
                said = worker.stderr + str(worker.lines)
                assert "WRONGPASS" in said
                assert "REDIS_URL" in said
                assert "wrong-one" not in said
                return
            await stage.worker({"ok": effects.ok})
            with Redis.from_url(url) as redis:
                redis.config_set("requirepass", "another")
                redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                lost = await stage.happened.until(
                    lambda: [event for event in stage.happened.all(RedisLost) if "WRONGPASS" in event.error]
                )
                assert "right-one" not in str(lost)
                redis.config_set("requirepass", "right-one")
            job = await insist_on(lambda: stage.add("ok", jobId="after"))  # the test's own connection was cut, too
            await stage.settle_ledger(job)


async def test_a_redis_that_is_not_there_at_the_start_is_exit_code_3(queue_name: str):
    worker = WorkerProcess("redis://:secret@127.0.0.1:9/0", queue_name, witness_url="redis://127.0.0.1:9")
    await worker.launch()
    assert await worker.exited() == 3
    assert "can't reach Redis at redis://127.0.0.1:9/0" in worker.stderr
    assert "secret" not in worker.stderr
