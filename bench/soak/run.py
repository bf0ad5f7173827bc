"""Minutes of jobs of every kind while everything around them fails, then an exact ledger.

`python -m bench.soak.run --minutes 10` ends with exit code 0 only if every job that was put on the queue ended once, in
the way its kind must end, is recorded so in Postgres, and paid for no step twice that the journal had kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from bench.soak.chaos import Chaos
from bench.soak.crew import Crew
from bench.soak.ledger import Ends, Kind
from bench.soak.proxy import Proxy
from redis import Redis

from oxherd.embedded.engine import free_port
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import NewJob, Producer
from oxherd.settings import parse_redis_url
from oxherd.store.migrate import migrate

QUEUE = "soak"
LOCK_MS = 2_000
SETTLE = 120.0  # seconds that the queue has to run empty once everything is calm
RETRIED = {"attempts": 3, "backoff": {"type": "exponential", "delay": 50, "jitter": 0.5}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long jobs are added and things go wrong")
    parser.add_argument("--seed", type=int, help="the same seed makes the same decisions")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=50.0, help="jobs added per second")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between mishaps, on average")
    return parser.parse_args()


class Soak:
    """One soak, from the first job to the verdict."""

    def __init__(
        self, options: argparse.Namespace, valkey: Valkey, postgres: Postgres, witness: Valkey, folder: Path
    ) -> None:
        self._options = options
        self._valkey = valkey
        self._postgres = postgres
        self._chance = random.Random(options.seed)
        self._keys = Keys(QUEUE)
        self._witness = Redis.from_url(witness.url, decode_responses=True)
        self._link = Link(parse_redis_url(valkey.url), "producer")
        self._producer = Producer(self._link, self._keys)
        self._admin = Admin(self._link, self._keys)
        self._ends = Ends(valkey.url, self._keys)
        self._proxy = Proxy(int(valkey.url.rpartition(":")[2].partition("/")[0]))
        self._proxy.start()
        variables = {
            "DATABASE_URL": postgres.url, "JOB_QUEUE_NAME": QUEUE, "JOB_CONCURRENCY": "10", "JOB_CRASH_LIMIT": "100",
            "SHUTDOWN_GRACE": "1s", "PORT": "0", "HOST": "127.0.0.1", "LOG_FORMAT": "json",
            "SOAK_LOCK_MS": str(LOCK_MS), "SOAK_WITNESS_URL": witness.url,
            "OPENROUTER_BASE_URL": f"http://127.0.0.1:{free_port()}",
        }  # fmt: skip
        # One worker in three has a good network, so that leases lost behind the bad one are taken over meanwhile.
        urls = [self._proxy.url, self._proxy.url, valkey.url]
        self._crew = Crew(options.workers, variables, urls, folder)
        self._chaos = Chaos(
            self._chance, crew=self._crew, proxy=self._proxy, valkey=valkey, postgres=postgres,
            lock_s=LOCK_MS / 1000, pause=options.pause,
        )  # fmt: skip
        self._count = 0
        self._kinds: dict[str, Kind] = {}
        self._makers: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (30, lambda: self._add("ok", data={"takes": self._chance.random() / 3})),
            (10, lambda: self._add("ok", "prioritized", {"takes": 0.01}, priority=self._chance.randint(1, 9))),
            (10, lambda: self._add("ok", "delayed", {"takes": 0.01}, delay=self._chance.randint(1, 5_000))),
            (4, lambda: self._add("ok", "LIFO", {"takes": 0.01}, lifo=True)),
            (8, lambda: self._add("flaky", "flaky, own backoff", **RETRIED)),
            (2, lambda: self._add("flaky", "flaky, handler's retries")),
            (4, lambda: self._add("broken", end="failed", **RETRIED)),
            (3, lambda: self._add("fatal", end="failed", **RETRIED)),
            (3, lambda: self._add("strict", "payload that does not fit", {"n": "text"}, end="failed", **RETRIED)),
            (6, lambda: self._add("later")),
            (3, lambda: self._add("endless", end="failed")),
            (15, lambda: self._add("paid")),
            (4, lambda: self._add("thread", data={"takes": 0.05})),
            (2, lambda: self._add("long")),
            (0.3, lambda: self._add("blocker")),
            (3, self._add_flow),
            (2, lambda: self._add("spawner")),
        ]

    async def run(self) -> list[str]:
        """Soak; returns what is wrong with the books."""
        await migrate(self._postgres.url)
        await self._link.start()
        await self._ends.start()
        self._crew.start()
        mishaps, tending = asyncio.create_task(self._chaos.run()), asyncio.create_task(self._crew.tend())
        producing = asyncio.create_task(self._produce(time.monotonic() + self._options.minutes * 60))
        await asyncio.wait({producing, mishaps, tending}, return_when=asyncio.FIRST_COMPLETED)
        self._chaos.enough()
        await asyncio.wait({mishaps}, timeout=60)
        for task in (producing, mishaps, tending):
            task.cancel()
        results = await asyncio.gather(producing, mishaps, tending, return_exceptions=True)
        broken = [f"the soak itself broke: {error!r}" for error in results if isinstance(error, Exception)]
        await asyncio.to_thread(self._chaos.calm)
        wrong = broken + await self._settle()
        wrong += [f"a worker left with {code}" for code in await asyncio.to_thread(self._crew.stop) if code != 0]
        return wrong + await self._audit()

    def close(self) -> None:
        """Leave nothing running."""
        self._crew.kill()
        self._proxy.stop()

    # -- putting jobs on the queue

    async def _produce(self, until: float) -> None:
        weights = [weight for weight, _ in self._makers]
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.expovariate(self._options.rate))
            [(_, add)] = self._chance.choices(self._makers, weights)
            await add()

    def _book(self, kind: str, end: str) -> str:
        self._count += 1
        job_id = f"soak-{self._count}"
        self._kinds.setdefault(kind, Kind(kind, end)).jobs.append(job_id)
        return job_id

    async def _add(self, name: str, kind: str = "", data: Any = None, *, end: str = "completed", **opts: Any) -> None:
        job_id = self._book(kind or name, end)
        await self._surely(lambda: self._producer.add(name, {"n": self._count, **(data or {})}, jobId=job_id, **opts))

    async def _add_flow(self) -> None:
        root = self._book("parent of a flow", "completed")
        children = [self._book("child of a flow", "completed") for _ in range(self._chance.randint(1, 3))]
        flow = NewJob(
            "parent", {}, {"jobId": root},
            children=[NewJob("ok", {"n": 0, "takes": 0.02}, {"jobId": child}) for child in children],
        )  # fmt: skip
        await self._surely(lambda: self._producer.add_flow(flow))

    async def _surely(self, add: Callable[[], Awaitable[str]]) -> None:
        """Add until it is certain: the job's id makes repeating it safe."""
        while True:
            try:
                await add()
                return
            except (RedisUnreachable, RedisRefused):
                await asyncio.sleep(0.05)

    # -- the verdict

    async def _settle(self) -> list[str]:
        """Wait until the queue is empty."""
        deadline = time.monotonic() + SETTLE
        open_states = ("wait", "prioritized", "delayed", "active", "waiting-children")
        while True:
            counts = await self._admin.counts()
            left = {state: counts[state] for state in open_states if counts[state]}
            if not left:
                return []
            if time.monotonic() > deadline:
                return [f"not empty {SETTLE:.0f} s after all was calm: {left}"]
            await asyncio.sleep(0.1)

    async def _audit(self) -> list[str]:
        rows = await self._recorded()
        counts = await self._admin.counts()
        children = [job for job in self._ends.of if job.startswith("child-")]
        if children:
            self._kinds["child that was spawned"] = Kind("child that was spawned", "completed", children)
        wrong: list[str] = []
        table = [("kind", "added", "completed", "failed", "lost", "twice", "otherwise", "runs", "fetches", "stalls")]
        total: Counter[str] = Counter()
        for kind in self._kinds.values():
            line = await self._line(kind, rows, wrong)
            total.update(line)
            table.append((kind.name, *(f"{line[column]:,}" for column in table[0][1:])))
        table.append(("all", *(f"{total[column]:,}" for column in table[0][1:])))
        _print_table(table)
        if counts["completed"] + counts["failed"] != total["added"]:
            wrong.append(f"{total['added']} jobs were added, the queue has {counts}")
        wrong += self._audit_steps()
        wrong += [f"a worker said: {line}" for line in self._crew.faults()[:10]]
        self._print_rest()
        await self._ends.stop()
        await self._link.stop()
        return wrong

    async def _line(self, kind: Kind, rows: dict[str, list[str]], wrong: list[str]) -> Counter[str]:
        line: Counter[str] = Counter()
        for job in kind.jobs:
            ends = self._ends.of[job]
            ats, stc = await self._link.call(b"HMGET", self._keys.job(job), b"ats", b"stc")
            runs = int(self._witness.get(f"ran:{job}") or 0)
            line["added"] += 1
            line["runs"] += runs
            line["fetches"] += int(ats or 0)
            line["stalls"] += int(stc or 0)
            line.update(ends[:1] or ["lost"])
            for fault in _faults(kind.end, ends, rows.get(job, []), runs, int(ats or 0)):
                line[fault[0]] += 1
                wrong.append(f"{kind.name} {job}: {fault[1]}")
        return line

    async def _recorded(self) -> dict[str, list[str]]:
        """The statuses of each job's rows in Postgres."""
        connection = await asyncpg.connect(self._postgres.url)
        rows: dict[str, list[str]] = {}
        for row in await connection.fetch("select job_id, status from oxherd.runs"):
            rows.setdefault(row["job_id"], []).append(row["status"])
        await connection.close()
        return rows

    def _audit_steps(self) -> list[str]:
        paid = [int(self._witness.get(key) or 0) for key in self._witness.scan_iter("paid:*", count=1000)]
        again = self._witness.lrange("paid-again", 0, -1)
        print(
            f"\npaid steps: {len(paid):,}, of them in flight when a worker was lost and so paid again: "
            f"{sum(count > 1 for count in paid):,}, paid again although the journal had kept them: {len(again):,}"
        )
        return [f"step {place} was paid again after the journal had kept it" for place in again]

    def _print_rest(self) -> None:
        print("\nwhat went wrong on purpose: " + _listed(self._chaos.caused))
        said = self._crew.events()
        heard = ("lease.lost", "job.stalled", "redis.lost", "redis.refused", "store.lost", "loop.blocked", "lease.late")
        print("what the workers said of it: " + _listed(Counter({name: said[name] for name in heard})))


def _faults(end: str, ends: list[str], recorded: list[str], runs: int, fetches: int) -> list[tuple[str, str]]:
    """What is wrong with one job: the column it counts in, and the words."""
    if not ends:
        return [("", "it never finished")]
    faults = []
    if len(ends) > 1:
        faults.append(("twice", f"it finished {len(ends)} times: {ends}"))
    if ends[0] != end:
        faults.append(("otherwise", f"it {ends[0]}, and should have {end}"))
    if recorded != [end]:
        faults.append(("otherwise", f"Postgres has {recorded or 'no run'} of it"))
    if runs > fetches:
        faults.append(("otherwise", f"its handler ran {runs} times for {fetches} fetches"))
    return faults


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def main() -> None:
    options = arguments()
    options.seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"soaking for {options.minutes:g} minutes: seed {options.seed}, {options.workers} workers", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="oxherd-soak-"))
    # Written at once and synced whenever: a kill loses nothing that was acknowledged, as a power cut would. With
    # `everysec` Valkey may hold a write back while a sync is slow, and the books would rightly not balance.
    kept = Valkey(tcp=True, append_only=True, config={"appendfsync": "no"})
    with kept as valkey, Postgres() as postgres, Valkey(tcp=True) as witness:
        soak = Soak(options, valkey, postgres, witness, folder)
        try:
            wrong = asyncio.run(soak.run())
        finally:
            soak.close()
    for line in wrong[:50]:
        print(f"WRONG  {line}")
    print(
        "\nthe books balance" if not wrong else f"\n{len(wrong)} discrepancies; seed {options.seed}, logs in {folder}"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
