"""A Sentry that takes nothing on trust: it parses each envelope strictly and keeps what was in it.

Source: Sentry's envelope format; the shapes of items as sentry-sdk 2.75 sends them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

HEX32, HEX16 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")
KEY = "5e9d7c0fb1a24b37a3d25b0e2c8d4f60"
KINDS = {str: "string", bool: "boolean", int: "integer", float: "double", list: "array"}
BATCHES = {
    "span": "application/vnd.sentry.items.span.v2+json",
    "log": "application/vnd.sentry.items.log+json",
    "trace_metric": "application/vnd.sentry.items.trace-metric+json",
}

Item = tuple[dict[str, Any], Any]


def parse(raw: bytes) -> tuple[dict[str, Any], list[Item]]:
    """An envelope's header and items. Raises ValueError or AssertionError where it is malformed."""
    line, _, rest = raw.partition(b"\n")
    header = json.loads(line)
    assert isinstance(header, dict)
    items: list[Item] = []
    while rest:
        line, _, rest = rest.partition(b"\n")
        about = json.loads(line)
        length = about.get("length")
        end = rest.find(b"\n") if length is None else length
        payload, rest = (rest, b"") if end < 0 else (rest[:end], rest[end:])
        assert length is None or len(payload) == length, f"{about['type']}: {len(payload)} bytes, not {length}"
        assert not rest or rest.startswith(b"\n"), f"{about['type']}: no line's end after its payload"
        rest = rest.removeprefix(b"\n")
        item = json.loads(payload)
        check(about, item)
        items.append((about, item))
    return header, items


def check(about: dict[str, Any], item: Any) -> None:
    """One item against its type's shape."""
    kind = about["type"]
    if kind in BATCHES:
        assert about["content_type"] == BATCHES[kind]
        assert item["version"] == 2
        assert about["item_count"] == len(item["items"]) > 0
    if check_one := CHECKS.get(kind):
        check_one(item)


def _event(event: dict[str, Any]) -> None:
    assert HEX32.fullmatch(event["event_id"])
    assert event["level"] in {"fatal", "error", "warning", "info", "debug"}
    assert event["platform"] == "python"
    assert event.get("exception") or event.get("message") or event.get("logentry")
    for error in event.get("exception", {}).get("values", ()):
        assert isinstance(error["type"], str)
        for frame in error.get("stacktrace", {}).get("frames", ()):
            assert isinstance(frame["function"], str)
            assert "vars" not in frame, "frames have their locals"


def _transaction(event: dict[str, Any]) -> None:
    trace = event["contexts"]["trace"]
    assert HEX32.fullmatch(trace["trace_id"])
    assert HEX16.fullmatch(trace["span_id"])
    assert trace["op"]
    for span in event["spans"]:
        assert HEX16.fullmatch(span["span_id"])
        assert not span["op"].startswith("gen_ai."), "gen_ai spans have an item of their own"


def _check_in(check_in: dict[str, Any]) -> None:
    assert HEX32.fullmatch(check_in["check_in_id"])
    assert re.fullmatch(r"[a-z0-9_-]{1,50}", check_in["monitor_slug"])
    assert check_in["status"] in {"in_progress", "ok", "error"}
    schedule = check_in.get("monitor_config", {}).get("schedule", {"type": "crontab", "value": "* * * * *"})
    if schedule["type"] == "crontab":
        assert len(schedule["value"].split()) == 5
    else:
        assert schedule["unit"] in {"minute", "hour", "day", "week", "month", "year"}
        assert isinstance(schedule["value"], int)
        assert schedule["value"] > 0


def _spans(batch: dict[str, Any]) -> None:
    for span in batch["items"]:
        assert HEX32.fullmatch(span["trace_id"])
        assert HEX16.fullmatch(span["span_id"])
        assert span["status"] in {"ok", "error"}
        assert span["end_timestamp"] >= span["start_timestamp"]
        for name, value in span["attributes"].items():
            assert value["type"] == KINDS[type(value["value"])], name


CHECKS: dict[str, Callable[[dict[str, Any]], None]]
CHECKS = {"event": _event, "transaction": _transaction, "check_in": _check_in, "span": _spans}


class FakeSentry:
    """Serves one project on loopback, as an async context manager.

    Attributes:
        items: what it was sent, by type.
        raw: all of it as text, to look for what must not be in it.
        faults: what was wrong with requests; leaving the context raises when there is any.
    """

    def __init__(self) -> None:
        self.items: dict[str, list[Any]] = {}
        self.raw = ""
        self.faults: list[str] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/api/7/envelope/", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.dsn = f"http://{KEY}@127.0.0.1:{self._runner.addresses[0][1]}/7"
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self._runner.cleanup()
        if kind is None:
            assert self.faults == [], self.faults

    def all(self, kind: str) -> list[Any]:
        return self.items.get(kind, [])

    def one(self, kind: str) -> Any:
        (found,) = self.all(kind)
        return found

    def spans(self) -> dict[str, dict[str, Any]]:
        """The spans of AI calls by name: their parents and attributes."""
        found = [span for batch in self.all("span") for span in batch["items"]]
        return {
            span["name"]: span | {name: value["value"] for name, value in span["attributes"].items()} for span in found
        }

    async def _take(self, request: web.Request) -> web.Response:
        try:
            assert request.content_type == "application/x-sentry-envelope"
            assert f"sentry_key={KEY}" in request.headers["X-Sentry-Auth"]
            body = await request.read()
            raw = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
            self.raw += raw.decode()
            for about, item in parse(raw)[1]:
                self.items.setdefault(about["type"], []).append(item)
        except (AssertionError, ValueError, KeyError) as fault:
            self.faults.append(f"{type(fault).__name__}: {fault}")
        return web.json_response({})
