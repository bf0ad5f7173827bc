"""Money under concurrency: whatever workers do, no cap is ever passed."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oxherd.agents.budget import Caps, Payer, Purse, nanos
from oxherd.errors import BudgetExceeded, DailyCapReached
from oxherd.queue.connection import Link
from oxherd.settings import parse_redis_url
from oxherd.telemetry.events import BudgetReached, attach

NOBODY = Payer(run="1", agent="support")


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield link
    await link.stop()


def purse(link: Link, prefix: str = "p:", **caps: str) -> Purse:
    return Purse(link, prefix.encode(), Caps(**{scope: Decimal(cap) for scope, cap in caps.items()}))


def usd(text: str) -> Decimal:
    return Decimal(text)


async def test_what_a_call_cost_takes_the_place_of_what_was_set_aside(link):
    money = purse(link, all="1")
    await money.reserve("a", NOBODY, usd("0.5"))
    assert await money.settle("a", usd("0.0001234567891"))
    used = await money.used(NOBODY)
    assert used["global"] == used["run"] == used["agent"] == usd("0.000123457")  # up to the next nano-dollar


async def test_a_cap_is_reached_by_what_is_set_aside_and_not_only_by_what_was_spent(link):
    money = purse(link, all="1")
    await money.reserve("a", NOBODY, usd("0.6"))
    with pytest.raises(DailyCapReached, match=r"\$0\.6 is spent or set aside.*up to \$0\.5"):
        await money.reserve("b", NOBODY, usd("0.5"))
    await money.settle("a", usd("0.1"))
    await money.reserve("b", NOBODY, usd("0.5"))


@pytest.mark.parametrize("scope", ["run", "tenant", "agent", "global"])
async def test_each_cap_holds_for_its_own_and_nobody_else(link, scope):
    caps = {"run": {}, "tenant": {"tenant": "1"}, "agent": {"agent": "1"}, "global": {"all": "1"}}[scope]
    money = purse(link, **caps)
    cap = usd("1") if scope == "run" else None
    payer, other = Payer("1", "support", "acme", cap), Payer("2", "editor", "umbrella", cap)
    events = []
    detach = attach(events.append, BudgetReached)
    await money.reserve("a", payer, usd("1"))
    with pytest.raises(BudgetExceeded) as refused:
        await money.reserve("b", payer, usd("0.000000001"))
    detach()
    assert isinstance(refused.value, DailyCapReached) == (scope == "global")
    assert [(event.scope, event.cap_usd, event.used_usd) for event in events] == [(scope, 1.0, 1.0)]
    if scope == "global":
        with pytest.raises(DailyCapReached):
            await money.reserve("c", other, usd("1"))
    else:
        await money.reserve("c", other, usd("1"))


async def test_a_refused_call_sets_nothing_aside_in_any_scope(link):
    money = purse(link, all="10", agent="1")
    with pytest.raises(BudgetExceeded):
        await money.reserve("a", NOBODY, usd("2"))
    assert set((await money.used(NOBODY)).values()) == {Decimal(0)}


async def test_what_is_run_for_no_tenant_has_no_tenant_s_cap(link):
    money = purse(link, tenant="1")
    assert not money.limits(NOBODY)
    assert money.limits(Payer("1", "support", "acme"))


async def test_both_may_be_repeated_when_their_replies_are_lost(link):
    money = purse(link, all="1")
    for _ in range(3):
        await money.reserve("a", NOBODY, usd("0.7"))
    assert [await money.settle("a", usd("0.2")) for _ in range(3)] == [True, False, False]
    assert (await money.used(NOBODY))["global"] == usd("0.2")


async def test_a_call_of_a_worker_that_died_counts_as_spent_until_its_bill_is_known(redis_url, link):
    dead = Link(parse_redis_url(redis_url), "dead")
    await dead.start()
    await purse(dead, all="1").reserve("a", NOBODY, usd("0.9"))
    await dead.stop()
    money = purse(link, all="1")
    with pytest.raises(DailyCapReached):
        await money.reserve("b", NOBODY, usd("0.2"))
    await money.settle("a", usd("0.01"))
    await money.reserve("b", NOBODY, usd("0.2"))


async def test_nothing_is_kept_for_ever(link):
    money = purse(link, all="1")
    await money.reserve("a", NOBODY, usd("0.1"))
    keys = await link.call(b"KEYS", b"p:*")
    assert len(keys) == 5
    assert all([await link.call(b"PTTL", key) > 0 for key in keys])


async def test_a_cap_of_nothing_lets_nothing_through_not_even_what_is_free(link):
    with pytest.raises(DailyCapReached):
        await purse(link, all="0").reserve("a", NOBODY, usd("0"))


def test_money_is_rounded_up_never_down():
    assert nanos(usd("0.0000000011")) == 2
    assert nanos(usd("1.000000001")) == 1_000_000_001


CALLS = st.lists(
    st.tuples(
        st.integers(0, 2),  # tenant
        st.integers(0, 1),  # agent
        st.integers(0, 400),  # thousandths set aside
        st.floats(0, 1),  # which part of it the bill comes to
        st.sampled_from(["settled", "died", "twice"]),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS, seed=st.integers(0, 2**16), caps=st.tuples(*[st.integers(0, 1500)] * 4))
def test_no_cap_is_ever_passed_whatever_many_workers_do_at_once(redis_url, calls, seed, caps):
    asyncio.run(spend_at_once(redis_url, calls, seed, [Decimal(cap) / 1000 for cap in caps]))


async def spend_at_once(redis_url, calls, seed, caps):
    """Two workers; every bill, including those of calls whose worker died, is at most what was set aside."""
    chance = random.Random(seed)
    links = [Link(parse_redis_url(redis_url), f"worker-{number}") for number in range(2)]
    for each in links:
        await each.start()
    prefix = f"{uuid.uuid4()}:".encode()  # each example has sums of its own
    purses = [Purse(each, prefix, Caps(all=caps[0], tenant=caps[1], agent=caps[2])) for each in links]
    billed: list[tuple[Payer, Decimal]] = []  # by the provider, who asks nobody
    settled: list[tuple[Payer, Decimal]] = []  # what the purse must know in the end

    async def call(number, tenant, agent, thousandths, part, end):
        money, amount = purses[number % 2], Decimal(thousandths) / 1000
        payer = Payer(f"run-{number % 3}", f"agent-{agent}", f"tenant-{tenant}", caps[3])
        try:
            await money.reserve(str(number), payer, amount)
        except BudgetExceeded:
            return
        cost = Decimal(int(nanos(amount) * part)) / 10**9
        billed.append((payer, cost))
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        if end != "died":
            await money.settle(str(number), cost)
        if end == "twice":
            await purses[(number + 1) % 2].settle(str(number), cost)
        settled.append((payer, amount if end == "died" else cost))

    try:
        await asyncio.gather(*(call(number, *each) for number, each in enumerate(calls)))
        scopes = {"run": "run", "tenant": "tenant", "agent": "agent"}
        for payer in {payer for payer, _ in billed}:
            used = await purses[0].used(payer)
            for scope, field in scopes.items():
                mine = [cost for other, cost in billed if getattr(other, field) == getattr(payer, field)]
                known = [cost for other, cost in settled if getattr(other, field) == getattr(payer, field)]
                cap = {"run": caps[3], "tenant": caps[1], "agent": caps[2]}[scope]
                assert sum(mine) <= sum(known) == used[scope] <= cap
            assert sum(cost for _, cost in billed) <= used["global"] <= caps[0]
    finally:
        for each in links:
            await each.stop()


async def test_a_run_inside_others_stays_within_their_caps_too(link):
    money = purse(link)
    outer = Payer("1/lead", "lead", cap=usd("1"))
    inner, twin = (Payer(f"1/lead/{number}/scout", "scout", cap=usd("0.7"), around=(outer,)) for number in "ab")
    await money.reserve("a", inner, usd("0.6"))
    with pytest.raises(BudgetExceeded, match=r"run of agent 'lead' is \$1: \$0\.6 is spent"):
        await money.reserve("b", twin, usd("0.5"))
    with pytest.raises(BudgetExceeded, match=r"run of agent 'scout' is \$0\.7: \$0\.6 is spent"):
        await money.reserve("c", inner, usd("0.2"))
    await money.settle("a", usd("0.1"))
    assert (await money.used(inner))["run"] == (await money.used(outer))["run"] == usd("0.1")
    await money.reserve("d", twin, usd("0.5"))
    assert (await money.used(twin))["run"] == usd("0.5")


def test_a_run_inside_a_capped_one_is_limited_although_it_has_no_cap_itself(link):
    assert purse(link).limits(Payer("1/a", "scout", around=(Payer("1", "lead", cap=usd("1")),)))
    assert not purse(link).limits(Payer("1/a", "scout"))
