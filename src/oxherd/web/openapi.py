"""The OpenAPI document of the API, made from the list of endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from oxherd.web.api import ENDPOINTS
from oxherd.web.auth import COOKIE, CSRF_HEADER
from oxherd.web.endpoint import Endpoint
from oxherd.web.models import ProblemDetails
from oxherd.web.problems import MEDIA_TYPE

PREFIX = "/api/v1"
VERSION = version("oxherd")
ABOUT = """\
See and steer an Oxherd worker's queue, runs and schedules.

Times are milliseconds since the Unix epoch, durations are milliseconds unless a field says seconds, money is text (US \
dollars, to the last digit), and null is "not known" or "none". Lists come in pages: `next` is the cursor of the page \
that follows, also where a page is empty, and null at the end. Errors are problem details (RFC 9457); `errors` names \
each field that is wrong."""


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas, references = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Oxherd", "version": VERSION, "description": ABOUT, "license": {"name": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "API_TOKEN, or API_READ_TOKEN to read."},
                "session": {
                    "type": "apiKey", "in": "cookie", "name": COOKIE,
                    "description": f"What logIn opens. Actions also need the header {CSRF_HEADER}.",
                },
            },
        },
    }  # fmt: skip


def _schemas() -> tuple[dict[str, Any], dict[type[BaseModel], dict[str, Any]]]:
    given = {endpoint.answer for endpoint in ENDPOINTS} | {ProblemDetails}
    taken = {model for endpoint in ENDPOINTS for model in (endpoint.params, endpoint.body) if model is not None}
    ordered: list[tuple[type[BaseModel], Any]] = [
        *((model, "serialization") for model in sorted(given, key=lambda each: each.__name__)),
        *((model, "validation") for model in sorted(taken, key=lambda each: each.__name__)),
    ]
    references, definitions = models_json_schema(ordered, ref_template="#/components/schemas/{model}")
    known = {model: references[model, mode] for model, mode in ordered}
    return _tidied(definitions["$defs"]), known


def _tidied(schema: Any) -> Any:
    """Without pydantic's titles, which say no more than the names."""
    if isinstance(schema, list):
        return [_tidied(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name != "title" or not isinstance(value, str)}
    return {name: _tidied(value) for name, value in kept.items()}


def _operation(endpoint: Endpoint, references: Mapping[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    summary, _, more = endpoint.about.partition(". ")
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "tags": [endpoint.tag],
        "summary": summary.rstrip("."),
        **({"description": more} if more else {}),
        "parameters": list(_parameters(endpoint)),
        "responses": _responses(endpoint, references),
        "security": [] if endpoint.scope is None else [{"bearer": []}, {"session": []}],
    }
    if endpoint.scope is not None:
        operation["x-scope"] = endpoint.scope.value
    if endpoint.body is not None:
        content = {"application/json": {"schema": references[endpoint.body]}}
        operation["requestBody"] = {"required": not endpoint.optional_body, "content": content}
    return operation


def _parameters(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    if endpoint.params is not None:
        schema = _tidied(endpoint.params.model_json_schema(ref_template="#/components/schemas/{model}"))
        for name, described in schema["properties"].items():
            in_path = f"{{{name}}}" in endpoint.segments
            about = described.pop("description", "") or where_given(described).pop("description", "")
            yield {
                "name": name,
                "in": "path" if in_path else "query",
                "required": in_path or name in schema.get("required", ()),
                **({"description": about} if about else {}),
                "schema": where_given(described),
            }
    if endpoint.idempotent:
        yield {
            "name": "Idempotency-Key", "in": "header", "required": False,
            "description": "Repeat the request with the same key for a day, and it counts once.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
        }  # fmt: skip
    if endpoint.media_type == "text/event-stream":
        yield {
            "name": "Last-Event-ID", "in": "header", "required": False,
            "description": "The last event that was seen.", "schema": {"type": "string", "pattern": "^[!-~]*$"},
        }  # fmt: skip


def where_given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter where it is given: a query has no null."""
    branches = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    found = branches[0] if len(branches) == 1 else schema
    return {**found, **({"default": schema["default"]} if schema.get("default") is not None else {})}


def _responses(endpoint: Endpoint, references: Mapping[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    problem = {"content": {MEDIA_TYPE: {"schema": references[ProblemDetails]}}}
    sse = endpoint.media_type == "text/event-stream"
    answer: Any = {"type": "string"} if sse else references[endpoint.answer]
    good = {"description": HTTPStatus(endpoint.status).phrase, "content": {endpoint.media_type: {"schema": answer}}}
    errors = {422, 500, 503, *endpoint.errors}
    if endpoint.scope is not None:
        errors |= {401, 403, 429}
    else:
        errors |= {429} if endpoint.body else set()
    if endpoint.body is not None:
        errors |= {400, 408, 413, 415}
    described = {str(code): {"description": HTTPStatus(code).phrase, **problem} for code in sorted(errors)}
    return {str(endpoint.status): good, **described}
