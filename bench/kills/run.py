"""Workers are killed at random moments while they run agents of several steps; then the books have to balance.

`python -m bench.kills.run --kills 200` ends with exit code 0 only if every job ended once, the ledger has every call
that the provider billed at the provider's price, or says that it does not know it, and no step was paid again whose
reply the journal had kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import asyncpg

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # for the double of OpenRouter, which the tests share

from bench.kills.provider import Place, Provider  # noqa: E402
from bench.soak.crew import Crew  # noqa: E402
from bench.soak.ledger import Ends  # noqa: E402

from fakes.openrouter import KEY  # noqa: E402
from oxherd.agents import LLM  # noqa: E402
from oxherd.agents import ledger as ledgers  # noqa: E402
from oxherd.agents.budget import NANO, Caps, Purse  # noqa: E402
from oxherd.clock import wall_ms  # noqa: E402
from oxherd.embedded.postgres import Postgres  # noqa: E402
from oxherd.embedded.valkey import Valkey  # noqa: E402
from oxherd.queue.connection import Link  # noqa: E402
from oxherd.queue.keys import Keys  # noqa: E402
from oxherd.queue.producer import Producer  # noqa: E402
from oxherd.settings import Secret, parse_redis_url  # noqa: E402
from oxherd.store.migrate import migrate  # noqa: E402
from oxherd.store.postgres import PostgresStore  # noqa: E402

QUEUE = "kills"
LOCK_MS = 1_500
OPEN_JOBS = 24  # at any time, until the last kill
SETTLE = 90.0  # seconds that all jobs have to end once nobody is killed any more


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, help="the same seed makes the same decisions")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between kills, on average")
    return parser.parse_args()


class Kills:
    """One rehearsal, from the first job to the verdict."""

    def __init__(self, options: argparse.Namespace, valkey: Valkey, postgres: Postgres, folder: Path) -> None:
        self._options = options
        self._chance = random.Random(options.seed)
        self._valkey = valkey
        self._postgres = postgres
        self._folder = folder
        self._keys = Keys(QUEUE)
        self._link = Link(parse_redis_url(valkey.url), "producer")
        self._producer = Producer(self._link, self._keys)
        self._ends = Ends(valkey.url, self._keys)
        self._provider = Provider(options.seed, self._look_whether_it_was_kept)
        self._looks: set[asyncio.Task[None]] = set()
        self._jobs: list[str] = []
        self._killed = 0
        self._untraced: list[str] = []  # generations that the ledger has by their step alone
        self._stray = 0  # holds without a row
        self._wrong: list[str] = []

    async def run(self) -> list[str]:
        """Kill; returns what is wrong with the books."""
        await migrate(self._postgres.url)
        await self._link.start()
        await self._ends.start()
        self._store = PostgresStore(self._postgres.url)
        await self._store.start()
        self._rows = await asyncpg.create_pool(self._postgres.url, min_size=1, max_size=2)
        async with self._provider as provider:
            await self._work()
            await asyncio.gather(*self._looks)
            await self._settle_the_rest()
            await self._audit()
            self._wrong += [f"the provider said: {fault}" for fault in provider.faults]
            provider.faults.clear()
        await self._rows.close()
        await self._store.stop()
        await self._ends.stop()
        await self._link.stop()
        return self._wrong

    async def _work(self) -> None:
        crew = self._crew()
        crew.start()
        try:
            began = time.monotonic()
            producing = asyncio.create_task(self._produce())
            await self._kill(crew)
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)
            print(f"{self._killed} kills in {time.monotonic() - began:.0f} s, {len(self._jobs)} jobs", flush=True)
            deadline = time.monotonic() + SETTLE
            while self._open() and time.monotonic() < deadline:  # noqa: ASYNC110  other processes see to them
                await asyncio.sleep(0.05)
            codes = await asyncio.to_thread(crew.stop)
            self._wrong += [f"a worker left with {code}" for code in codes if code != 0]
            self._wrong += [f"a worker said: {line}" for line in crew.faults()[:10]]
        finally:
            crew.kill()

    def _crew(self) -> Crew:
        variables = {
            "DATABASE_URL": self._postgres.url, "JOB_QUEUE_NAME": QUEUE, "JOB_CONCURRENCY": "10",
            "JOB_CRASH_LIMIT": "100", "PORT": "0", "HOST": "127.0.0.1", "LOG_FORMAT": "json",
            "OPENROUTER_BASE_URL": self._provider.url, "OPENROUTER_API_KEY": KEY, "BUDGET_DAILY_USD": "1000",
            "KILLS_LOCK_MS": str(LOCK_MS),
        }  # fmt: skip
        return Crew(self._options.workers, variables, [self._valkey.url], self._folder, Path(__file__).parent)

    async def _kill(self, crew: Crew) -> None:
        while self._killed < self._options.kills:
            await asyncio.sleep(self._chance.expovariate(1 / self._options.pause))
            victim = self._chance.choice(crew.hands)
            while not victim.ready:
                await asyncio.sleep(0.01)
                if victim.died is not None:
                    raise AssertionError(f"{victim.log} died by itself with exit code {victim.died}")
            victim.signal(signal.SIGKILL)
            self._killed += 1
            await asyncio.to_thread(victim.wait, 10)
            victim.start()

    def _open(self) -> int:
        return sum(job not in self._ends.of for job in self._jobs)

    async def _produce(self) -> None:
        while True:
            while self._open() < OPEN_JOBS:
                number = len(self._jobs) + 1
                job = f"kill-{number}"
                payload = {"agent": f"triage-{number % 4}", "input": f"Please see to {job}."}
                self._jobs.append(job)
                await self._producer.add("agent.run", payload, jobId=job)
            await asyncio.sleep(0.02)

    # -- the verdict

    def _look_whether_it_was_kept(self, place: Place) -> None:
        task = asyncio.create_task(self._compare_with_the_journal(place, wall_ms()))
        self._looks.add(task)

    async def _compare_with_the_journal(self, place: Place, now: int) -> None:
        """A step is asked for again: had the journal kept it by then?"""
        job, turn = place
        kept = await self._rows.fetchval(
            "select (extract(epoch from started_at) * 1000 + ms)::float8 from oxherd.steps "
            "where starts_with(run_id, $1) and key like $2",
            f"{QUEUE}/{job}@", f"triage-%/model-{turn}",
        )  # fmt: skip
        if kept is not None and kept < now:
            self._wrong.append(f"{job}, turn {turn}: paid again, although the journal had kept it")

    async def _settle_the_rest(self) -> None:
        """What a worker does a quarter of an hour later."""
        ledgers.OVERDUE_MS = 0
        llm = LLM(self._provider.url, Secret(KEY), openrouter=True)
        purse = Purse(self._link, self._keys.money, Caps(all=Decimal(1000)))
        ledger = ledgers.Ledger(llm, queue=QUEUE, purse=purse, store=self._store)
        deadline = time.monotonic() + 30
        while await self._store.unsettled_spend(before=wall_ms()):
            await ledger.settle_overdue()
            if time.monotonic() > deadline:
                self._wrong.append("the ledger has rows that can't be settled")
                break
        await ledger.stop()
        await llm.close()

    async def _audit(self) -> None:
        rows = await self._rows.fetch(
            "select run_id, step, generation_id, state, cost_usd, reserved_usd from oxherd.spend"
        )
        for job in self._jobs:
            if self._ends.of[job] != ["completed"]:
                self._wrong.append(f"{job} should have completed once: {self._ends.of[job]}")
        self._compare_with_the_bill(rows)
        await self._compare_with_redis(rows)
        self._print_sums(rows)

    def _compare_with_the_bill(self, rows: list[asyncpg.Record]) -> None:
        bills = self._provider.bills
        booked: defaultdict[str, list[asyncpg.Record]] = defaultdict(list)
        unknown: Counter[Place] = Counter()
        for row in rows:
            if row["generation_id"] is not None:
                booked[row["generation_id"]].append(row)
            elif row["state"] == "unknown":
                unknown[_place_of(row)] += 1
            elif row["cost_usd"]:
                self._wrong.append(f"{_place_of(row)}: ${row['cost_usd']} for a call that nobody billed")
        for place, generations in self._provider.billed.items():
            for generation in generations:
                match booked.pop(generation, []):
                    case [row]:
                        if (row["cost_usd"], _place_of(row)) != (bills[generation], place):
                            self._wrong.append(f"{place}: billed ${bills[generation]}, the ledger has {dict(row)}")
                    case []:  # killed before it knew the generation's id
                        unknown[place] -= 1
                        self._untraced.append(generation)
                    case many:
                        self._wrong.append(f"{place}: {generation} is in the ledger {len(many)} times")
        self._wrong += [
            f"{place}: {-count} billed calls are not in the ledger" for place, count in unknown.items() if count < 0
        ]
        self._wrong += [f"the ledger has {generation}, which nobody billed" for generation in booked]

    async def _compare_with_redis(self, rows: list[asyncpg.Record]) -> None:
        """What counts against the caps is what was spent, and what is set aside for calls that nobody can trace."""
        sums = [int(await self._link.call(b"GET", key)) for key in await self._money_keys(b"*:all")]
        holds = await self._money_keys(b"hold:*")
        held = sum([int(await self._link.call(b"HGET", key, b"amount")) for key in holds])
        settled = sum(row["cost_usd"] or 0 for row in rows) * NANO
        if sum(sums) != settled + held:
            self._wrong.append(f"Redis counts {sum(sums)} nano-dollars: {settled} are settled and {held} set aside")
        self._stray = len(holds) - sum(row["state"] == "unknown" for row in rows)

    async def _money_keys(self, pattern: bytes) -> list[bytes]:
        return await self._link.call(b"KEYS", self._keys.money + pattern)

    def _print_sums(self, rows: list[asyncpg.Record]) -> None:
        provider = self._provider
        again = [generations[:-1] for generations in provider.billed.values() if len(generations) > 1]
        earlier = [generation for generations in again for generation in generations]
        broken = sum(generation in provider.broken for generation in earlier)
        whole = sum(generation in provider.sent - provider.broken for generation in earlier)
        interrupted = len(earlier) - broken - whole
        if len(self._untraced) > interrupted / 2:  # ids are kept before replies are read: most kills come after that
            self._wrong.append(f"of {interrupted} interrupted replies the ledger can't trace {len(self._untraced)}")
        states = Counter(row["state"] for row in rows)
        told = {
            "steps that were billed": len([place for place, billed in provider.billed.items() if billed]),
            "replies that were billed": len(provider.bills),
            "the bill": f"${provider.bill}",
            "the ledger, settled": f"${sum(row['cost_usd'] or 0 for row in rows)} in {states['settled']} rows",
            "the ledger, unknown": f"{states['unknown']} rows, {len(self._untraced)} of them of calls that were billed",
            "steps billed more than once": len(again),
            "  replies that the provider broke": broken,
            "  replies on their way when the worker was killed": interrupted,
            "  replies sent, not yet in the journal": whole,
            "holds of calls that were never sent": self._stray,
            "what the provider did": ", ".join(f"{name} {count}" for name, count in provider.mishaps.most_common()),
        }
        for name, value in told.items():
            print(f"{name:<50} {value}")


def _place_of(row: asyncpg.Record) -> Place:
    return row["run_id"].partition("/")[2].partition("@")[0], int(row["step"].rpartition("-")[2])


def main() -> None:
    options = arguments()
    options.seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"{options.kills} kills: seed {options.seed}, {options.workers} workers", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="oxherd-kills-"))
    with Valkey(tcp=True) as valkey, Postgres() as postgres:
        wrong = asyncio.run(Kills(options, valkey, postgres, folder).run())
    for line in wrong[:50]:
        print(f"WRONG  {line}")
    print(
        "\nthe books balance" if not wrong else f"\n{len(wrong)} discrepancies; seed {options.seed}, logs in {folder}"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
