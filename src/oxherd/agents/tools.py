"""Tools: typed Python functions that a model may call."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from oxherd.agents.schema import Schema, explain, trimmed
from oxherd.codec import encode
from oxherd.context import Context
from oxherd.errors import UsageError

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SECTION = re.compile(r"^(args|arguments|parameters|returns?|raises|yields|examples?|notes?):\s*$", re.IGNORECASE)
_PARAMETER = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(\S.*)$")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


class ArgumentsInvalid(Exception):
    """A model's arguments do not fit the tool; the message tells it why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call; made by `@tool`. Calling it in Python calls the function as it is.

    Attributes:
        name: what the model calls it.
        description: what the model is told about it: the docstring up to its sections.
        schema: JSON schema of its arguments.
        function: async, or plain (then it runs in a thread).
    """

    name: str
    description: str
    schema: Schema
    function: Callable[..., Any]
    _arguments: TypeAdapter[Any] = field(repr=False)
    _takes_context: bool = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, in tests for example."""
        return self.function(*args, **kwargs)

    def definition(self) -> Schema:
        """The tool as a chat request describes it."""
        described = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": described}

    def read(self, arguments: str) -> dict[str, Any]:
        """Validate a model's arguments.

        Parameters:
            arguments: JSON as the model wrote it; blank counts as `{}`.

        Raises:
            ArgumentsInvalid: naming each field and what was expected there.
        """
        try:
            read = self._arguments.validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            raise ArgumentsInvalid(explain(error, what="")) from None
        return {each.name: getattr(read, each.name) for each in dataclasses.fields(read)}

    async def call(self, ctx: Context, values: dict[str, Any]) -> Any:
        """Run the function with arguments that `read` returned. Raises whatever the function raises."""
        first = (ctx,) if self._takes_context else ()
        if inspect.iscoroutinefunction(self.function):
            return await self.function(*first, **values)
        return await asyncio.to_thread(self.function, *first, **values)

    async def run(self, ctx: Context, arguments: str) -> str:
        """Validate the arguments, run the function, and write its result as the text that the model reads.

        Raises:
            ArgumentsInvalid: the arguments do not fit.
            ResultInvalid: the result can't be written as JSON.
        """
        result = await self.call(ctx, self.read(arguments))
        return result if isinstance(result, str) else encode(result, what=f"the result of tool {self.name!r}").decode()


def tool(function: Callable[..., Any]) -> Tool:
    """Make a typed function a tool.

    Its name and docstring are what the model reads, its type hints become the JSON schema of the arguments, lines such
    as `email: the customer's address` under `Args:` or `Parameters:` describe them. A first parameter called `ctx`, or
    typed `Context`, is given the job's context and is not shown to the model.

    Raises:
        UsageError: a parameter has no type hint, or one that has no JSON schema.
    """
    name = function.__name__
    if not _NAME.fullmatch(name):
        raise UsageError(f"tool {name!r}: a tool's name is 1 to 64 letters, digits, _ or -")
    parameters = list(inspect.signature(function).parameters.values())
    hints = _hints(function)
    takes_context = bool(parameters) and _is_context(parameters[0], hints)
    text, about = _docstring(function)
    adapter = _arguments(name, parameters[takes_context:], hints)
    try:
        schema = trimmed(adapter.json_schema())
    except PydanticUserError as error:
        raise UsageError(f"tool {name!r}: {error.message}") from None
    for parameter, words in about.items():
        if parameter in schema.get("properties", {}):
            schema["properties"][parameter].setdefault("description", words)
    schema.pop("description", None)  # the docstring of the class below, not of the function
    return Tool(name, text, schema, function, adapter, takes_context)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        # Context is often imported for type checkers only.
        return get_type_hints(function, localns={"Context": Context}, include_extras=True)
    except NameError as error:
        raise UsageError(
            f"tool {function.__name__!r}: its type hints can't be resolved: {error}",
            hint="import the types at module level, not under TYPE_CHECKING",
        ) from None


def _is_context(parameter: inspect.Parameter, hints: dict[str, Any]) -> bool:
    return hints.get(parameter.name) is Context or (parameter.name == "ctx" and parameter.name not in hints)


def _arguments(name: str, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> TypeAdapter[Any]:
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.kind in _VARIADIC:
            raise UsageError(f"tool {name!r}: {parameter} can't be described to a model; name each parameter")
        if parameter.name not in hints:
            raise UsageError(f"tool {name!r}: parameter {parameter.name!r} needs a type hint")
        fields.append((parameter.name, hints[parameter.name], _default(parameter)))
    # A dataclass, not a pydantic model: parameters may be called `json` or `copy`.
    arguments = dataclasses.make_dataclass(name, fields, kw_only=True)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    try:
        return TypeAdapter(arguments)
    except PydanticUserError as error:
        raise UsageError(f"tool {name!r}: {error.message}") from None


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return field()
    if isinstance(parameter.default, list | dict | set):  # a dataclass refuses these as they are
        return field(default_factory=lambda: parameter.default)
    return field(default=parameter.default)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description up to the first section, and what is said about each parameter."""
    about: dict[str, str] = {}
    text: list[str] = []
    section = ""
    for line in (inspect.getdoc(function) or "").splitlines():
        heading = _SECTION.match(line.strip())
        if heading:
            section = heading[1].lower()
        elif not section:
            text.append(line)
        elif section in {"args", "arguments", "parameters"} and (found := _PARAMETER.match(line.strip())):
            about[found[1]] = found[2]
    return "\n".join(text).strip(), about
