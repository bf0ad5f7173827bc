"""Runs one client in a process of its own and prints what it used, as JSON: CPU per reply, import time, memory.

`probe.py CLIENT URL REPLIES AT_ONCE`; CLIENT is a module beside this file with `async def connect(url)`, which returns
a function that gets one reply and returns its text.
"""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

CHUNKS = 50
WARM_UP = 20  # replies
Ask = Callable[[], Awaitable[str]]


def used_kb() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def ask_all(ask: Ask, replies: int, at_once: int) -> None:
    left = replies

    async def one_line() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            text = await ask()
            if len(text.split()) < CHUNKS * 0.9:
                raise SystemExit(f"not the whole reply: {text!r}")

    await asyncio.gather(*(one_line() for _ in range(at_once)))


async def measure(client: str, url: str, replies: int, at_once: int) -> dict[str, float]:
    began = time.perf_counter()
    module = importlib.import_module(client)
    ask = await module.connect(url)
    imported = time.perf_counter() - began
    await ask_all(ask, WARM_UP, at_once)
    began, cpu = time.perf_counter(), time.process_time()
    await ask_all(ask, replies, at_once)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    return {
        "cpu_ms": cpu * 1000 / replies,
        "us_per_chunk": cpu * 1e6 / replies / CHUNKS,
        "busy": cpu / wall,
        "import_s": imported,
        "memory_mb": used_kb() / 1024,
    }


if __name__ == "__main__":
    import uvloop

    name, address, replies, at_once = sys.argv[1:]
    print(json.dumps(uvloop.run(measure(name, address, int(replies), int(at_once)))))
