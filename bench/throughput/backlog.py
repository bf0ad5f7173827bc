"""(b) What does a long queue cost? The same first jobs, with 10,000 and with 1,000,000 left behind them."""

from contestants import Contestant
from engines import Snapshots
from report import Answer, Rounds, say
from rig import rig
from throughput.measure import timed

CONCURRENCY = 100
MEASURED = 20_000
BACKLOGS = {"10k": 10_000, "1M": 1_000_000}
NAMES = ("oxherd", "bullmq-node")


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    snapshots = Snapshots()
    measured = MEASURED // (2 if quick else 1)
    entrants = [contestant for contestant in contestants if contestant.name in NAMES]
    tables = {name: Rounds(f"{name} backlog") for name in BACKLOGS}
    for number in range(rounds):
        for contestant in entrants:
            for name, results in tables.items():
                with results.attempt(contestant.name, number):
                    snapshot = snapshots.filled(contestant, BACKLOGS[name] + measured)
                    with rig(contestant, snapshot) as built:
                        worker = built.start(CONCURRENCY, {"BENCH_TARGET": str(measured)})
                        result = timed(worker, built.valkey, measured)
                    say(f"{result['rate']:9,.0f} jobs/s")
                    results.add(contestant.name, result)
    return {name: results.medians() for name, results in tables.items()}
