from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from decimal import Decimal

import pytest

from oxherd.agents import LLM
from oxherd.agents.chat import Request
from oxherd.errors import ModelRefused, RetryLater
from oxherd.testing import Asked, ScriptedModel, breaks, calls, fails, hangs, says


def question(text: str = "?", **more) -> Request:
    return Request(model="m", messages=[{"role": "user", "content": text}], max_tokens=100, **more)


async def no_pause(_: float) -> None: ...


@pytest.fixture(params=[True, False], ids=["streamed", "whole"])
async def llm(request, oxherd_model):
    client = LLM(oxherd_model.base_url, None, stream=request.param, sleep=no_pause)
    yield client
    await client.close()


async def test_replies_come_in_the_order_of_the_script(llm, oxherd_model):
    oxherd_model.script(
        says("It is blue."), calls(("look", {"place": "Zürich"}), ("wait", "{}")), lambda asked: asked.text
    )
    first = await llm.chat(question())
    assert (first.text, first.finish_reason, first.model, first.usage.cost_usd) == (
        "It is blue.", "stop", "m", Decimal("0.001"),
    )  # fmt: skip
    second = await llm.chat(question())
    assert [(call.name, json.loads(call.arguments)) for call in second.tool_calls] == [
        ("look", {"place": "Zürich"}),
        ("wait", {}),
    ]
    assert len({call.id for call in second.tool_calls}) == 2
    assert (await llm.chat(question("echo"))).text == "echo"


async def test_a_streamed_answer_comes_in_pieces(oxherd_model):
    oxherd_model.script(says("one two  three", pause=0.1))
    llm, heard = LLM(oxherd_model.base_url, None), []
    await llm.chat(question(), lambda delta: heard.append(delta.text))
    await llm.close()
    pieces = [text for text in heard if text]  # some may share a read
    assert "".join(pieces) == "one two  three"
    assert len(pieces) > 1


async def test_errors_are_those_that_the_real_client_handles(llm, oxherd_model):
    oxherd_model.script(fails(503), fails(429, retry_after=0.5), breaks("never heard to its end"), says("at last"))
    assert (await llm.chat(question())).text == "at last"
    oxherd_model.script(fails(429, retry_after=60))
    with pytest.raises(RetryLater) as caught:
        await llm.chat(question())
    assert caught.value.seconds >= 60
    oxherd_model.script(fails(400, "no such model"))
    with pytest.raises(ModelRefused, match="no such model"):
        await llm.chat(question())


async def test_silence_lasts_until_the_client_leaves(llm, oxherd_model):
    asked = threading.Event()
    oxherd_model.script(lambda _: asked.set() or hangs(), says("later"))
    call = asyncio.create_task(llm.chat(question()))
    assert await asyncio.to_thread(asked.wait, 10)
    done, _ = await asyncio.wait([call], timeout=0.05)
    assert not done
    call.cancel()
    await asyncio.wait([call])
    assert (await llm.chat(question())).text == "later"


async def test_what_it_costs_is_what_replies_say_and_broken_ones_are_billed(llm, oxherd_model):
    oxherd_model.script(says("a", cost=0.5), breaks("b c d", cost=0.25), says("e", cost=None))
    assert (await llm.chat(question())).usage.cost_usd == Decimal("0.5")
    assert (await llm.chat(question())).usage.cost_usd is None
    assert oxherd_model.cost == 0.75


async def test_requests_are_kept_in_words(llm, oxherd_model):
    oxherd_model.script("ok")
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    await llm.chat(question("How are you?", tools=[tool]))
    (asked,) = oxherd_model.asked
    assert (asked.model, asked.text, asked.tools, asked.body["max_tokens"]) == ("m", "How are you?", ["look"], 100)


async def test_one_function_can_answer_everything():
    def shout(asked: Asked) -> str:
        return asked.text.upper()

    with ScriptedModel(answer=shout) as model:
        llm = LLM(model.base_url, None)
        words = await asyncio.gather(*(llm.chat(question(word)) for word in ("a", "b", "c")))
        await llm.close()
    assert [reply.text for reply in words] == ["A", "B", "C"]


async def test_a_fault_of_the_function_is_told_by_the_call(llm, oxherd_model):
    oxherd_model.script(lambda asked: asked.nonsense)
    with pytest.raises(ModelRefused, match=r"the script raised AttributeError: .*nonsense"):
        await llm.chat(question())


async def test_a_request_too_many_fails_the_test_with_the_conversation():
    with pytest.raises(AssertionError) as caught, ScriptedModel(says("Hi.")) as model:  # noqa: PT012  its end raises
        llm = LLM(model.base_url, None)
        await llm.chat(question())
        with pytest.raises(ModelRefused, match="no reply left"):
            await llm.chat(question("And now?"))
        await llm.close()
    assert "asked once more than its script of 1 has replies" in str(caught.value)
    assert "user       And now?" in str(caught.value)


def test_replies_that_nobody_asked_for_fail_the_test_with_the_first_of_them():
    with pytest.raises(AssertionError) as caught, ScriptedModel(calls(("refund", {"order": "A-17"})), "Done."):
        pass
    assert "2 of the model's 2 replies were not asked for" in str(caught.value)
    assert 'assistant  calls refund({"order": "A-17"})' in str(caught.value)
    assert "it was asked nothing" in str(caught.value)


def test_a_test_that_failed_anyhow_keeps_its_own_error():
    with pytest.raises(ZeroDivisionError), ScriptedModel("unused"):
        raise ZeroDivisionError


def test_it_serves_a_test_without_an_event_loop_and_any_other_client(oxherd_model):
    oxherd_model.script("Hello.")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]})
    request = urllib.request.Request(f"{oxherd_model.base_url}/chat/completions", body.encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"] == "Hello."
    assert oxherd_model.asked[0].text == "Hi"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{oxherd_model.base_url}/elsewhere", timeout=5)
