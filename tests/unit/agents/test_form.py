from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict

from oxherd.agents.form import TEXT, Misfit, make_form
from oxherd.errors import UsageError


class Line(BaseModel):
    sku: str
    count: int = 1


class Answer(BaseModel):
    text: str
    lines: list[Line] = []


@dataclass
class Point:
    x: int
    y: int


class Mood(TypedDict):
    mood: str


def test_text_is_asked_for_without_a_format():
    assert make_form(str) is make_form(None) is TEXT
    assert TEXT.response_format() is None
    assert TEXT.read("hello") == "hello"


def test_a_type_becomes_a_strict_schema_without_titles_and_defaults():
    form = make_form(Answer)
    asked = form.response_format()["json_schema"]
    assert asked["strict"] is True
    assert asked["schema"]["required"] == ["text", "lines"]
    assert asked["schema"]["additionalProperties"] is False
    line = asked["schema"]["$defs"]["Line"]
    assert line == {
        "type": "object",
        "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["sku", "count"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("output", "text", "answer"),
    [
        (Answer, '{"text": "a", "lines": [{"sku": "b"}]}', Answer(text="a", lines=[Line(sku="b")])),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (Mood, '{"mood": "good"}', {"mood": "good"}),
        (TypeAdapter(Point), '```json\n{"x": 1, "y": 2}\n```', Point(1, 2)),
        (list[int], '{"answer": [1, 2]}', [1, 2]),
        (list[Line], '{"answer": [{"sku": "a", "count": 2}]}', [Line(sku="a", count=2)]),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, ' {"a": 1} ', {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, '{"answer": [1]}', [1]),
    ],
)
def test_answers_are_read_into_their_form(output, text, answer):
    assert make_form(output).read(text) == answer


def test_an_answer_that_is_no_object_travels_in_one():
    schema = make_form(list[Line]).schema
    assert schema["properties"]["answer"] == {"type": "array", "items": {"$ref": "#/$defs/Line"}}
    assert "Line" in schema["$defs"]


@pytest.mark.parametrize(
    ("output", "text", "why"),
    [
        (Answer, '{"lines": []}', "text: Field required"),
        (Answer, "Sure! Here you are", "Invalid JSON"),
        (list[int], '{"answer": ["x"]}', "0: Input should be a valid integer"),
        (list[int], "[1]", "the whole must be an object"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": "x"}', "a: 'x' is not of type 'integer'"),
        ({"type": "object"}, "{", "not JSON"),
    ],
)
def test_a_misfit_says_which_field_does_not_fit(output, text, why):
    with pytest.raises(Misfit, match=why):
        make_form(output).read(text)


def test_a_schema_of_ones_own_is_sent_as_it_is_and_strict_only_if_it_is_closed():
    open_schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    closed_schema = {**open_schema, "required": ["a"], "additionalProperties": False}
    nested = {**closed_schema, "properties": {"a": open_schema}}
    for schema, strict in [(open_schema, False), (closed_schema, True), (nested, False)]:
        asked = make_form(schema).response_format()["json_schema"]
        assert (asked["schema"], asked["strict"]) == (schema, strict)


@pytest.mark.parametrize(
    ("output", "why"),
    [({"type": "objekt"}, "not a JSON schema: 'objekt'"), (object(), "output: ")],
)
def test_what_is_no_form_is_refused(output, why):
    with pytest.raises(UsageError, match=why):
        make_form(output)
