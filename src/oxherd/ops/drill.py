"""Rehearsing disasters: a scratch stack under load, something breaks, the runbook's commands mend it.

Everything runs on this machine, on engines of its own, and is thrown away. What is measured is what people want to know
beforehand: how long until all goes on (RTO), how much is gone (RPO), whether a job was lost or done twice.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from oxherd import settings as variables
from oxherd.app import queue_client
from oxherd.clock import mono
from oxherd.embedded.engine import free_port
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.together import started
from oxherd.embedded.valkey import Valkey
from oxherd.errors import OxherdError, RedisRefused, RedisUnreachable
from oxherd.job import State
from oxherd.ops.child import WorkerProcess
from oxherd.ops.disasters import Disaster
from oxherd.ops.drill_provider import Provider
from oxherd.ops.env import parse
from oxherd.queue.producer import NewJob
from oxherd.store import Operation
from oxherd.store.migrate import migrate

APP = "oxherd.ops.drill_app:herd"
DATABASE = "drill"
PATIENCE = 120.0  # seconds for all jobs to end after the last command
COMMAND_PATIENCE = 180.0  # seconds for one command of a runbook
ENDED = frozenset({State.COMPLETED, State.FAILED})
EVERY = 0.05  # seconds between looks at the jobs


class CommandFailed(OxherdError):
    """A command of the runbook did not end as it should."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command of the runbook, as it was run.

    Attributes:
        command: as the runbook has it.
        code: its exit code.
        seconds: how long it took.
    """

    command: str
    code: int
    seconds: float


@dataclass
class Result:
    """What a drill came to.

    Attributes:
        name: the drill's.
        jobs: how many were on the queue when it broke, or were added meanwhile.
        lost: names of those that were neither done nor kept as failed in the end, though any backup had them.
        gone: the same, of those that came after the backup: the price of the RPO.
        doubled: how many were done twice.
        paid_again: steps that were paid for again though they were kept.
        repeated: steps that ran when it broke, or were kept after the backup, and ran again: nothing can prevent that.
        rto_seconds: from the damage until every job that was waiting or running then, and a new one, had ended.
        rpo_seconds: how far back what could be restored is; 0 where nothing is gone, None where nothing was to be.
        commands: of the runbook, in order.
        fault: why it failed, or an empty string.
        figures: more that this drill measured.
    """

    name: str
    jobs: int = 0
    lost: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    doubled: int = 0
    paid_again: int = 0
    repeated: int = 0
    rto_seconds: float = 0.0
    rpo_seconds: float | None = 0.0
    commands: list[Ran] = field(default_factory=list)
    fault: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the runbook works: no fault, nothing lost, nothing kept was paid for again."""
        return not self.fault and not self.lost and not self.doubled and not self.paid_again

    @property
    def operation(self) -> Operation:
        """What the database keeps of it."""
        return Operation("drill", self.name, "ok" if self.ok else "failed", self.rto_seconds, self.summary())

    def summary(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "jobs": self.jobs, "lost": len(self.lost), "gone": len(self.gone), "doubled": self.doubled,
            "paid_again": self.paid_again, "repeated": self.repeated, "rto_seconds": round(self.rto_seconds, 1),
            "rpo_seconds": None if self.rpo_seconds is None else round(self.rpo_seconds, 1), "fault": self.fault,
            **self.figures,
            "commands": [{"command": ran.command, "code": ran.code, "seconds": ran.seconds} for ran in self.commands],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drill:
    """A rehearsal on a stage.

    Attributes:
        disaster: what it rehearses, with the runbook's commands.
        play: breaks something on a stage, mends it, and fills in the result.
        workers: how many run beforehand.
    """

    disaster: Disaster
    play: Callable[[Stage, Result], Awaitable[None]]
    workers: int = 1


class Stage:
    """A scratch stack: engines, a provider, workers, jobs.

    Parameters:
        disaster: whose commands are run.
        folder: for all that it keeps; removed by whoever made it.
    """

    def __init__(self, disaster: Disaster, folder: Path) -> None:
        self.disaster = disaster
        self.folder = folder
        self.valkey = Valkey(tcp=True, append_only=True)
        self.postgres = Postgres(config={"fsync": "off"})
        self.provider = Provider()
        self.workers: list[WorkerProcess] = []
        self.jobs: list[str] = []
        self.backed_up: Backed | None = None
        self.extra: dict[str, str] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        engines = started((self.valkey, self.postgres), lambda *_: None)
        await asyncio.to_thread(self._stack.enter_context, engines)
        await self._stack.enter_async_context(self.provider)
        self._stack.push_async_callback(self._stop_workers)
        database = await asyncio.to_thread(self.postgres.create_database, DATABASE)
        await migrate(database)
        self.variables = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": database,
            "OPENROUTER_BASE_URL": self.provider.base_url,
            "OPENROUTER_API_KEY": self.provider.key,
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "API_TOKEN": secrets.token_urlsafe(24),
            "HOST": "127.0.0.1",
            "LOG_FORMAT": "json",
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stop_workers(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(worker.stop, grace=1) for worker in self.workers))

    async def move(self) -> None:
        """Leave the engines for new, empty ones, as in another region; the old ones are gone."""
        await asyncio.to_thread(self.valkey.kill)
        await asyncio.to_thread(self.postgres.kill)
        valkey, postgres = Valkey(tcp=True, append_only=True), Postgres(config={"fsync": "off"})
        await asyncio.to_thread(self._stack.enter_context, started((valkey, postgres), lambda *_: None))
        self.variables |= {
            "REDIS_URL": valkey.url,
            "DATABASE_URL": await asyncio.to_thread(postgres.create_database, DATABASE),
        }

    # -- workers and jobs

    async def start_worker(self, app: str = APP, **changes: str) -> WorkerProcess:
        """Start one and wait until it is healthy. Raises OxherdError with its last words."""
        worker = self.launch(app, **changes)
        await asyncio.to_thread(worker.wait_until_healthy)
        return worker

    def launch(self, app: str = APP, **changes: str) -> WorkerProcess:
        """Start one, without waiting."""
        port = str(free_port())
        worker = WorkerProcess(
            {**self.variables, "PORT": port, **changes}, app=app, log=self.folder / f"worker-{len(self.workers)}.log",
            inherit=False,
        )  # fmt: skip
        self.workers.append(worker)
        worker.start()
        self.extra["WORKER_URL"] = worker.url
        return worker

    @property
    def ledger(self) -> Path:
        """Where the jobs write down what they pay for."""
        return self.folder / "ledger"

    async def add(self, count: int, *, job: str = "drill.work", takes: float = 0.2, attempts: int = 8) -> list[str]:
        """Put jobs on the queue; their ids."""
        names = [f"{job}-{len(self.jobs) + number}" for number in range(count)]
        backoff = {"type": "fixed", "delay": 500}
        made = [
            NewJob(job, {"name": name, "ledger": str(self.ledger), "takes": takes},
                   {"jobId": name, "attempts": attempts, "backoff": backoff})
            for name in names
        ]  # fmt: skip
        async with queue_client(self.settings) as (producer, _):
            ids = await producer.add_bulk(made)
        self.jobs += ids
        return ids

    @property
    def settings(self) -> variables.Settings:
        """Of the stack as it is now."""
        return variables.load(self.variables)

    async def hand_over(self) -> None:
        """Be the person for whom a rotation waits: run workers with the values that it has left, then stop the others.

        Raises:
            CommandFailed: it waits for nothing.
        """
        file = next((self.folder / ".oxherd" / "rotations").glob("*.env"), None)
        if file is None:
            raise CommandFailed("the rotation stopped, and not for its new value to be set")
        values, _ = parse(file.read_text(), file.name)
        self.variables |= {each: value.reveal() for each, value in values.items()}
        old = list(self.workers)
        await self.start_worker()
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in old))

    async def until_ended(self, ids: Sequence[str], *, states: frozenset[str] = ENDED, share: float = 1.0) -> list[str]:
        """Wait until so large a share of these jobs is in one of these states; those that are not."""
        deadline, left = mono() + PATIENCE, list(ids)
        async with queue_client(self.settings) as (_, admin):
            while len(left) > len(ids) * (1 - share) and mono() < deadline:
                with contextlib.suppress(RedisUnreachable, RedisRefused):
                    left = [one for one in left if await admin.state(one) not in states]
                await asyncio.sleep(EVERY)
        return left

    async def until_closed(self) -> None:
        """Wait until workers have closed the intake gate. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE), queue_client(self.settings) as (_, admin):
            while await admin.gate() is None:  # noqa: ASYNC110  another process closes it
                await asyncio.sleep(EVERY)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for what another process does. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            while not happened():  # noqa: ASYNC110  as above
                await asyncio.sleep(EVERY)

    async def _unended(self) -> list[str]:
        async with queue_client(self.settings) as (_, admin):
            return [one for one in self.jobs if await admin.state(one) not in ENDED]

    # -- the runbook

    async def follow(self, result: Result, steps: slice = slice(None)) -> None:
        """Run the commands of these steps of the runbook. Raises CommandFailed: one ended with a code it should not."""
        for step in self.disaster.steps[steps]:
            for command in () if step.elsewhere else step.commands:
                result.commands.append(await self.run(command, codes=step.codes))

    async def run(self, command: str, *, codes: Sequence[int] = (0,)) -> Ran:
        """Run a shell command with the stack's variables. Raises CommandFailed."""
        environ = variables.child_environ({**self.variables, **self.extra}, inherit=False)
        return await run_command(command, environ, self.folder, codes=codes)

    async def sql(self, statement: str) -> None:
        """Do something to the database that nobody should."""
        import asyncpg

        connection = await asyncpg.connect(self.variables["DATABASE_URL"])
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def back_up(self) -> None:
        """Take a backup by Oxherd's own commands; the first time, make the keys for it."""
        if self.backed_up is None:
            await self.run("oxherd backup keygen --output backup.key")
            lines = (self.folder / "backup.key").read_text().splitlines()
            self.variables |= {
                "BACKUP_URL": str(self.folder / "backups"),
                "BACKUP_RECIPIENTS": lines[0].rpartition(" ")[2],
                "BACKUP_IDENTITY": lines[1],
            }
            self.extra |= {"DATABASE": DATABASE, "QUEUE": self.settings.job_queue_name}
        # What is on its way while the backup is taken may be in it or not.
        backed_up = Backed(mono(), len(self.jobs), len(self._lines()))
        await self.run("oxherd backup create")
        self.backed_up = backed_up

    # -- the figures

    def _lines(self) -> list[str]:
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    async def measure(self, result: Result, since: float) -> None:
        """Wait for all jobs and count.

        Parameters:
            result: is filled in.
            since: monotonic seconds of the damage.
        """
        # What Redis does not know any more will never end.
        await self.until_ended(self.jobs, states=ENDED | {"unknown"})
        result.rto_seconds = mono() - since
        result.jobs = len(self.jobs)
        left = await self._unended()
        backup = self.backed_up or Backed(since, len(self.jobs), None)
        result.rpo_seconds = since - backup.at
        safe = set(self.jobs[: backup.jobs])
        result.lost = [one for one in left if one in safe]
        result.gone = [one for one in left if one not in safe]
        result.paid_again, result.doubled, result.repeated = count(self._lines(), backup.lines)


@dataclass(frozen=True, slots=True)
class Backed:
    """What a backup has for certain: when it began (monotonic seconds), how many jobs, lines of the ledger."""

    at: float
    jobs: int
    lines: int | None


def count(lines: Sequence[str], safe: int | None = None) -> tuple[int, int, int]:
    """Steps that were paid again though they were kept, jobs that were delivered twice so, other repeated steps.

    Parameters:
        lines: of the ledger.
        safe: only what these first lines say was kept had to be kept; all of it when left out.
    """
    kept: set[tuple[str, str]] = set()
    paid: Counter[tuple[str, str]] = Counter()
    again: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(lines):
        what, name, step = line.split()
        place = (name, step)
        if what == "paid":
            paid[place] += 1
            again[place] += place in kept
        elif safe is None or number < safe:
            kept.add(place)
    repeated = sum(times - 1 - again[place] for place, times in paid.items())
    return again.total(), sum(1 for (_, step), times in again.items() if times and step == "deliver"), repeated


async def run_command(
    command: str, environ: Mapping[str, str], folder: Path | None, *, codes: Sequence[int] = (0,)
) -> Ran:
    """Run a shell command, `oxherd` being this program. Raises CommandFailed: it ended with another code, or never."""
    path = os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", os.defpath)))
    begun = mono()
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command, env={**environ, "PATH": path}, cwd=folder, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CommandFailed(f"{command}: no end after {COMMAND_PATIENCE:g} s") from None
    code = process.returncode or 0
    if code not in codes:
        words = output.decode(errors="replace").strip().splitlines()[-6:]
        raise CommandFailed(f"{command}: exit code {code}: {' / '.join(words)}")
    return Ran(command, code, round(mono() - begun, 2))


async def in_production(disaster: Disaster, environ: Mapping[str, str]) -> Result:
    """Run the commands of a drill that breaks nothing, with the variables as they are here."""
    result, since = Result(disaster.name, rpo_seconds=None), mono()
    try:
        for command in disaster.commands:
            result.commands.append(await run_command(command, environ, None))
    except CommandFailed as error:
        result.fault = error.message
    result.rto_seconds = mono() - since
    return result


async def rehearse(drill: Drill) -> Result:
    """Run one on a scratch stack. A fault of the stack or the runbook is in the result, not raised."""
    result = Result(drill.disaster.name)
    with tempfile.TemporaryDirectory(prefix="oxherd-drill-") as folder:
        try:
            async with Stage(drill.disaster, Path(folder)) as stage:
                await asyncio.gather(*(stage.start_worker() for _ in range(drill.workers)))
                await drill.play(stage, result)
        except (OxherdError, OSError, TimeoutError) as error:
            result.fault = str(error) or type(error).__name__
    if result.lost and not result.fault:
        result.fault = f"{len(result.lost)} jobs are lost, such as {result.lost[0]}"
    return result


@contextlib.asynccontextmanager
async def damage(stage: Stage, result: Result) -> AsyncIterator[None]:
    """What is done inside breaks something and mends it; then all jobs, and a new one, have to end."""
    since = mono()
    yield
    await stage.add(1)
    await stage.measure(result, since)
