"""The writing half that both stores share: group commit and fencing over the functions of migration 003."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

import orjson

from oxherd.context import Step
from oxherd.errors import StoreRefused
from oxherd.store import Begun, RunRecord
from oxherd.store.flush import Flusher, Refused, RunWrite, StepWrite
from oxherd.store.outage import Outage
from oxherd.store.rows import begun, scrubbed, to_json


class JournalStore(ABC):
    """Runs and steps written in batches; a subclass brings the way to the database.

    Parameters:
        flush_ms: how long to let a batch grow after its first write, ms. 0 is right unless the database is billed by
            the statement.
    """

    def __init__(self, *, flush_ms: float = 0) -> None:
        self._beginning = 0
        self._outage = Outage(lambda: self.waiting)
        self._flusher = Flusher(self._write, outage=self._outage, gather_ms=flush_ms)

    @abstractmethod
    async def write_batch(self, runs: bytes | None, steps: bytes | None) -> bytes | str:
        """Call `oxherd.write_batch`. Raises StoreRefused where a row is at fault, else StoreUnreachable."""

    @abstractmethod
    async def begin_run(self, run: bytes) -> bytes | str:
        """Call `oxherd.begin_run`. Raises StoreRefused where the row is at fault, else StoreUnreachable."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of every connection. Twice is fine."""

    async def stop(self) -> None:
        """Write what waits, for at most 5 seconds, then close. Twice is fine."""
        await self._flusher.stop()
        self._outage.give_up()
        await self.close()

    @property
    def waiting(self) -> int:
        """Writes that are not durable yet."""
        return self._flusher.waiting + self._beginning

    @property
    def away_seconds(self) -> float:
        """How long writes have been failing, 0.0 while all is well."""
        return self._outage.seconds

    async def record(self, run: RunRecord) -> bool:
        """Write the run. Durable when it returns. False: a later attempt has begun, nothing was written."""
        return await self._flusher.add(RunWrite(run, asyncio.get_running_loop().create_future()))

    async def save_step(self, run_id: str, fence: int, step: Step, *, attempt_started_at: int = 0) -> bool:
        """Write a finished step. Durable when it returns. False: a later attempt has begun, nothing was written."""
        done = asyncio.get_running_loop().create_future()
        return await self._flusher.add(StepWrite(run_id, fence, attempt_started_at, step, done))

    async def begin(self, run: RunRecord) -> Begun:
        """Claim the run for this attempt and fetch what earlier ones left. Durable when it returns."""
        self._beginning += 1
        try:
            return await self._claim(run)
        except StoreRefused:
            clean = scrubbed(run)
            if clean is run:
                raise
            return await self._claim(clean)
        finally:
            self._beginning -= 1

    async def _claim(self, run: RunRecord) -> Begun:
        row = to_json(run)
        return begun(await self._outage.ride_out(lambda: self.begin_run(row)))

    async def _write(self, runs: bytes | None, steps: bytes | None) -> Refused:
        answer = orjson.loads(await self.write_batch(runs, steps))
        return Refused(answer["runs"] or (), answer["steps"] or ())
