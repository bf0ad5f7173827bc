"""(c) How long does a job wait when the worker has nothing else to do?"""

import subprocess
from statistics import quantiles

from contestants import WORKERS, Contestant, worker_environment
from engines import enqueue
from install import paced_producer
from processes import OTHER_CORE, BenchError, Process, last_line, read_samples
from report import Answer, Rounds, say
from rig import Rig, Worker, rig

CONCURRENCY = 5
WARM_UP = 20


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    del rounds  # the samples are the rounds
    samples = 60 if quick else 300
    results = Rounds("pickup latency")
    for contestant in contestants:
        with results.attempt(contestant.name, 0):
            results.add(contestant.name, one_contestant(contestant, samples))
    return {"idle": results.medians()}


def one_contestant(contestant: Contestant, samples: int) -> dict[str, float]:
    with rig(contestant) as built:
        worker = built.start(CONCURRENCY)
        enqueue(contestant, built.valkey, 1)
        worker.wait(lambda counts: counts.done > 0, 30, "first job")
        produce(built, worker, WARM_UP + samples)
        taken = sorted(read_samples(worker.slots)[WARM_UP:])
    percentiles = quantiles(taken, n=100, method="inclusive")
    result = {"p50_ms": percentiles[49] / 1e6, "p99_ms": percentiles[98] / 1e6, "max_ms": taken[-1] / 1e6}
    say(f"p50 {result['p50_ms']:.2f} ms  p99 {result['p99_ms']:.2f} ms  max {result['max_ms']:.2f} ms")
    return {**result, "samples": len(taken)}


def produce(built: Rig, worker: Worker, count: int) -> None:
    """Send jobs one at a time from the contestant's own client, on the other core."""
    producer = paced_producer() if built.contestant.wire else built.contestant
    environment = worker_environment(producer, built.valkey.port, worker.slots, 1)
    argv = [str(producer.python), str(WORKERS / producer.script), "paced", str(count)]
    process = Process(argv, environment, built.folder / "producer.log", OTHER_CORE, WORKERS)
    try:
        code = process.child.wait(timeout=600)
    except subprocess.TimeoutExpired:
        raise BenchError("the producer did not end within 600 s") from None
    finally:
        process.kill()
    if code:
        raise BenchError(f"the producer failed: {last_line(process.log.read_text())}")
