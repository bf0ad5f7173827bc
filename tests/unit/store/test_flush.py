from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson
import pytest

from oxherd.context import Step
from oxherd.errors import StoreRefused, StoreUnreachable
from oxherd.store import RunRecord
from oxherd.store.flush import Flusher, Refused, RunWrite, StepWrite
from oxherd.store.outage import Outage

RUN = RunRecord(
    id="", queue="q", job_id="1", name="n", tenant=None, status="completed", fence=1, attempt=1, attempts=1, worker="w",
    input="{}", output="1", error=None, kind=None, stack=None, enqueued_at=1, started_at=2, finished_at=3,
)  # fmt: skip
STEP = Step(key="k", inputs="i", output=b"1", kind="step", usage=None, attempt=1, started_at=5, ms=1.5)


class Database:
    """Keeps the batches it is sent; refuses any that holds a row named `bad`; answers once `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, runs: bytes | None, steps: bytes | None) -> Refused:
        names = [row["id"] for row in orjson.loads(runs or b"[]")]
        names += [f"{row['run_id']}/{row['key']}" for row in orjson.loads(steps or b"[]")]
        self.batches.append(names)
        self.asked.set()
        await self.open.wait()
        if any("bad" in name or "\0" in name for name in names):
            raise StoreRefused("a bad row")
        return Refused([], [])


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def flusher(database: Database):
    flusher = Flusher(database.write, outage=Outage(lambda: flusher.waiting), gather_ms=0)
    flusher.start()
    yield flusher
    database.open.set()
    await flusher.stop()


def run(name: str, **changes) -> RunWrite:
    return RunWrite(replace(RUN, id=name, **changes), asyncio.get_running_loop().create_future())


def step(name: str) -> StepWrite:
    return StepWrite(name, 1, 0, STEP, asyncio.get_running_loop().create_future())


async def test_a_lone_write_goes_out_at_once(flusher: Flusher, database: Database):
    assert await flusher.add(run("a"))
    assert database.batches == [["a"]]


async def test_what_arrives_during_a_flush_goes_out_together_after_it(flusher: Flusher, database: Database):
    database.open.clear()
    first = flusher.add(run("first"))
    await database.asked.wait()
    others = [flusher.add(run(name)) for name in "abc"] + [flusher.add(step("s"))]
    assert flusher.waiting == 5
    database.open.set()
    await asyncio.gather(first, *others)
    assert database.batches == [["first"], ["a", "b", "c", "s/k"]]
    assert flusher.waiting == 0


async def test_a_bad_row_costs_a_few_statements_and_nobody_else(flusher: Flusher, database: Database):
    writes = [flusher.add(run(f"bad-{place}" if place == 700 else str(place))) for place in range(1_000)]
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert [place for place, answer in enumerate(done) if answer is not True] == [700]
    assert len(database.batches) < 25


async def test_many_rows_that_only_need_cleaning_cost_one_more_statement(flusher: Flusher, database: Database):
    await asyncio.gather(*(flusher.add(run(f"{place}\0")) for place in range(500)))
    assert len(database.batches) == 2
    assert database.batches[1][0] == "0\\u0000"


async def test_batches_are_bounded_in_rows_and_in_size(flusher: Flusher, database: Database, monkeypatch):
    monkeypatch.setattr("oxherd.store.flush.MOST_ROWS", 10)
    await asyncio.gather(*(flusher.add(run(str(place))) for place in range(25)))
    assert [len(batch) for batch in database.batches] == [10, 10, 5]
    database.batches.clear()
    await asyncio.gather(*(flusher.add(run(str(place), input="x" * 3_000_000)) for place in range(5)))
    assert [len(batch) for batch in database.batches] == [3, 2]


async def test_attempts_of_one_run_stay_in_order_over_batches(flusher: Flusher, database: Database):
    states = [flusher.add(run("r", fence=fence)) for fence in (1, 2, 1, 2)]
    await asyncio.gather(*states, flusher.add(run("other")))
    assert database.batches == [["r", "other"], ["r"], ["r"], ["r"]]


async def test_a_mistake_of_ours_fails_the_writers_instead_of_hanging_them(database: Database):
    async def broken(*_: object) -> Refused:
        raise ZeroDivisionError

    flusher = Flusher(broken, outage=Outage(lambda: 0), gather_ms=0)
    flusher.start()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await flusher.add(run("a"))
    await flusher.stop()


async def test_a_batch_may_be_given_time_to_grow(database: Database):
    flusher = Flusher(database.write, outage=Outage(lambda: 0), gather_ms=20)
    flusher.start()
    first = flusher.add(run("a"))
    await asyncio.sleep(0.001)
    await asyncio.gather(first, flusher.add(run("b")))
    assert database.batches == [["a", "b"]]
    await flusher.stop()


async def test_stopping_what_never_started_is_fine(database: Database):
    flusher = Flusher(database.write, outage=Outage(lambda: 0), gather_ms=0)
    await flusher.stop()
    await flusher.stop()
    with pytest.raises(StoreUnreachable):
        flusher.add(run("a"))
