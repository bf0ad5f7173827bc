"""Tools: typed Python functions that a model may call."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import random
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_type_hints, overload

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from oxherd.agents.schema import Schema, explain, trimmed
from oxherd.clock import mono
from oxherd.codec import encode
from oxherd.context import Context
from oxherd.errors import JobError, UsageError
from oxherd.settings import parse_duration

FIRST_PAUSE = 0.5  # seconds before a failed tool is called again; doubles with each try
LONGEST_PAUSE = 20.0  # seconds

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SECTION = re.compile(r"^(args|arguments|parameters|returns?|raises|yields|examples?|notes?):\s*$", re.IGNORECASE)
_PARAMETER = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(\S.*)$")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


class ToolFailed(Exception):
    """A call of a tool failed in a way that the model is told as it is, and that another try would not change."""


class ArgumentsInvalid(ToolFailed):
    """A model's arguments do not fit the tool; the message tells it why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call; made by `@tool`. Calling it in Python calls the function as it is.

    Attributes:
        name: what the model calls it.
        description: what the model is told about it: the docstring up to its sections.
        schema: JSON schema of its arguments.
        function: async, or plain (then it runs in a thread).
        timeout: seconds that one try may take, or None.
        retries: how often it is called again after it has raised.
        approve: whether each call waits for a person to approve it.
        agent: the agent that it asks, for a tool made by `Agent.as_tool`.
    """

    name: str
    description: str
    schema: Schema
    function: Callable[..., Any]
    _reader: Callable[[str], dict[str, Any]] = field(repr=False)
    _takes_context: bool = field(repr=False)
    timeout: float | None = None
    retries: int = 0
    approve: bool = False
    agent: object = field(default=None, repr=False)

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
        return self._reader(arguments.strip() or "{}")

    async def call(self, ctx: Context, values: dict[str, Any]) -> Any:
        """Run the function once with arguments that `read` returned. Raises whatever the function raises.

        Raises:
            ToolFailed: it took longer than `timeout`.
        """
        call = partial(self.function, *((ctx,) if self._takes_context else ()), **values)
        if self.timeout is None:
            return await (call() if inspect.iscoroutinefunction(self.function) else asyncio.to_thread(call))
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                return await (call() if inspect.iscoroutinefunction(self.function) else _in_own_thread(call))
        except TimeoutError:
            if not limit.expired():
                raise
            raise ToolFailed(
                f"the tool had not returned after {self.timeout:g} s and was given up; it may have had an effect"
            ) from None

    async def run(self, ctx: Context, arguments: str) -> str:
        """Validate the arguments, run the function, and write its result as the text that the model reads.

        Raises:
            ToolFailed: the arguments do not fit, or it took too long.
            ResultInvalid: the result can't be written as JSON.
        """
        values = self.read(arguments)
        for tried in range(self.retries):
            try:
                return self._written(await self.call(ctx, values))
            except (ToolFailed, JobError):
                raise
            except Exception:  # noqa: BLE001  the last try's is raised
                await _pause(ctx, tried)
        return self._written(await self.call(ctx, values))

    def _written(self, result: Any) -> str:
        return result if isinstance(result, str) else encode(result, what=f"the result of tool {self.name!r}").decode()


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *, timeout: str | float | None = None, retries: int = 0, approve: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    timeout: str | float | None = None,
    retries: int = 0,
    approve: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function a tool, as `@tool` or `@tool(timeout="30s", retries=2)`.

    Its name and docstring are what the model reads, its type hints become the JSON schema of the arguments, lines such
    as `email: the customer's address` under `Args:` or `Parameters:` describe them. A first parameter called `ctx`, or
    typed `Context`, is given the job's context and is not shown to the model.

    Parameters:
        function: async, or plain, which then runs in a thread.
        timeout: how long one try may take, such as "30s" or seconds; then the model is told so. An async function is
            cancelled. A plain one can't be stopped: it goes on in a thread of its own, and its result is dropped.
        retries: how often it is called again after it has raised, with growing, jittered pauses. Not after `timeout`,
            nor for a JobError, nor for arguments that do not fit.
        approve: whether each call waits for a person to approve it, with its arguments. Where the person denies it, or
            nobody answers in time (APPROVAL_TIMEOUT), the model is told so.

    Raises:
        UsageError: a parameter has no type hint, or one that has no JSON schema; or an option makes no sense.
    """
    if function is None:
        return lambda given: tool_of(given, timeout=timeout, retries=retries, approve=approve)
    return tool_of(function)


def tool_of(
    function: Callable[..., Any],
    *,
    timeout: str | float | None = None,
    retries: int = 0,
    approve: bool = False,
    name: str | None = None,
) -> Tool:
    """What `tool` does, under another name than the function's own if one is given."""
    name = function.__name__ if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(f"tool {name!r}: a tool's name is 1 to 64 letters, digits, _ or -")
    if retries < 0:
        raise UsageError(f"tool {name!r}: retries must not be negative")
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
    return Tool(
        name, text, schema, function, partial(_read, adapter), takes_context,
        timeout=seconds(timeout, f"tool {name!r}: timeout"), retries=retries, approve=approve,
    )  # fmt: skip


def seconds(limit: str | float | None, what: str) -> float | None:
    """A limit in seconds, from text such as "30s" too. Raises UsageError, in which `what` names it."""
    try:
        value = parse_duration(limit) if isinstance(limit, str) else limit
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    if value is not None and not value > 0:
        raise UsageError(f"{what}: must be above 0; leave it out for no limit")
    return value


async def _pause(ctx: Context, tried: int) -> None:
    await asyncio.sleep(min(FIRST_PAUSE * 2**tried, LONGEST_PAUSE) * random.uniform(0.5, 1.5))
    ctx.check()
    ctx.alive_at = mono()
    ctx.try_again()


async def _in_own_thread(call: Callable[[], Any]) -> Any:
    """Run a plain function in a thread that nobody waits for.

    One that never returns takes no place from others, as it would among the loop's few threads, and does not keep the
    process alive.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.done():
            return  # given up
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = call()
        except StopIteration as stop:  # which no future can hold
            error = RuntimeError(f"the tool raised {stop!r}")
        except BaseException as raised:  # noqa: BLE001  it is raised where it is waited for
            error = raised
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="oxherd-tool", daemon=True).start()
    return await done


def _read(adapter: TypeAdapter[Any], arguments: str) -> dict[str, Any]:
    try:
        read = adapter.validate_json(arguments)
    except ValidationError as error:
        raise ArgumentsInvalid(explain(error, what="")) from None
    return {each.name: getattr(read, each.name) for each in dataclasses.fields(read)}


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
