from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.openrouter import ALIVE, DONE, calls, chunk, event, says, streamed
from oxherd.agents.chat import Malformed
from oxherd.agents.faults import Fault, Verdict
from oxherd.agents.stream import MAX_LINE, Assembly, EventParser
from oxherd.context import Delta

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "contracts" / "openrouter.sse.samples.txt"


def events_of(*pieces: bytes) -> list[bytes]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def assembled(*pieces: bytes, headers: dict[str, str] | None = None) -> Assembly:
    assembly = Assembly(headers or {})
    for each in events_of(*pieces):
        assembly.add(each)
    return assembly


def reply_to(*pieces: bytes):
    assembly = assembled(*pieces)
    assert assembly.done
    return assembly.reply()


def tool(index, id=None, name=None, arguments=None, **rest) -> bytes:  # noqa: A002
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call = {"index": index, "id": id, "type": "function", "function": function}
    return chunk({"tool_calls": [{key: value for key, value in call.items() if value is not None}]}, **rest)


# --- events out of bytes


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\r\n\r\ndata:  b\r\n\r\n", [b"a", b" b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b": OPENROUTER PROCESSING\n\n: x\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 1\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"\n\n\n", []),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"dat", []),
        (b"", []),
    ],
)
def test_events_are_read_as_the_format_has_them(sent, events):
    assert events_of(sent) == events
    for at in range(len(sent)):
        assert events_of(sent[:at], sent[at:]) == events


@given(st.lists(st.sampled_from([b"data: a", b"data:b", b": c", b"", b"\n", b"\r\n", b"\r", b"event: x"])), st.data())
def test_events_do_not_depend_on_where_the_bytes_are_split(words, data):
    sent = b"".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)))))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert events_of(*pieces) == events_of(sent)


def test_a_line_without_an_end_does_not_fill_the_memory():
    parser = EventParser()
    for _ in range(MAX_LINE // 2**20):
        assert parser.feed(b"x" * 2**20) == []
    with pytest.raises(Malformed, match="does not end"):
        parser.feed(b"x")


# --- every split point of a reply's bytes

DETAILS = [
    {"type": "reasoning.text", "text": "Süß — ", "index": 0},
    {"type": "reasoning.text", "signature": "c2ln", "index": 0},
    {"type": "reasoning.encrypted", "data": "ZW5j", "index": 1},
]
RICH = b"".join(
    (
        ALIVE,
        chunk({"role": "assistant", "content": "", "reasoning": "Süß — ", "reasoning_details": DETAILS[:1]}),
        ALIVE,
        chunk({"content": "Grüße 🐂\n"}),
        chunk({"content": "", "reasoning_details": DETAILS[1:]}),
        tool(0, "call_a", "find", '{"q":"'),
        tool(1, "call_b", "now"),
        tool(0, arguments='é"}'),
        tool(0, arguments="  "),
        chunk({}, "tool_calls"),
        event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.00014}}),
        DONE,
    )
)


def test_every_split_point_of_the_bytes_gives_the_same_reply():
    whole = reply_to(RICH)
    for at in range(len(RICH)):
        assert reply_to(RICH[:at], RICH[at:]) == whole
    assert reply_to(*(bytes([byte]) for byte in RICH)) == whole
    assert reply_to(RICH.replace(b"\n", b"\r\n")) == whole


@given(st.lists(st.integers(0, len(RICH))).map(sorted))
def test_any_number_of_split_points_gives_the_same_reply(cuts):
    pieces = [RICH[start:end] for start, end in zip([0, *cuts], [*cuts, len(RICH)], strict=True)]
    assert reply_to(*pieces) == reply_to(RICH)


def test_a_stream_that_is_cut_anywhere_before_its_end_is_not_complete():
    end = RICH.index(b"data: [DONE]") + len(b"data: [DONE]")
    for at in range(len(RICH)):
        assembly = Assembly({})
        try:
            for each in events_of(RICH[:at]):
                assembly.add(each)
        except Malformed:  # half a chunk
            continue
        assert assembly.done == (at >= end)


@given(
    st.text(), st.lists(st.tuples(st.sampled_from(["find", "now"]), st.dictionaries(st.text(), st.text())), max_size=3)
)
def test_a_streamed_answer_is_the_same_as_a_whole_one(text, wanted):
    body = calls(*wanted, content=text) if wanted else says(text)
    reply = reply_to(streamed(body | {"id": "gen-1", "model": "m", "usage": {"prompt_tokens": 1, "cost": 0.5}}))
    assert reply.text == text
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == wanted
    assert (reply.id, reply.model, str(reply.usage.cost_usd)) == ("gen-1", "m", "0.5")


# --- tool calls


def test_arguments_are_joined_by_index_and_what_follows_the_json_is_dropped():
    reply = reply_to(RICH)
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [
        ("call_a", "find", '{"q":"é"}'),
        ("call_b", "now", "{}"),
    ]


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ([tool(0, "a", "f", '{"x":1}')], [("a", "f", '{"x":1}')]),  # all in the first chunk
        ([tool(0, "a", "f", ""), tool(0, None, None, " {} \n")], [("a", "f", "{}")]),
        ([tool(0, "a", "f"), tool(0, "a", "f", "{}")], [("a", "f", "{}")]),  # id and name in each chunk
        ([tool(0, "a", "f", "{}"), tool(0, "b", "g", "{}")], [("a", "f", "{}"), ("b", "g", "{}")]),  # Gemini: all are 0
        (
            [tool(None, "a", "f", {"x": 1}), tool(None, "b", "g", {})],
            [("a", "f", '{"x":1}'), ("b", "g", "{}")],
        ),  # Ollama
        ([tool(1, "b", "g", "{}"), tool(0, "a", "f", "{}")], [("b", "g", "{}"), ("a", "f", "{}")]),
        ([tool(0, None, "f", "{"), tool(0, "a", None, "}")], [("a", "f", "{}")]),  # the id comes late
        ([chunk({"tool_calls": None}), chunk({"tool_calls": ["x"]}), tool(0, "a", "f")], [("a", "f", "{}")]),
    ],
)
def test_tool_calls_are_joined_in_all_the_shapes_that_services_send(sent, found):
    calls = reply_to(*sent, DONE).tool_calls
    assert [(call.id, call.name, call.arguments) for call in calls] == found


def test_tool_calls_decide_and_not_the_finish_reason():
    reply = reply_to(tool(0, "a", "f", "{}"), chunk({"content": ""}, "stop"), DONE)
    assert [call.name for call in reply.tool_calls] == ["f"]


def test_a_message_with_tool_calls_alone_has_no_content():
    assert reply_to(chunk({"content": ""}), tool(0, "a", "f"), DONE).message["content"] is None


# --- reasoning


def details_of(*details: dict) -> list[dict]:
    chunks = [chunk({"content": "", "reasoning_details": [each]}) for each in details]
    return reply_to(*chunks, chunk({"content": "x"}, "stop"), DONE).message["reasoning_details"]


def text(words=None, **rest) -> dict:
    return {"type": "reasoning.text", **({} if words is None else {"text": words}), **rest}


def test_the_pieces_of_a_thought_are_joined_and_keep_their_signature_which_comes_late_and_without_text():
    joined = details_of(text("Let ", index=0, format="f"), text("me", index=0), text(index=0, signature="c2ln"))
    assert joined == [text("Let me", index=0, format="f", signature="c2ln")]


def test_a_signature_finds_its_text_behind_what_came_between():
    hidden = {"type": "reasoning.encrypted", "data": "x", "index": 1}
    assert details_of(text("a", index=0), hidden, text(index=0, signature="s", text=None)) == [
        text("a", index=0, signature="s"),
        hidden,
    ]


def test_thoughts_are_kept_apart_and_in_order():
    hidden = {"type": "reasoning.encrypted", "data": "x"}
    kept = [text("a", index=0, signature="s"), hidden, hidden, text("b", index=0), text("c", index=1)]
    assert details_of(*kept) == kept
    assert details_of(text("a", id="1"), text("b", id="2")) == [text("a", id="1"), text("b", id="2")]


def test_summaries_are_joined():
    pieces = [{"type": "reasoning.summary", "summary": each, "index": 0} for each in ("Look", "ing")]
    assert details_of(*pieces) == [{"type": "reasoning.summary", "summary": "Looking", "index": 0}]


def test_a_signature_after_the_last_word_still_counts():
    stream = (
        chunk({"reasoning_details": [text("a", index=0)]}),
        tool(0, "a", "f"),
        chunk({}, "tool_calls"),
        chunk({"reasoning_details": [text(index=0, signature="s")]}),
        DONE,
    )
    assert reply_to(*stream).echo()["reasoning_details"] == [text("a", index=0, signature="s")]


def test_listeners_are_told_text_and_reasoning_apart():
    assembly = Assembly({})
    heard = []
    for each in (
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "", "reasoning": "hm"}),
        chunk({"reasoning_content": "m"}),
        chunk({"role": "assistant", "content": "Hi", "reasoning": "!"}),
        chunk({"content": " you"}),
        chunk({}, "stop"),
    ):
        assembly.add(each[6:].strip())
        heard.append(assembly.news(1))
    assert heard == [None, Delta("", "hm", 1), Delta("", "m", 1), Delta("Hi", "!", 1), Delta(" you", "", 1), None]


# --- usage and errors


@pytest.mark.parametrize("choices", [[], [{"index": 0, "delta": {"role": "assistant", "content": ""}}]])
def test_usage_comes_last_with_or_without_choices(choices):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cost": 0.25}
    reply = reply_to(chunk({"content": "Hi"}, "stop"), event({"choices": choices, "usage": usage}), DONE)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, str(reply.usage.cost_usd)) == (1, 2, "0.25")
    assert (reply.text, reply.finish_reason) == ("Hi", "stop")


def test_a_stream_without_usage_has_an_unknown_cost():
    assert reply_to(chunk({"content": "Hi"}, "stop"), DONE).usage.cost_usd is None


def test_what_follows_the_end_is_ignored():
    assert reply_to(chunk({"content": "Hi"}), DONE, b"data: nonsense\n\n").text == "Hi"


def error(code, **rest) -> dict:
    return {"error": {"code": code, "message": "no", **rest}}


@pytest.mark.parametrize(
    ("sent", "status", "verdict"),
    [
        (event({"choices": [], **error(429)}), 429, Verdict.RETRY),  # the first of all, with a 200
        (event(error(429)), 429, Verdict.RETRY),
        (
            chunk({"content": ""}, "error", **error(429, metadata={"error_type": "rate_limit_exceeded"})),
            429,
            Verdict.RETRY,
        ),
        (chunk({"content": ""}, "error", **error("server_error")), 500, Verdict.RETRY),
        (chunk({"content": ""}, "error", **error(402)), 402, Verdict.PARK),
        (chunk({}, None, **error(403, metadata={"error_type": "content_policy_violation"})), 403, Verdict.REFUSE),
        (event({"choices": [{"delta": {}, **error(502)}]}), 502, Verdict.RETRY),
        (chunk({"content": ""}, "error"), 0, Verdict.RETRY),
    ],
)
@pytest.mark.parametrize("before", [b"", ALIVE, chunk({"content": "part"})])
def test_an_error_in_the_stream_ends_it(before, sent, status, verdict):
    with pytest.raises(Fault) as caught:
        assembled(before, sent)
    assert (caught.value.status, caught.value.verdict) == (status, verdict)


def test_an_error_does_not_hide_what_was_used_before_it():
    assembly = Assembly({})
    with pytest.raises(Fault):
        assembly.add(json.dumps({"usage": {"cost": 1}, **error(502)}).encode())
    assert assembly.usage == {"cost": 1}


@pytest.mark.parametrize("sent", [b"data: <html>\n\n", b"data: []\n\n", b"data: 1\n\n", b'data: {"a\n\n'])
def test_what_is_no_chunk_is_malformed(sent):
    with pytest.raises(Malformed):
        assembled(sent)


def test_a_stream_that_says_nothing_at_all_is_malformed():
    with pytest.raises(Malformed, match="empty"):
        reply_to(DONE)


@pytest.mark.parametrize("odd", [{}, {"choices": None}, {"choices": ["x"]}, {"choices": [{"delta": None}]}])
def test_odd_chunks_among_good_ones_are_passed_over(odd):
    assert reply_to(event(odd), chunk({"content": "Hi", "new_field": {}}), DONE).text == "Hi"


def test_content_may_come_in_parts():
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "lo"}]
    assert reply_to(chunk({"content": "Hel"}), chunk({"content": parts}), DONE).text == "Hello"


def test_the_generation_id_is_known_from_the_first_chunk_or_the_header():
    assert assembled(chunk({"content": "x"})).id == "gen-1"
    headers = {"X-Generation-Id": "gen-h"}
    assert assembled(event({"choices": [{"delta": {"content": "x"}}]}), headers=headers).reply().id == "gen-h"


# --- the samples of OpenRouter's documentation


def sample(name: str) -> bytes:
    if not SAMPLES.exists():
        pytest.skip("the samples (shared/contracts beside the repository) are not here")
    cases = SAMPLES.read_text().split("=== ")[1:]
    found = [case for case in cases if case.startswith(name)]
    assert len(found) == 1
    return found[0].partition("\n")[2].encode()


def test_the_documented_text_with_reasoning():
    reply = reply_to(sample("text+reasoning"))
    assert (reply.text, reply.provider, str(reply.usage.cost_usd)) == ("Hi", "OpenAI", "0.00014")
    assert reply.message["reasoning_details"] == [
        {"type": "reasoning.text", "text": "Let me", "signature": "c2ln", "format": "anthropic-claude-v1", "index": 0}
    ]


def test_the_documented_tool_calls():
    found = reply_to(sample("parallel tool calls")).tool_calls
    assert [(call.id, call.name, call.arguments) for call in found] == [
        ("call_a", "search", '{"q":"x"}'),
        ("call_b", "now", "{}"),
    ]


@pytest.mark.parametrize("name", ["mid-stream error (no", "mid-stream error, string", "error as first data block"])
def test_the_documented_errors(name):
    with pytest.raises(Fault):
        assembled(sample(name))


def test_the_documented_cut():
    assert not assembled(sample("truncated stream")).done
