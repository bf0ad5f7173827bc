"""Where a page ended, as text that a client sends back: base64 of JSON, to be kept as it is."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson

from oxherd.queue.pages import Place
from oxherd.web.problems import Problem


def encode(*parts: Any) -> str:
    """The cursor of a place."""
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def decode(cursor: str | None, *kinds: type) -> list[Any] | None:
    """The parts of a cursor, each of its kind; None where there is no cursor.

    Raises:
        Problem: 422, it is none of ours.
    """
    if cursor is None:
        return None
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        what = "is not one that this list gave"
        raise Problem(422, f"query.cursor: {what}", fields=[("query.cursor", what)])
    return parts


def of_place(place: Place | None) -> str | None:
    """The cursor of a place in the queue's lists."""
    return None if place is None else encode(place.key, _sendable(place.id), place.score)


def to_place(cursor: str | None) -> Place | None:
    """The place of a cursor. Raises Problem: 422."""
    parts = decode(cursor, str, str, str)
    if parts is None:
        return None
    key, job_id, score = parts
    if key not in _KEYS or not _is_number(score):
        what = "is not one that this list gave"
        raise Problem(422, f"query.cursor: {what}", fields=[("query.cursor", what)])
    return Place(key, _received(job_id), score)


_KEYS = frozenset({"active", "prioritized", "wait", "paused", "delayed", "waiting-children", "failed", "completed"})


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False


def _sendable(job_id: str) -> str:
    # Job ids are bytes: those that are no UTF-8 would be no JSON.
    return job_id.encode("utf-8", "surrogateescape").decode("latin-1")


def _received(job_id: str) -> str:
    return job_id.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
