"""(h) What does durability cost? Every run recorded in Postgres, against BullMQ that records nothing."""

import os
import subprocess

from contestants import BY_NAME, ROOT, Contestant, oxherd_command
from engines import Postgres, Snapshots, postgres
from processes import BenchError
from report import Answer, Rounds
from throughput.measure import SCENARIOS, one_round

DIVISOR = 2  # two thirds to a half of (a)'s pace keeps the rounds as long


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    entrants = [contestant for contestant in contestants if contestant.name in ("oxherd", "bullmq-node")]
    answer: Answer = {}
    with postgres() as server:
        if BY_NAME["oxherd"] in entrants:
            migrate(server)
        snapshots = Snapshots()
        for scenario in SCENARIOS:
            results = Rounds(f"{scenario.label}, recorded")
            for number in range(rounds):
                for contestant in results.remaining(entrants):
                    jobs = contestant.jobs // (8 if quick else DIVISOR)
                    with results.attempt(contestant.name, number):
                        snapshot = snapshots.filled(contestant, jobs)
                        if contestant.name == "oxherd":
                            server.query("TRUNCATE oxherd.runs CASCADE")
                            result = one_round(contestant, scenario, snapshot, jobs, {"DATABASE_URL": server.url})
                            check_recorded(server, jobs)
                        else:
                            result = one_round(contestant, scenario, snapshot, jobs)
                        results.add(contestant.name, result)
            answer[scenario.name] = results.medians()
    return answer


def migrate(server: Postgres) -> None:
    environment = {**os.environ, "DATABASE_URL": server.url}
    done = subprocess.run(
        [oxherd_command(), "db", "migrate"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"oxherd db migrate: {done.stderr[-800:] or done.stdout[-800:]}")


def check_recorded(server: Postgres, jobs: int) -> None:
    """A run that is not in the table was not recorded, however fast it was."""
    recorded = int(server.query("SELECT count(*) FROM oxherd.runs WHERE finished_at IS NOT NULL"))
    if recorded != jobs:
        raise BenchError(f"{recorded} of {jobs} runs are in Postgres")
