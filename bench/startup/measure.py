"""(e) How long from the start of the process to a worker that works?"""

import contextlib
import socket
import time

from contestants import Contestant
from engines import Snapshots
from processes import BenchError
from report import Answer, Rounds, say
from rig import Worker, rig

CONCURRENCY = 5


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    snapshots = Snapshots()
    results = Rounds("process start")
    for contestant in contestants:
        with results.attempt(contestant.name, 0):
            one_start(contestant, snapshots)  # fills the bytecode and page caches
    for number in range(rounds if quick else max(rounds, 5)):
        for contestant in results.remaining(contestants):
            with results.attempt(contestant.name, number):
                results.add(contestant.name, one_start(contestant, snapshots))
    return {"start": results.medians()}


def one_start(contestant: Contestant, snapshots: Snapshots) -> dict[str, float]:
    result: dict[str, float] = {}
    with rig(contestant, snapshots.filled(contestant, 1)) as built:
        worker = built.start(CONCURRENCY)
        if contestant.name == "oxherd":
            result["health_s"] = healthy_after(worker)
        counts = worker.wait(lambda counts: counts.started > 0, 60, "first job")
        result["first_job_s"] = (counts.first_started - worker.process.spawned_ns) / 1e9
    say("  ".join(f"{name} {value:.3f}" for name, value in result.items()))
    return result


def healthy_after(worker: Worker) -> float:
    """Seconds until `GET /health` first answers 200."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if health_status(worker.health_port) == b"200":
                return (time.monotonic_ns() - worker.process.spawned_ns) / 1e9
        worker.process.check()
        time.sleep(0.002)
    raise BenchError("/health did not answer 200 within 30 s")


def health_status(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        return connection.recv(64).split(b" ")[1]
