"""Signals: one table, and what each does to a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

from oxherd.worker.executor import THREADS
from oxherd.worker.worker import Worker

EXIT_CODES = {
    0: "fine: drained, everything finished or handed back",
    1: "found a problem",
    2: "wrong use: a variable, an argument or the --app module",
    3: "a service could not be reached",
    130: "stopped by a third signal without waiting for anything",
}


class Shutdown:
    """Turns signals into an orderly stop.

    SIGTERM or SIGINT: stop taking, let jobs finish within the grace period, hand the rest back.
    A second one: hand back at once. A third: leave now; leases run out and other workers take over.
    SIGUSR1: print the stack of every task.
    """

    def __init__(self, worker: Worker, *, grace: float) -> None:
        self._worker = worker
        self._grace = grace
        self._count = 0
        self._asked = asyncio.Event()
        self._reason = "stop"

    def install(self) -> None:
        """Listen for the signals."""
        loop = asyncio.get_running_loop()
        table: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._stop("SIGTERM"),
            signal.SIGINT: lambda: self._stop("SIGINT"),
            signal.SIGUSR1: print_stacks,
        }
        for number, action in table.items():
            loop.add_signal_handler(number, action)

    async def wait(self) -> None:
        """Return when the worker has been asked to stop and has stopped."""
        await self._asked.wait()
        await self._worker.stop(reason=self._reason, grace=self._grace)

    def _stop(self, reason: str) -> None:
        self._count += 1
        if self._count == 1:
            self._reason = reason
            self._asked.set()
        elif self._count == 2:
            self._worker.hurry()
        else:
            sys.stderr.flush()
            os._exit(130)


async def join_threads(patience: float = 1.0) -> bool:
    """Wait for the threads of plain handlers and steps. False: one of them goes on, whatever it was told.

    Parameters:
        patience: seconds.
    """
    try:
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().shutdown_default_executor()
            while any(thread.name.startswith(THREADS) for thread in threading.enumerate()):
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return True


def print_stacks() -> None:
    """Write every task's stack to stderr."""
    tasks = asyncio.all_tasks()
    sys.stderr.write(f"--- {len(tasks)} tasks ---\n")
    for task in sorted(tasks, key=lambda task: task.get_name()):
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()
