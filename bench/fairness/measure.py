"""(i) One tenant has a thousand jobs waiting. How long do the single jobs wait that other tenants add now?

Only for workers that read BullMQ's keys: the payload of each job names its tenant, and all of them get the same queue.
"""

import contextlib
import random
import time

from contestants import Contestant
from engines import enqueue
from processes import ANY_CORE, BenchError, read_samples
from report import Answer, Rounds, say
from rig import Rig, rig

BACKLOG = 1000
WORKERS = 3
CONCURRENCY = 5
SINGLES = 10
APART = (0.3, 0.8)  # seconds between the others' jobs, drawn from these: in step with the backlog all would wait alike
TAKES = (0.2, 1.0)  # seconds that every job takes


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    del rounds  # the tenants are the rounds
    backlog, singles = (100, 3) if quick else (BACKLOG, SINGLES)
    dice = random.Random(7)
    answer: Answer = {}
    for takes in TAKES:
        results = Rounds(f"{backlog:,} jobs of {takes:g} s before it")
        with contextlib.ExitStack() as stack:
            rigs = {}
            for contestant in contestants:
                if contestant.wire:
                    with results.attempt(contestant.name, 0):
                        rigs[contestant.name] = stack.enter_context(rig(contestant))
                        busy(rigs[contestant.name], backlog, takes)
                        say("busy")
            for number in range(singles):
                for built in rigs.values():
                    payload = {"tenant": f"other-{number}", "sent": time.monotonic_ns()}
                    enqueue(built.contestant, built.valkey, 1, payload)
                time.sleep(dice.uniform(*APART))
            longest = backlog * takes / (WORKERS * CONCURRENCY) * 3 + 10
            for name, built in rigs.items():
                with results.attempt(name, 0):
                    results.add(name, waited(built, singles, longest))
        answer[f"{takes:g} s"] = results.medians()
    return answer


def busy(built: Rig, backlog: int, takes: float) -> None:
    """Fill the queue with one tenant's jobs and start the workers, each until it works on them."""
    enqueue(built.contestant, built.valkey, backlog, {"tenant": "one"})
    for _ in range(WORKERS):
        worker = built.start(CONCURRENCY, {"BENCH_SLEEP": str(takes)}, cores=ANY_CORE)
        worker.wait(lambda counts: counts.started > 0, 30, "first job")


def waited(built: Rig, singles: int, longest: float) -> dict[str, float]:
    """Wait until the others' jobs have begun; how long they had waited for that."""
    deadline = time.monotonic() + longest
    while len(samples := [one for worker in built.workers for one in read_samples(worker.slots)]) < singles:
        for worker in built.workers:
            worker.process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{len(samples)} of {singles} jobs began within {longest:.0f} s")
        time.sleep(0.01)
    seconds = sorted(one / 1e9 for one in samples)
    result = {"median_s": seconds[len(seconds) // 2], "max_s": seconds[-1]}
    say(f"median {result['median_s']:.2f} s  max {result['max_s']:.2f} s")
    return result
