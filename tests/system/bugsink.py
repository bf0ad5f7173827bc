"""Bugsink, a real receiver of Sentry's envelopes, from PyPI.

It lives in a virtual environment of its own, `.venv-bugsink`, made when it is first needed (some 15 seconds) and kept:
its licence, PolyForm Shield, is no open-source one, so it is part of nothing that we ship or lock.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import aiohttp
from stage import eventually

from oxherd.embedded.engine import free_port

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-bugsink"
VERSION = "2.6.2"
PORT = "8433"  # in the configuration that it makes; replaced by a free one
FILES = ("bugsink_conf.py", "db.sqlite3", "snappea.sqlite3", "dsn")
PROJECT = """
from teams.models import Team
from projects.models import Project
print("DSN", Project.objects.create(name="oxherd", team=Team.objects.create(name="oxherd")).dsn)
"""


def install() -> str | None:
    """Make it, unless it is there. Returns why it can't be had."""
    if (HOME / "ready").exists():
        return None
    uv = shutil.which("uv") or str(ROOT / ".venv-tools" / "bin" / "uv")
    if not Path(uv).exists():
        return "needs uv: make setup"
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    # It asks for a certifi that not every index has yet.
    (HOME / "overrides.txt").write_text("certifi>=2025.1\n")
    place = ["--host=127.0.0.1", f"--port={PORT}"]
    try:
        _run(uv, "venv", "--quiet", "--python", sys.executable, "venv")
        wanted = [f"bugsink=={VERSION}", "--override", "overrides.txt"]
        _run(uv, "pip", "install", "--quiet", "--python", "venv", *wanted)
        _run("venv/bin/bugsink-create-conf", "--template=local", *place, "-o", "bugsink_conf.py")
        _run("venv/bin/bugsink-manage", "migrate")
        _run("venv/bin/bugsink-manage", "migrate", "--database=snappea")
        said = _run("venv/bin/bugsink-manage", "shell", "-c", PROJECT)
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]} failed: {error.stderr[-1000:]}"
    found = re.search(r"DSN (\S+)", said)
    assert found is not None, said
    (HOME / "dsn").write_text(found[1])
    (HOME / "ready").touch()
    return None


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "bugsink_conf", "HOME": str(folder), "PYTHONPATH": str(folder)}


def _run(*command: str) -> str:
    # uv keeps its cache where it always is; the rest has no business in the home folder.
    environment = None if command[0].endswith("uv") else _environment(HOME)
    done = subprocess.run(command, cwd=HOME, env=environment, check=True, capture_output=True, text=True, timeout=100)
    return done.stdout


class Bugsink:
    """A server with one project, as an async context manager.

    Parameters:
        folder: for its database.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        port = str(free_port())
        for name in FILES:
            shutil.copy(HOME / name, folder / name)
        for name in ("bugsink_conf.py", "dsn"):
            (folder / name).write_text((folder / name).read_text().replace(PORT, port))
        self.dsn = (folder / "dsn").read_text()
        self._url = f"http://127.0.0.1:{port}"

    async def __aenter__(self) -> Self:
        log = self._folder / "requests.log"
        options = [f"--bind={self._url.removeprefix('http://')}", f"--access-logfile={log}", "--log-level=error"]
        self._process = await asyncio.create_subprocess_exec(
            str(HOME / "venv" / "bin" / "gunicorn"), *options, "bugsink.wsgi",
            cwd=self._folder, env=_environment(self._folder),
        )  # fmt: skip
        await eventually(self._is_ready, within=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()

    async def _is_ready(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self._url}/health/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def issues(self) -> list[tuple[Any, ...]]:
        """Its issues: the type of the error, its words, the function it was raised in, and how many events."""
        wanted = "calculated_type, calculated_value, last_frame_function, digested_event_count"
        return self._read(f"select {wanted} from issues_issue order by id")

    def events(self) -> list[tuple[Any, ...]]:
        """Its events: release, environment and all data."""
        return self._read("select release, environment, data from events_event order by id")

    def answers(self) -> list[int]:
        """The status of each envelope's request."""
        log = (self._folder / "requests.log").read_text()
        return [int(status) for status in re.findall(r'"POST /api/\d+/envelope/[^"]*" (\d+)', log)]

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._folder / "db.sqlite3")) as database:
            return database.execute(query).fetchall()
