"""Tenants take turns: whoever has many jobs waiting does not make others wait for them all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from process import Start
from redis import Redis
from stage import Stage, eventually

from oxherd.context import Context
from oxherd.errors import JobStateError, RetryLater, WaitForChildren
from oxherd.job import Job
from oxherd.queue.producer import NewJob
from oxherd.queue.turns import Turns
from oxherd.telemetry.events import JobEnded, JobsPutAside, JobStarted
from oxherd.worker import worker as worker_module

SLOTS = 15  # of the three workers that most tests start


class Works:
    """Handlers that hold their slots until they are told to go on, or for a moment, and how many ran at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()

    async def held(self, ctx: Context, payload: dict[str, Any]) -> None:
        await self._run(ctx, payload, self.go.wait())

    async def brief(self, ctx: Context, payload: dict[str, Any]) -> None:
        await self._run(ctx, payload, asyncio.sleep(payload.get("takes", 0.002)))

    async def _run(self, ctx: Context, payload: dict[str, Any], work: Awaitable[Any]) -> None:
        tenant = payload.get("tenant", "")
        self.running[tenant] += 1
        self.most[tenant] = max(self.most[tenant], self.running[tenant])
        self.ran[ctx.job.id] += 1
        try:
            await work
        finally:
            self.running[tenant] -= 1


@pytest.fixture
async def works() -> Works:
    return Works()


async def add(stage: Stage, tenant: str | None, many: int = 1, **opts: Any) -> list[str]:
    """Jobs of one tenant, or of nobody; their ids."""
    data = {} if tenant is None else {"tenant": tenant}
    return await stage.producer.add_bulk([NewJob("work", data, opts) for _ in range(many)])


async def order(stage: Stage) -> list[str]:
    """The ids of all jobs that were taken, in order, as the queue's stream has them."""
    entries = await stage.link.call(b"XRANGE", stage.keys.events, b"-", b"+")
    words = [[word.decode() for word in flat] for _, flat in entries]
    fields = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in words]
    return [one["jobId"] for one in fields if one["event"] == "active"]


async def three(stage: Stage, handler: Callable[..., Any], *, limit: int = 0, **limits: Any) -> None:
    for _ in range(3):
        await stage.worker({"work": handler}, turns=Turns(limit), **limits)


async def test_one_job_behind_a_thousand_of_another_tenant_is_among_the_next(stage: Stage, works: Works):
    many = await add(stage, "a", 1000)
    await three(stage, works.brief)
    await stage.finished(*many[:30])
    [single] = await add(stage, "b")
    before = len(await order(stage))
    await stage.finished(single)
    taken = await order(stage)
    assert taken.index(single) - before <= SLOTS
    await stage.settle_ledger(*many, single)
    taken = await order(stage)
    assert [one for one in taken if one != single] == many, "each once, and in the order in which they came"
    assert works.most["a"] == SLOTS, "a tenant alone has all the slots"


async def test_it_is_found_behind_more_jobs_than_one_look_takes_in(stage: Stage, works: Works):
    many = await add(stage, "a", 900)
    [single] = await add(stage, "b")
    await stage.worker({"work": works.held}, concurrency=2)
    await stage.happened.until(lambda: sum(one.count for one in stage.happened.all(JobsPutAside)) >= 900)
    await stage.happened.wait(JobStarted, count=2)
    works.go.set()
    await stage.finished(single)
    assert (await order(stage)).index(single) <= 3
    await stage.settle_ledger(*many, single)


async def test_with_a_single_slot_tenants_alternate(stage: Stage, works: Works):
    a = await add(stage, "a", 5)
    b = await add(stage, "b", 2)
    nobodys = await add(stage, None, 2)
    await stage.worker({"work": works.brief}, concurrency=1)
    await stage.settle_ledger(*a, *b, *nobodys)
    # The worker knows of tenants from the first job on, so that one was no turn yet.
    assert await order(stage) == [a[0], a[1], b[0], nobodys[0], a[2], b[1], nobodys[1], *a[3:]]


async def test_whoever_has_the_fewest_running_is_next(stage: Stage, works: Works):
    a = await add(stage, "a", 10)
    await stage.worker({"work": works.held}, concurrency=4)
    await stage.happened.wait(JobStarted, count=4)
    b = await add(stage, "b", 10)
    works.go.set()
    works.go = asyncio.Event()
    await stage.happened.wait(JobStarted, count=8)
    assert works.running == {"a": 2, "b": 2}
    works.go.set()
    await stage.settle_ledger(*a, *b)


async def test_a_tenant_with_long_jobs_leaves_its_share_to_one_with_short_jobs(stage: Stage, works: Works):
    long = [await stage.add("long", {"tenant": "a"}) for _ in range(10)]
    await stage.worker({"long": works.held, "work": works.brief}, concurrency=4)
    await stage.happened.wait(JobStarted, count=4)
    short = await add(stage, "b", 30)
    assert await stage.admin.cancel(long[0]) == "stopping"
    await stage.finished(*short)  # in the one slot that is free, although three of four are the other's
    works.go.set()
    await stage.finished(*long)


async def test_jobs_without_a_tenant_are_never_put_aside(stage: Stage, works: Works):
    jobs = await add(stage, None, 50)
    odd = [await stage.add("work", data) for data in ({"tenant": 7}, {"tenant": ""}, {"of": {"tenant": "a"}}, [])]
    await stage.worker({"work": works.brief}, concurrency=1, turns=Turns(1))
    await stage.finished(*jobs, *odd)
    assert await order(stage) == [*jobs, *odd]
    assert not stage.happened.all(JobsPutAside)


async def test_without_turns_jobs_run_in_the_order_in_which_they_came(stage: Stage, works: Works):
    jobs = [*await add(stage, "a", 20), *await add(stage, "b")]
    await stage.worker({"work": works.brief}, turns=None)
    await stage.settle_ledger(*jobs)
    assert await order(stage) == jobs


async def test_priority_lifo_and_age_count_within_a_tenant(stage: Stage, works: Works):
    plain = await add(stage, "a", 3)
    [low] = await add(stage, "a", priority=9)
    [high] = await add(stage, "a", priority=2)
    [highest] = await add(stage, "b", priority=1)
    await stage.worker({"work": works.held}, concurrency=1)
    await stage.happened.wait(JobStarted, id=plain[0])
    [last_in, first_out] = await add(stage, "a", 2, lifo=True)
    works.go.set()
    await stage.settle_ledger(*plain, low, high, highest, last_in, first_out)
    assert await order(stage) == [plain[0], first_out, highest, last_in, *plain[1:], high, low]


async def test_a_job_put_aside_is_left_as_it_was(stage: Stage, works: Works):
    seen: list[Job] = []

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        seen.append(ctx.job)
        await works.held(ctx, payload)

    first, second = await add(stage, "a", 2, attempts=3)
    await stage.worker({"work": work}, turns=Turns(1))
    await stage.happened.wait(JobsPutAside)
    aside = await stage.job(second)
    assert (aside["state"], aside["attempts_started"], aside["stalled"], aside["delay"]) == ("prioritized", 0, 0, 0)
    works.go.set()
    await stage.settle_ledger(first, second)
    assert [(job.id, job.attempts_started, job.attempts_made, job.stalled) for job in seen] == [
        (first, 1, 0, 0),
        (second, 1, 0, 0),
    ]


# -- the limit


async def test_no_tenant_runs_more_than_its_limit_on_all_workers_together(stage: Stage, works: Works):
    a, b, nobodys = await add(stage, "a", 150), await add(stage, "b", 150), await add(stage, None, 60)
    await three(stage, works.brief, limit=4, concurrency=10)
    await stage.settle_ledger(*a, *b, *nobodys)
    assert (works.most["a"], works.most["b"]) == (4, 4)
    assert works.most[""] > 4
    taken = await order(stage)
    for jobs in (a, b, nobodys):
        assert [one for one in taken if one in set(jobs)] == jobs


async def test_the_limit_holds_while_workers_are_killed(stage: Stage, start: Start, witness: Redis):
    settings = {"app": "tenants:herd", "JOB_TENANT_CONCURRENCY": "3", "JOB_CRASH_LIMIT": "50", "JOB_CONCURRENCY": "10"}
    workers = await asyncio.gather(*(start(**settings, lock_ms=700) for _ in range(3)))
    jobs = [*await add(stage, "a", 60), *await add(stage, "b", 60)]
    log = f"log:{stage.keys.queue}"
    for victim, enough in zip(workers[:2], (20, 60), strict=True):
        await stage.stream.news.until(lambda: sum(bool(stage.stream.finishes(job)) for job in jobs) >= enough, 20)  # noqa: B023
        victim.kill()
        await victim.exited()
        witness.rpush(log, f"killed {victim.pid}")
    await stage.settle_ledger(*jobs)
    running: dict[str, tuple[str, str]] = {}
    most: Counter[str] = Counter()
    for line in witness.lrange(log, 0, -1):
        what, *words = line.split()
        if what == "begin":
            job, tenant, pid = words
            running[job] = (tenant, pid)
        elif what == "end":
            running.pop(words[0], None)
        else:
            running = {job: (tenant, pid) for job, (tenant, pid) in running.items() if pid != words[0]}
        for tenant, many in Counter(tenant for tenant, _ in running.values()).items():
            most[tenant] = max(most[tenant], many)
    assert most == {"a": 3, "b": 3}


async def test_jobs_that_other_workers_took_count_for_their_tenants(stage: Stage, works: Works):
    ours = await stage.worker({"work": works.held}, turns=Turns(1), concurrency=1)
    [before] = await add(stage, "b")
    await stage.happened.wait(JobStarted, id=before)  # what runs has been counted a moment ago
    await stage.worker({"work": works.held}, turns=None, concurrency=1)  # as one of Node's
    [theirs] = await add(stage, "a")
    await stage.happened.wait(JobStarted, id=theirs)
    [next_] = await add(stage, "a")
    await stage.admin.cancel(before)
    await stage.happened.wait(JobsPutAside, count=2)
    assert not stage.happened.all(JobStarted, id=next_)
    assert works.running == {"a": 1, "b": 0}
    assert ours.running == {}
    works.go.set()
    await stage.finished(theirs, next_)


@pytest.mark.parametrize("end", ["stop", "park", "retry_later", "fail", "cancel"])
async def test_the_next_job_of_a_tenant_starts_however_the_one_before_it_ended(stage: Stage, works: Works, end: str):
    """The other worker waits for work, and nobody adds any: it must be told."""

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await works.held(ctx, payload)
        if ctx.job.id == first:
            if end == "park":
                await ctx.add_child("child", "other", {})
                raise WaitForChildren
            if end == "retry_later":
                raise RetryLater(3600)
            raise RuntimeError("fails")

    holder = await stage.worker({"work": work}, turns=Turns(1))
    await stage.worker({"work": works.brief}, turns=Turns(1))
    [first] = await add(stage, "a")
    await stage.happened.wait(JobStarted, id=first)
    [second] = await add(stage, "a")
    await stage.happened.wait(JobsPutAside)
    if end == "stop":
        stopping = asyncio.create_task(holder.stop(grace=10))
        await asyncio.sleep(0)
    elif end == "cancel":
        await stage.admin.cancel(first)
    works.go.set()
    await stage.finished(second, within=3.0)
    if end == "stop":
        await stopping


async def test_a_dead_worker_s_jobs_count_until_they_are_given_back_and_no_longer(
    stage: Stage, works: Works, start: Start
):
    doomed = await start(app="tenants:herd", JOB_TENANT_CONCURRENCY="2", lock_ms=700)
    held = [await stage.add("hold", {"tenant": "a"}) for _ in range(2)]
    await eventually(lambda: both_active(stage))
    doomed.kill()
    [waiting] = await add(stage, "a")
    await stage.worker({"work": works.brief, "hold": works.brief}, turns=Turns(2))
    await stage.settle_ledger(*held, waiting)
    assert works.most["a"] <= 2
    assert (await order(stage))[-1] == waiting, "who had begun comes first"


async def both_active(stage: Stage) -> bool:
    return (await stage.admin.counts())["active"] == 2


async def test_workers_that_hold_a_tenant_back_are_silent(stage: Stage, works: Works, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_module, "SHORT_WAIT", 0.05)
    monkeypatch.setattr(worker_module, "MAXED_WAIT", 0.05)
    await three(stage, works.held, limit=1, lock_ms=60_000, stalled_interval=60.0)
    jobs = await add(stage, "a", 20)
    await stage.happened.wait(JobsPutAside)
    await asyncio.sleep(0.5)  # until they have settled down
    before = await commands(stage)
    await asyncio.sleep(1.0)
    assert await commands(stage) - before <= 12, "each poll would be seen 20 times"
    works.go.set()
    await stage.settle_ledger(*jobs)


async def commands(stage: Stage) -> int:
    """Scripts that Redis was asked to run so far."""
    info = (await stage.link.call(b"INFO", b"commandstats")).decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in info.splitlines() if "_evalsha:" in line)


# -- what others do to jobs that were put aside


async def aside(stage: Stage, works: Works, many: int = 4) -> tuple[str, list[str]]:
    """A job that runs, and others of its tenant that are held back."""
    await stage.worker({"work": works.held}, turns=Turns(1))
    first, *rest = await add(stage, "a", many + 1)
    await eventually(lambda: all_aside(stage, many))
    return first, rest


async def all_aside(stage: Stage, many: int) -> bool:
    return (await stage.admin.counts())["prioritized"] == many


async def test_a_job_put_aside_can_be_removed_or_cancelled(stage: Stage, works: Works):
    first, rest = await aside(stage, works)
    assert await stage.admin.remove(rest[0])
    assert await stage.admin.cancel(rest[2]) == "removed"
    with pytest.raises(JobStateError):
        await stage.admin.promote(rest[1])
    works.go.set()
    await stage.settle_ledger(first, rest[1], rest[3])


async def test_a_drained_queue_forgets_whom_it_had_put_aside(stage: Stage, works: Works):
    first, _ = await aside(stage, works)
    k = stage.keys
    await stage.link.call(b"ZREM", k.prioritized, *await stage.link.call(b"ZRANGE", k.prioritized, 0, -1))
    [later] = await add(stage, "a")
    works.go.set()
    await stage.settle_ledger(first, later)
    assert await stage.link.call(b"KEYS", k.turns + b"*") == []


async def test_jobs_put_aside_run_although_our_own_keys_are_gone(stage: Stage, works: Works):
    first, rest = await aside(stage, works)
    await stage.link.call(b"DEL", *await stage.link.call(b"KEYS", stage.keys.turns + b"*"))
    works.go.set()
    await stage.settle_ledger(first, *rest)
    assert await order(stage) == [first, *rest]


async def test_a_paused_queue_and_its_own_concurrency_and_a_closed_gate_hold(stage: Stage, works: Works):
    k = stage.keys
    jobs = [*await add(stage, "a", 10), *await add(stage, "b", 10)]
    await stage.link.call(b"HSET", k.meta, b"paused", 1)
    await three(stage, works.brief)
    await asyncio.sleep(0.1)
    assert not works.ran
    await stage.admin.close_gate("maintenance")
    await asyncio.sleep(0.05)
    await stage.link.call(b"HDEL", k.meta, b"paused")
    await stage.link.call(b"HSET", k.meta, b"concurrency", 3)
    await stage.admin.open_gate()
    await stage.settle_ledger(*jobs)
    assert sum(works.most.values()) <= 2 * 3
    assert max(works.ran.values()) == 1


async def test_the_queue_s_rate_limit_counts_only_what_runs(stage: Stage, works: Works):
    await stage.link.call(b"HSET", stage.keys.meta, b"max", 5, b"duration", 400)
    jobs = [*await add(stage, "a", 8), *await add(stage, "b", 2)]
    await stage.worker({"work": works.brief})
    await stage.settle_ledger(*jobs)
    processed = sorted([(await stage.job(job))["processed_on"] for job in jobs])
    assert 390 <= processed[5] - processed[0] < 2000, "the first five at once, whoever was put aside"


async def test_a_job_handed_back_by_a_deploy_is_its_tenant_s_next(stage: Stage, works: Works):
    jobs = await add(stage, "a", 20)
    worker = await stage.worker({"work": works.held}, concurrency=2)
    await stage.happened.wait(JobStarted, count=2)
    await stage.happened.wait(JobsPutAside)
    await worker.stop(grace=0)
    works.go.set()
    await stage.worker({"work": works.brief}, concurrency=1)
    await stage.settle_ledger(*jobs)
    taken = await order(stage)
    assert sorted(taken[:2]) == sorted(taken[2:4]) == sorted(jobs[:2])
    assert taken[4:] == jobs[2:]
    assert [one.attempt for one in stage.happened.all(JobStarted)] == [1] * 22


async def test_an_attempt_that_failed_goes_to_the_end_of_its_tenant(stage: Stage, works: Works):
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        if ctx.job.id == jobs[0] and ctx.attempt == 1:
            raise RuntimeError("again")

    jobs = await add(stage, "a", 5, attempts=2)
    await stage.worker({"work": work}, concurrency=1)
    await stage.settle_ledger(*jobs)
    assert await order(stage) == [*jobs, jobs[0]]


async def test_a_flow_of_one_tenant_runs_from_the_leaves_up(stage: Stage, works: Works):
    data = {"tenant": "a"}
    await stage.worker({"work": works.brief}, turns=Turns(1))
    others = await add(stage, "b", 20)
    root = await stage.producer.add_flow(NewJob("work", data, {}, [NewJob("work", data) for _ in range(3)]))
    await stage.finished(root, *others)
    assert works.most == {"a": 1, "b": 1}
    assert (await stage.admin.counts())["completed"] == 24


async def test_every_job_runs_once_over_a_network_that_is_cut_all_the_time(stage: Stage, works: Works, proxy: Proxy):
    for _ in range(2):
        await stage.worker({"work": works.brief}, url=proxy.url, turns=Turns(6), concurrency=10, lock_ms=20_000)
    jobs = [one for tenant in "abc" for one in await add(stage, tenant, 80)]

    async def cut() -> None:
        for round_ in count(1):
            await stage.happened.wait(JobEnded, count=20 * round_, within=60)
            proxy.cut()

    cutter = asyncio.create_task(cut())
    await stage.finished(*jobs, within=30)
    cutter.cancel()
    await stage.settle_ledger(*jobs)
    assert set(works.ran.values()) == {1}
    assert max(works.most.values()) <= 6


async def test_a_payload_of_many_bytes_ends_a_look(stage: Stage, works: Works):
    text = "x" * 400_000
    jobs = await stage.producer.add_bulk([NewJob("work", {"tenant": "a", "text": text}) for _ in range(9)])
    await stage.worker({"work": works.brief}, concurrency=1)
    await stage.settle_ledger(*jobs)
    assert max(one.count for one in stage.happened.all(JobsPutAside)) == 3
    assert await order(stage) == jobs


async def test_scores_of_jobs_put_aside_keep_their_order_at_the_highest_priority(stage: Stage, works: Works):
    low = await add(stage, "a", 5, priority=2**21 - 1)
    high = await add(stage, "a", 5, priority=2**21 - 2)
    await stage.worker({"work": works.brief}, concurrency=1)
    await stage.settle_ledger(*low, *high)
    assert await order(stage) == [*high, *low]
