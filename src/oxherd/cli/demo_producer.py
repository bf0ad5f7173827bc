"""The demo's producer: the real BullMQ for Node where Node is, else the real BullMQ for Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BULLMQ = "6.7.0"
IOREDIS = "5.11.1"  # BullMQ 6 leaves the client to its user
INSTALL_TIMEOUT = 60.0  # seconds
ADD_TIMEOUT = 20.0  # seconds
NPM_OPTIONS = (
    "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error", "--fetch-retries=1",
)  # fmt: skip
SCRIPT = Path(__file__).with_suffix(".cjs")

Jobs = Sequence[dict[str, Any]]


class NoNode(Exception):
    """Node's BullMQ can't be used here; the message says why."""


def prepare(cache: Path) -> Path:
    """Install BullMQ for Node into a folder below `cache`, once for all times.

    Returns:
        The folder that holds its node_modules.

    Raises:
        NoNode: there is no Node or npm, or the package could not be installed.
    """
    _program("node")
    folder = cache / f"bullmq-{BULLMQ}"
    if not folder.exists():
        _install(folder)
    return folder


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NoNode(f"there is no {name} here")
    return path


def _install(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
            unfinished = Path(parent) / "it"
            unfinished.mkdir()
            (unfinished / "package.json").write_text('{"private": true}\n')
            _npm_install(unfinished)
            unfinished.rename(folder)  # whole or not at all
    except OSError as error:
        if not folder.exists():  # otherwise another demo was faster
            raise NoNode(f"{folder.parent} can't be written: {error.strerror}") from None


def _npm_install(folder: Path) -> None:
    packages = (f"bullmq@{BULLMQ}", f"ioredis@{IOREDIS}")
    done = _run([_program("npm"), "install", *NPM_OPTIONS, *packages], seconds=INSTALL_TIMEOUT, folder=folder)
    if done.returncode:
        raise NoNode(f"npm install bullmq failed: {_last_line(done.stderr)}")


def _run(command: list[str], *, seconds: float, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoNode(f"{Path(command[0]).name} took longer than {seconds:g} s") from None


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it does not say why")


def add_with_node(folder: Path, url: str, queue: str, jobs: Jobs) -> list[str]:
    """Put the jobs on the queue and return their ids. Raises NoNode."""
    asked = json.dumps({"url": url, "queue": queue, "jobs": jobs})
    done = _run([_program("node"), str(SCRIPT), str(folder)], seconds=ADD_TIMEOUT, folder=folder, text=asked)
    if done.returncode:
        raise NoNode(f"Node failed: {_last_line(done.stderr)}")
    ids: list[str] = json.loads(done.stdout)
    return ids


async def add_with_python(url: str, queue: str, jobs: Jobs) -> list[str]:
    """Put the jobs on the queue with the `bullmq` package and return their ids."""
    from bullmq import Queue

    producer = Queue(queue, {"connection": url})
    try:
        return [str((await producer.add(job["name"], job["data"], job["opts"])).id) for job in jobs]
    finally:
        await producer.close()
