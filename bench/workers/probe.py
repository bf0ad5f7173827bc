"""Counts jobs inside the handler, the same way for every contestant written in Python.

Each worker process keeps one small memory-mapped file; the bench reads them from outside. A job costs one
clock read and a few stores, about half a microsecond.
"""

import asyncio
import mmap
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# Words of 8 bytes in the mapped file, as processes.py reads them.
PID, STARTED, DONE, FIRST_STARTED, FIRST_DONE, LAST_DONE, TAKEN, HOLD_STARTED, SAMPLES = range(9)
MOST_SAMPLES = 4096
SIZE = 8 * (SAMPLES + MOST_SAMPLES)

PAUSE = float(os.environ.get("BENCH_SLEEP", "0"))
TARGET = int(os.environ.get("BENCH_TARGET", "0")) or 1 << 62
SLOTS = os.environ.get("BENCH_SLOTS", "")


class Slot:
    """The counters of this process; nanoseconds of CLOCK_MONOTONIC, which all processes share."""

    def __init__(self) -> None:
        path = Path(SLOTS) / f"{os.getpid()}.slot"
        with path.open("w+b") as file:
            file.truncate(SIZE)
            self.words = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("q")
        self.words[PID] = os.getpid()
        self.lock = threading.Lock()
        self.started = self.done = 0

    def begin(self, payload: dict[str, Any]) -> None:
        self.started += 1
        if payload or self.started == 1:
            self.note(payload, time.monotonic_ns())
        self.words[STARTED] = self.started

    def note(self, payload: dict[str, Any], now: int) -> None:
        """What only the first job and jobs with something in them need."""
        if self.started == 1:
            self.words[FIRST_STARTED] = now
        if "sent" in payload and (taken := self.words[TAKEN]) < MOST_SAMPLES:
            self.words[SAMPLES + taken] = now - payload["sent"]
            self.words[TAKEN] = taken + 1
        if "hold" in payload:
            self.words[HOLD_STARTED] = now

    def end(self) -> None:
        now = time.monotonic_ns()
        self.done += 1
        if self.done == 1:
            self.words[FIRST_DONE] = now
        if self.done <= TARGET:
            self.words[LAST_DONE] = now
        self.words[DONE] = self.done  # last, so that a reader who sees it sees the time as well


slot: Slot | None = None
opening = threading.Lock()


def mine() -> Slot:
    global slot  # noqa: PLW0603 - one per process, opened by its first job
    if slot is None:
        with opening:
            slot = slot or Slot()
    return slot


def forget() -> None:
    global slot, opening
    slot, opening = None, threading.Lock()


os.register_at_fork(after_in_child=forget)


def pause_of(payload: dict[str, Any]) -> Any:
    return payload.get("hold", PAUSE)


async def run(payload: dict[str, Any]) -> None:
    """The job, for asyncio workers."""
    counters = slot or mine()
    counters.begin(payload)
    if pause := pause_of(payload):
        await asyncio.sleep(pause)
    counters.end()


def run_blocking(payload: dict[str, Any]) -> None:
    """The same job, for workers made of threads or processes."""
    counters = mine()
    with counters.lock:
        counters.begin(payload)
    if pause := pause_of(payload):
        time.sleep(pause)
    with counters.lock:
        counters.end()


def done_so_far() -> int:
    """Jobs finished by every worker process that shares the folder of slots."""
    files = (path.read_bytes() for path in Path(SLOTS).glob("*.slot"))
    return sum(memoryview(data).cast("q")[DONE] for data in files if data)  # one just made may still be empty


async def paced(count: int, send: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """Send jobs one by one, each 20 to 60 ms after the last one was done, with the time in it.

    Ends after `count` jobs, or after a minute where each is picked up late.
    """
    dice = random.Random(7)
    before = done_so_far()
    enough = time.monotonic() + 60
    for sent in range(1, count + 1):
        await asyncio.sleep(dice.uniform(0.02, 0.06))
        await send({"sent": time.monotonic_ns()})
        await until_done(before + sent)
        if time.monotonic() > enough:
            return


async def until_done(count: int) -> None:
    deadline = time.monotonic() + 30
    while done_so_far() < count:
        if time.monotonic() > deadline:
            raise SystemExit("a job was not picked up within 30 s")
        await asyncio.sleep(0.002)
