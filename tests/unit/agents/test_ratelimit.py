from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from oxherd.agents import ratelimit
from oxherd.agents.ratelimit import Limiter, Quota, quotas, retry_after
from oxherd.clock import mono, wall_ms
from oxherd.errors import RetryLater
from oxherd.queue.connection import Link
from oxherd.settings import parse_redis_url


@pytest.fixture
async def links(redis_url) -> AsyncIterator[list[Link]]:
    """Those of two workers."""
    links = [Link(parse_redis_url(redis_url), f"worker-{number}") for number in range(2)]
    for link in links:
        await link.start()
    yield links
    for link in links:
        await link.stop()


@pytest.fixture
def limiters(links) -> list[Limiter]:
    return [Limiter(link, b"calls:", "https://service key", at_once=4) for link in links]


def told(limit: int, left: int, reset: str = "30s", kind: str = "requests") -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(left),
        f"x-ratelimit-reset-{kind}": reset,
    }


async def through(limiter: Limiter, tokens: int = 10, model: str = "m"):
    """The pass, or None where the request has to wait."""
    try:
        async with asyncio.timeout(0.04):
            return await limiter.acquire(model, tokens)
    except (TimeoutError, RetryLater):
        return None


async def at_once(limiter: Limiter) -> float:
    return float(await limiter._link.call(b"HGET", limiter._keys("m")[0], b"atonce") or 0)


async def answered(limiter: Limiter, taken, status: int = 200, headers=None) -> None:
    await limiter.learn(taken, status, headers or {})
    limiter.release(taken, answered=True)


async def test_two_workers_share_the_requests_at_once(limiters):
    one, two = limiters
    taken = [await through(each) for each in (one, two, one, two)]
    assert all(taken)
    assert await through(one) is None
    two.release(taken[1], answered=False)
    async with asyncio.timeout(2):
        assert await one.acquire("m", 10)


async def test_each_model_and_each_account_has_limits_of_its_own(limiters, links):
    one = limiters[0]
    for _ in range(4):
        await through(one)
    assert await through(one) is None
    assert await through(one, model="n")
    assert await through(Limiter(links[0], b"calls:", "another key", at_once=4))


async def test_no_key_is_named_after_the_account(limiters, links):
    await through(limiters[0])
    assert all(b"service" not in key and b"key" not in key for key in await links[0].call(b"KEYS", b"*"))


async def test_requests_at_once_double_with_each_round_until_one_is_refused(limiters):
    one = limiters[0]
    for _ in range(2):
        held = [await through(one) for _ in range(int(await at_once(one) or 4))]
        for each in held:
            await one.learn(each, 200, {})
        for each in held:
            one.release(each, answered=True)
    assert await at_once(one) >= 12


async def test_a_refusal_halves_them_once_for_all_that_were_sent_together_and_they_grow_slowly_after(limiters):
    one, two = limiters
    held = [await through(each) for each in (one, two, one, two)]
    for each, limiter in zip(held, (one, two, one, two), strict=True):
        await answered(limiter, each, 429, {"retry-after": "0"})
    assert await at_once(one) == 2
    for _ in range(4):
        await answered(one, await through(one))
    assert 2 < await at_once(one) < 4


async def test_nobody_sends_while_a_refusal_asks_to_wait(limiters):
    one, two = limiters
    await answered(one, await through(one), 429, {"Retry-After": "0.2"})
    assert await through(two) is None
    async with asyncio.timeout(2):
        assert await two.acquire("m", 10)


async def test_what_an_answer_leaves_is_what_all_workers_may_still_send(limiters):
    one, two = limiters
    await answered(one, await through(one), headers=told(10, 2))
    first, second = await through(two), await through(one)
    assert first
    assert second
    assert await through(two) is None, "unanswered ones may have taken the rest"
    await answered(two, first, headers=told(10, 1))
    assert await through(two) is None


async def test_of_two_answers_the_one_that_leaves_less_counts_whichever_comes_first(limiters):
    one = limiters[0]
    early, late = await through(one), await through(one)
    await answered(one, late, headers=told(10, 0))
    await answered(one, early, headers=told(10, 1))
    assert await through(one) is None


async def test_a_window_that_is_over_begins_again_for_everybody(limiters):
    one, two = limiters
    await answered(one, await through(one), headers=told(3, 0, "80ms"))
    assert await through(two) is None
    async with asyncio.timeout(2):
        taken = [await two.acquire("m", 10) for _ in range(3)]
    assert await through(one) is None, "the window has three"
    await answered(two, taken[0], headers=told(3, 2, "30s"))
    assert await through(one) is None


async def test_an_answer_out_of_the_window_before_is_no_news(limiters):
    one = limiters[0]
    slow = await through(one)
    await answered(one, await through(one), headers=told(3, 0, "60ms"))
    async with asyncio.timeout(2):
        await one.acquire("m", 10)
    await answered(one, slow, headers=told(3, 1, "0ms"))
    assert await through(one)


async def test_of_a_service_that_tells_only_when_it_refuses_the_window_is_measured_and_requests_are_counted(limiters):
    one = limiters[0]

    def refusal(ms: int) -> dict[str, str]:
        return {"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(wall_ms() + ms)}

    async with asyncio.timeout(5):
        await answered(one, await one.acquire("m", 10), 429, refusal(50))
        await answered(one, await one.acquire("m", 10), 200)  # in the next window, and it says nothing
        await answered(one, await one.acquire("m", 10), 429, refusal(300))
        for _ in range(2):
            await answered(one, await one.acquire("m", 10), 200)
    assert await through(one) is None, "the third in a window of two waits for the next one"


async def test_requests_to_a_service_that_tells_nothing_are_sent_evenly_once_it_has_answered(limiters, links):
    one, two = limiters
    first = await through(one)
    first.sent -= 1.2  # the answer took so long
    await answered(one, first)
    latency = float(await links[0].call(b"HGET", first.keys[0], b"latency"))
    assert 1200 <= latency < 2000
    assert await through(one)
    assert await through(two) is None, "four at once, so one in a quarter of that time"
    began = mono()
    async with asyncio.timeout(5):
        await two.acquire("m", 10)
    assert mono() - began > 0.2


async def test_a_window_is_taken_to_be_as_long_as_since_the_first_request_until_one_is_measured(limiters):
    one = limiters[0]
    for _ in range(2):
        await answered(one, await through(one), 200)
    refusal = {"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(wall_ms() + 300)}
    async with asyncio.timeout(5):
        await answered(one, await one.acquire("m", 10), 429, refusal)
        for _ in range(2):
            await answered(one, await one.acquire("m", 10), 200)
    assert await through(one) is None, "the next two wait for the window after"
    async with asyncio.timeout(5):
        assert await one.acquire("m", 10)


async def test_tokens_are_counted_before_they_are_used(limiters):
    one, two = limiters
    await answered(one, await through(one), headers=told(1000, 500, kind="tokens"))
    assert await through(two, tokens=400)
    assert await through(one, tokens=200) is None
    assert await through(one, tokens=100)


async def test_a_request_larger_than_the_whole_limit_is_sent_alone(limiters):
    one = limiters[0]
    await answered(one, await through(one), headers=told(1000, 1000, kind="tokens"))
    assert await through(one, tokens=5000)
    assert await through(one, tokens=5000) is None


async def test_a_worker_that_dies_gives_its_places_back_soon_and_one_that_lives_keeps_them(
    redis_url, limiters, links, monkeypatch
):
    monkeypatch.setattr(ratelimit, "HOLD_MS", 300)
    one, two = limiters
    kept = [await through(one) for _ in range(2)]
    for _ in range(2):
        await through(two)
    assert await through(one) is None
    await links[1].stop()  # which renews nothing any more
    async with asyncio.timeout(5):
        taken = [await one.acquire("m", 10) for _ in range(2)]
    assert await through(one) is None, "the four of the living one"
    assert await links[0].call(b"ZCARD", kept[0].keys[1]) == await links[0].call(b"ZCARD", kept[0].keys[2]) == 4
    for each in (*kept, *taken):
        one.release(each, answered=False)
    assert await links[0].call(b"ZCARD", kept[0].keys[1]) == 0


async def test_who_would_wait_too_long_gives_the_slot_back(limiters):
    one = limiters[0]
    await answered(one, await through(one), headers=told(10, 0, "50s"))
    with pytest.raises(RetryLater) as later:
        await one.acquire("m", 10)
    assert 45 < later.value.seconds < 55


async def test_a_cancelled_wait_leaves_nothing_behind(limiters, links):
    one = limiters[0]
    held = [await through(one) for _ in range(4)]
    assert await through(one) is None
    for each in held:
        one.release(each, answered=False)
    assert await links[0].call(b"ZCARD", held[0].keys[1]) == 0


def test_limits_are_read_in_both_dialects():
    assert quotas(told(60, 59, "1m0.5s") | told(1000, 900, "6ms", "tokens")) == (
        Quota(60, 59, 60_500.0), Quota(1000, 900, 6.0),
    )  # fmt: skip
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(wall_ms() + 5000)}
    requests, tokens = quotas(headers)
    assert (requests.limit, requests.left, tokens) == (20, 0, None)
    assert 4000 < requests.ms <= 5000


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-ratelimit-limit": "many"}, told(0, 0), told(10, 5, "soon"), told(10, 5, "")],
    ids=["nothing", "no number", "no limit", "no moment", "no reset"],
)
def test_what_makes_no_sense_is_no_limit(headers):
    assert quotas(headers) == (None, None)


def test_the_seconds_of_a_refusal_are_read_and_dates_are_not():
    assert retry_after({"Retry-After": "1.5"}) == 1500
    assert retry_after({"retry-after": "Mon, 23 Nov 2026 17:00:00 GMT"}) is None
    assert retry_after({}) is None
