from __future__ import annotations

from itertools import islice

import pytest

from oxherd.errors import StoreRefused, StoreUnreachable
from oxherd.store.outage import LONGEST_PAUSE, Outage, pauses
from oxherd.telemetry.events import StoreBack, StoreLost, attach


@pytest.fixture
def events():
    heard = []
    detach = attach(heard.append, StoreLost, StoreBack)
    yield heard
    detach()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("oxherd.store.outage.FIRST_PAUSE", 0.0)


class Database:
    """Fails as often as told, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def away() -> StoreUnreachable:
    return StoreUnreachable("Postgres at host: gone")


async def test_an_outage_is_announced_once_however_often_it_is_tried(events):
    database = Database(away(), away(), away())
    outage = Outage(lambda: 7)
    assert await outage.ride_out(database) == "answer"
    assert database.calls == 4
    assert [type(event) for event in events] == [StoreLost, StoreBack]
    assert (events[0].error, events[0].waiting) == ("Postgres at host: gone", 7)


async def test_all_is_quiet_while_all_is_well(events):
    outage = Outage(lambda: 0)
    assert await outage.ride_out(Database()) == "answer"
    assert (events, outage.seconds) == ([], 0.0)


async def test_the_time_away_runs_from_the_first_failure():
    outage = Outage(lambda: 0)
    seen = []

    async def write() -> None:
        seen.append(outage.seconds)
        if len(seen) < 3:
            raise away()

    await outage.ride_out(write)
    assert seen[0] == 0.0
    assert 0 < seen[1] < seen[2]
    assert outage.seconds == 0.0


async def test_a_refusal_is_an_answer_and_ends_the_outage(events):
    outage = Outage(lambda: 0)
    with pytest.raises(StoreRefused):
        await outage.ride_out(Database(away(), StoreRefused("bad row")))
    assert [type(event) for event in events] == [StoreLost, StoreBack]


async def test_reads_are_tried_again_without_a_word(events):
    assert await Outage(lambda: 0).patiently(Database(away(), away())) == "answer"
    assert events == []


@pytest.mark.parametrize("way", ["ride_out", "patiently"])
async def test_a_stopping_store_tries_no_more(way: str):
    outage = Outage(lambda: 0)
    outage.give_up()
    with pytest.raises(StoreUnreachable):
        await getattr(outage, way)(Database(away(), away()))


def test_pauses_grow_to_seconds_and_are_spread(monkeypatch):
    monkeypatch.setattr("oxherd.store.outage.FIRST_PAUSE", 0.05)
    rows = [list(islice(pauses(), 12)) for _ in range(20)]
    assert all(0.025 <= row[0] <= 0.05 for row in rows)
    assert all(LONGEST_PAUSE / 2 <= row[-1] <= LONGEST_PAUSE for row in rows)
    assert len({row[-1] for row in rows}) > 10
