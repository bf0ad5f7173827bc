"""The HTTP server beside a worker at full speed, and over a full queue and a full database.

    python -m bench.web.run load [--jobs 30000] [--rounds 5] [--rate 100]
    python -m bench.web.run full [--entries 1000000] [--rounds 20]

`load`: a worker of no-op jobs, 100 at once, without and with requests to its port at a steady rate, in turn.
The requests come from this process, each at its time whether the one before was answered or not. Then what one
request costs a worker that has nothing else to do: a figure that other work on the machine changes least.
`full`: how long each list and page takes over a million jobs in Redis, and a million runs and model calls in
Postgres, one request at a time; the first is left out.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey

TOKEN = "bench-" + "0" * 24
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
QUEUE = "bench"
SHARED = 6.0  # seconds for which sums of the ledger are shared, and one more
ASKED = {
    "nobody asks": [],
    "/health": ["/health"],
    "/api: queues, workers, slo": ["/api/v1/queues", "/api/v1/workers", "/api/v1/slo"],
    "/api: 50 jobs": ["/api/v1/jobs?state=wait&limit=50"],
}
LISTS = (
    "/health", "/api/v1/queues", "/api/v1/workers", "/api/v1/jobs", "/api/v1/jobs?state=completed",
    "/api/v1/jobs?state=failed", "/api/v1/jobs?state=wait", "/api/v1/jobs?name=rare", "/api/v1/jobs?tenant=t7",
    "/api/v1/dead-letters", "/api/v1/runs", "/api/v1/runs?status=failed", "/api/v1/runs?tenant=t7",
    "/api/v1/runs?name=rare", "/api/v1/spend?by=day&days=1", "/api/v1/spend?by=day&days=30",
    "/api/v1/spend?by=tenant&days=30", "/api/v1/agents", "/api/v1/schedules", "/api/v1/approvals", "/api/v1/audit",
    "/api/v1/slo", "/api/v1/slo/series?span=1h", "/api/v1/slo/series?span=6h", "/api/v1/slo/series?span=30d",
    "/api/v1/alerts",
)  # fmt: skip
PAGES = (
    "/", "/jobs", "/jobs?state=completed", "/jobs?state=failed", "/jobs?name=rare", "/jobs/777777", "/runs",
    "/runs?status=failed", "/dead", "/agents", "/spend", "/schedules", "/approvals", "/operations", "/settings",
)  # fmt: skip


# -- the worker, in a process of its own


async def serve(url: str, database: str, jobs: int) -> None:
    """A whole worker; prints its port, then, once `jobs` are done, what they cost."""
    from oxherd import settings
    from oxherd.app import Service, build_store
    from oxherd.herd import Herd

    herd, done, left = Herd(), asyncio.Event(), jobs

    @herd.job("noop")
    async def noop(_ctx: Any, _payload: dict[str, Any]) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    variables = {"REDIS_URL": url, "JOB_QUEUE_NAME": QUEUE, "PORT": "0", "HOST": "127.0.0.1", "API_TOKEN": TOKEN}
    variables |= {"JOB_CONCURRENCY": "100", "OPENROUTER_BASE_URL": "http://127.0.0.1:9"}
    known = settings.load(variables | ({"DATABASE_URL": database} if database else {}))
    service = Service(known, herd, store=build_store(known))
    cpu, begun = time.process_time(), time.perf_counter()
    await service.start()
    print(service.port, flush=True)
    if jobs:
        await done.wait()
        spent, took = time.process_time() - cpu, time.perf_counter() - begun
        print(json.dumps({"us": spent / jobs * 1e6, "rate": jobs / took}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await service.close()


def worker(url: str, database: str, jobs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.web.run", "serve", url, database, str(jobs)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# -- requests beside jobs


async def ask(port: int, paths: list[str], rate: int, times: list[float], faults: list[str]) -> None:
    async with aiohttp.ClientSession(headers=HEADERS, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(path: str) -> None:
            begun = time.perf_counter()
            try:
                async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                    await response.read()
                    if response.status != 200:
                        faults.append(f"{path}: {response.status}")
            except aiohttp.ClientError as error:
                faults.append(f"{path}: {type(error).__name__}")
            times.append(time.perf_counter() - begun)

        tasks, begun, number = set(), time.perf_counter(), 0
        try:
            while True:
                tasks.add(task := asyncio.create_task(one(paths[number % len(paths)])))
                task.add_done_callback(tasks.discard)
                number += 1
                await asyncio.sleep(max(begun + number / rate - time.perf_counter(), 0))
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)


async def cost(port: int, pid: int, paths: list[str], count: int) -> float:
    """The worker's CPU for one request while no job runs, in µs."""
    before = cpu_of(pid)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=HEADERS) as session:
        for number in range(count):
            async with session.get(paths[number % len(paths)]) as response:
                await response.read()
    return (cpu_of(pid) - before) / count * 1e6


def cpu_of(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def fill(url: str, jobs: int) -> None:
    from oxherd.queue.connection import Link
    from oxherd.queue.keys import Keys
    from oxherd.queue.producer import NewJob, Producer
    from oxherd.settings import parse_redis_url

    link = Link(parse_redis_url(url), "bench")
    await link.start()
    await link.call(b"FLUSHALL")
    producer = Producer(link, Keys(QUEUE))
    for _ in range(0, jobs, 1000):
        await producer.add_bulk([NewJob("noop", {}, {"removeOnComplete": True})] * 1000)
    await link.stop()


async def load(jobs: int, rounds: int, rate: int) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ASKED}
    times: dict[str, list[float]] = {name: [] for name in ASKED}
    faults: list[str] = []
    with Valkey(tcp=True) as engine:
        for _ in range(rounds):
            for name, paths in ASKED.items():
                await fill(engine.url, jobs)
                with worker(engine.url, "", jobs) as process:
                    port = int(await asyncio.to_thread(process.stdout.readline))
                    asking = asyncio.create_task(ask(port, paths, rate, times[name], faults)) if paths else None
                    found[name].append(json.loads(await asyncio.to_thread(process.stdout.readline)))
                    if asking:
                        asking.cancel()
                        await asyncio.gather(asking, return_exceptions=True)
                    process.stdin.close()
        await fill(engine.url, 1000)
        with worker(engine.url, "", 1000) as process:
            port = int(await asyncio.to_thread(process.stdout.readline))
            await asyncio.to_thread(process.stdout.readline)
            await fill(engine.url, 1000)  # something to list; it is done at once
            costs = {name: await cost(port, process.pid, paths, 1000) for name, paths in ASKED.items() if paths}
            process.stdin.close()
    base_rate, base_us = (statistics.median(each[key] for each in found["nobody asks"]) for key in ("rate", "us"))
    print(
        f"| {rate} requests/s | jobs/s | fewer | CPU µs/job | p50 ms | p99 ms | requests | CPU µs/request | of a core |"
    )
    print("| --- |" + " ---: |" * 8)
    for name, each in found.items():
        speed, cpu = (statistics.median(one[key] for one in each) for key in ("rate", "us"))
        took = sorted(times[name])
        shown = [f"{took[int(share * (len(took) - 1))] * 1000:.1f}" if took else "" for share in (0.5, 0.99)]
        less = f"{(1 - speed / base_rate) * 100:.1f} %" if took else ""
        more = f"{cpu:.1f} ({(cpu / base_us - 1) * 100:+.1f} %)"
        one = f"{costs[name]:.0f} | {costs[name] * rate / 1e4:.1f} %" if name in costs else " | "
        print(f"| {name} | {speed:,.0f} | {less} | {more} | {' | '.join(shown)} | {len(took)} | {one} |")
    print(f"\n{len(faults)} requests went wrong {sorted(set(faults))}")


# -- a full queue, a full database

ENDED = """
local base, state, first, last, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for i = first, last do
  local at = now - i * 1000
  redis.call('HSET', base .. i, 'name', i % 50000 == 0 and 'rare' or 'noop', 'data', '{"tenant":"t' .. i % 5000 .. '"}',
    'opts', '{"attempts":3}', 'timestamp', at - 900, 'delay', 0, 'priority', 0, 'processedOn', at - 500,
    'finishedOn', at, 'atm', 1, 'ats', 1,
    state == 'failed' and 'failedReason' or 'returnvalue', state == 'failed' and 'no order ' .. i or '{"ok":true}')
  redis.call('ZADD', base .. state, at, i)
end
"""
RUNS = """
insert into oxherd.runs
select 'bench/' || i || '@1', 'bench', i::text, case when i % 50000 = 0 then 'rare' else 'noop' end, 't' || i % 5000,
  case when i % 20 = 0 then 'failed' else 'completed' end, 1, 1, 3, 'w1', '{"tenant":"t"}', '{"ok":true}',
  case when i % 20 = 0 then 'no order' end, case when i % 20 = 0 then 'error' end, null,
  now() - i * interval '1 second', now() - i * interval '1 second', now() - i * interval '1 second', 2, 900, 120, 0.0012
from generate_series(1, $1::int) i
"""
SPEND = """
insert into oxherd.spend
select 'bench/' || i || '/1', 'bench/' || i || '@1', 'model-1', 1, 't' || i % 5000, 'support', 'm/one', null, 'settled',
  900, 120, 0.002, 0.0012, now() - i * interval '1 second', now()
from generate_series(1, $1::int) i
"""


async def fill_all(url: str, database: str, entries: int) -> None:
    import asyncpg

    from oxherd.queue.connection import Link
    from oxherd.queue.keys import Keys
    from oxherd.settings import parse_redis_url
    from oxherd.store.migrate import migrate

    await migrate(database)
    connection = await asyncpg.connect(database)
    for statement in (RUNS, SPEND):
        await connection.execute(statement, entries, timeout=600)
    await connection.execute("vacuum analyze oxherd.runs", timeout=600)
    await connection.execute("vacuum analyze oxherd.spend", timeout=600)
    await connection.close()
    link, keys, batch = Link(parse_redis_url(url), "bench"), Keys(QUEUE), 5000
    await link.start()
    now = int(time.time() * 1000)
    for first in range(1, entries + 1, batch):
        state = "failed" if first % 50_000 < batch else "completed"
        last = min(first + batch - 1, entries)
        await link.call(b"EVAL", ENDED, 0, keys.base, state, first, last, now)
    await link.call(b"SET", keys.id, entries)
    await link.stop()


async def full(entries: int, rounds: int) -> None:
    with Valkey(tcp=True) as engine, Postgres() as postgres:
        database = postgres.create_database("bench")
        await fill_all(engine.url, database, entries)
        with worker(engine.url, database, 0) as process:
            port = int(await asyncio.to_thread(process.stdout.readline))
            print(f"| {entries:,} jobs, {entries:,} runs | median ms | worst of {rounds}, ms | KB |")
            print("| --- | ---: | ---: | ---: |")
            jar = aiohttp.CookieJar(unsafe=True)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=HEADERS, cookie_jar=jar) as session:
                async with session.post("/api/v1/session", json={"token": TOKEN}) as response:
                    assert response.status == 200
                for path in (*LISTS, *PAGES):
                    await measure(session, path, rounds)
            process.stdin.close()


async def measure(session: aiohttp.ClientSession, path: str, rounds: int) -> None:
    times, size = [], 0
    for _ in range(rounds + 1):
        if "spend" in path or path == "/agents":
            await asyncio.sleep(SHARED)  # else it is the sum of the request before
        begun = time.perf_counter()
        async with session.get(path) as response:
            size = len(await response.read())
        if response.status != 200:
            print(f"| `{path}` | {response.status} | | |")
            return
        times.append((time.perf_counter() - begun) * 1000)
    print(f"| `{path}` | {statistics.median(times[1:]):.1f} | {max(times[1:]):.1f} | {size / 1024:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "full", "serve"])
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=100)
    options = parser.parse_args()
    if options.what == "serve":
        import uvloop

        url, database, jobs = options.more
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(url, database, int(jobs)))
        os._exit(0)
    elif options.what == "load":
        asyncio.run(load(options.jobs, options.rounds, options.rate))
    else:
        asyncio.run(full(options.entries, options.rounds))


if __name__ == "__main__":
    main()
