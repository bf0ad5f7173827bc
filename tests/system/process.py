"""A worker as its own process, started as the command line starts it: something to kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from oxherd.embedded.engine import free_port

APPS = Path(__file__).parent / "apps"
Start = Callable[..., Awaitable["WorkerProcess"]]  # the fixture `start`


class WorkerProcess:
    """`oxherd worker` on one queue.

    Parameters:
        redis_url, queue: what it serves.
        database_url: where runs are recorded; None is `--no-store`.
        lock_ms: how long its leases last.
        command: `worker`, or `web` for the HTTP API alone.
        variables: more of its environment.
    """

    def __init__(
        self,
        redis_url: str,
        queue: str,
        *,
        witness_url: str,
        database_url: str | None = None,
        app: str = "jobs:herd",
        lock_ms: int = 1500,
        command: str = "worker",
        **variables: str,
    ) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "oxherd", command, "--app", app]
        self._command += ["--no-store"] if database_url is None and command == "worker" else []
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "REDIS_URL": redis_url,
            "JOB_QUEUE_NAME": queue,
            "PORT": str(self.port),
            "HOST": "127.0.0.1",
            "LOG_FORMAT": "json",
            "OPENROUTER_BASE_URL": "http://127.0.0.1:9",
            "WITNESS_URL": witness_url,
            "LOCK_MS": str(lock_ms),
            "PYTHONDONTWRITEBYTECODE": "1",
            **({"DATABASE_URL": database_url} if database_url else {}),
            **variables,
        }
        self._process: Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self.lines: list[dict[str, Any]] = []
        self.stderr = ""

    async def start(self) -> Self:
        """Start it and wait until it takes jobs."""
        await self.launch()
        await self.said("worker.started")
        return self

    async def launch(self) -> None:
        """Start it and wait for nothing."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=APPS, env=self._environment, stdout=PIPE, stderr=PIPE
        )
        self._readers = [asyncio.create_task(self._read_lines()), asyncio.create_task(self._read_stderr())]

    async def close(self) -> None:
        """Kill it if it lives."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self.exited()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None and self._process.returncode is None:
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    async def exited(self, within: float = 20.0) -> int:
        """Wait until it has ended; its exit code."""
        assert self._process is not None
        try:
            async with asyncio.timeout(within):
                code = await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"it did not exit within {within} s\n{self.story()}") from None
        await asyncio.gather(*self._readers)
        return code

    async def said(self, event: str, *, count: int = 1, within: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Wait until it has logged an event so often; the last such line."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines
                if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
            ]

        return (await self.until(lambda: lines if len(lines := found()) >= count else None, within))[count - 1]

    async def until(self, look: Callable[[], Any], within: float = 30.0) -> Any:
        """Look after every line until there is something to see."""
        try:
            async with asyncio.timeout(within):
                while not (found := look()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"did not happen within {within} s\n{self.story()}") from None
        return found

    async def get(self, path: str) -> tuple[int, Any]:
        """GET from its HTTP server: the status and the decoded body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        raw = await reader.read()
        writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        return status, json.loads(body) if b"application/json" in head else body.decode()

    async def health(self, expected: int, *, within: float = 30.0, **checks: bool) -> dict[str, Any]:
        """Ask /health until it answers with this status and these checks; what it said."""
        report: Any = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while True:
                    status, report = await self.get("/health")
                    if status == expected and all(report["checks"][name]["ok"] is ok for name, ok in checks.items()):
                        return dict(report)
                    await asyncio.sleep(0.05)  # no event announces a change of health
        raise AssertionError(f"/health did not become {expected} {checks} within {within} s: {report}\n{self.story()}")

    def story(self) -> str:
        """What it said, for a failed assertion."""
        return "\n".join(f"  {json.dumps(line)[:400]}" for line in self.lines[-60:]) + "\n" + self.stderr[-4000:]

    async def _read_lines(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": "?", "text": line.decode(errors="replace")})
            self._news.set()

    async def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(1 << 16):
            self.stderr += data.decode(errors="replace")
            self._news.set()
