"""Jinja for the dashboard: made when the first page is asked for, so that a worker's start does without."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from oxherd.clock import wall_ms
from oxherd.web import dashboard_words as words
from oxherd.web.approvals import visible


def page(template: str, /, **values: Any) -> str:
    """Render a page."""
    return _environment().get_template(template).render(now=wall_ms(), **values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("oxherd.web", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False, finalize=_visible,
    )  # fmt: skip
    for name in ("span", "ago", "moment", "iso", "number", "money", "percent", "size", "pretty", "state"):
        made.filters[name] = getattr(words, name)
    made.filters["segment"] = lambda text: quote(str(text).encode(errors="surrogateescape"), safe="")
    made.filters["code"] = _code
    made.globals["asset"] = _asset
    return made


def _code(text: str) -> Markup:
    """Plain text with `code` in it."""
    parts = text.split("`")
    return Markup().join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _visible(value: Any) -> Any:
    # What a model or a customer wrote can't pose as something else.
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _asset(name: str) -> str:
    """The address of a static file, with its version."""
    return f"/static/{name}?v={hashlib.sha256((files('oxherd.web') / 'static' / name).read_bytes()).hexdigest()[:12]}"
