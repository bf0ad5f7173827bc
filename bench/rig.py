"""What every question builds on: a fresh Valkey, a contestant's worker, and waiting with a limit."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contestants import ROOT, WORKERS, Contestant, worker_environment
from engines import Valkey, free_port
from processes import WORKER_CORE, BenchError, Counts, Process, read_counts

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Worker:
    """One running worker and the folder its handler counts in."""

    process: Process
    slots: Path
    health_port: int

    def counts(self) -> Counts:
        return read_counts(self.slots)

    def wait(self, until: Callable[[Counts], bool], limit: float, what: str) -> Counts:
        """Poll the handler's counters until they satisfy `until`.

        Raises:
            BenchError: The worker exited, or `limit` seconds passed.
        """
        deadline = time.monotonic() + limit
        while not until(counts := self.counts()):
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: not within {limit:.0f} s, {counts.done} jobs done")
            self.process.check()
            time.sleep(0.005)
        return counts


@dataclass(slots=True)
class Rig:
    """A Valkey and the workers started on it; all of it ends together."""

    contestant: Contestant
    valkey: Valkey
    folder: Path
    workers: list[Worker] = field(default_factory=list)

    def start(
        self, concurrency: int, environment: Mapping[str, str] = NOTHING, cores: frozenset[int] = WORKER_CORE
    ) -> Worker:
        """Start one more worker, with these variables on top of those every contestant gets."""
        slots = self.folder / f"slots-{len(self.workers)}"
        slots.mkdir()
        port = free_port()
        known = worker_environment(self.contestant, self.valkey.port, slots, concurrency)
        known |= {"PORT": str(port), "HOST": "127.0.0.1", **environment}
        command = self.contestant.argv(known)
        if "DATABASE_URL" in environment:
            command.remove("--no-store")
        log = self.folder / f"worker-{len(self.workers)}.log"
        cwd = WORKERS if self.contestant.script else ROOT
        worker = Worker(Process(command, known, log, cores, cwd), slots, port)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        self.valkey.close()


@contextmanager
def rig(contestant: Contestant, snapshot: Path | None = None) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="oxherd-bench-") as folder:
        built = Rig(contestant, Valkey(snapshot), Path(folder))
        try:
            yield built
        finally:
            built.close()
