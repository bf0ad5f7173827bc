"""The demo's producer: the real BullMQ for Node where Node is, else the real BullMQ for Python."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BULLMQ = "6.7.0"
IOREDIS = "5.11.1"  # BullMQ 6 leaves the client to its user
INSTALL_TIMEOUT = 120.0  # seconds
ADD_TIMEOUT = 20.0  # seconds
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
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NoNode("there is no Node here")
    folder = cache / f"bullmq-{BULLMQ}"
    if not folder.exists():
        _install(folder)
    return folder


def _install(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
            unfinished = Path(parent) / "it"
            unfinished.mkdir()
            (unfinished / "package.json").write_text('{"private": true}\n')
            _npm("install", f"bullmq@{BULLMQ}", f"ioredis@{IOREDIS}", folder=unfinished)
            # Whole or not at all; another demo may have been faster.
            with contextlib.suppress(FileExistsError):
                unfinished.rename(folder)
    except OSError as error:
        raise NoNode(f"{folder.parent} can't be written: {error.strerror}") from None


def _npm(*words: str, folder: Path) -> None:
    command = ["npm", *words, "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, stdin=subprocess.DEVNULL, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoNode(f"npm install bullmq took longer than {INSTALL_TIMEOUT:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise NoNode(f"npm install bullmq failed: {lines[0] if lines else done.returncode}")


def add_with_node(folder: Path, url: str, queue: str, jobs: Jobs) -> list[str]:
    """Put the jobs on the queue and return their ids. Raises NoNode."""
    asked = json.dumps({"url": url, "queue": queue, "jobs": jobs})
    try:
        done = subprocess.run(
            ["node", str(SCRIPT), str(folder)], input=asked, capture_output=True, text=True, timeout=ADD_TIMEOUT, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoNode(f"Node took longer than {ADD_TIMEOUT:g} s") from None
    if done.returncode:
        raise NoNode(f"Node failed: {done.stderr.strip().splitlines()[-1:]}")
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
