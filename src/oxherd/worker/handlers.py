"""Handlers: what runs a job, with its types and limits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints, is_typeddict

import typing_extensions
from pydantic import TypeAdapter, ValidationError

from oxherd.codec import decode, encode, tenant_in
from oxherd.errors import PayloadInvalid, UnknownJob, UsageError
from oxherd.vault.payload import RAW_MARK
from oxherd.vault.vault import NO_VAULT


@dataclass(frozen=True, slots=True)
class Handler:
    """One registered handler.

    Attributes:
        name: the job name it serves.
        function: `(ctx, payload)`, async or plain.
        payload: validates the payload; None takes any JSON object as it is.
        is_async: plain functions run in a thread.
        timeout, idle_timeout: seconds, 0 for no limit, None for the worker's default.
        retries: extra attempts for jobs whose producer set no `attempts`.
        stream: whether its jobs are published whether or not anybody asks.
    """

    name: str
    function: Callable[..., Any]
    payload: TypeAdapter[Any] | None
    is_async: bool
    timeout: float | None = None
    idle_timeout: float | None = None
    retries: int = 0
    stream: bool = False


def make_handler(
    name: str,
    function: Callable[..., Any],
    *,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    retries: int = 0,
    stream: bool = False,
) -> Handler:
    """Build a handler from a function `(ctx, payload)` and its type hints.

    Raises:
        UsageError: the function does not take a context and a payload.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 2:
        raise UsageError(
            f"the handler of {name!r} must take (ctx, payload); "
            f"{function.__qualname__} takes {len(parameters)} parameters"
        )
    wanted = _hints(function, name).get(parameters[1].name, dict)
    plain = wanted in (dict, Any) or wanted == dict[str, Any]
    if is_typeddict(wanted):
        wanted = _readable_typed_dict(wanted)
    return Handler(
        name,
        function,
        None if plain else TypeAdapter(wanted),
        inspect.iscoroutinefunction(function),
        timeout,
        idle_timeout,
        retries,
        stream,
    )


def _readable_typed_dict(wanted: Any) -> Any:
    # pydantic reads typing.TypedDict from Python 3.12 on only; typing_extensions' twin works everywhere.
    required = wanted.__required_keys__
    hints = get_type_hints(wanted, include_extras=True)
    fields = {key: hint if key in required else typing_extensions.NotRequired[hint] for key, hint in hints.items()}
    return typing_extensions.TypedDict(wanted.__name__, fields)  # type: ignore[operator]


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError as error:
        raise UsageError(f"the type hints of the handler of {name!r} can't be resolved: {error}") from None


def find_handler(handlers: Mapping[str, Handler], name: str) -> Handler:
    """The handler for a job name. Raises UnknownJob naming those there are."""
    handler = handlers.get(name)
    if handler is None:
        known = ", ".join(sorted(handlers))
        raise UnknownJob(
            f"no handler for job name {name!r}; this worker has: {known}", hint="is --app the right module?"
        )
    return handler


MAX_PAYLOAD = 10_000_000  # bytes: what hosted Redis takes in one request; larger ones belong in object storage
Unseal = Callable[[dict[str, Any], str, str | None], None]


def refuse_sealed(data: dict[str, Any], job: str, tenant: str | None) -> None:
    """Unseal nothing: a payload with a sealed field is refused. Raises PayloadInvalid naming the field."""
    NO_VAULT.open_fields(data, job=job, tenant=tenant)


def read_payload(handler: Handler, raw: bytes, unseal: Unseal = refuse_sealed) -> tuple[Any, str | None]:
    """Decode, unseal and validate a payload; returns it with its `tenant`.

    Parameters:
        handler: whose payload it is.
        raw: as the producer wrote it.
        unseal: opens the sealed fields of a payload in place, given the job's name and the tenant.

    Raises:
        PayloadInvalid: it is too large, not JSON, not an object, has a sealed field that can't be opened, or does not
            fit the handler's type; the message names the field and the type that was expected.
    """
    if len(raw) > MAX_PAYLOAD:
        raise PayloadInvalid(f"the payload has {len(raw):,} bytes; at most {MAX_PAYLOAD:,} are taken")
    try:
        data = decode(raw)
    except ValueError as error:
        raise PayloadInvalid(f"the payload is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise PayloadInvalid(f"the payload must be a JSON object, it is {_json_type(data)}")
    tenant = tenant_in(data)
    if RAW_MARK in raw:
        unseal(data, handler.name, tenant)
        raw = encode(data)
    if handler.payload is None:
        return data, tenant
    try:
        return handler.payload.validate_json(raw), tenant
    except ValidationError as error:
        raise PayloadInvalid(_explain(error)) from None


def asks_for_stream(raw: bytes) -> bool:
    """Whether a payload that nobody has validated yet says `"stream": true`."""
    if b'"stream"' not in raw or len(raw) > MAX_PAYLOAD:
        return False
    try:
        data = decode(raw)
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("stream") is True


def _json_type(data: Any) -> str:
    names = {
        list: "an array",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(data), type(data).__name__)


def _explain(error: ValidationError) -> str:
    # Without the input: it may hold a secret.
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'payload'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False)
    ]
    return "the payload does not fit the handler: " + "; ".join(faults[:10])
