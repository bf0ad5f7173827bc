"""Runs one contestant in a process of its own and prints what it used, as JSON.

`probe.py CONTESTANT SCENARIO URL JSON`; CONTESTANT is a module beside this file with `async def connect(url, given)`,
which returns `run(said, heard, tools=…)`: one run, whose text `heard` is told as it comes.
"""

import asyncio
import gc
import importlib
import json
import sys
import time
import urllib.request
from pathlib import Path

WORD, CHUNKS, HELD = "plough", 50, 5
RATE = 50  # tokens a second of each stream
SECONDS, SETTLED, WINDOW = 6.5, 1.5, 4.0  # of a trial: its streams, until it is looked at, for how long
LATE_MS = 100.0


def used_kb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def one_by_one(run, at_once):
    async def prepare(said, heard, runs, *, tools):
        left = runs

        async def line():
            nonlocal left
            while left > 0:
                left -= 1
                await run(said, heard(), tools=tools)

        async def go():
            await asyncio.gather(*(line() for _ in range(min(runs, at_once))))

        return go

    return prepare


async def cpu(prepare, _, given):
    """CPU of a run: a tool call, then 50 chunks of text."""
    said, runs = given["said"], given["runs"]
    words = 0

    def heard(text):
        nonlocal words
        words += text.count(WORD)

    await (await prepare(said, lambda: heard, given["warm_up"], tools=True))()
    go = await prepare(said, lambda: heard, runs, tools=True)
    words, began, used = 0, time.perf_counter(), time.process_time()
    await go()
    used, wall = time.process_time() - used, time.perf_counter() - began
    if words != runs * CHUNKS:
        raise SystemExit(f"{words} words instead of {runs * CHUNKS}")
    return {"cpu_ms": used * 1000 / runs, "runs_s": runs / wall, "busy": used / wall, "total_mb": used_kb() / 1024}


async def trial(prepare, streams):
    """So many streams of 50 tokens a second at once: how late tokens are, and what one costs."""
    await (await prepare("paced", lambda: lambda _: None, streams * 2, tools=False))()
    told = []

    def heard(text):
        now = time.monotonic_ns()
        told.extend((int(word), now) for word in text.split())

    go = await prepare(f"tokens {SECONDS}", lambda: heard, streams, tools=False)
    gc.collect()
    running = asyncio.create_task(go())
    await asyncio.sleep(SETTLED)
    since, used = time.monotonic_ns(), time.process_time()
    await asyncio.sleep(WINDOW)
    until, used = time.monotonic_ns(), time.process_time() - used
    await running
    late = sorted((now - sent) / 1e6 for sent, now in told if since <= sent < until)
    seconds = (until - since) / 1e9
    whole = len(late) >= 0.97 * streams * RATE * seconds
    p99 = late[int(len(late) * 0.99)] if late else float("inf")
    return {
        "streams": streams,
        "p50_ms": late[len(late) // 2] if late else None,
        "p99_ms": p99,
        "us_per_chunk": used * 1e6 / max(len(late), 1),
        "busy": used / seconds,
        "ok": whole and p99 < LATE_MS,
    }


async def streams(prepare, _, given):
    """The most streams at once whose tokens are on time, to an eighth."""
    trials, good, bad, size = [], 0, None, given["first"]
    while bad is None or bad - good > max(good // 8, 1):
        trials.append(await trial(prepare, size))
        print(
            f"    {size} streams: p99 {trials[-1]['p99_ms']:.0f} ms, busy {trials[-1]['busy']:.2f}",
            file=sys.stderr,
            flush=True,
        )
        good, bad = (size, bad) if trials[-1]["ok"] else (good, size)
        size = good * 2 or bad // 2 if bad is None or not good else (good + bad) // 2
        if size < 1:
            break
    best = max((one for one in trials if one["ok"]), key=lambda one: one["streams"], default={"streams": 0})
    return {**best, "trials": trials}


async def memory(prepare, url, given):
    """What a run costs that waits for the rest of its answer."""
    held = [await hold(prepare, url, runs) for runs in (1, 1, given["runs"])]
    return {"one_mb": held[1] / 1024, "kb_per_run": (held[2] - held[1]) / (given["runs"] - 1)}


async def hold(prepare, url, runs):
    words, all_held = 0, asyncio.Event()

    def heard(text):
        nonlocal words
        words += text.count(WORD)
        if words >= runs * HELD:
            all_held.set()

    running = asyncio.create_task((await prepare("hold", lambda: heard, runs, tools=True))())
    async with asyncio.timeout(60):
        await all_held.wait()
    gc.collect()
    used = used_kb()
    await asyncio.to_thread(urllib.request.urlopen, f"{url}/release", b"")
    await running
    return used


async def main(name, scenario, url, given):
    began = time.perf_counter()
    module = importlib.import_module(name)
    connected = await module.connect(url, given)
    imported = time.perf_counter() - began
    prepare = connected if hasattr(module, "BATCHES") else one_by_one(connected, given["at_once"])
    print(json.dumps({**await globals()[scenario](prepare, url, given), "import_s": imported}))


if __name__ == "__main__":
    import uvloop

    name, scenario, url, given = sys.argv[1:]
    uvloop.run(main(name, scenario, url, json.loads(given)))
