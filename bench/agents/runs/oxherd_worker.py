"""The whole worker: jobs from the queue, each call journaled and in the ledger in Postgres, the shared limiter, caps.

Jobs are put on the queue while the intake gate is closed: what that costs is the producer's.
"""

import asyncio

from oxherd_run import AGENT, PLAIN, ListeningLLM, listeners

from oxherd import Herd, settings
from oxherd.app import Service, build_store, queue_client
from oxherd.telemetry.events import JobEnded, attach

BATCHES = True  # `connect` gives what prepares many runs at once


async def connect(url, given):
    variables = {
        "REDIS_URL": given["redis"], "DATABASE_URL": given["postgres"], "OPENROUTER_BASE_URL": url,
        "OPENROUTER_API_KEY": "none", "JOB_CONCURRENCY": str(given["at_once"]), "PORT": "0", "HOST": "127.0.0.1",
        "BUDGET_TENANT_DAILY_USD": "1000",
    }  # fmt: skip
    known, herd = settings.load(variables), Herd()
    herd.agents |= {agent.name: agent for agent in (AGENT, PLAIN)}
    service = Service(known, herd, store=build_store(known))
    service._agents.llm.__class__ = ListeningLLM  # noqa: SLF001  the one way to hear tokens as they come
    await service.start()
    waiting = {}

    def ended(event):
        done = waiting.pop(event.id, None)
        if done is not None and not done.done():
            done.set_result(event.outcome)

    attach(ended, JobEnded)
    count = 0

    async def prepare(said, heard, runs, *, tools):
        """Put runs on the queue; returns what lets them begin and waits for all."""
        nonlocal count
        futures = []
        async with queue_client(known) as (producer, admin):
            await admin.close_gate("the bench fills the queue")
            for _ in range(runs):
                count += 1
                name, listener = f"{said} {count}", heard()
                listeners[name] = listener
                payload = {"agent": "looker" if tools else "plain", "input": name}
                job = await producer.add("agent.run", payload, jobId=f"bench-{count}", removeOnComplete=True)
                waiting[job] = asyncio.get_running_loop().create_future()
                futures.append(waiting[job])

        async def go():
            async with queue_client(known) as (_, admin):
                await admin.open_gate()
            outcomes = await asyncio.gather(*futures)
            assert set(outcomes) == {"completed"}, outcomes
            listeners.clear()

        return go

    return prepare
