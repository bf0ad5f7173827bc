"""(f) A worker is killed with -9 in the middle of a job: when does the job run again on the other one?

All contestants wait at the same time, each on a Valkey of its own: the waiting needs no CPU.
"""

import contextlib
import time

from contestants import Contestant
from engines import enqueue
from processes import ANY_CORE, BenchError
from report import Answer, Rounds, say
from rig import Rig, Worker, rig

CAP = 120
POLL = 0.05


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    results = Rounds("kill -9")
    with contextlib.ExitStack() as stack:
        waiting: list[tuple[str, Worker, int]] = []
        for contestant in contestants:
            # BullMQ's stalled check is a timer: where in its period the kill falls matters
            for number in range(rounds if contestant.wire and not quick else 1):
                with results.attempt(contestant.name, number):
                    built = stack.enter_context(rig(contestant))
                    waiting.append((contestant.name, *kill_mid_job(built)))
                    say("killed")
        while waiting:
            waiting = [one for one in waiting if not settled(results, *one)]
            time.sleep(POLL)
    return {"kill": results.medians()}


def settled(results: Rounds, name: str, survivor: Worker, killed_ns: int) -> bool:
    """Note the result of one kill once there is one."""
    try:
        result = outcome(survivor, killed_ns)
    except BenchError as error:
        results.fail(name, error)
        return True
    if result is None:
        return False
    results.add(name, result)
    say(f"  {name}: {result['seconds']:.1f} s" if "seconds" in result else f"  {name}: not within {CAP} s")
    return True


def kill_mid_job(built: Rig) -> tuple[Worker, int]:
    """One worker holds a job, a second one is up and idle, the first one is killed."""
    cores = ANY_CORE
    first = built.start(1, cores=cores)
    enqueue(built.contestant, built.valkey, 1, {"hold": 600})
    first.wait(lambda counts: counts.hold_started > 0, 30, "the job on the first worker")
    second = built.start(1, cores=cores)
    prove_up(built, second)
    first.process.kill()
    return second, time.monotonic_ns()


def prove_up(built: Rig, worker: Worker) -> None:
    """Send jobs until the second worker has done one; the first may have prefetched a few."""
    for _ in range(15):
        enqueue(built.contestant, built.valkey, 1)
        with contextlib.suppress(BenchError):
            worker.wait(lambda counts: counts.done > 0, 2, "a job on the second worker")
            return
        worker.process.check()
    raise BenchError("the second worker took no job within 30 s")


def outcome(survivor: Worker, killed_ns: int) -> dict[str, float] | None:
    survivor.process.check()
    if started := survivor.counts().hold_started:
        return {"seconds": (started - killed_ns) / 1e9}
    if time.monotonic_ns() - killed_ns > CAP * 1e9:
        return {"not_within_s": CAP}
    return None
