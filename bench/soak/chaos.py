"""What goes wrong during a soak: one random mishap after another, from a seed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

from bench.soak.crew import Crew, Hand
from bench.soak.proxy import Proxy
from redis import Redis
from redis.exceptions import RedisError

from oxherd.embedded.engine import Engine
from oxherd.queue.scripts import script

LOSABLE = ("moveToActive", "moveToFinished", "moveToDelayed", "retryJob", "moveJobFromActiveToWait", "renewLeases")


class Chaos:
    """Causes mishaps until it is told to stop.

    Parameters:
        chance: the seeded source of all decisions.
        crew: the workers to mistreat.
        proxy: the network between some of them and Valkey.
        valkey, postgres: the engines to restart.
        lock_s: how long a lease lasts, in seconds.
        pause: seconds between mishaps, on average.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        crew: Crew,
        proxy: Proxy,
        valkey: Engine,
        postgres: Engine,
        lock_s: float,
        pause: float,
    ) -> None:
        self._chance = chance
        self._crew = crew
        self._proxy = proxy
        self._valkey = valkey
        self._postgres = postgres
        self._lock_s = lock_s
        self._pause = pause
        self._enough = False
        self.caused: Counter[str] = Counter()
        self._kinds: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (6, "kill -9", self._kill),
            (4, "SIGTERM", self._terminate),
            (4, "SIGSTOP for a while", self._freeze_process),
            (5, "connections cut", self._cut),
            (3, "connections frozen", self._freeze),
            (8, "a reply lost", self._lose_reply),
            (2, "the network refuses", self._refuse),
            (2, "Valkey killed and restarted", self._restart_valkey),
            (1, "Valkey away for longer than a lease", self._long_outage),
            (2, "Postgres killed and restarted", self._restart_postgres),
            (2, "scripts flushed", self._flush_scripts),
            (2, "clients killed", self._kill_clients),
            (1, "Valkey full", self._fill),
        ]

    async def run(self) -> None:
        """One mishap after another, until `enough`."""
        weights = [weight for weight, _, _ in self._kinds]
        while not self._enough:
            await asyncio.sleep(self._chance.expovariate(1 / self._pause))
            [(_, name, cause)] = self._chance.choices(self._kinds, weights)
            self.caused[name] += 1
            await cause()

    def enough(self) -> None:
        """Cause no more once the present one is over."""
        self._enough = True

    def calm(self) -> None:
        """Undo what lasts."""
        self._proxy.allow()
        for hand in self._crew.hands:
            hand.signal(signal.SIGCONT)
        self._crew.start()
        self._valkey.start()
        self._postgres.start()
        self._command("CONFIG", "SET", "maxmemory", "0")

    def _victim(self) -> Hand:
        return self._chance.choice(self._crew.hands)

    def _command(self, *words: str) -> None:
        try:
            with Redis.from_url(self._valkey.url) as redis:
                redis.execute_command(*words)
        except RedisError:
            pass  # it is away or being restarted: then this mishap has no object

    async def _kill(self) -> None:
        hand = self._victim()
        hand.signal(signal.SIGKILL)
        await asyncio.to_thread(hand.wait, 10)
        await asyncio.sleep(self._chance.uniform(0, 1))
        hand.start()

    async def _terminate(self) -> None:
        hand = self._victim()
        hand.signal(signal.SIGTERM)
        if self._chance.random() < 0.3:
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            hand.signal(signal.SIGTERM)
        if await asyncio.to_thread(hand.wait, 30) is None:
            raise AssertionError(f"{hand.log.name}: SIGTERM did not end it within 30 s")
        hand.start()

    async def _freeze_process(self) -> None:
        hand = self._victim()
        hand.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.1, 2) * self._lock_s)
        hand.signal(signal.SIGCONT)

    async def _cut(self) -> None:
        self._proxy.cut()

    async def _freeze(self) -> None:
        self._proxy.freeze()

    async def _lose_reply(self) -> None:
        for _ in range(self._chance.randint(1, 3)):
            self._proxy.lose_reply(script(self._chance.choice(LOSABLE)).sha)

    async def _refuse(self) -> None:
        self._proxy.refuse()
        await asyncio.sleep(self._chance.uniform(0.1, 1.5) * self._lock_s)
        self._proxy.allow()

    async def _restart_valkey(self) -> None:
        await self._bounce(self._valkey, self._chance.uniform(0, 0.3))

    async def _long_outage(self) -> None:
        await self._bounce(self._valkey, 1.3 * self._lock_s)

    async def _restart_postgres(self) -> None:
        await self._bounce(self._postgres, self._chance.uniform(0, self._lock_s))

    async def _bounce(self, engine: Engine, away: float) -> None:
        await asyncio.to_thread(engine.kill)
        await asyncio.sleep(away)
        await asyncio.to_thread(engine.start)

    async def _flush_scripts(self) -> None:
        self._command("SCRIPT", "FLUSH")

    async def _kill_clients(self) -> None:
        self._command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _fill(self) -> None:
        self._command("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        self._command("CONFIG", "SET", "maxmemory", "0")
