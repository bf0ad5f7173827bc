"""Tells systemd how the worker is: ready, alive, stopping.

Source: sd_notify(3), one datagram per message to the socket that systemd names.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from oxherd.telemetry.events import Event, WorkerDraining, WorkerStarted, attach

PER_PERIOD = 3  # signs of life in the time after which systemd gives the worker up


class Notifier:
    """Speaks to systemd from the worker's start to its stop.

    Parameters:
        address: of the socket; `@` begins an abstract one.
        watchdog: seconds without a sign of life after which systemd kills the worker; None where it does not.
        healthy: whether the worker works. While it does not, systemd hears nothing; while it drains, it does.
    """

    def __init__(self, address: str, watchdog: float | None, healthy: Callable[[], bool]) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._healthy = healthy
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Callable[[], None]:
        """Follow the worker from now on. Returns a function that stops it."""
        detach = attach(self._on, WorkerStarted, WorkerDraining)

        def stop() -> None:
            detach()
            if self._task is not None:
                self._task.cancel()

        return stop

    def _on(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self._say("READY=1")
            if self._watchdog is not None:
                self._task = asyncio.get_running_loop().create_task(self._live(self._watchdog), name="systemd")
        else:
            self._draining = True
            self._say("STOPPING=1")

    async def _live(self, watchdog: float) -> None:
        while True:
            if self._draining or self._healthy():
                self._say("WATCHDOG=1")
            await asyncio.sleep(watchdog / PER_PERIOD)

    def _say(self, message: str) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.setblocking(False)
            speaker.sendto(message.encode(), self._address)
