"""`oxherd worker` as a deployment of the fake Railway: its commit says which app it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import aiohttp

from oxherd.embedded.engine import free_port

STARTED = "Started processing jobs from queue"


class DeployedWorker:
    """One container.

    Parameters:
        app: `module:herd`, in `folder`.
        folder: the image's files.
        variables: its environment, besides what a process needs to run at all.
        say: takes each line that it writes.
    """

    def __init__(self, app: str, folder: Path, variables: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._command = [sys.executable, "-m", "oxherd", "worker", "--app", app]
        self._command += [] if "DATABASE_URL" in variables else ["--no-store"]
        self._folder = folder
        self.port = free_port()
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONDONTWRITEBYTECODE": "1",
            "HOST": "127.0.0.1", "LOG_FORMAT": "json", "OPENROUTER_BASE_URL": "http://127.0.0.1:9",
            "PORT": str(self.port), **variables,
        }  # fmt: skip
        self._say = say
        self._started = asyncio.Event()
        self._process: Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self.exit_code: int | None = None
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=self._folder, env=self._environment, stdout=PIPE, stderr=PIPE
        )
        streams = (self._process.stdout, self._process.stderr)
        self._readers = [asyncio.create_task(self._read(stream)) for stream in streams]
        return self

    async def settled(self) -> int | None:
        """Wait until it takes jobs or has ended; what /health answers where Railway asks, or None."""
        assert self._process is not None
        started, ended = asyncio.create_task(self._started.wait()), asyncio.create_task(self._process.wait())
        async with asyncio.timeout(20):
            await asyncio.wait({started, ended}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if ended.done():
            await asyncio.gather(*self._readers)
            self.exit_code = ended.result()
            return None
        ended.cancel()
        with contextlib.suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/health") as answer:
                return answer.status
        return None

    async def stop(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            self.exit_code = await self._process.wait()
        await asyncio.gather(*self._readers)

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while line := await stream.readline():
            self._say(line.decode(errors="replace").rstrip("\n"))
            if STARTED.encode() in line:
                self._started.set()
