"""Signals: one table, and what each does to a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oxherd.clock import mono
from oxherd.worker.executor import TASKS, THREADS
from oxherd.worker.worker import Worker


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

    async def started(self, starting: Coroutine[Any, Any, None]) -> bool:
        """Run the start of everything. False: a signal came first and the start was cancelled.

        Raises:
            Whatever the start raises.
        """
        task, asked = asyncio.create_task(starting), asyncio.create_task(self._asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return False
        await task
        return True

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


def run_steps_in_known_threads() -> ThreadPoolExecutor:
    """Give the loop an executor whose threads can be told from others; `handlers_ended` wants it."""
    executor = ThreadPoolExecutor(thread_name_prefix=THREADS)
    asyncio.get_running_loop().set_default_executor(executor)
    return executor


async def handlers_ended(executor: ThreadPoolExecutor, patience: float = 1.0) -> bool:
    """Wait for what is left of handlers. False: one goes on, whatever it was told, and would keep the process alive.

    Parameters:
        executor: where plain steps run.
        patience: seconds.
    """
    # Not the loop's own shutdown_default_executor: where that one gives up, it joins the threads all the same.
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = mono() + patience
    while busy := _handlers_go_on():
        if mono() > deadline:
            break
        await asyncio.sleep(0.01)
    return not busy


def _handlers_go_on() -> bool:
    threads = any(thread.name.startswith(THREADS) for thread in threading.enumerate())
    return threads or any(task.get_name().startswith(TASKS) for task in asyncio.all_tasks())


def print_stacks() -> None:
    """Write every task's stack to stderr."""
    tasks = asyncio.all_tasks()
    sys.stderr.write(f"--- {len(tasks)} tasks ---\n")
    for task in sorted(tasks, key=lambda task: task.get_name()):
        sys.stderr.write(task.get_name() + "\n" + "".join(_stack(task)))
    sys.stderr.flush()


def _stack(task: asyncio.Task[Any]) -> list[str]:
    """A task's whole stack. Its own `print_stack` ends at the first `await`, before anything of interest."""
    waits_in: Any = task.get_coro()
    lines: list[str] = []
    while waits_in is not None:
        frame = getattr(waits_in, "cr_frame", None) or getattr(waits_in, "gi_frame", None)
        if frame is not None:
            lines += traceback.format_list(traceback.extract_stack(frame, limit=1))
        waits_in = getattr(waits_in, "cr_await", None) or getattr(waits_in, "gi_yieldfrom", None)
    return lines
