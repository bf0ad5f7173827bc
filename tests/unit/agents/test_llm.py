from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from decimal import Decimal

import pytest
from aiohttp import web

from fakes.openrouter import KEY, PRICE, Drops, Refuses, answer, calls, published, says
from oxherd.agents import LLM
from oxherd.agents import llm as llm_module
from oxherd.agents.chat import Request
from oxherd.agents.llm import Timeouts
from oxherd.errors import ModelRefused, RetryLater
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


@pytest.mark.parametrize("said", ["Insufficient credits", "but can only afford 3"])
async def test_a_lack_of_credit_parks_the_job(fake, llm, said):
    fake.script(Refuses(402, said))
    with pytest.raises(RetryLater, match="add credit") as caught:
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


def test_the_http_client_is_not_imported_before_the_first_call():
    code = "import sys, oxherd.agents; print('aiohttp' in sys.modules, 'jsonschema' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def noted(pauses):
    async def note(seconds):
        pauses.append(seconds)

    return note
