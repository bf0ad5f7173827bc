"""Group commit: everything that waits goes out together, and while it is on its way the next batch gathers.

No timers: one writer gets a statement of its own at once, a thousand share a few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from oxherd.clock import mono
from oxherd.context import Step
from oxherd.errors import StoreRefused, StoreUnreachable
from oxherd.store import RunRecord
from oxherd.store.outage import Outage
from oxherd.store.rows import scrubbed, step_row, to_json
from oxherd.telemetry.events import StoreFlushed, emit

MOST_ROWS = 1000
MOST_CHARACTERS = 8_000_000  # what still fits well into one statement and one HTTP request
ROW_CHARACTERS = 500  # what a row costs besides its long texts
LAST_FLUSH_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class RunWrite:
    """A run that waits to be written; `done` gets False where it is refused."""

    run: RunRecord
    done: asyncio.Future[bool]

    @property
    def row(self) -> object:
        """The row it writes."""
        return self.run.id

    @property
    def fence(self) -> int:
        """Its attempt's fencing number."""
        return self.run.fence

    @property
    def characters(self) -> int:
        """About how long it is on the wire."""
        run = self.run
        return ROW_CHARACTERS + len(run.input) + len(run.output or "") + len(run.stack or "")

    def scrub(self) -> bool:
        """Escape what Postgres can't store. Says whether there was anything."""
        before, self.run = self.run, scrubbed(self.run)
        return self.run is not before


@dataclass(slots=True, eq=False)
class StepWrite:
    """A step that waits to be written; `done` gets False where it is refused."""

    run_id: str
    fence: int
    attempt_started_at: int
    step: Step
    done: asyncio.Future[bool]

    @property
    def row(self) -> object:
        """The row it writes."""
        return self.run_id, self.step.key

    @property
    def characters(self) -> int:
        """About how long it is on the wire."""
        return ROW_CHARACTERS + len(self.step.output)

    def as_row(self) -> dict[str, object]:
        """It with the columns of `oxherd.steps`."""
        return step_row(self.run_id, self.fence, self.attempt_started_at, self.step)

    def scrub(self) -> bool:
        """Escape what Postgres can't store. Says whether there was anything."""
        before, self.step = self.step, scrubbed(self.step)
        return self.step is not before


Write = RunWrite | StepWrite


@dataclass(frozen=True, slots=True)
class Refused:
    """Positions, from 1, of the rows in a batch that a later attempt's fence kept out."""

    runs: Sequence[int]
    steps: Sequence[int]


@dataclass(slots=True)
class Batch:
    """Writes for one statement by the row they write: a row is in it once, with its last writer's content."""

    rows: dict[object, list[Write]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, write: Write) -> bool:
        """Take a write in. False where its row is in already for another attempt: their order matters."""
        writers = self.rows.setdefault(write.row, [])
        if writers and writers[0].fence != write.fence:
            return False
        writers.append(write)
        return True

    def runs(self) -> list[RunWrite]:
        """The last write of each run."""
        return [last for writers in self.rows.values() if isinstance(last := writers[-1], RunWrite)]

    def steps(self) -> list[StepWrite]:
        """The last write of each step."""
        return [last for writers in self.rows.values() if isinstance(last := writers[-1], StepWrite)]

    def writes(self) -> list[Write]:
        """All its writes."""
        return [write for writers in self.rows.values() for write in writers]

    def scrub(self) -> bool:
        """Escape what Postgres can't store. Says whether there was anything."""
        return sum(write.scrub() for write in self.writes()) > 0

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches that together are this one."""
        rows, half = list(self.rows.items()), len(self.rows) // 2
        return Batch(dict(rows[:half])), Batch(dict(rows[half:]))

    def resolve(self, refused: frozenset[object]) -> None:
        """Tell every writer how it went."""
        for row, writers in self.rows.items():
            for write in writers:
                if not write.done.done():  # its job may have been cancelled meanwhile
                    write.done.set_result(row not in refused)

    def fail(self, error: BaseException) -> None:
        """Tell every writer that it was not written."""
        for write in self.writes():
            if not write.done.done():
                write.done.set_exception(error)


class Flusher:
    """The one task that writes. `add` returns when the row is durable.

    Parameters:
        write_batch: writes runs and steps (JSON arrays, or None for none) in one transaction; safe to repeat. Raises
            StoreRefused where a row is at fault and StoreUnreachable otherwise.
        outage: what to do while the database is away.
        gather_ms: how long to let a batch grow after its first write.
    """

    def __init__(
        self,
        write_batch: Callable[[bytes | None, bytes | None], Awaitable[Refused]],
        *,
        outage: Outage,
        gather_ms: float,
    ) -> None:
        self._write_batch = write_batch
        self._outage = outage
        self._gather_seconds = gather_ms / 1000
        self._queue: deque[Write] = deque()
        self._batch = Batch()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Writes that are not durable yet."""
        return len(self._queue) + len(self._batch)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._loop(), name="store-flusher")

    async def stop(self) -> None:
        """Write what waits, for at most 5 seconds; what is left then fails with StoreUnreachable."""
        self._stopped = True
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), LAST_FLUSH_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        self._abandon()

    def add(self, write: Write) -> asyncio.Future[bool]:
        """Queue a write. The future is done when it is durable.

        Raises:
            StoreUnreachable: the store was stopped.
        """
        if self._stopped:
            raise StoreUnreachable("the store is stopped: nothing more is written")
        self._queue.append(write)
        self._idle.clear()
        self._arrived.set()
        return write.done

    async def _loop(self) -> None:
        while True:
            await self._arrived.wait()
            if self._gather_seconds:
                await asyncio.sleep(self._gather_seconds)
            self._batch = self._take()
            await self._flush(self._batch)
            self._batch = Batch()
            if not self._queue:
                self._arrived.clear()
                self._idle.set()

    def _take(self) -> Batch:
        """The oldest writes, as many as one statement may carry."""
        batch, characters = Batch(), 0
        put_off: dict[object, list[Write]] = {}
        while self._queue and len(batch) < MOST_ROWS and characters < MOST_CHARACTERS:
            write = self._queue.popleft()
            if write.row not in put_off and batch.add(write):
                characters += write.characters
            else:
                put_off.setdefault(write.row, []).append(write)
        self._queue.extendleft(write for writes in put_off.values() for write in reversed(writes))
        return batch

    async def _flush(self, batch: Batch) -> None:
        begun = mono()
        try:
            await self._write(batch)
        except StoreRefused as error:
            await self._narrow_down(batch, error)
        except Exception as error:  # noqa: BLE001  a mistake of ours must not leave writers waiting for ever
            batch.fail(error)
        else:
            emit(StoreFlushed(rows=len(batch), seconds=mono() - begun))

    async def _write(self, batch: Batch) -> None:
        runs, steps = batch.runs(), batch.steps()
        runs_json = to_json([write.run for write in runs]) if runs else None
        steps_json = to_json([write.as_row() for write in steps]) if steps else None
        refused = await self._outage.ride_out(lambda: self._write_batch(runs_json, steps_json))
        fenced_off = [runs[place - 1].row for place in refused.runs] + [steps[place - 1].row for place in refused.steps]
        batch.resolve(frozenset(fenced_off))

    async def _narrow_down(self, batch: Batch, error: StoreRefused) -> None:
        """Find the row that the database refuses and fail it alone; its neighbours are written."""
        if batch.scrub():
            await self._flush(batch)
        elif len(batch) == 1:
            batch.fail(error)
        else:
            for half in batch.halves():
                await self._flush(half)

    def _abandon(self) -> None:
        error = StoreUnreachable(f"the database stayed away: {self.waiting} writes were given up at the stop")
        for write in [*self._batch.writes(), *self._queue]:
            if not write.done.done():
                write.done.set_exception(error)
        self._queue.clear()
        self._batch = Batch()
