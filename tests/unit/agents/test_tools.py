from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from oxherd.agents import Tool, tool
from oxherd.agents.tools import ArgumentsInvalid
from oxherd.errors import ResultInvalid, UsageError

if TYPE_CHECKING:
    from oxherd.context import Context


class Address(BaseModel):
    street: str
    zip: int


@dataclass
class Order:
    number: str
    shipped: bool


@tool
async def find_order(
    ctx: Context, email: str, state: Literal["open", "shipped"] = "open", limit: int = 3
) -> list[Order]:
    """Find a customer's orders.

    The newest come first.

    Parameters:
        email: the customer's address.
        limit (int): how many at most.

    Raises:
        KeyError: never.
    """
    return [Order(email, shipped=state == "shipped")] * limit


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_a_tool_is_described_by_its_hints_and_docstring():
    assert find_order.definition() == {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Find a customer's orders.\n\nThe newest come first.",
            "parameters": {
                "type": "object",
                "properties": {
                    "email": {"type": "string", "description": "the customer's address."},
                    "state": {"type": "string", "enum": ["open", "shipped"], "default": "open"},
                    "limit": {"type": "integer", "default": 3, "description": "how many at most."},
                },
                "required": ["email"],
                "additionalProperties": False,
            },
        },
    }


def test_hints_may_be_models_and_carry_descriptions():
    @tool
    def send(to: Address, copies: Annotated[int, Field(description="how many", ge=1)] = 1) -> None:
        pass

    schema = send.schema
    assert schema["$defs"]["Address"]["properties"] == {"street": {"type": "string"}, "zip": {"type": "integer"}}
    assert schema["properties"]["copies"] == {"type": "integer", "description": "how many", "minimum": 1, "default": 1}
    read = send.read('{"to": {"street": "Elm", "zip": 1}}')
    assert read == {"to": Address(street="Elm", zip=1), "copies": 1}


def test_parameters_may_have_names_that_pydantic_models_use():
    @tool
    def keep(json: str, copy: bool, model_name: str, tags: list[str] = []) -> None:  # noqa: B006
        pass

    assert list(keep.schema["properties"]) == ["json", "copy", "model_name", "tags"]
    assert keep.read('{"json": "1", "copy": true, "model_name": "m"}')["tags"] == []


async def test_the_context_is_handed_to_tools_that_take_one(ctx):
    @tool
    async def attempt(ctx) -> int:
        return ctx.attempt

    assert attempt.schema["properties"] == {}
    assert await attempt.run(ctx, "") == "1"
    assert await find_order.run(ctx, '{"email": "a@b.c", "limit": 1}') == '[{"number":"a@b.c","shipped":false}]'


async def test_a_plain_function_runs_in_a_thread(ctx):
    @tool
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await where.run(ctx, "{}") == "false"


async def test_text_results_reach_the_model_as_they_are_and_others_as_json(ctx):
    @tool
    def text() -> str:
        return "it's fine"

    assert await text.run(ctx, "{}") == "it's fine"
    assert await add.run(ctx, '{"a": 1, "b": 2}') == "3"


async def test_a_result_that_json_has_no_word_for_is_an_error_of_the_tool(ctx):
    @tool
    def handle() -> object:
        return object()

    with pytest.raises(ResultInvalid, match="the result of tool 'handle' can't be written as JSON"):
        await handle.run(ctx, "{}")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("{}", "email: Field required"),
        ('{"email": 5}', "email: Input should be a valid string"),
        ('{"email": "a", "mail": "b"}', "mail: Unexpected keyword argument"),
        ('{"email": "a', "Invalid JSON"),
        ('["a"]', "should be"),
    ],
)
def test_arguments_that_do_not_fit_name_the_field_and_what_was_expected(arguments, why):
    with pytest.raises(ArgumentsInvalid, match=why):
        find_order.read(arguments)


def test_a_tool_can_be_called_like_the_function_it_was():
    assert isinstance(add, Tool)
    assert add(1, 2) == 3


def test_functions_that_cannot_be_described_are_refused():
    def untyped(a): ...
    def many(*args: int): ...
    def odd(a: threading.Thread): ...
    def missing(a: Missing): ...  # noqa: F821

    for function, why in [
        (untyped, "parameter 'a' needs a type hint"),
        (many, "can't be described"),
        (odd, "Thread"),
        (missing, "'Missing' is not defined"),
    ]:
        with pytest.raises(UsageError, match=why):
            tool(function)
