"""What model calls cost: money is set aside before each try, settled after it, and every try is in the ledger.

A try that broke off, was cancelled or belongs to a worker that died is settled later, from the model service's own
record of the generation.
"""

from __future__ import annotations

import asyncio
import random
import traceback
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

from oxherd.agents.budget import Payer, Purse
from oxherd.agents.chat import Request
from oxherd.agents.llm import LLM, Try
from oxherd.agents.nesting import Tally
from oxherd.agents.prices import Prices
from oxherd.agents.ratelimit import Limiter, Pass
from oxherd.clock import wall_ms
from oxherd.codec import encode
from oxherd.context import Context, Usage
from oxherd.errors import BudgetExceeded, ModelRefused, RedisRefused, RetryLater, StoreRefused, StoreUnreachable
from oxherd.store import SpendRow, Store
from oxherd.store.outage import patiently
from oxherd.telemetry.events import InternalFault, SpendUnknown, emit

EVERY = 60.0  # seconds between looks for rows that nobody has settled
OVERDUE_MS = 15 * 60_000  # a try ends within ten minutes: who has not settled it by then is dead
GIVE_UP_MS = 86_400_000  # after a day without a record there will be none
SOON = 0.02  # seconds: by then, most runs have written their next call down
FAREWELL = 2.0  # seconds that `stop` gives to what has still to be written: the platform's patience is short


class Ledger:
    """One per worker.

    Parameters:
        llm: the model service, for prices and the records of generations.
        queue: the queue's name, which is part of a run's id.
        purse: where money is set aside.
        store: where rows are kept; None keeps none, caps hold all the same.
        limiter: lets tries through as fast as the service takes them; None holds none back.
    """

    def __init__(
        self, llm: LLM, *, queue: str, purse: Purse, store: Store | None, limiter: Limiter | None = None
    ) -> None:
        self.llm = llm
        self.limiter = limiter
        self.queue = queue
        self.purse = purse
        # Only OpenRouter tells prices. Elsewhere a call sets nothing aside, and counts what its reply says it cost.
        self.prices = Prices(llm.models) if llm.openrouter else None
        self._store = store
        self._rows: dict[str, SpendRow] = {}
        self._durable: asyncio.Future[None] | None = None  # of the rows that wait
        self._writer: asyncio.Task[None] | None = None
        self._settler: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to settle what dead workers have left."""
        if self._store is not None:
            self._settler = asyncio.create_task(self._settle_overdue(self._store), name="ledger")

    async def stop(self) -> None:
        """Write what can be written within some seconds; another worker settles what is still open. Twice is fine."""
        settler, self._settler = self._settler, None
        if settler is not None:
            settler.cancel()
            await asyncio.gather(settler, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                while self._tasks:
                    await asyncio.wait(self._tasks)
                if self._writer is not None:
                    await asyncio.shield(self._writer)
        late = [*self._tasks, *([self._writer] if self._writer else [])]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def books(self, ctx: Context, tally: Tally) -> Books:
        """The bookkeeping of one run of an agent."""
        run_id = f"{self.queue}/{ctx.job.id}@{ctx.job.timestamp}"
        payer, *outer = (
            Payer(f"{run_id}/{each.path}", agent.name, ctx.tenant, agent.budget.cap) for each, agent in tally.runs()
        )
        around = tuple(each for each in outer if each.cap is not None)
        return Books(self, run_id, ctx.job.fence, replace(payer, around=around))

    async def write(self, row: SpendRow, *, urgent: bool = True) -> None:
        """Write a row. Durable when it returns; rows of all running calls go out together.

        Parameters:
            row: the row.
            urgent: False for what nobody waits for: it goes out with the next row that somebody waits for, or soon.
        """
        if self._store is None:
            return
        loop = asyncio.get_running_loop()
        self._rows[row.id] = row
        if self._durable is None:
            self._durable = loop.create_future()
        durable = self._durable
        if urgent:
            self._begin_writing(self._store)
        else:
            loop.call_later(SOON, self._begin_writing, self._store)
        await asyncio.shield(durable)

    def _begin_writing(self, store: Store) -> None:
        if self._rows and (self._writer is None or self._writer.done()):
            self._writer = asyncio.create_task(self._write_all(store), name="ledger-writer")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something that no cancelled job takes with it."""
        task = asyncio.create_task(_guarded(work), name="ledger-settling")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self, row: SpendRow, usage: Usage) -> None:
        """Count and write what a call cost."""
        if usage.cost_usd is not None:
            await self.purse.settle(row.id, usage.cost_usd)
        await self.book(row, usage)

    async def book(self, row: SpendRow, usage: Usage) -> None:
        """Write what a call cost that is counted already."""
        state = "unknown" if usage.cost_usd is None else "settled"
        await self.write(
            replace(
                row,
                state=state,
                cost_usd=usage.cost_usd,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
            ),
            urgent=False,
        )

    async def look_up(self, row: SpendRow) -> bool:
        """Settle a row from the model service's record; whether that worked."""
        if row.generation_id is None or not self.llm.openrouter:
            return False
        with suppress(ModelRefused, RetryLater):
            found = await self.llm.generation(row.generation_id)
            if found is not None and found.usage.cost_usd is not None:
                await self.settle(replace(row, model=found.model or row.model), found.usage)
                return True
        return False

    async def give_up(self, row: SpendRow) -> None:
        """Say that nobody will ever know. What was set aside stays counted."""
        emit(SpendUnknown(run=row.run_id, step=row.step, model=row.model))
        await self.write(replace(row, state="unknown"))

    async def settle_run(self, run_id: str) -> None:
        """Settle what earlier attempts of a run have left open, as far as the model service tells."""
        store = self._store
        if store is not None:
            for row in await patiently(lambda: store.unsettled_spend(before=wall_ms(), run_id=run_id)):
                await self.look_up(row)

    async def settle_overdue(self) -> None:
        """One look for rows that nobody has settled."""
        assert self._store is not None
        now = wall_ms()
        for row in await self._store.unsettled_spend(before=now - OVERDUE_MS):
            traceable = row.generation_id is not None and self.llm.openrouter
            if not await self.look_up(row) and (not traceable or row.at < now - GIVE_UP_MS):
                await self.give_up(row)

    async def _settle_overdue(self, _: Store) -> None:
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.5, 1.5))  # the workers take turns
            with suppress(StoreUnreachable, RedisRefused):  # there is a next time
                await self.settle_overdue()

    async def _write_all(self, store: Store) -> None:
        await asyncio.sleep(0)  # all that is written in this turn of the loop goes out together
        while self._rows:
            rows, self._rows = list(self._rows.values()), {}
            durable, self._durable = self._durable, None
            try:
                await _write(store, rows)
            finally:
                if durable is not None and not durable.done():
                    durable.set_result(None)


class Books:
    """The bookkeeping of one run of an agent.

    Parameters:
        ledger: the worker's.
        run_id: the job's run.
        fence: the attempt's fencing number.
        payer: who spends.
    """

    def __init__(self, ledger: Ledger, run_id: str, fence: int, payer: Payer) -> None:
        self.ledger = ledger
        self.run_id = run_id
        self.fence = fence
        self.payer = payer
        self.limited = ledger.purse.limits(payer)
        self._caught_up = fence == 1 or not self.limited

    async def call(self, step: str, request: Request) -> Call:
        """The bookkeeping of one call of a model, over all its tries."""
        if not self._caught_up:
            # The worker of an earlier attempt may have died: what it had set aside would stand in the way of this one.
            await self.ledger.settle_run(self.run_id)
            self._caught_up = True
        return Call(self, step, request)


class Call:
    """The bookkeeping of one call of a model. `around` and `told` are what `LLM.chat` takes."""

    def __init__(self, books: Books, step: str, request: Request) -> None:
        self._books = books
        self._ledger = books.ledger
        self._step = step
        self._request = request
        self._row: SpendRow | None = None
        self._pass: Pass | None = None

    @asynccontextmanager
    async def around(self, record: Try) -> AsyncIterator[None]:
        """Wait for leave to send a try, set money aside for it, and settle it when the try has ended.

        Raises:
            BudgetExceeded: a cap is in the way, or applies to a model whose price nobody knows.
            ModelRefused, RetryLater: a cap applies, and the prices can't be had; or the service's limits are used up.
        """
        row = await self._new_row()
        async with self._place(record), self._money(row, record):
            yield

    @asynccontextmanager
    async def _place(self, record: Try) -> AsyncIterator[None]:
        limiter = self._ledger.limiter
        if limiter is None:
            yield
            return
        taken = self._pass = await limiter.acquire(self._request.model, _tokens(self._request))
        try:
            yield
        finally:
            self._learn(record)
            limiter.release(taken, answered=record.status != 0)

    def _learn(self, record: Try) -> None:
        taken, self._pass = self._pass, None
        if taken is not None and record.status:
            self._ledger.spawn(taken.limiter.learn(taken, record.status, record.headers))

    @asynccontextmanager
    async def _money(self, row: SpendRow, record: Try) -> AsyncIterator[None]:
        record.free = True  # until it is sent
        try:
            await self._open(row)
            record.free = False
            yield
        except (asyncio.CancelledError, BudgetExceeded):
            self._ledger.spawn(self._close(row, record))
            raise
        except BaseException:
            await asyncio.shield(self._ledger.spawn(self._close(row, record)))
            raise
        else:
            await asyncio.shield(self._ledger.spawn(self._close(row, record)))

    async def told(self, record: Try) -> None:
        """Write the generation's id down, before the reply is read, and learn what its headers say about limits."""
        self._learn(record)
        if self._row is not None:
            self._row = replace(self._row, generation_id=record.id)
            await self._ledger.write(self._row)

    async def _new_row(self) -> SpendRow:
        books = self._books
        return SpendRow(
            id=uuid.uuid4().hex, run_id=books.run_id, step=self._step, fence=books.fence, tenant=books.payer.tenant,
            agent=books.payer.agent, model=self._request.model, state="reserved", at=wall_ms(),
            reserved_usd=await self._ceiling(),
        )  # fmt: skip

    async def _ceiling(self) -> Decimal | None:
        """The most that a try can cost; None where no cap needs it, or the service tells no prices at all."""
        prices, request = self._ledger.prices, self._request
        if prices is None or not self._books.limited:
            return None
        ceiling = await prices.ceiling(request)
        if ceiling is None:
            models = ", ".join((request.model, *request.models))
            raise BudgetExceeded(
                f"nobody knows what a call of {models} can cost, so a cap could not be kept",
                hint="use a model with a price, and text only where its context is unbounded; or lift the caps",
            )
        return ceiling

    async def _open(self, row: SpendRow) -> None:
        if self._books.limited:
            await self._ledger.purse.reserve(row.id, self._books.payer, row.reserved_usd or Decimal(0))
        self._row = row
        await self._ledger.write(row)

    async def _close(self, row: SpendRow, record: Try) -> None:
        """Settle what is known at once. Whoever waits for this does not wait for the ledger, nor for a look-up."""
        ledger, written, self._row = self._ledger, self._row is not None, None
        row = replace(row, generation_id=record.id)
        usage = Usage(calls=1) if record.free else record.usage
        if self._books.limited and usage is not None and usage.cost_usd is not None:
            await ledger.purse.settle(row.id, usage.cost_usd)
        if written:
            ledger.spawn(self._book(row, usage))

    async def _book(self, row: SpendRow, usage: Usage | None) -> None:
        if usage is not None and (usage.cost_usd is not None or not self._ledger.llm.openrouter):
            await self._ledger.book(row, usage)  # elsewhere than at OpenRouter nobody may tell the cost, only tokens
        else:
            await self._ledger.write(row)
            if not await self._ledger.look_up(row) and (row.generation_id is None or not self._ledger.llm.openrouter):
                await self._ledger.give_up(row)


def _tokens(request: Request) -> int:
    """How many tokens a request may use, as services guess it that limit them: four bytes of input make one."""
    return len(encode(request.messages)) // 4 + request.max_tokens


async def _write(store: Store, rows: Sequence[SpendRow]) -> None:
    try:
        await patiently(lambda: store.write_spend(rows))
    except StoreRefused:
        for row in rows if len(rows) > 1 else ():  # the others are in order
            await _write(store, [row])
        if len(rows) == 1:
            emit(InternalFault(where="the ledger", stack=traceback.format_exc()))  # no reason to fail a paid call


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001  bookkeeping never ends a job; the row stays open and is settled later
        emit(InternalFault(where="the ledger", stack=traceback.format_exc()))
