from __future__ import annotations

import json
import socket
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from oxherd.embedded.model import Model
from oxherd.embedded.smollm2 import BadRequest, engine_request

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ORDER = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find a customer's order by e-mail address",
        "parameters": {"type": "object", "properties": {"email": {"type": "string"}}, "required": ["email"]},
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": '{"temperature": 21, "sky": "sunny"}'}


def connect(model: Model) -> HTTPConnection:
    return HTTPConnection(urlsplit(model.base_url).netloc, timeout=60)


def ask(model: Model, **request: object) -> tuple[int, dict]:
    connection = connect(model)
    body = json.dumps({"temperature": 0, "max_tokens": 60, **request})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer any"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask_for_events(model: Model, **request: object) -> list[str]:
    connection = connect(model)
    body = json.dumps({"temperature": 0, "max_tokens": 60, "stream": True, **request})
    connection.request("POST", "/v1/chat/completions", body)
    text = connection.getresponse().read().decode()
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_a_question_gets_text_and_its_tokens_are_counted(model: Model):
    status, reply = ask(model, messages=[{"role": "user", "content": "Say hello in five words."}])
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["completion_tokens"] > 0
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_a_conversation_may_have_several_turns_and_text_in_parts(model: Model):
    status, reply = ask(
        model,
        messages=[
            {"role": "system", "content": "You answer in short."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "The sky is "}, {"type": "text", "text": "blue."}],
            },
            {"role": "assistant", "content": "Yes, it is blue."},
            {"role": "user", "content": "What colour is the sky?"},
        ],
    )
    assert status == 200
    assert "blue" in reply["choices"][0]["message"]["content"].lower()


def test_a_json_schema_is_always_followed(model: Model):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "integer"}},
        "required": ["mood", "score"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "rating", "strict": True, "schema": schema}}
    _, reply = ask(model, messages=[{"role": "user", "content": "I like it. Rate my mood."}], response_format=form)
    answer = json.loads(reply["choices"][0]["message"]["content"])
    assert answer["mood"] in {"good", "bad"}
    assert isinstance(answer["score"], int)


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_a_tool_on_offer_is_called_with_arguments_from_the_question(model: Model, choice):
    _, reply = ask(model, messages=[QUESTION], tools=[WEATHER], tool_choice=choice)
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_one_of_several_tools_is_called(model: Model):
    question = {"role": "user", "content": "Where is my order? My e-mail address is ann@example.com"}
    _, reply = ask(model, messages=[question], tools=[WEATHER, ORDER])
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] in {"get_weather", "find_order"}


def test_a_tool_result_is_answered_in_words(model: Model):
    _, reply = ask(model, messages=[QUESTION, CALLED, RESULT], tools=[WEATHER])
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert "sunny" in reply["choices"][0]["message"]["content"]


def test_tools_that_must_not_be_called_are_not(model: Model):
    _, reply = ask(model, messages=[QUESTION], tools=[WEATHER], tool_choice="none")
    assert "tool_calls" not in reply["choices"][0]["message"]


def test_a_call_cut_short_by_the_token_limit_stays_text(model: Model):
    _, reply = ask(model, messages=[QUESTION], tools=[WEATHER], max_tokens=3)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert "tool_calls" not in reply["choices"][0]["message"]


def test_a_stream_brings_the_text_in_pieces_then_the_usage_then_the_end(model: Model):
    *events, usage, done = ask_for_events(
        model, messages=[{"role": "user", "content": "Say hello."}], stream_options={"include_usage": True}
    )
    chunks = [json.loads(event) for event in events]
    _, whole = ask(model, messages=[{"role": "user", "content": "Say hello."}])
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert json.loads(usage)["usage"]["completion_tokens"] > 0
    assert done == "[DONE]"


def test_a_streamed_tool_call_comes_in_one_piece(model: Model):
    *events, done = ask_for_events(model, messages=[QUESTION], tools=[WEATHER])
    first, last = (json.loads(event)["choices"][0] for event in events)
    assert first["delta"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert last["finish_reason"] == "tool_calls"
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("request_body", "part"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "context size"),
        ({"messages": [{"role": "user", "content": "word " * 5000}], "stream": True}, "context size"),
    ],
)
def test_a_request_that_cannot_be_served_gets_400_and_the_reason(model: Model, request_body, part):
    status, reply = ask(model, **request_body)
    assert status == 400
    assert part in reply["error"]["message"]


def test_a_body_that_is_not_json_gets_400(model: Model):
    connection = connect(model)
    connection.request("POST", "/v1/chat/completions", b"{")
    assert connection.getresponse().status == 400


def test_the_model_is_listed_and_an_unknown_path_gets_404(model: Model):
    connection = connect(model)
    connection.request("GET", "/v1/models")
    assert json.loads(connection.getresponse().read())["data"][0]["id"] == model.name
    connection.request("GET", "/nothing")
    response = connection.getresponse()
    assert response.status == 404
    response.read()
    connection.request("POST", "/nothing", "{}")
    assert connection.getresponse().status == 404


def test_a_client_that_leaves_stops_the_generation(model: Model):
    address = urlsplit(model.base_url)
    request = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 3000}
    body = json.dumps(request).encode()
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    started = time.monotonic()
    status, _ = ask(model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    assert status == 200
    assert time.monotonic() - started < 20  # 3,000 tokens would keep the one engine thread for longer


def test_the_limit_on_tokens_is_set_where_the_client_sets_none():
    assert engine_request({"messages": [QUESTION]})["max_tokens"] == 512
    assert engine_request({"messages": [QUESTION], "max_completion_tokens": 7})["max_tokens"] == 7


def test_fields_the_engine_does_not_know_are_left_out():
    asked = engine_request({"messages": [QUESTION], "provider": {"sort": "price"}, "model": "x/y", "seed": 1})
    assert set(asked) == {"messages", "max_tokens", "seed"}


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(BadRequest):
        engine_request({"messages": ["hi"]})
