"""The API's reference for people, made from the list of endpoints: the page at `/api/docs`, and `docs/api.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel

from oxherd.web.api import ENDPOINTS
from oxherd.web.auth import Scope
from oxherd.web.endpoint import Endpoint
from oxherd.web.models import Given, Taken
from oxherd.web.openapi import ABOUT, PREFIX, VERSION, document, where_given


def page() -> str:
    """The document as an HTML page without scripts."""
    groups: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        groups.setdefault(endpoint.tag, []).append(endpoint)
    menu = "".join(f'<a href="#{_anchor(tag)}">{escape(tag)}</a>' for tag in groups)
    intro = "".join(f"<p>{_text(part)}</p>" for part in ABOUT.split("\n\n"))
    sections = "".join(
        f'<section id="{_anchor(tag)}"><h2>{escape(tag.capitalize())}</h2>{"".join(map(_shown, endpoints))}</section>'
        for tag, endpoints in groups.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Oxherd API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="/api/docs.css"></head><body><nav>{menu}</nav><main><h1>Oxherd API '
        f'<small>{escape(VERSION)}</small></h1>{intro}<p><a href="/api/openapi.json">openapi.json</a></p>'
        f"{sections}</main></body></html>"
    )


def _shown(endpoint: Endpoint) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(place)}</td><td>{_text(kind)}</td><td>{_text(about)}</td></tr>"
        for name, place, kind, about in fields_of(endpoint)
    )
    table = f"<table><tr><th>name</th><th>in</th><th>what</th><th></th></tr>{rows}</table>" if rows else ""
    return (
        f'<details id="{endpoint.name}"><summary><b class="{endpoint.method.lower()}">{endpoint.method}</b> '
        f"<code>{escape(PREFIX + endpoint.path)}</code> {_text(endpoint.about.partition('. ')[0].rstrip('.'))}"
        f"</summary><p>{_text(endpoint.about)}</p><p>{_text(needs(endpoint))}</p>{table}"
        f"<p>Answers {endpoint.status} with:</p><ul>{''.join(_answer_rows(endpoint))}</ul></details>"
    )


def _answer_rows(endpoint: Endpoint) -> Iterator[str]:
    for name, kind, about in _properties(endpoint.answer):
        yield f"<li><code>{escape(name)}</code> {_text(kind)}{': ' + _text(about) if about else ''}</li>"


def needs(endpoint: Endpoint) -> str:
    """What a request must bring, in words."""
    if endpoint.scope is None:
        return "Needs no login."
    return "Needs `API_TOKEN`." if endpoint.scope is Scope.ACT else "Needs `API_TOKEN` or `API_READ_TOKEN`."


def fields_of(endpoint: Endpoint) -> Iterator[tuple[str, str, str, str]]:
    """Name, place, kind and meaning of everything that a request may bring."""
    for each in document()["paths"][PREFIX + endpoint.path][endpoint.method.lower()]["parameters"]:
        kind = _kind(each["schema"])
        yield each["name"], each["in"], kind + (", required" if each["required"] else ""), each.get("description", "")
    if endpoint.body is not None:
        for name, kind, about in _properties(endpoint.body):
            yield name, "body", kind, about


def _properties(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    schema = document()["components"]["schemas"][model.__name__]
    required = schema.get("required", ()) if issubclass(model, Taken) else ()
    for name, described in schema.get("properties", {}).items():
        about = described.get("description", "") or where_given(described).get("description", "")
        yield name, _kind(described) + (", required" if name in required else ""), about


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    match schema:
        case {"$ref": reference}:
            words = str(reference).rpartition("/")[2]
        case {"anyOf": branches}:
            words = " or ".join(dict.fromkeys(map(_kind, branches)))
        case {"enum": values}:
            words = ", ".join(f"`{each}`" for each in values)
        case {"const": value}:
            words = f"`{value}`".lower()
        case {"type": "array", "items": items}:
            words = f"list of {_kind(items)}"
        case {"type": "integer"}:
            words = "whole number" + _range(schema)
        case {"type": kind}:
            words = str(kind)
        case _:
            words = "anything"
    return words


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return f" from {low} to {high}" if low is not None and high is not None and high <= 1_000_000 else ""


def _anchor(tag: str) -> str:
    return tag.replace(" ", "-")


def _text(text: str) -> str:
    """Plain text with `code` in it, as HTML."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def markdown() -> str:
    """The text of `docs/api.md`, below its introduction."""
    lines: list[str] = []
    tags = dict.fromkeys(endpoint.tag for endpoint in ENDPOINTS)
    for tag in tags:
        lines += [f"## {tag.capitalize()}", ""]
        for endpoint in (each for each in ENDPOINTS if each.tag == tag):
            lines += _markdown_of(endpoint)
    lines += ["## What answers hold", ""]
    for model in _shown_models():
        lines += [f"### {model.__name__}", "", *inspect.cleandoc(model.__doc__ or "").splitlines(), ""]
        lines += _markdown_table(("field", "kind", "meaning"), list(_properties(model)))
    return "\n".join(lines).rstrip() + "\n"


def _shown_models() -> list[type[BaseModel]]:
    kinds = [*Given.__subclasses__(), *(deep for each in Given.__subclasses__() for deep in each.__subclasses__())]
    known = document()["components"]["schemas"]
    return sorted((each for each in kinds if each.__name__ in known), key=lambda each: each.__name__)


def _markdown_of(endpoint: Endpoint) -> list[str]:
    lines = [f"### `{endpoint.method} {PREFIX}{endpoint.path}`", "", f"{endpoint.about} {needs(endpoint)}", ""]
    fields = list(fields_of(endpoint))
    if fields:
        lines += _markdown_table(("field", "in", "kind", "meaning"), fields)
    answer = "a stream of events" if endpoint.media_type == "text/event-stream" else endpoint.answer.__name__
    return [*lines, f"Answers {endpoint.status} with {answer}.", ""]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    cells = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{first}`", *rest)) + " |" for first, *rest in rows
    ]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *cells, ""]
