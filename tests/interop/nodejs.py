"""Real BullMQ in a Node process: told what to do in JSON lines, see node/helper.mjs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FOLDER = Path(__file__).parent / "node"
PATIENCE = 10.0  # seconds a call or an event may take


class NodeError(Exception):
    """What Node's call threw."""


@dataclass(frozen=True)
class Event:
    """One event of a queue, as Node's QueueEvents reported it."""

    queue: str
    name: str
    args: dict[str, Any]


class Node:
    """A Node process with BullMQ 5 or 6. Usable from any event loop: a thread reads what it says."""

    def __init__(self, version: int, redis_url: str) -> None:
        self.version = version
        self.events: list[Event] = []
        self._ids = count(1)
        self._calls: dict[int, Future[Any]] = {}
        self._watchers: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        address = urlsplit(redis_url)
        command = ["node", "helper.mjs", str(version), str(address.hostname), str(address.port)]
        self._process = subprocess.Popen(
            command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(PATIENCE), "the Node process did not start"

    async def __call__(self, call: str, *args: Any, patience: float = PATIENCE) -> Any:
        """Have it do something; returns the result, raises NodeError for what it threw."""
        number, future = next(self._ids), Future[Any]()
        self._calls[number] = future
        self._write({"id": number, "call": call, "args": args})
        async with asyncio.timeout(patience):
            return await asyncio.wrap_future(future)

    async def until(self, look: Callable[[], Any], *, what: str) -> Any:
        """Wait until `look()` is true after one of the events that arrive; returns what it returned."""
        future: Future[Any] = Future()
        with self._lock:
            self._watchers.append((look, future))
            self._notify()
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            seen = [f"{event.name} {event.args}" for event in self.events]
            raise AssertionError(f"waited for {what}; seen: {seen}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            stream.close()

    def stop(self) -> None:
        """Let it end by itself."""
        if self._process.poll() is None:
            self._process.stdin.close()
            self._process.wait(PATIENCE)
        self._reader.join()
        self._process.stdout.close()

    def _write(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout:
            message = json.loads(line)
            if "ready" in message:
                self._ready.set()
            elif "event" in message:
                with self._lock:
                    self.events.append(Event(message["queue"], message["event"], message["args"]))
                    self._notify()
            else:
                self._settle(self._calls.pop(message["id"]), message)
        for future in self._calls.values():
            future.set_exception(NodeError("the Node process ended"))

    def _settle(self, future: Future[Any], message: dict[str, Any]) -> None:
        if future.cancelled():
            return
        if "error" in message:
            future.set_exception(NodeError(message["error"]))
        else:
            future.set_result(message["ok"])

    def _notify(self) -> None:
        waiting = []
        for look, future in self._watchers:
            if future.cancelled():
                continue
            if found := look():
                future.set_result(found)
            else:
                waiting.append((look, future))
        self._watchers = waiting


def install() -> None:
    """`npm ci`, unless it is done. Without Node the tests are skipped, where CI=true they fail."""
    reason = _why_not_installed()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"the interop tests are required in CI: {reason}")
    pytest.skip(reason)


def _why_not_installed() -> str | None:
    if shutil.which("node") is None:
        return "needs Node: https://nodejs.org"
    mark, lock = FOLDER / "node_modules" / ".package-lock.json", FOLDER / "package-lock.json"
    if mark.exists() and mark.stat().st_mtime >= lock.stat().st_mtime:
        return None
    if shutil.which("npm") is None:
        return "needs npm to install tests/interop/node/package-lock.json"
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"npm ci failed: {done.stderr.strip()[-300:]}"
    mark.touch()
    return None
