"""(d) What does a job in flight cost in memory? Jobs that only sleep, so the rest is the system's own.

Each level has a worker of its own with just that concurrency, because some systems set aside memory for
each slot when they start.
"""

import time

from contestants import Contestant
from engines import enqueue
from report import Answer, Rounds, say
from rig import Worker, rig

LEVELS = (1, 1000, 5000)
WARM_UP = 20  # few: what many at once leave behind in the allocator would hide what the held jobs need
HELD = {"hold": 600, "timeout": 0}


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    del rounds  # one process each: memory does not scatter as time does
    levels = LEVELS[:2] if quick else LEVELS
    results = Rounds("memory in flight")
    for contestant in contestants:
        wanted = [level for level in levels if level <= contestant.widest]
        if len(wanted) == 1:
            continue
        with results.attempt(contestant.name, 0):
            results.add(contestant.name, one_contestant(contestant, wanted))
    return {"in_flight": results.medians()}


def one_contestant(contestant: Contestant, levels: list[int]) -> dict[str, float]:
    totals = {level: memory_holding(contestant, level) for level in levels}
    result = {f"total_mb_{level}": kilobytes / 1024 for level, kilobytes in totals.items()}
    for level in levels[1:]:
        result[f"kb_per_job_{level}"] = (totals[level] - totals[1]) / (level - 1)
    say("  ".join(f"{name} {value:.1f}" for name, value in result.items()))
    return result


def memory_holding(contestant: Contestant, level: int) -> int:
    """Kilobytes of a worker with `level` jobs in flight."""
    with rig(contestant) as built:
        worker = built.start(level, contestant.fast_environment)
        enqueue(contestant, built.valkey, WARM_UP)
        started(worker, WARM_UP)
        enqueue(contestant, built.valkey, level, HELD)
        started(worker, WARM_UP + level)
        time.sleep(1)
        return worker.process.memory_kb()


def started(worker: Worker, count: int) -> None:
    worker.wait(lambda counts: counts.started >= count, 90, f"{count} started")
