"""The registry of workers: who is there, since when, and at what cost."""

from __future__ import annotations

from redis import Redis
from stage import Stage, eventually

from oxherd.queue import registry
from oxherd.queue.registry import Registry


async def ok(_ctx, _payload) -> None:
    return None


async def test_a_worker_is_listed_until_it_stops(stage: Stage):
    who = Registry(stage.link, stage.keys)
    one, other = await stage.worker({"ok": ok}), await stage.worker({"ok": ok})
    found = await eventually(lambda: both(who))
    assert {each["id"] for each in found} == {one.id, other.id}
    assert all((each["alive"], each["in_flight"], each["concurrency"]) == (True, 0, 5) for each in found)
    await other.stop(grace=0)
    assert [each["id"] for each in await who.workers()] == [one.id]


async def both(who: Registry):
    found = await who.workers()
    return found if len(found) == 2 else None


async def test_one_that_died_is_shown_as_silent_and_forgotten_later(stage: Stage, monkeypatch):
    await stage.link.call(b"HSET", stage.keys.workers, "dead", b'{"host": "h"}')
    await stage.link.call(b"HSET", stage.keys.workers, "long-dead", b'{"host": "h"}')
    seconds = int((await stage.link.call(b"TIME"))[0])
    await stage.link.call(b"ZADD", stage.keys.workers_seen, (seconds - 120) * 1000, "dead")
    await stage.link.call(b"ZADD", stage.keys.workers_seen, seconds * 1000 - registry.KEPT_MS, "long-dead")
    (dead,) = await Registry(stage.link, stage.keys).workers()
    assert (dead["id"], dead["alive"]) == ("dead", False)
    assert dead["seen"] >= 120_000
    worker = await stage.worker({"ok": ok})
    await eventually(lambda: forgotten(stage))
    assert {each["id"] for each in await Registry(stage.link, stage.keys).workers()} == {"dead", worker.id}


async def forgotten(stage: Stage) -> bool:
    return await stage.link.call(b"HEXISTS", stage.keys.workers, "long-dead") == 0


async def test_a_sign_of_life_costs_no_command_of_its_own(stage: Stage, witness: Redis):
    await stage.worker({"ok": ok}, stalled_interval=0.2)
    who = Registry(stage.link, stage.keys)
    await eventually(who.workers)

    def calls() -> dict[str, int]:
        return {name: found["calls"] for name, found in witness.info("commandstats").items()}

    def seen() -> float:
        return witness.zscore(stage.keys.workers_seen, stage.workers[0].id)

    before, first = calls(), seen()
    await eventually(lambda: later(seen, first + 500))
    after = calls()
    rounds = after["cmdstat_evalsha"] - before["cmdstat_evalsha"]
    assert rounds >= 2
    # What a script does inside is counted there, too: none of it comes once more from outside.
    for inside in ("cmdstat_hset", "cmdstat_zadd"):
        assert after[inside] - before[inside] <= rounds


async def later(seen, than: float) -> bool:
    return seen() > than
