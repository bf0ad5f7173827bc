"""Deployments: seen to their end, proved to work, and taken back where they don't."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from oxherd.clock import mono
from oxherd.cloud.railway import OVER, PENDING, Deployment, Place, Railway, ServiceInstance
from oxherd.errors import NotFound, OxherdError, ServiceRefused
from oxherd.ops.diagnosis import Cause, Diagnosis, diagnose
from oxherd.ops.plan import Plan, Step

FIRST, SLOWER, SLOWEST = 2.0, 1.3, 15.0  # seconds between two looks: the first, how they grow, the last
APPEARS = 120.0  # seconds until a redeploy shows up as a new deployment
SETTLE = 30.0  # seconds for which a SUCCESS is watched before it is believed
TIMEOUT = 20 * 60.0  # seconds for a whole deploy
LINES = 500  # of a log that are looked at
REPORTED = 20  # deployments that are looked through for an earlier one
DRAIN_MARGIN = 10.0  # seconds of draining beyond SHUTDOWN_GRACE, for handing jobs back and closing


class Finding(Protocol):
    """One check of a verification: `outcome` is passed, failed, warned or skipped."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def outcome(self) -> str: ...  # noqa: D102
    @property
    def found(self) -> str: ...  # noqa: D102
    @property
    def fix(self) -> str: ...  # noqa: D102


class Report(Protocol):
    """What a verification found."""

    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def checks(self) -> Sequence[Finding]: ...  # noqa: D102


Verify = Callable[[Deployment], Awaitable[Report]]
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Watched:
    """How a deployment ended.

    Attributes:
        deployment: as it was seen last.
        diagnosis: why it is not up, or up and no good; None where all is well.
        report: what the verification found; None where there was none.
        seconds: how long it was watched.
    """

    deployment: Deployment
    diagnosis: Diagnosis | None
    report: Report | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Way:
    """How an earlier deployment is brought back.

    Attributes:
        target: the earlier deployment.
        restores_variables: Railway's rollback, with the variables of then; otherwise its commit is deployed anew, with
            those of now.
        changed: names of variables that were written since.
        because: why this way, in one sentence.
    """

    target: Deployment
    restores_variables: bool
    changed: tuple[str, ...]
    because: str

    @property
    def words(self) -> str:
        """What is done, for people."""
        how = "roll back to" if self.restores_variables else f"deploy commit {self.target.commit[:12]} again, from"
        return f"{how} {self.target.id}"


async def newest(api: Railway, place: Place, *, commit: str = "", timeout: float = 0.0) -> Deployment:  # noqa: ASYNC109
    """The newest deployment, or the newest of a commit, waiting for it to appear.

    Parameters:
        api, place: where.
        commit: its first digits, or all.
        timeout: seconds to wait for a deployment of that commit.

    Raises:
        NotFound: there is none.
    """
    began = mono()
    waited = 0.0
    while True:
        found = await api.deployments(place, limit=REPORTED)
        fitting = [each for each in found if each.commit.startswith(commit.lower())] if commit else found
        if fitting:
            return fitting[0]
        if max(waited, mono() - began) >= timeout:
            break
        pause = api.pace(FIRST * 2)
        await api.sleep(pause)
        waited += pause
    if not commit:
        raise NotFound(f"{place} was never deployed")
    seen = ", ".join(dict.fromkeys(each.commit[:12] for each in found if each.commit)) or "none"
    raise NotFound(
        f"no deployment of commit {commit} appeared within {timeout:.0f} s; the newest are of: {seen}",
        hint="was it pushed to the branch that the service builds from, and do its watch paths cover the change?",
    )


async def watch(
    api: Railway,
    deployment: Deployment,
    *,
    timeout: float = TIMEOUT,  # noqa: ASYNC109  told apart from a cancellation: it is a result
    settle: float = SETTLE,
    verify: Verify | None = None,
    told: Told = lambda _: None,
) -> Watched:
    """Follow a deployment to its end, see whether it stays up, and verify it.

    Parameters:
        api: Railway.
        deployment: which.
        timeout: seconds for it to become SUCCESS.
        settle: seconds for which it has to stay up.
        verify: proves that it works; None leaves that out.
        told: hears what happens, a line each.
    """
    began = mono()

    def ended(now: Deployment, diagnosis: Diagnosis | None, report: Report | None = None) -> Watched:
        return Watched(now, diagnosis, report, mono() - began)

    now = await _until_over(api, deployment, timeout, told)
    if now.status in PENDING:
        late = f"still {now.status} after {timeout:.0f} s"
        return ended(
            now, Diagnosis(Cause.NOT_RUN, late, "`oxherd deploy logs --follow`; `--timeout` is how long to wait")
        )
    if now.is_serving:
        if settle:
            told(f"up; watching it for {settle:.0f} s more")
        now = await _settled(api, now, settle)
    if not now.is_serving:
        return ended(now, await _why(api, now))
    if verify is None:
        return ended(now, None)
    told("verifying")
    report = await verify(now)
    if report.ok:
        return ended(now, None, report)
    now = await api.deployment(now.id)
    return ended(now, _unproved(report) if now.is_serving else await _why(api, now), report)


async def _until_over(api: Railway, deployment: Deployment, timeout: float, told: Told) -> Deployment:  # noqa: ASYNC109
    now, pause, waited, began = deployment, FIRST, 0.0, mono()
    said = ""
    while True:
        if now.status != said:
            said = now.status
            told(said.lower().replace("_", " "))
        if now.status not in PENDING or max(waited, mono() - began) >= timeout:
            return now
        wait = api.pace(pause)
        await api.sleep(wait)
        waited += wait
        pause = min(pause * SLOWER, SLOWEST)
        now = await api.deployment(deployment.id)


async def _settled(api: Railway, deployment: Deployment, seconds: float) -> Deployment:
    """It after some time, or as soon as it is down."""
    now, waited = deployment, 0.0
    while now.is_serving and waited < seconds:
        wait = min(api.pace(seconds / 4), seconds)
        await api.sleep(wait)
        waited += wait
        now = await api.deployment(deployment.id)
    return now


async def _why(api: Railway, now: Deployment) -> Diagnosis:
    """Ask for what a diagnosis needs. A log that Railway doesn't have any more is an empty one."""
    build, started, events = await asyncio.gather(
        api.build_logs(now.id, limit=LINES), api.deploy_logs(now.id, limit=LINES), api.events(now.id),
        return_exceptions=True,
    )  # fmt: skip
    for answer in (build, started, events):
        if isinstance(answer, BaseException) and not isinstance(answer, ServiceRefused):
            raise answer
    return diagnose(
        now.status,
        failed_step=next((e.step for e in events if e.error), "") if isinstance(events, list) else "",
        build=[line.message for line in build] if isinstance(build, list) else (),
        started=[line.message for line in started] if isinstance(started, list) else (),
        instances=now.instances,
    )


def _unproved(report: Report) -> Diagnosis:
    failed = [check for check in report.checks if check.outcome == "failed"]
    return Diagnosis(
        Cause.VERIFICATION,
        "it is up, but does not work: " + "; ".join(f"{check.name}: {check.found}" for check in failed),
        "; ".join(dict.fromkeys(check.fix for check in failed if check.fix)) or "`oxherd verify` shows each check",
    )


async def follow_up(api: Railway, place: Place, act: Callable[[], Awaitable[object]]) -> Deployment:
    """Do what makes a new deployment, and find it.

    Raises:
        NotFound: none appeared.
    """
    known = {each.id for each in await api.deployments(place, limit=REPORTED)}
    await act()
    waited = 0.0
    while True:
        fresh = [each for each in await api.deployments(place, limit=REPORTED) if each.id not in known]
        if fresh:
            return fresh[0]
        if waited >= APPEARS:
            raise NotFound(f"no new deployment of {place} appeared within {APPEARS:.0f} s", hint="oxherd deploy status")
        wait = api.pace(FIRST)
        await api.sleep(wait)
        waited += wait


def redeploy_plan(place: Place, latest: Deployment) -> Step:
    """Say what a redeploy would do."""
    return Step("redeploy", str(place), f"commit {latest.commit[:12] or 'unknown'} with the variables of now")


async def way_back(
    api: Railway, place: Place, *, bad: Deployment | None = None, to: str = "", cause: Cause | None = None
) -> Way:
    """Choose what to go back to, and how.

    Parameters:
        api, place: where.
        bad: what to go back from; the newest deployment when left out.
        to: the id of the deployment to go back to; the newest good one before `bad` when left out.
        cause: why `bad` is no good, where that is known.

    Raises:
        NotFound: there is nothing to go back to.
    """
    found = await api.deployments(place, limit=REPORTED)
    bad = bad or (found[0] if found else None)
    earlier = [each for each in found if bad is not None and each.created_at < bad.created_at]
    if to:
        target = next((each for each in found if each.id == to), None) or await api.deployment(to)
        if not target.can_rollback and not target.commit:
            raise NotFound(f"Railway has no image of {to} any more, and it came from no commit")
    else:
        good = [each for each in earlier if each.can_rollback or each.is_serving]
        if not good:
            raise NotFound(
                "there is no earlier deployment whose image Railway still has",
                hint="deploy a commit that worked, from Railway's dashboard or by a push",
            )
        target = good[0]
    changed = tuple(
        sorted(each.name for each in await api.variable_names(place) if each.updated_at > target.created_at)
    )
    return choose_way(target, changed, same_commit=bad is not None and bad.commit == target.commit, cause=cause)


def choose_way(target: Deployment, changed: tuple[str, ...], *, same_commit: bool, cause: Cause | None) -> Way:
    """Decide between Railway's rollback, which restores variables, and the old commit with the variables of now."""
    names = ", ".join(changed)
    if not target.can_rollback:
        return Way(target, False, changed, "Railway has its image no longer, so its commit is built again")
    if not changed:
        return Way(target, True, changed, "no variable was written since, so none changes")
    if not target.commit:
        return Way(
            target, True, changed, f"it came from no commit; {names} get their old values back, also revoked secrets"
        )
    if same_commit or cause is Cause.VARIABLE:
        return Way(
            target, True, changed,
            f"what changed is the variables, so {names} get their old values back; a secret that was revoked since "
            "will not work",
        )  # fmt: skip
    return Way(
        target, False, changed,
        f"{names} were written since: a rollback would bring their old values back, also revoked secrets, so the "
        "commit is deployed with the variables of now",
    )  # fmt: skip


def forced(way: Way) -> Way:
    """The same with the old variables, because somebody wants that.

    Raises:
        OxherdError: Railway has no image to roll back to.
    """
    if not way.target.can_rollback:
        raise OxherdError(f"Railway has no image of {way.target.id} any more", hint="leave --restore-variables out")
    names = ", ".join(way.changed) or "none"
    return replace(way, restores_variables=True, because=f"as asked; variables that get their old values back: {names}")


def rollback_plan(place: Place, way: Way) -> Plan:
    """Say what going back would do."""
    at = f"{datetime.fromtimestamp(way.target.created_at / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    action = "roll back" if way.restores_variables else "deploy commit"
    commit = way.target.commit[:12] or "no commit"
    return Plan((Step(action, str(place), f"to {way.target.id} ({commit}, {at}): {way.because}"),))


async def go_back(api: Railway, place: Place, way: Way) -> Deployment:
    """Bring an earlier deployment back; the new deployment that does it."""
    if way.restores_variables:
        return await follow_up(api, place, lambda: api.rollback(way.target.id))
    return await api.deployment(await api.deploy_commit(place, way.target.commit))


@dataclass(frozen=True, slots=True)
class Guarded:
    """What a guard saw and did.

    Attributes:
        watched: the deployment that it was to guard.
        still_serving: the earlier deployment that serves on, so that nothing had to be taken back.
        way: how it went back; None where it did not.
        after: how that ended.
    """

    watched: Watched
    still_serving: Deployment | None = None
    way: Way | None = None
    after: Watched | None = None


async def guard(
    api: Railway,
    place: Place,
    deployment: Deployment,
    *,
    verify: Verify,
    timeout: float = TIMEOUT,  # noqa: ASYNC109
    settle: float = SETTLE,
    told: Told = lambda _: None,
) -> Guarded:
    """Watch and verify a deployment; where it is no good and has replaced the one before, bring that one back.

    Parameters: as `watch` has them.
    """
    watched = await watch(api, deployment, timeout=timeout, settle=settle, verify=verify, told=told)
    if watched.diagnosis is None or watched.diagnosis.cause is Cause.NOT_RUN:
        return Guarded(watched)
    told(f"{watched.diagnosis.cause}: {watched.diagnosis.summary}")
    others = await api.deployments(place, limit=REPORTED)
    newer = next((each for each in others if each.created_at > deployment.created_at), None)
    if newer is not None:
        told(f"{newer.id} is newer: it is left to whoever made it")
        return Guarded(watched)
    serving = next((each for each in others if each.is_serving and each.id != deployment.id), None)
    if serving is not None and watched.deployment.status in OVER:
        told(f"{serving.id} ({serving.commit[:12]}) serves on: nothing to take back")
        return Guarded(watched, still_serving=serving)
    way = await way_back(api, place, bad=watched.deployment, cause=watched.diagnosis.cause)
    told(f"going back: {way.words}: {way.because}")
    back = await go_back(api, place, way)
    return Guarded(
        watched,
        way=way,
        after=await watch(api, back, timeout=timeout, settle=settle, verify=verify, told=told),
    )


def concerns(instance: ServiceInstance, *, grace: float) -> list[str]:
    """What in the service's settings will hurt a worker, a line each.

    Parameters:
        instance: the settings.
        grace: SHUTDOWN_GRACE, in seconds.
    """
    found = []
    if not instance.healthcheck_path:
        found.append("no healthcheck path: a deployment replaces the old one before it is known to work; set /health")
    if (instance.draining or 0) < grace + DRAIN_MARGIN:
        found.append(
            f"draining is {instance.draining or 0} s: running jobs are killed, not finished; "
            f"set RAILWAY_DEPLOYMENT_DRAINING_SECONDS to {grace + DRAIN_MARGIN:.0f}"
        )
    if instance.sleeps:
        found.append("app sleeping is on: a sleeping worker takes no jobs")
    if instance.cron:
        found.append(f"it is a cron service ({instance.cron}): a worker has to run all the time")
    if instance.restart_policy == "NEVER":
        found.append("its restart policy is NEVER: after a crash nothing runs")
    return found
