from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
from decimal import Decimal

import pytest
from aiohttp import web

from fakes.openrouter import (
    ALIVE,
    DONE,
    KEY,
    PRICE,
    Drops,
    Refuses,
    Streams,
    answer,
    calls,
    chunk,
    event,
    published,
    says,
    streamed,
)
from oxherd.agents import LLM
from oxherd.agents import llm as llm_module
from oxherd.agents.chat import Request
from oxherd.agents.llm import Timeouts, Try
from oxherd.context import Delta
from oxherd.errors import ModelRefused, OutOfCredit, RetryLater
from oxherd.settings import Secret

HELLO = Request(model="openai/gpt-5-mini", messages=[{"role": "user", "content": "hello"}], max_tokens=1000)


def test_the_fake_checks_requests_against_the_published_schema():
    if published() is None:
        pytest.skip("the published schema (shared/contracts beside the repository) is not here")
    assert list(published().iter_errors({"model": "m", "messages": [{"role": "tool", "content": "x"}]}))


async def test_a_reply_tells_who_answered_and_what_it_cost(fake, llm):
    fake.script(says("Hi there"))
    reply = await llm.chat(HELLO)
    assert (reply.text, reply.model, reply.provider, reply.id) == ("Hi there", HELLO.model, "Fake", "gen-1")
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cost_usd) == (10, 5, PRICE)


async def test_the_generation_id_is_taken_from_the_header_where_the_body_has_none(fake, llm):
    fake.script(says("Hi") | {"id": None})
    assert (await llm.chat(HELLO)).id == "gen-1"


async def test_tool_calls_decide_and_not_the_finish_reason(fake, llm):
    fake.script(calls(("find", {"q": 1}), finish_reason="stop"))
    assert [call.name for call in (await llm.chat(HELLO)).tool_calls] == ["find"]


@pytest.mark.parametrize(
    "fault",
    [
        Refuses(429),
        Refuses(503, availability={"code": "temporarily_unavailable", "retryable": True}),
        Refuses(200, metadata={"error_type": "provider_unavailable"}),
        Drops(),
        Streams(chunk({"content": "par"}), cut=True),
        Streams(chunk({"content": "par"})),
        Streams(chunk({"content": "par"}, "stop")),
        Streams(chunk({"content": "par"}), event({"error": {"code": 502, "message": "x"}})),
        Streams(ALIVE, event({"choices": [], "error": {"code": 429, "message": "x"}})),
        Streams(b"data: <html>\n\n"),
        Streams(),
        b"<html>Bad gateway</html>",
        b"[]",
        {"choices": []},
        answer({"role": "assistant", "content": "par"}, "error"),
        {
            "choices": [
                {"message": {"content": "par"}, "finish_reason": "error", "error": {"code": 502, "message": "x"}}
            ]
        },
        answer({"role": "assistant", "content": ""}, None),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_passing_fault_is_tried_again_within_the_call(fake, llm, pauses, fault):
    fake.script(fault, says("Hi"))
    assert (await llm.chat(HELLO)).text == "Hi"
    assert len(pauses) == 1


async def test_pauses_grow_and_past_the_bound_the_job_comes_back_later(fake, llm, pauses):
    fake.script(*[Refuses(503)] * llm_module.TRIES)
    with pytest.raises(RetryLater, match="503") as caught:
        await llm.chat(HELLO)
    assert 30 <= caught.value.seconds <= 40
    assert [0.25 <= pauses[0] <= 0.75, 0.5 <= pauses[1] <= 1.5, 1 <= pauses[2] <= 3, len(pauses)] == [
        True,
        True,
        True,
        3,
    ]


async def test_a_short_retry_after_is_waited_for_in_the_call(fake, llm, pauses):
    fake.script(Refuses(429, headers={"Retry-After": "3"}), says("Hi"))
    await llm.chat(HELLO)
    assert pauses == [3.0]


async def test_a_long_retry_after_gives_the_slot_back_at_once(fake, llm, pauses):
    fake.script(Refuses(429, headers={"Retry-After": "3600"}))
    with pytest.raises(RetryLater) as caught:
        await llm.chat(HELLO)
    assert 3600 <= caught.value.seconds <= 4500
    assert pauses == []


async def test_a_refused_key_ends_the_job_and_names_the_variable(fake, llm):
    fake.script(Refuses(401, "User not found."))
    with pytest.raises(ModelRefused, match="refused the key") as caught:
        await llm.chat(HELLO)
    assert "OPENROUTER_API_KEY" in caught.value.hint


async def test_the_output_limit_is_lowered_to_what_the_credit_covers(fake, llm):
    fake.script(Refuses(402, "You requested up to 1000 tokens, but can only afford 120."), says("Hi"))
    await llm.chat(HELLO)
    assert [request["max_tokens"] for request in fake.requests] == [1000, 120]


async def test_the_output_limit_is_lowered_once_only(fake, llm):
    fake.script(*[Refuses(402, f"You requested more, but can only afford {limit}.") for limit in (120, 60)])
    with pytest.raises(OutOfCredit):
        await llm.chat(HELLO)
    assert [request["max_tokens"] for request in fake.requests] == [1000, 120]


@pytest.mark.parametrize("said", ["Insufficient credits", "but can only afford 3"])
async def test_a_lack_of_credit_is_told_apart_and_not_tried_again(fake, llm, said):
    fake.script(Refuses(402, said))
    with pytest.raises(OutOfCredit, match="add credit") as caught:
        await llm.chat(HELLO)
    assert caught.value.seconds == llm_module.PARKED


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Refuses(400, "acme/fake is not a valid model ID"), "openai/gpt-5-mini: .*not a valid model ID"),
        (Refuses(403, "flagged", metadata={"reasons": ["violence"]}), "violence"),
        (Refuses(400, metadata={"error_type": "context_length_exceeded"}), "too long for the model"),
        ({"choices": [{"message": {"content": "par"}, "error": {"code": 403, "message": "flagged"}}]}, "403: flagged"),
        (says(None, refusal="I can't help with that"), "refused: I can't help with that"),
        (answer({"role": "assistant", "content": ""}, "content_filter"), "content filter"),
        (answer({"role": "assistant", "content": ""}, "length"), "went into reasoning"),
    ],
)
async def test_what_would_fail_again_is_not_tried_again(fake, llm, reply, why):
    fake.script(reply)
    with pytest.raises(ModelRefused, match=why):
        await llm.chat(HELLO)


async def test_an_empty_answer_that_ended_well_is_an_answer(fake, llm):
    fake.script(says(""))
    assert (await llm.chat(HELLO)).text == ""


async def test_a_service_that_is_not_there_delays_the_job(pauses):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        llm = LLM(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", None, sleep=noted(pauses))
        with pytest.raises(RetryLater, match="could not be reached"):
            await llm.chat(HELLO)
        await llm.close()
    assert len(pauses) == 3


async def test_a_service_that_does_not_answer_in_time_delays_the_job_without_asking_twice(fake, pauses, monkeypatch):
    llm = LLM(fake.url, Secret(KEY), openrouter=True, sleep=noted(pauses), timeouts=Timeouts(total=0.05))

    release = asyncio.Event()

    async def held(_request, _answer, _body):
        await release.wait()
        return web.Response()

    fake.script(says("too late"))
    monkeypatch.setattr(fake, "_send", held)
    with pytest.raises(RetryLater, match="in time"):
        await llm.chat(HELLO)
    release.set()
    await llm.close()
    assert (pauses, len(fake.requests)) == ([], 1)


async def test_without_a_key_openrouter_is_not_even_called():
    llm = LLM("https://openrouter.ai/api/v1", None)
    with pytest.raises(ModelRefused, match="OPENROUTER_API_KEY is not set"):
        await llm.chat(HELLO)
    await llm.close()


async def test_the_key_is_in_no_error(fake, llm):
    fake.script(Refuses(400, "bad"))
    with pytest.raises(ModelRefused) as caught:
        await llm.chat(HELLO)
    assert KEY not in f"{caught.value!r}{caught.value.hint}{vars(llm)}"


async def test_calls_share_one_session(fake, llm):
    fake.script(*[says("Hi")] * 3)
    await llm.chat(HELLO)
    session = llm._session
    await asyncio.gather(llm.chat(HELLO), llm.chat(HELLO))
    assert llm._session is session
    await llm.close()
    await llm.close()
    assert session.closed
    assert fake.bill == Decimal("0.0006")


# --- streams


async def test_replies_are_streamed_and_listeners_are_told_as_they_come(fake, llm):
    go_on = asyncio.Event()
    first, second = chunk({"role": "assistant", "content": "Hel", "reasoning": "hm"}), chunk({"content": "lo"}, "stop")
    fake.script(Streams(ALIVE, first, go_on, second, DONE))
    heard = []

    def listen(delta):
        heard.append(delta)
        go_on.set()

    assert (await llm.chat(HELLO, listen)).text == "Hello"
    assert heard == [Delta("Hel", "hm", 1), Delta("lo", "", 1)]
    assert fake.requests[0]["stream"] is True


async def test_a_listener_learns_that_the_reply_begins_anew(fake, llm):
    fake.script(Streams(chunk({"content": "par"}), cut=True), Streams(chunk({"content": "whole"}, "stop"), DONE))
    heard = []
    await llm.chat(HELLO, heard.append)
    assert heard[-1] == Delta("whole", "", 2)


async def test_a_service_that_cannot_stream_is_asked_for_whole_replies(fake, pauses):
    llm = LLM(fake.url, Secret(KEY), openrouter=True, stream=False, sleep=noted(pauses))
    fake.script(Refuses(503), says("Hi"), calls(("find", {"q": 1}), finish_reason="stop"), {"choices": []}, says("Hi"))
    assert (await llm.chat(HELLO)).text == "Hi"
    assert [call.name for call in (await llm.chat(HELLO)).tool_calls] == ["find"]
    assert (await llm.chat(HELLO)).text == "Hi"
    assert "stream" not in fake.requests[0]
    await llm.close()


async def test_a_service_that_ignores_the_wish_to_stream_is_understood(fake, llm):
    fake.script(b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}')
    heard = []
    assert (await llm.chat(HELLO, heard.append)).text == "Hi"
    assert heard == [Delta("Hi", "", 1)]


async def test_a_connection_is_used_again_after_a_stream(fake, llm):
    fake.script(*[says("Hi")] * 3)
    for _ in range(3):
        await llm.chat(HELLO)
    assert len(llm._session.connector._acquired) == 0
    assert sum(map(len, llm._session.connector._conns.values())) == 1


async def test_a_connection_is_used_again_although_the_body_ends_after_the_last_event(fake, llm):
    late = asyncio.Event()
    fake.script(Streams(chunk({"content": "Hi"}, "stop"), DONE, late), says("Hi"))
    loop = asyncio.get_running_loop()
    await llm.chat(HELLO, lambda _: loop.call_later(0.02, late.set))
    await llm.chat(HELLO)
    assert sum(map(len, llm._session.connector._conns.values())) == 1
    assert not fake.hung_up.is_set()


async def test_a_stream_that_is_left_open_behind_its_end_holds_nobody_up(fake, llm, monkeypatch):
    monkeypatch.setattr(llm_module, "LINGER", 0.01)
    never = asyncio.Event()
    fake.script(Streams(chunk({"content": "Hi"}, "stop"), DONE, never))
    assert (await llm.chat(HELLO)).text == "Hi"
    await asyncio.wait_for(fake.hung_up.wait(), 5)


async def test_chunks_that_come_soon_after_each_other_share_a_read(fake, llm, monkeypatch):
    monkeypatch.setattr("oxherd.agents.llm.GATHER", 0.3)
    words = [chunk({"content": f"{number} "}) for number in range(20)]
    fake.script(Streams(*(piece for word in words for piece in (word, 0.005)), chunk({}, "stop"), DONE))
    heard = []
    assert (await llm.chat(HELLO, heard.append)).text == "".join(f"{number} " for number in range(20))
    assert "".join(delta.text for delta in heard) == "".join(f"{number} " for number in range(20))
    assert len(heard) < 10


async def test_a_cancelled_call_closes_its_stream_at_once(fake, llm):
    begun, never = asyncio.Event(), asyncio.Event()
    fake.script(Streams(chunk({"content": "par"}), never))
    tries = []
    call = asyncio.ensure_future(llm.chat(HELLO, lambda _: begun.set(), tries=tries))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(fake.hung_up.wait(), 5)
    assert tries == [Try(HELLO.model, "gen-1")]
    assert (await llm.generation(tries[0].id)).usage.cost_usd == fake.bill


async def test_a_call_that_is_cancelled_before_any_answer_leaves_a_try_in_doubt(fake, llm):
    arrived, never = asyncio.Event(), asyncio.Event()

    async def hold(_):
        arrived.set()
        await never.wait()

    fake.script(lambda _: Streams())
    fake._stream = lambda *_: hold(_)
    tries = []
    call = asyncio.ensure_future(llm.chat(HELLO, tries=tries))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(fake.hung_up.wait(), 5)
    assert tries == [Try(HELLO.model)]


# --- what a ledger needs


async def test_the_generation_id_is_told_before_the_reply_is_read(fake, llm):
    told = asyncio.Event()
    fake.script(Streams(ALIVE, told, chunk({"content": "Hi"}, "stop"), DONE))
    seen = []

    async def keep(tried):
        seen.append((tried.id, tried.usage))
        told.set()

    await llm.chat(HELLO, on_generation=keep)
    assert seen == [("gen-1", None)]


async def test_every_try_is_accounted_for_and_those_in_doubt_have_their_generation_id(fake, llm):
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "cost": 0.5}})
    fake.script(
        Refuses(503),
        Streams(chunk({"content": "par"}), cut=True),
        Streams(chunk({"content": "par"}), usage, event({"error": {"code": 502, "message": "x"}})),
        says("Hi"),
    )
    tries = []
    reply = await llm.chat(HELLO, tries=tries)
    refused, cut, broken, answered = tries
    assert (refused.free, refused.usage) == (True, None)
    assert (cut.id, cut.free, cut.usage) == ("gen-2", False, None)
    assert (broken.id, broken.usage.cost_usd) == ("gen-3", Decimal("0.5"))
    assert (answered.id, answered.usage) == ("gen-4", reply.usage)
    # What the service charged is what the tries and the records of those in doubt say.
    settled = (await llm.generation(cut.id)).usage.cost_usd + answered.usage.cost_usd
    assert settled + PRICE == fake.bill


async def settled(llm, tries) -> Decimal:
    """What a ledger would book for these tries."""
    looked_up = [await llm.generation(each.id) for each in tries if each.usage is None and not each.free]
    told = [each.usage for each in tries if each.usage is not None]
    return sum((usage.cost_usd for usage in (*told, *(found.usage for found in looked_up))), Decimal(0))


async def test_wherever_a_stream_is_cut_the_reply_is_whole_in_the_end_and_the_books_agree_with_the_bill(fake, llm):
    body = calls(("find", {"q": "é"}), content="Let me see") | {"usage": {"cost": float(PRICE)}}
    sent = streamed(body)
    for at in range(0, len(sent), 13):
        fake.script(Streams(sent[:at], cut=True), body)
        tries = []
        before = fake.bill
        reply = await llm.chat(HELLO, tries=tries)
        assert [(call.name, call.arguments) for call in reply.tool_calls] == [("find", '{"q": "\\u00e9"}')]
        if len(tries) == 1:  # cut after its last event
            assert b"[DONE]" in sent[:at]
            fake._script.clear()
        assert await settled(llm, tries) == fake.bill - before == PRICE * len(tries)


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_goes_wrong_the_books_agree_with_the_bill(fake, llm, seed):
    chance = random.Random(seed)
    sent = streamed(says("Hello there") | {"usage": {"cost": float(PRICE)}})
    wrong = (
        lambda: Refuses(chance.choice([429, 500, 502, 503, 529])),
        lambda: Streams(sent[: chance.randrange(len(sent) - 20)], cut=True),
        lambda: Streams(sent[: chance.randrange(len(sent) - 20)]),
        lambda: Streams(chunk({"content": "par"}), event({"choices": [], "error": {"code": 502, "message": "x"}})),
        lambda: Streams(*(bytes([byte]) for byte in sent[: chance.randrange(200)]), cut=True),
    )
    answers = [chance.choice(wrong)() for _ in range(chance.randrange(llm_module.TRIES + 1))]
    fake.script(*answers[: llm_module.TRIES], *([says("Hello there")] if len(answers) < llm_module.TRIES else []))
    tries = []
    with contextlib.suppress(RetryLater):
        assert (await llm.chat(HELLO, tries=tries)).text == "Hello there"
    assert await settled(llm, tries) == fake.bill


async def test_without_the_header_the_generation_id_is_that_of_the_chunks(fake, llm):
    fake.script(Streams(chunk({"content": "par"}), cut=True, named=False), says("Hi"))
    tries = []
    await llm.chat(HELLO, tries=tries)
    assert tries[0].id == "gen-1"


async def test_a_try_that_met_a_gateways_timeout_may_have_been_billed(fake, llm):
    fake.script(Refuses(504), says("Hi"))
    tries = []
    await llm.chat(HELLO, tries=tries)
    assert tries[0].free is False


async def test_a_ledger_that_fails_stops_the_call_and_its_stream(fake, llm):
    fake.script(Streams(ALIVE, asyncio.Event()))

    async def refuse(_):
        raise RuntimeError("the lease is lost")

    with pytest.raises(RuntimeError, match="lease"):
        await llm.chat(HELLO, on_generation=refuse)
    await asyncio.wait_for(fake.hung_up.wait(), 5)


# --- time limits


async def timed(fake, pauses, answers, **limits):
    llm = LLM(fake.url, Secret(KEY), openrouter=True, sleep=noted(pauses), timeouts=Timeouts(**limits))
    fake.script(*answers)
    try:
        return await llm.chat(HELLO)
    finally:
        await llm.close()


async def test_signs_of_life_do_not_count_as_a_first_token(fake, pauses):
    alive = [piece for _ in range(100) for piece in (ALIVE, 0.02)]
    with pytest.raises(RetryLater, match=r"did not begin to answer in 0\.1 s"):
        await timed(fake, pauses, [Streams(*alive)], first_token=0.1)
    assert pauses == []  # the same again would take as long: the slot is given back
    await asyncio.wait_for(fake.hung_up.wait(), 5)


async def test_silence_within_a_reply_ends_the_try_and_it_is_asked_again(fake, pauses):
    stuck = Streams(chunk({"content": "par"}), asyncio.Event())
    reply = await timed(fake, pauses, [stuck, says("Hi")], between=0.1)
    assert (reply.text, len(pauses)) == ("Hi", 1)
    assert fake.hung_up.is_set()


async def test_signs_of_life_keep_a_reply_going(fake, pauses):
    slow = [chunk({"content": "Hi"}), *[piece for _ in range(8) for piece in (0.05, ALIVE)], chunk({}, "stop"), DONE]
    reply = await timed(fake, pauses, [Streams(*slow)], between=0.3)
    assert (reply.text, pauses) == ("Hi", [])


async def test_a_reply_without_end_meets_the_total_limit(fake, pauses):
    words = [piece for _ in range(100) for piece in (chunk({"content": "on and "}), 0.02)]
    with pytest.raises(RetryLater, match="in time"):
        await timed(fake, pauses, [Streams(*words)], total=0.15)
    assert pauses == []


async def test_a_host_that_takes_no_connection_is_noticed_soon_and_costs_nothing(pauses):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        llm = LLM(f"http://127.0.0.1:{address[1]}/v1", None, sleep=noted(pauses), timeouts=Timeouts(connect=0.05))
        tries = []
        with pytest.raises(RetryLater, match=r"no connection to the model service in 0.05 s"):
            await llm.chat(HELLO, tries=tries)
        await llm.close()
        for each in waiting:
            each.close()
    assert [tried.free for tried in tries] == [True] * 4


def test_the_http_client_is_not_imported_before_the_first_call():
    code = "import sys, oxherd.agents; print('aiohttp' in sys.modules, 'jsonschema' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def noted(pauses):
    async def note(seconds):
        pauses.append(seconds)

    return note
