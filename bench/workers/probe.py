"""Counts jobs inside the handler, the same way for every contestant written in Python.

Each worker process keeps one small memory-mapped file; the bench reads them from outside. A job costs two
clock reads and one `pack_into`, about a microsecond.
"""

import asyncio
import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<8q")  # pid, started, done, first started, first done, last done, samples, hold started
SAMPLE = struct.Struct("<q")
SAMPLES = 4096
SIZE = HEADER.size + SAMPLES * SAMPLE.size

PAUSE = float(os.environ.get("BENCH_SLEEP", "0"))
TARGET = int(os.environ.get("BENCH_TARGET", "0")) or 1 << 62
SLOTS = os.environ.get("BENCH_SLOTS", "")


class Slot:
    """The counters of this process; nanoseconds of CLOCK_MONOTONIC, which all processes share."""

    def __init__(self) -> None:
        path = Path(SLOTS) / f"{os.getpid()}.slot"
        with path.open("w+b") as file:
            file.truncate(SIZE)
            self.memory = mmap.mmap(file.fileno(), SIZE)
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.started = self.done = self.samples = 0
        self.first_started = self.first_done = self.last_done = self.hold_started = 0

    def begin(self, payload: dict[str, Any]) -> None:
        now = time.monotonic_ns()
        with self.lock:
            self.started += 1
            if self.started == 1:
                self.first_started = now
            if "sent" in payload and self.samples < SAMPLES:
                SAMPLE.pack_into(self.memory, HEADER.size + self.samples * SAMPLE.size, now - payload["sent"])
                self.samples += 1
            if "hold" in payload:
                self.hold_started = now
            self.write()

    def end(self) -> None:
        now = time.monotonic_ns()
        with self.lock:
            self.done += 1
            if self.done == 1:
                self.first_done = now
            if self.done <= TARGET:
                self.last_done = now
            self.write()

    def write(self) -> None:
        HEADER.pack_into(
            self.memory,
            0,
            self.pid,
            self.started,
            self.done,
            self.first_started,
            self.first_done,
            self.last_done,
            self.samples,
            self.hold_started,
        )


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


def pause_of(payload: dict[str, Any]) -> float:
    return float(payload.get("hold", PAUSE))


async def run(payload: dict[str, Any]) -> None:
    """The job, for asyncio workers."""
    counters = mine()
    counters.begin(payload)
    if pause := pause_of(payload):
        await asyncio.sleep(pause)
    counters.end()


def run_blocking(payload: dict[str, Any]) -> None:
    """The same job, for workers made of threads or processes."""
    counters = mine()
    counters.begin(payload)
    if pause := pause_of(payload):
        time.sleep(pause)
    counters.end()


def done_so_far() -> int:
    """Jobs finished by every worker process that shares the folder of slots."""
    files = (path.read_bytes() for path in Path(SLOTS).glob("*.slot"))
    return sum(HEADER.unpack_from(data)[2] for data in files if data)  # one just made may still be empty


async def paced(count: int, send: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """Send `count` jobs one by one, each 20 to 60 ms after the last one was done, with the time in it."""
    dice = random.Random(7)
    before = done_so_far()
    for sent in range(count):
        deadline = time.monotonic() + 30
        while done_so_far() - before < sent:
            if time.monotonic() > deadline:
                raise SystemExit(f"job {sent} was not picked up within 30 s")
            await asyncio.sleep(0.002)
        await asyncio.sleep(dice.uniform(0.02, 0.06))
        await send({"sent": time.monotonic_ns()})
