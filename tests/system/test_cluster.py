"""A worker on a real Redis Cluster: its queue is on one node, and it follows the queue to another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from cluster import Cluster

from oxherd import Herd
from oxherd.errors import EmbeddedUnavailable, SettingsError
from oxherd.queue.feed import attend
from oxherd.queue.producer import NewJob, Repeat
from oxherd.telemetry.events import RedisBack
from oxherd.testing import ScriptedModel, serving

TAG = "{bull}"
AGENT = {"name": "support", "model": "m", "budget": {"usd": 0.5}}


@pytest.fixture
def own_cluster(oxherd_without_engine) -> Iterator[Cluster]:
    """One to mistreat."""
    yield from started(oxherd_without_engine)


@pytest.fixture(scope="module")
def cluster(oxherd_without_engine) -> Iterator[Cluster]:
    yield from started(oxherd_without_engine)


def started(oxherd_without_engine) -> Iterator[Cluster]:
    try:
        with Cluster(TAG) as nodes:
            yield nodes
    except EmbeddedUnavailable as error:
        oxherd_without_engine(error)


@pytest.fixture
def herd() -> Herd:
    herd = Herd()
    herd.opened = asyncio.Event()

    @herd.job("opens")
    async def opens(ctx, payload):
        await herd.opened.wait()
        return "through"

    return herd


def working(herd: Herd, url: str, prefix: str = TAG, **more: Any) -> AbstractAsyncContextManager[Any]:
    limits = {"BUDGET_DAILY_USD": "5", "BUDGET_TENANT_DAILY_USD": "5", "JOB_TENANT_CONCURRENCY": "2"}
    return serving(herd, redis_url=url, JOB_QUEUE_PREFIX=prefix, **limits, **more)


async def test_all_of_a_queue_s_keys_are_on_one_node_whichever_node_the_worker_was_told_of(cluster, herd):
    with ScriptedModel(answer=lambda asked: asked.text) as model:
        async with working(herd, cluster.elsewhere.url, model=model) as worker:
            agent = {"agent": AGENT, "input": "hello", "tenant": "acme", "stream": True}
            assert (await worker.result(await worker.add("agent.run", agent)))["output"] == "hello"
            follower = worker.service.worker.consumer.link
            held = await worker.add("opens", {"tenant": "acme"})
            await attend(follower, worker.service.worker.keys, held)
            await worker.admin.cancel(held)
            assert (await worker.ended(held)).outcome == "failed"
            tree = NewJob("oxherd.echo", {"a": 1}, children=(NewJob("oxherd.echo", {"b": 2}),))
            await worker.result(await worker.producer.add_flow(tree))
            await worker.producer.schedule("daily", Repeat(every=60_000), NewJob("oxherd.echo", {}))
            await worker.admin.close_gate("a test")
            await worker.admin.open_gate()
            await worker.add("oxherd.echo", {"tenant": "acme"}, delay=60_000, priority=3)
            ours = {key for keys in cluster.keys().values() for key in keys if key.startswith("oxherd:")}

    kinds = {key.removeprefix(f"oxherd:{TAG}:").removeprefix(f"{worker.queue}:").partition(":")[0] for key in ours}
    assert {"money", "calls", "workers", "watch", "stream"} <= kinds
    places = {node: keys for node, keys in cluster.keys().items() if keys}
    assert set(places) == {cluster.home}
    slots = {cluster.ask(cluster.home).execute_command("CLUSTER KEYSLOT", key) for key in places[cluster.home]}
    assert len(slots) == 1, "one slot, so that moving slots never parts them"


async def test_a_queue_without_a_hash_tag_is_refused_with_what_to_set(cluster, herd):
    with pytest.raises(SettingsError, match=r"(?s)JOB_QUEUE_PREFIX must hold a hash tag.*\{bull\}.*Redis Cluster"):
        async with working(herd, cluster.home.url, prefix="bull"):
            pass


async def test_a_job_survives_that_its_node_dies_and_that_its_queue_moves_to_another(own_cluster, herd):
    async with working(herd, own_cluster.home.url) as worker:
        running = await worker.add("opens", {})
        waiting = [await worker.add("oxherd.echo", {"n": n}, delay=300) for n in range(20)]
        own_cluster.ask(own_cluster.home).execute_command("WAIT", 1, 2000)

        own_cluster.home.kill()
        await worker.events.wait(RedisBack, purpose="worker", within=20)
        herd.opened.set()
        assert await worker.result(running) == "through"
        assert [(await worker.ended(job)).outcome for job in waiting] == ["completed"] * 20
        assert worker.service.health.report()[0]

        herd.opened.clear()
        running = await worker.add("opens", {})
        back = len(worker.events.all(RedisBack, purpose="worker"))
        own_cluster.move(to=own_cluster.elsewhere)
        await worker.events.wait(RedisBack, purpose="worker", count=back + 1, within=20)
        herd.opened.set()
        assert await worker.result(running) == "through"
