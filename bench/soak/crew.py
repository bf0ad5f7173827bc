"""The worker processes of a soak."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

UNREACHABLE = 3  # the exit code of a worker that found Redis or Postgres away when it started
HERE = Path(__file__).parent


class Hand:
    """One worker process after another, in one place.

    Parameters:
        name: what its log is called.
        environment: its variables.
        folder: where its log is written.
        app: the folder with its `herd.py`.
    """

    def __init__(self, name: str, environment: dict[str, str], folder: Path, app: Path = HERE) -> None:
        self._environment = environment
        self._app = app
        self._logged = 0  # bytes, by the processes before this one
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._doomed = False

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.alive:
            return
        self._doomed = False
        self._logged = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "oxherd", "worker", "--app", "herd:herd"],
                cwd=self._app, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it runs and takes jobs."""
        with self.log.open("rb") as log:
            log.seek(self._logged)
            return self.alive and b'"worker.started"' in log.read()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        self._doomed = self._doomed or number in (signal.SIGKILL, signal.SIGTERM)
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    @property
    def died(self) -> int | None:
        """The exit code with which it ended although nobody had told it to; None where it did not."""
        return None if self._process is None or self._doomed else self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it still runs after so many seconds."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def lines(self) -> list[dict[str, Any]]:
        """What its processes logged; what is no JSON (a traceback, a torn last line) has the event `?`."""
        return (
            [_parsed(line) for line in self.log.read_text(errors="replace").splitlines()] if self.log.exists() else []
        )


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {"event": "?", "text": line}
    return found if isinstance(found, dict) else {"event": "?", "text": line}


class Crew:
    """All of them."""

    def __init__(self, size: int, variables: dict[str, str], urls: list[str], folder: Path, app: Path = HERE) -> None:
        common = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
        self.hands = [
            Hand(f"worker-{n}", {**common, "REDIS_URL": urls[n % len(urls)]}, folder, app) for n in range(size)
        ]

    def start(self) -> None:
        """Start whoever does not run."""
        for hand in self.hands:
            hand.start()

    async def tend(self) -> None:
        """Start again who could not reach a service, as a platform does. Raises where one died of anything else."""
        while True:
            await asyncio.sleep(0.2)
            for hand in self.hands:
                if hand.died == UNREACHABLE:
                    hand.start()
                elif hand.died is not None:
                    raise AssertionError(f"{hand.log.name} died by itself with exit code {hand.died}")

    def stop(self) -> list[int | None]:
        """SIGTERM to all; the exit codes of those that were there, which one that could not begin is not."""
        there = [hand for hand in self.hands if hand.died != UNREACHABLE]
        for hand in there:
            hand.signal(signal.SIGCONT)
            hand.signal(signal.SIGTERM)
        return [hand.wait(40) for hand in there]

    def kill(self) -> None:
        """End whoever is left."""
        for hand in self.hands:
            hand.signal(signal.SIGKILL)
            hand.wait(10)

    def events(self) -> Counter[str]:
        """How often each event was logged."""
        return Counter(str(line.get("event")) for hand in self.hands for line in hand.lines())

    def faults(self) -> list[str]:
        """Lines that no worker should ever write."""
        return [
            f"{hand.log.name}: {line.get('stack') or line.get('text')}"
            for hand in self.hands
            for line in hand.lines()
            if line.get("event") == "worker.fault" or "Traceback" in str(line.get("text"))
        ]
