"""Whether a deployment works, proven from outside: it is healthy, it is the right one, and it runs a real job.

Works against any host: all it needs is an address, or Redis, or both. Lines of a log are read where they are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

from oxherd.clock import mono, wall_ms
from oxherd.cloud.worker_api import WorkerApi
from oxherd.errors import OxherdError, RedisRefused, RedisUnreachable
from oxherd.ops.testjob import ThroughApi, Way, through_redis
from oxherd.queue.waiting import Ending
from oxherd.settings import Secret, Settings

Outcome = Literal["passed", "failed", "warned", "skipped"]
Logs = Callable[[], Awaitable[Sequence[str]]]

AGAIN = 1.0  # seconds between two looks at what is not there yet
LOG_LAG = 10.0  # seconds by which what collects the log may be late
WITHIN = 3_600_000  # ms: dead letters younger than this are news
MOST_LOOKED_AT = 200
MOST_AT_ONCE = 8
ENOUGH = 3  # test jobs on others, where it is known already that the deployment that is meant is not there
LEAST_ATTEMPTS = 10  # fewer say nothing about an error rate
QUESTION = "Reply with the single word: ready"
STARTED = "Started processing jobs from queue: "
_NOT_IMPORTED = re.compile(
    r"ModuleNotFoundError|ImportError|No module named|Cannot find (module|package)|ERR_MODULE_NOT_FOUND"
    r"|importing \S+ failed|--app \S+: "
)
_ATTEMPTS = re.compile(r"^oxherd_jobs_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at.

    Attributes:
        name: of the check; always the same words.
        outcome: passed, failed, warned (works, but look at it) or skipped (could not be looked at).
        found: what there was, one sentence.
        fix: what to do; empty where nothing is to be done.
        seconds: how long it took.
    """

    name: str
    outcome: Outcome
    found: str
    fix: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All checks in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether none failed, and the least there is was proven: something was looked at."""
        return not self.failed and any(check.outcome == "passed" for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to verify, and by what.

    Attributes:
        queue: its name.
        url: where the deployment's HTTP server is; None where there is none to ask.
        settings: REDIS_URL and the queue's prefix, to run jobs through Redis; None where it can't be reached from here.
        token: API_TOKEN, to run jobs through the HTTP API where `settings` is None.
        commit, version: what must be deployed; None for whatever is. A commit may be shortened.
        logs: gives the deployment's log lines so far; None where there is none to read.
        agent: the name of an agent to run for real; None for none.
        max_usd: what that run may cost.
        patience: seconds that the deployment gets to become healthy, and each job to end.
        queue_age: seconds that the next job in line may have waited.
        error_rate: share of attempts that may have failed since the deployment started.
    """

    queue: str
    url: str | None = None
    settings: Settings | None = None
    token: Secret | None = None
    commit: str | None = None
    version: str | None = None
    logs: Logs | None = None
    agent: str | None = None
    max_usd: Decimal = Decimal("0.05")
    patience: float = 60.0
    queue_age: float = 900.0
    error_rate: float = 0.2


@dataclass(slots=True)
class _Seen:
    """What earlier checks learned of the deployment, for those that follow."""

    commit: str = ""
    version: str = ""
    full: bool = False
    stale: bool = False
    begun: float = field(default_factory=mono)


async def verify(asked: Asked, told: Callable[[Check], None] = lambda _: None) -> Report:
    """Make all checks, one after the other. Changes nothing: the jobs that it runs are removed.

    Parameters:
        asked: what to verify.
        told: is told each check when it is made.
    """
    seen = _Seen()
    checks: list[Check] = []

    async def make(name: str, look: Awaitable[Check]) -> None:
        begun = mono()
        try:
            check = await look
        except OxherdError as error:
            check = Check(
                name, "failed", error.message, error.hint or "see whether the service is there, then try again"
            )
        checks.append(replace(check, name=name, seconds=round(mono() - begun, 3)))
        told(checks[-1])

    async with _server(asked) as api:
        await make("health", _health(asked, api, seen))
        await make("version", _version(asked, seen))
        await make("logs", _logs(asked))
        async with _way(asked, api) as way:
            unreachable = way if isinstance(way, OxherdError) else None
            for name, check in (("test job", _test_job), ("agent", _agent), ("queue", _queue), ("dead letters", _dead)):
                if unreachable is not None:
                    await make(name, _raise(unreachable))
                else:
                    await make(name, check(asked, way, seen))  # type: ignore[arg-type]
        await make("error rate", _error_rate(asked, api))
    return Report(tuple(checks))


@contextlib.asynccontextmanager
async def _server(asked: Asked) -> AsyncIterator[WorkerApi | None]:
    if asked.url is None:
        yield None
        return
    async with WorkerApi(asked.url, asked.token) as api:
        yield api


@contextlib.asynccontextmanager
async def _way(asked: Asked, api: WorkerApi | None) -> AsyncIterator[Way | OxherdError | None]:
    """How jobs get to the queue; what is wrong with it where it can't be used; None where none was given."""
    if asked.settings is None:
        yield ThroughApi(api, asked.queue) if api is not None and asked.token is not None else None
        return
    async with contextlib.AsyncExitStack() as stack:
        way: Way | OxherdError
        try:
            way = await stack.enter_async_context(through_redis(asked.settings))
        except (RedisUnreachable, RedisRefused) as error:
            way = error
        yield way


async def _raise(error: OxherdError) -> Check:
    raise error


def _passed(found: str) -> Check:
    return Check("", "passed", found)


def _failed(found: str, fix: str) -> Check:
    return Check("", "failed", found, fix)


def _warned(found: str, fix: str) -> Check:
    return Check("", "warned", found, fix)


def _skipped(found: str, fix: str = "") -> Check:
    return Check("", "skipped", found, fix)


# -- /health


async def _health(asked: Asked, api: WorkerApi | None, seen: _Seen) -> Check:
    if api is None:
        return _skipped("no address was given", "give the address of the worker, or set PUBLIC_URL")
    while True:
        try:
            status, said = await api.health()
            check = _judged(status, said, asked)
        except OxherdError as error:
            said, check = (
                {},
                _failed(error.message, "is the address right, and PORT the port that the platform routes to?"),
            )
        if check.outcome != "failed" or mono() - seen.begun > asked.patience:
            break
        await asyncio.sleep(AGAIN)
    seen.commit, seen.version = str(said.get("commit", "")), str(said.get("version", ""))
    seen.full = bool(said.get("checks", {}).get("consuming", {}).get("full"))
    return check


def _judged(status: int, said: dict[str, Any], asked: Asked) -> Check:
    checks = said.get("checks")
    if not isinstance(checks, dict):
        return _failed(
            f"HTTP {status}, and the answer is not Oxherd's",
            "is the address that of the worker, and its domain's port PORT?",
        )
    if "consuming" not in checks:
        return _failed("the server there has no worker (`oxherd web`)", "give the address of a worker")
    wrong = [name for name, each in checks.items() if not each.get("ok")]
    if status != 200 or wrong:
        return _failed(f"HTTP {status}; not well: {', '.join(wrong) or 'unknown'}", _fix_of(wrong))
    if said.get("queue") != asked.queue:
        return _failed(
            f"it serves the queue {said.get('queue')!r}, not {asked.queue!r}",
            "set JOB_QUEUE_NAME the same in both places",
        )
    gate = checks["consuming"].get("gate")
    if gate is not None:
        return _failed(f"the intake gate is closed: {gate}", "when that is settled: oxherd gate open")
    return _passed(f"HTTP 200, consuming from {asked.queue} as {said.get('worker')}")


def _fix_of(wrong: Sequence[str]) -> str:
    fixes = {
        "redis": "is REDIS_URL right, and does Redis run?",
        "store": "is DATABASE_URL right, and does Postgres run?",
        "consuming": "restart the worker; its log says what holds it up (docs/runbooks)",
        "draining": "it is being stopped: verify the deployment that replaces it",
    }
    return next((fixes[name] for name in wrong if name in fixes), "its log says what holds it up")


async def _version(asked: Asked, seen: _Seen) -> Check:
    if not seen.version:
        return _skipped("/health did not say which version runs")
    found = f"version {seen.version}, commit {seen.commit or 'unknown'}"
    seen.stale = True
    if asked.version is not None and asked.version != seen.version:
        return _failed(
            f"{found}; expected was version {asked.version}", "deploy that version, or wait until it is live"
        )
    if asked.commit is not None and not _same_commit(asked.commit, seen.commit):
        return _failed(
            f"{found}; expected was commit {asked.commit[:12]}",
            "the old deployment still serves: watch the new one (`oxherd deploy watch`)" if seen.commit
            else "the platform does not set RAILWAY_GIT_COMMIT_SHA; set it to the commit that is deployed",
        )  # fmt: skip
    seen.stale = False
    return _passed(found)


def _same_commit(one: str, other: str) -> bool:
    short, long = sorted((one.lower(), other.lower()), key=len)
    return bool(short) and long.startswith(short)


# -- logs


async def _logs(asked: Asked) -> Check:
    if asked.logs is None:
        return _skipped("no log was given", "add --logs FILE, or - for stdin")
    until = mono() + min(asked.patience, LOG_LAG)
    while True:
        lines = await asked.logs()
        check = read_logs(lines, asked.queue)
        if check.outcome == "passed" or _imports_fail(lines) or mono() > until:
            return check
        await asyncio.sleep(AGAIN)


def read_logs(lines: Sequence[str], queue: str) -> Check:
    """What a log says of the last start: that jobs are processed, and that nothing was missing.

    Parameters:
        lines: the log's, the oldest first; JSON or text.
        queue: the queue that must be served.
    """
    starts = [number for number, line in enumerate(lines) if STARTED in line]
    since = lines[starts[-1] :] if starts else lines
    if missing := _imports_fail(since):
        return _failed(
            f"an import failed: {missing}", "add the package to what the image installs, or correct --app and its path"
        )
    if not starts:
        return _failed(
            f"{len(lines)} lines, none says `[worker] {STARTED}{queue}`",
            "the worker has not started: the log's last lines say why; is its command `oxherd worker`?",
        )
    said = re.search(rf"{STARTED}([^\s\"]+)", since[0])
    if said is None or said[1] != queue:
        return _failed(f"it serves the queue {said[1] if said else ''!r}, not {queue!r}", "correct JOB_QUEUE_NAME")
    return _passed(f"`[worker] {STARTED}{queue}`, and no failed import since")


def _imports_fail(lines: Sequence[str]) -> str:
    line = next((line for line in lines if _NOT_IMPORTED.search(line)), "")
    return line.strip()[-200:]


# -- jobs


async def _test_job(asked: Asked, way: Way | None, seen: _Seen) -> Check:
    """Run `oxherd.echo` until the deployment that is meant has run one: others may serve the same queue."""
    if way is None:
        return _skipped(
            "neither Redis nor the HTTP API can be asked", "set REDIS_URL, or API_TOKEN and give the address"
        )
    nonce, until, others, who = uuid4().hex, mono() + asked.patience, 0, ""
    data = {"nonce": nonce, "whoami": True}
    # A queue wakes its idle workers in no order that could be relied on: ever more jobs at once reach all of them.
    for count in itertools.chain((1, 2, 4), itertools.repeat(MOST_AT_ONCE)):
        left = until - mono()
        endings = await way.run("oxherd.echo", data, patience=left, count=count) if left > 0 else []
        if not endings:
            break
        for who, is_ours in (_who(ending, nonce, asked, seen) for ending in endings):
            if is_ours:
                return _passed(f"oxherd.echo through {way.words}, run by {who}")
        others += len(endings)
        if seen.stale and others >= ENOUGH:
            break
        await asyncio.sleep(AGAIN if others > MOST_AT_ONCE else 0)
    return _not_by_it(others, who, way) if others else _not_taken(asked, seen)


def _who(ending: Ending, nonce: str, asked: Asked, seen: _Seen) -> tuple[str, bool]:
    """Who ran it, in words, and whether that is the deployment that is meant."""
    value = ending.value
    if ending.state != "completed" or not isinstance(value, dict) or value.get("nonce") != nonce:
        return "a worker that does not know oxherd.echo", False
    whoami = value.get("whoami")
    if not isinstance(whoami, dict):
        return "an older Oxherd, which does not say who it is", False
    worker, commit, version = (str(whoami.get(name, "")) for name in ("id", "commit", "version"))
    words = f"{worker} (version {version}, commit {commit or 'unknown'})"
    # Another replica of the same deployment will do; without a commit there is no telling releases apart but by number.
    wanted_commit, wanted_version = asked.commit or seen.commit, asked.version or seen.version
    ours = (not wanted_commit or _same_commit(wanted_commit, commit)) and wanted_version in {"", version}
    return words, ours


def _not_by_it(others: int, who: str, way: Way) -> Check:
    return _failed(
        f"{others} test jobs ran through {way.words}, none by this deployment; the last by {who}",
        "stop the other workers of this queue, or give them a queue of their own (JOB_QUEUE_NAME)",
    )


def _not_taken(asked: Asked, seen: _Seen) -> Check:
    if seen.full:
        return _warned(
            f"all places were taken for {asked.patience:g} s, so the test job was not run",
            "try again when it has room, or raise JOB_CONCURRENCY",
        )
    return _failed(
        f"no worker took the test job within {asked.patience:g} s",
        "compare REDIS_URL, JOB_QUEUE_NAME and JOB_QUEUE_PREFIX here and there; is BullMQ's queue paused?",
    )


async def _agent(asked: Asked, way: Way | None, _seen: _Seen) -> Check:
    if asked.agent is None:
        return _skipped("no --agent was given")
    if way is None:
        return _skipped("neither Redis nor the HTTP API can be asked")
    data = {"agent": asked.agent, "input": QUESTION, "max_usd": float(asked.max_usd), "metadata": {"by": "verify"}}
    ending = next(iter(await way.run("agent.run", data, patience=asked.patience)), None)
    if ending is None:
        return _failed(
            f"{asked.agent} had not answered after {asked.patience:g} s", "is the model slow? try --timeout 3m"
        )
    if ending.state != "completed" or not isinstance(ending.value, dict):
        reason = ending.reason or f"the job was {ending.state}"
        return _failed(f"{asked.agent} failed: {reason}", "docs/models.md says what each answer of the service means")
    usage = ending.value.get("usage") or {}
    cost = usage.get("cost_usd")
    said = f"{asked.agent} answered with {ending.value.get('model')}"
    return _passed(
        f"{said}, {usage.get('output_tokens')} tokens for {'an unknown cost' if cost is None else f'${cost}'}"
    )


# -- the queue's state


async def _queue(asked: Asked, way: Way | None, _seen: _Seen) -> Check:
    if way is None:
        return _skipped("neither Redis nor the HTTP API can be asked")
    counts = await way.counts()
    waiting = counts.get("wait", 0) + counts.get("prioritized", 0)
    found = f"{waiting} waiting, {counts.get('active', 0)} running, {counts.get('delayed', 0)} delayed"
    ages = [
        (wall_ms() - job["timestamp"] - (job["delay"] or 0)) / 1000
        for job in await way.jobs(["prioritized", "wait"], limit=1)
        if not job["attempts_made"]
    ]
    if ages and max(ages) > asked.queue_age:
        return _warned(
            f"{found}; the next in line has waited for {max(ages) / 60:.0f} min",
            "more workers, or a higher JOB_CONCURRENCY",
        )
    return _passed(found)


async def _dead(_asked: Asked, way: Way | None, _seen: _Seen) -> Check:
    if way is None:
        return _skipped("neither Redis nor the HTTP API can be asked")
    every = (await way.counts()).get("failed", 0)
    lately = len(await way.jobs(["failed"], limit=MOST_LOOKED_AT, since=wall_ms() - WITHIN)) if every else 0
    if lately:
        more = " or more" if lately == MOST_LOOKED_AT else ""
        return _warned(f"{lately}{more} jobs failed for good within the hour, {every} are kept", "oxherd jobs dead")
    return _passed(f"none within the hour, {every} are kept")


async def _error_rate(asked: Asked, api: WorkerApi | None) -> Check:
    if api is None:
        return _skipped("no address was given")
    attempts = bad = 0.0
    for labels, count in _ATTEMPTS.findall(await api.metrics()):
        attempts += float(count)
        bad += float(count) if re.search(r'outcome="(failed|retried)"', labels) else 0.0
    found = f"{bad:.0f} of {attempts:.0f} attempts failed since it started"
    if attempts < LEAST_ATTEMPTS or bad / attempts <= asked.error_rate:
        return _passed(found)
    return _failed(found, "oxherd jobs dead shows them by their reason; roll back if they are this deployment's fault")
