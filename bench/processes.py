"""Starts workers on their own core and reads from outside what they use and what they have done."""

import ctypes
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# The words of a slot file, as probe.py and probe.mjs write them.
HEADER = struct.Struct("<8q")
TAKEN, SAMPLES = 6, 8
TICK = os.sysconf("SC_CLK_TCK")
DIE_WITH_PARENT = 1

ALLOWED = sorted(os.sched_getaffinity(0))
WORKER_CORE = frozenset({ALLOWED[-1]})
OTHER_CORE = frozenset({ALLOWED[0]})
ANY_CORE = frozenset(ALLOWED)


def before_exec(cores: frozenset[int]) -> None:
    """Runs in the child: pin it, and let it die with the bench even if the bench is killed."""
    os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


@dataclass(slots=True)
class Counts:
    """The sum over all processes of one worker; times in nanoseconds of CLOCK_MONOTONIC, 0 = not yet."""

    started: int = 0
    done: int = 0
    first_started: int = 0
    first_done: int = 0
    last_done: int = 0
    hold_started: int = 0


class Process:
    """A worker, producer or engine with all its children."""

    def __init__(
        self, argv: list[str], environment: Mapping[str, str], log: Path, cores: frozenset[int], cwd: Path
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self.spawned_ns = time.monotonic_ns()
            self.child = subprocess.Popen(
                argv,
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: before_exec(cores),  # noqa: PLW1509 - the bench has one thread
            )

    @property
    def pid(self) -> int:
        return self.child.pid

    def check(self) -> None:
        if (code := self.child.poll()) is not None:
            raise BenchError(f"exited with {code}: {last_line(self.log.read_text(errors='replace'))}")

    def family(self) -> list[int]:
        """This process and all its descendants."""
        parents = dict(parents_of_all())
        family = {self.pid}
        while grown := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= grown
        return sorted(family)

    def cpu_seconds(self) -> float:
        """User and system time of the family, with the children that have ended."""
        return sum(sum(map(int, stat[11:15])) for pid in self.family() if (stat := stat_of(pid))) / TICK

    def memory_kb(self) -> int:
        """Proportional set size of the family: shared pages count once."""
        return sum(map(pss_kb, self.family()))

    def kill(self) -> None:
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.child.wait()


class BenchError(Exception):
    """A contestant did not do what the question needs; its cell stays empty and says why."""


def last_line(output: str) -> str:
    """Where a traceback says what was wrong."""
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no output"


def busy_seconds() -> float:
    """CPU time of everything on this machine since it started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def stat_of(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def parents_of_all() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := stat_of(int(entry.name))):
            yield int(entry.name), int(stat[1])


def pss_kb(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def read_counts(slots: Path) -> Counts:
    total = Counts()
    for path in slots.glob("*.slot"):
        with path.open("rb") as file:
            data = file.read(HEADER.size)
        if len(data) < HEADER.size:
            continue  # just made
        _, started, done, first_started, first_done, last_done, _, hold_started = HEADER.unpack(data)
        total.started += started
        total.done += done
        total.first_started = earliest(total.first_started, first_started)
        total.first_done = earliest(total.first_done, first_done)
        total.last_done = max(total.last_done, last_done)
        total.hold_started = max(total.hold_started, hold_started)
    return total


def read_samples(slots: Path) -> list[int]:
    """The pickup latencies in nanoseconds, of all processes."""
    samples: list[int] = []
    for path in slots.glob("*.slot"):
        words = memoryview(path.read_bytes()).cast("q")
        samples.extend(words[SAMPLES : SAMPLES + words[TAKEN]])
    return samples


def earliest(one: int, other: int) -> int:
    return min(one, other) if one and other else one or other
