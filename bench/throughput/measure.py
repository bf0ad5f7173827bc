"""(a) How many no-op jobs a second does one core do, and what does a job cost in CPU time?"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contestants import Contestant
from engines import Snapshots, Valkey
from processes import BenchError, busy_seconds
from report import Answer, Rounds, say
from rig import NOTHING, Rig, Worker, rig

LIMIT = 90
DISTURBED = 0.1  # cores used by anything but the bench; in (h) that includes Postgres


@dataclass(frozen=True, slots=True)
class Scenario:
    """One column of the table."""

    name: str
    label: str
    concurrency: int
    sleep: float = 0.0


SCENARIOS = (
    Scenario("noop-5", "no-op, concurrency 5", 5),
    Scenario("noop-100", "no-op, concurrency 100", 100),
    Scenario("sleep-500", "50 ms sleep, concurrency 500", 500, sleep=0.05),
)


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    snapshots = Snapshots()
    answer: Answer = {}
    for scenario in SCENARIOS:
        entrants = [contestant for contestant in contestants if scenario.concurrency <= contestant.widest]
        results = Rounds(scenario.label)
        for number in range(rounds):
            for contestant in results.remaining(entrants):
                jobs = contestant.jobs // (4 if quick else 1)
                with results.attempt(contestant.name, number):
                    snapshot = snapshots.filled(contestant, jobs)
                    results.add(contestant.name, one_round(contestant, scenario, snapshot, jobs))
        answer[scenario.name] = results.medians()
    return answer


def one_round(
    contestant: Contestant,
    scenario: Scenario,
    snapshot: Path,
    jobs: int,
    environment: Mapping[str, str] = NOTHING,
) -> dict[str, float]:
    """Run one prefilled queue through one fresh worker."""
    with rig(contestant, snapshot) as built:
        variables = {"BENCH_SLEEP": str(scenario.sleep), "BENCH_TARGET": str(jobs)}
        worker = built.start(scenario.concurrency, {**variables, **contestant.fast_environment, **environment})
        result = timed(worker, built.valkey, jobs)
        result["settle_s"] = settle(built, jobs)
    noise = f"  disturbed: others used {result['others']:.2f} cores" if result["others"] > DISTURBED else ""
    say(f"{result['rate']:9,.0f} jobs/s  {result['cpu_ms']:7.3f} ms CPU/job{noise}")
    return result


def timed(worker: Worker, valkey: Valkey, jobs: int) -> dict[str, float]:
    """The clock runs from the first to the last job done, as the handler saw it."""
    began = worker.wait(lambda counts: counts.done > 0, LIMIT, "first job")
    busy_before, bench_before = busy_seconds(), time.process_time()
    cpu_before, valkey_before = worker.process.cpu_seconds(), valkey.process.cpu_seconds()
    ended = worker.wait(lambda counts: counts.done >= jobs, LIMIT, f"{jobs} jobs")
    cpu, valkey_cpu = worker.process.cpu_seconds() - cpu_before, valkey.process.cpu_seconds() - valkey_before
    others = busy_seconds() - busy_before - (time.process_time() - bench_before) - cpu - valkey_cpu
    seconds = (ended.last_done - ended.first_done) / 1e9
    if ended.done <= began.done:
        raise BenchError("too few jobs to measure")
    return {
        "rate": (jobs - 1) / seconds,
        "cpu_ms": cpu / (ended.done - began.done) * 1000,
        "valkey_cpu_ms": valkey_cpu / (ended.done - began.done) * 1000,
        "jobs": jobs,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "others": max(others, 0) / seconds,
    }


def settle(built: Rig, jobs: int) -> float:
    """Seconds from the last handler's return until Redis knows of every job; only for BullMQ's queue."""
    if not built.contestant.wire:
        return 0.0
    began = time.monotonic()
    while not built.valkey.settled():
        if time.monotonic() - began > LIMIT:
            raise BenchError("jobs were run but never finished on the queue")
        time.sleep(0.002)
    if (completed := built.valkey.completed()) != jobs:
        raise BenchError(f"{completed} of {jobs} jobs are completed on the queue")
    return time.monotonic() - began
