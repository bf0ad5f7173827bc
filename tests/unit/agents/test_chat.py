from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.openrouter import fields_of_a_request, published
from oxherd.agents.chat import Malformed, Reply, Request, read_reply, read_usage
from oxherd.codec import decode, encode
from oxherd.context import Usage


def body(message, **extra):
    return {"id": "gen-1", "model": "m", "choices": [{"message": message, "finish_reason": "stop"}], **extra}


def test_a_request_leaves_out_what_is_not_set_and_always_has_an_output_limit():
    request = Request(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=100)
    assert request.body(openrouter=True) == {"model": "m", "messages": request.messages, "max_tokens": 100}


def test_only_openrouter_is_sent_its_own_fields():
    request = Request(model="m", messages=[], max_tokens=1, tools=[{}], models=["n"], temperature=0.0)
    plain = {"model": "m", "messages": [], "max_tokens": 1, "tools": [{}], "temperature": 0.0}
    assert request.body(openrouter=False) == plain
    assert request.body(openrouter=True) == plain | {"models": ["n"], "provider": {"require_parameters": True}}


def test_streams_are_asked_for_with_their_usage_where_that_is_no_matter_of_course():
    request = Request(model="m", messages=[], max_tokens=1, reasoning={"effort": "low"}, seed=7, user="u")
    plain = {"model": "m", "messages": [], "max_tokens": 1, "seed": 7, "user": "u", "stream": True}
    assert request.body(openrouter=True, stream=True) == plain | {"reasoning": {"effort": "low"}}
    local = plain | {"stream_options": {"include_usage": True}, "reasoning_effort": "low"}
    assert request.body(openrouter=False, stream=True) == local


def test_what_a_request_needs_of_a_provider_is_added_to_how_it_is_chosen():
    wanted = Request(model="m", messages=[], max_tokens=1, tools=[{}], provider={"order": ["azure"]})
    assert wanted.body(openrouter=True)["provider"] == {"order": ["azure"], "require_parameters": True}
    bold = replace(wanted, provider={"require_parameters": False})
    assert bold.body(openrouter=True)["provider"] == {"require_parameters": False}


def test_openrouter_takes_all_the_fields_there_are():
    if published() is None:
        pytest.skip("the published schema (shared/contracts beside the repository) is not here")
    request = Request(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=1,
        seed=1,
        reasoning={"effort": "high"},
        user="u",
        models=["n"],
        provider={"order": ["azure"], "max_price": {"completion": "10"}, "sort": "price", "zdr": True},
        session_id="s",
        metadata={"job": "1"},
        cache=True,
    )
    assert list(published().iter_errors(request.body(openrouter=True, stream=True))) == []
    assert set(request.body(openrouter=True, stream=True)) <= fields_of_a_request()


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 0.00014}, Decimal("0.00014")),
        ({"cost": 1e-7}, Decimal("0.0000001")),
        ({"cost": 0}, Decimal(0)),
        ({"cost": "0.25"}, Decimal("0.25")),
        ({"cost": -1}, None),
        ({"cost": "free"}, None),
        ({"cost": True}, None),
        ({"cost": None}, None),
        ({}, None),
        (None, None),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, Decimal("0.21")),
        ({"cost": 0.01, "is_byok": True, "cost_details": None}, None),
    ],
)
def test_a_cost_is_exact_or_unknown_and_never_made_up(usage, cost):
    assert read_usage(usage).cost_usd == cost


def test_odd_token_counts_count_as_none():
    assert read_usage({"prompt_tokens": None, "completion_tokens": -3}) == Usage(1, 0, 0, None)


@given(st.decimals(min_value=0, max_value=1000, places=9))
def test_every_price_of_nine_places_survives_json_and_journal(price):
    sent = decode(encode({"cost": float(price)}))
    reply = Reply({"role": "assistant", "content": ""}, None, None, None, None, read_usage(sent))
    assert Reply.load(decode(encode(reply.dump()))).usage.cost_usd == price


def test_a_reply_survives_the_journal():
    details = [
        {"type": "reasoning.text", "text": "hm", "signature": "c2ln"},
        {"type": "reasoning.encrypted", "data": "x"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    reply = read_reply(body({"content": "", "tool_calls": [call], "reasoning_details": details}, provider="P"))
    assert Reply.load(decode(encode(reply.dump()))) == reply
    assert reply.message["reasoning_details"] == details
    assert reply.message["content"] is None


def test_tool_calls_are_read_in_all_the_shapes_that_services_send():
    reply = read_reply(
        body(
            {
                "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": ' {"x": 1} '}},
                    {"id": "b", "function": {"name": "f"}},
                    {"id": "c", "function": {"name": "f", "arguments": {"x": 2}}},
                    {"function": {"name": "f", "arguments": ""}},
                    {"id": "e", "function": None},
                ]
            }
        )
    )
    assert [call.arguments for call in reply.tool_calls] == ['{"x": 1}', "{}", '{"x":2}', "{}", "{}"]
    assert reply.tool_calls[3].id.startswith("call_")
    assert reply.tool_calls[4].name == ""


def test_arguments_that_are_no_json_object_are_not_sent_back():
    calls = [
        {"id": str(i), "function": {"name": "f", "arguments": text}} for i, text in enumerate(['{"a": 1', "[1]", "{}"])
    ]
    reply = read_reply(body({"tool_calls": calls}))
    assert [call["function"]["arguments"] for call in reply.echo()["tool_calls"]] == ["{}", "{}", "{}"]
    assert reply.tool_calls[0].arguments == '{"a": 1'


def test_text_may_come_in_parts():
    parts = [{"type": "text", "text": "Hel"}, {"type": "image_url"}, {"type": "text", "text": "lo"}]
    assert read_reply(body({"content": parts})).text == "Hello"


@pytest.mark.parametrize(
    "odd", [{}, {"choices": []}, {"choices": None}, {"choices": [{"message": None}]}, {"choices": ["x"]}]
)
def test_an_answer_without_a_message_is_malformed(odd):
    with pytest.raises(Malformed):
        read_reply(odd)
