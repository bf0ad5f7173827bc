"""What telemetry costs a worker of no-op jobs: CPU per job and jobs per second, on and off.

    python -m bench.telemetry.run [--jobs 20000] [--rounds 5]

Each round runs each setting once, in its own process against one Valkey; CPU is the worker's, user and system. What is
sent goes to a server in another process, which answers and forgets.
"""

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oxherd.embedded.valkey import Valkey

SETTINGS = {
    "off": {},
    "metrics": {"METRICS": "1"},
    "metrics and log lines": {"METRICS": "1", "LOGS": "1"},
    "all, OpenTelemetry that samples nothing": {"METRICS": "1", "LOGS": "1", "OTEL": "always_off"},
    "all, OpenTelemetry of every job": {"METRICS": "1", "LOGS": "1", "OTEL": "always_on"},
    "all, Sentry for errors": {"METRICS": "1", "LOGS": "1", "SENTRY": "0"},
    "all, Sentry with every job's trace": {"METRICS": "1", "LOGS": "1", "SENTRY": "1"},
}


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def observe(sink: str) -> None:
    """Switch on what this process's variables ask for, as the app does."""
    import gc

    from oxherd.settings import Secret
    from oxherd.telemetry import logs
    from oxherd.telemetry.metrics import Metrics

    if os.environ.get("METRICS"):
        Metrics(["noop"]).attach()
    if os.environ.get("LOGS"):
        # As hosts take lines: a pipe, which somebody reads at once; a write to it costs more than one to /dev/null.
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        logs.configure("info", "json", sink=io.FileIO(reader.stdin.fileno(), "w", closefd=False))
        globals()["reader"] = reader  # else its end of the pipe is closed
    if sampler := os.environ.get("OTEL"):
        from oxherd.telemetry import tracing

        os.environ["OTEL_TRACES_SAMPLER"] = sampler
        service = tracing.Service("bench", "0", "0")
        tracing.start(f"{sink}/v1/traces", service, content=False, hide=logs.cleaner(()))
    if (traces := os.environ.get("SENTRY")) is not None:
        from oxherd.telemetry import sentry

        dsn = Secret(f"{sink.replace('://', '://key@')}/1")
        more = {"release": "1", "environment": "bench", "content": False, "hide": logs.cleaner(())}
        sentry.start(dsn, "bench", traces=float(traces), **more)
    gc.freeze()


async def work(url: str, sink: str, jobs: int) -> dict[str, float]:
    from oxherd.job import State
    from oxherd.queue.admin import Admin
    from oxherd.queue.connection import Link
    from oxherd.queue.keys import Keys
    from oxherd.queue.producer import NewJob, Producer
    from oxherd.settings import parse_redis_url
    from oxherd.worker.handlers import make_handler
    from oxherd.worker.worker import Limits, Worker

    target, keys = parse_redis_url(url), Keys("bench")
    link = Link(target, "bench")
    await link.start()
    await link.call(b"FLUSHALL")
    producer = Producer(link, keys)
    for _ in range(0, jobs, 1000):
        await producer.add_bulk([NewJob("noop", {}, {"removeOnComplete": True})] * 1000)
    observe(sink)
    done, left = asyncio.Event(), jobs

    async def noop(_: object, __: dict) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async def none(*_: object) -> None: ...

    worker = Worker(
        target, keys, {"noop": make_handler("noop", noop)}, store=None, runner=none, limits=Limits(concurrency=100)
    )
    cpu, begun = time.process_time(), time.perf_counter()
    await worker.start()
    await done.wait()
    spent, took = time.process_time() - cpu, time.perf_counter() - begun
    await worker.stop(grace=5)
    assert (await Admin(link, keys).counts())[State.WAIT] == 0
    return {"us": spent / jobs * 1e6, "rate": jobs / took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sink:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
        print(server.server_port, flush=True)
        server.serve_forever()
    elif options.child:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(work(*options.child, options.jobs))), flush=True)
        os._exit(0)  # what is still to be sent is not part of it
    else:
        measure(options.jobs, options.rounds)


def measure(jobs: int, rounds: int) -> None:
    command = [sys.executable, "-m", "bench.telemetry.run"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    with Valkey(tcp=True) as engine, subprocess.Popen([*command, "--sink"], stdout=subprocess.PIPE, text=True) as sink:
        try:
            url = f"http://127.0.0.1:{sink.stdout.readline().strip()}"
            for _ in range(rounds):
                for name, variables in SETTINGS.items():
                    child = [*command, "--jobs", str(jobs), "--child", engine.url, url]
                    done = subprocess.run(child, env=os.environ | variables, capture_output=True, text=True, check=True)
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            sink.kill()
    show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        name: [statistics.median(each[key] for each in rounds) for key in ("us", "rate")]
        for name, rounds in found.items()
    }
    base = medians["off"]
    print("| telemetry | CPU µs/job | more | jobs/s |\n| --- | ---: | ---: | ---: |")
    for name, (cpu, rate) in medians.items():
        print(f"| {name} | {cpu:.1f} | {(cpu / base[0] - 1) * 100:+.0f} % | {rate:,.0f} |")


if __name__ == "__main__":
    main()
