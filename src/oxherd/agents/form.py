"""The form an agent's answer takes: free text, a Python type or a JSON schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from oxherd.agents.schema import Schema, closed, explain, is_strict, trimmed
from oxherd.codec import decode, encode
from oxherd.errors import UsageError

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


class Misfit(Exception):
    """An answer does not have the form; the message tells the model why."""


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is asked for and read.

    Attributes:
        schema: the JSON schema of the answer, always of an object; None for free text.
        read: from the model's text to the answer; raises Misfit.
    """

    schema: Schema | None
    read: Callable[[str], Any]

    def response_format(self) -> Schema | None:
        """The `response_format` of a chat request; None for free text."""
        if self.schema is None:
            return None
        named = {"name": "answer", "strict": is_strict(self.schema), "schema": self.schema}
        return {"type": "json_schema", "json_schema": named}


TEXT = Form(None, lambda text: text)


def make_form(output: Any) -> Form:
    """Build a form.

    Parameters:
        output: `str` or None for free text; a JSON schema as a dict; or whatever pydantic can validate: a model, a
            dataclass, a TypedDict, `list[int]`, a TypeAdapter.

    Raises:
        UsageError: it is none of these.
    """
    if output is None or output is str:
        return TEXT
    if isinstance(output, dict):
        return _of_schema(output)
    return _of_type(output if isinstance(output, TypeAdapter) else _adapter(output))


def _adapter(output: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(output)
    except PydanticUserError as error:
        raise UsageError(f"output: {error.message} (expected a type that pydantic knows, or a JSON schema)") from None


def _of_type(adapter: TypeAdapter[Any]) -> Form:
    try:
        schema = closed(trimmed(adapter.json_schema()))
    except PydanticUserError as error:
        raise UsageError(f"output: {error.message}") from None

    def check(raw: bytes | str) -> Any:
        try:
            return adapter.validate_json(raw)
        except ValidationError as error:
            raise Misfit(explain(error, what="")) from None

    return _of_object(schema, check)


def _of_schema(schema: Schema) -> Form:
    # Imported here: it costs a tenth of a second, and most agents answer in text or in a Python type.
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UsageError(f"output: not a JSON schema: {error.message}") from None
    validator = Draft202012Validator(schema)

    def check(raw: bytes | str) -> Any:
        answer = _parse(raw)
        faults = [f"{fault.json_path.removeprefix('$.')}: {fault.message}" for fault in validator.iter_errors(answer)]
        if faults:
            raise Misfit("; ".join(faults[:10]))
        return answer

    return _of_object(schema, check)


def _of_object(schema: Schema, check: Callable[[bytes | str], Any]) -> Form:
    if schema.get("type") == "object":
        return Form(schema, lambda text: check(_bare(text)))
    # Strict modes take objects only: other answers travel inside one, definitions hoisted so that $ref finds them.
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    outer = {"type": "object", "properties": {"answer": inner}, "required": ["answer"], "additionalProperties": False}
    if "$defs" in schema:
        outer["$defs"] = schema["$defs"]
    return Form(outer, lambda text: check(encode(_unwrapped(text))))


def _unwrapped(text: str) -> Any:
    whole = _parse(_bare(text))
    if not isinstance(whole, dict) or "answer" not in whole:
        raise Misfit('answer: missing; the whole must be an object like {"answer": …}')
    return whole["answer"]


def _bare(text: str) -> str:
    """Without the Markdown fence that some models put around JSON."""
    found = _FENCE.match(text)
    return found[1] if found else text


def _parse(raw: bytes | str) -> Any:
    try:
        return decode(raw)
    except ValueError as error:
        raise Misfit(f"not JSON: {error}") from None
