from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, age, clock, duration, note, print_json, print_table, shortened

if TYPE_CHECKING:
    from oxherd.cloud.railway import Deployment, LogLine, Place, Railway
    from oxherd.ops.deploy import Verify, Watched
    from oxherd.ops.diagnosis import Diagnosis
    from oxherd.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="From a commit to a proven worker, on Railway.\n\n"
    "RAILWAY_TOKEN (a project token) says which project and environment; RAILWAY_API_TOKEN with RAILWAY_PROJECT_ID "
    "does too. Where a deployment is no good, the exit code says why: `oxherd --help` has the table.",
)

Service = Annotated[str, typer.Option("--service", metavar="NAME", help="RAILWAY_SERVICE_ID when left out.")]
Environment = Annotated[
    str, typer.Option("--environment", metavar="NAME", help="RAILWAY_ENVIRONMENT_ID when left out.")
]
Timeout = Annotated[str, typer.Option(metavar="DURATION", help="How long the deployment may take to get up.")]
Settle = Annotated[str, typer.Option(metavar="DURATION", help="How long it has to stay up before it is believed.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Believe Railway's SUCCESS.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")]


@app.command()
def status(service: Service = "", environment: Environment = "", as_json: Json = False) -> None:
    """Show what runs, the last deployments, and settings that will hurt a worker. Exit code 1 where nothing serves."""
    from oxherd.ops.deploy import concerns

    settings = _settings()

    async def ask() -> tuple[Place, list[Deployment], list[str]]:
        async with railway_at(settings, service, environment) as (api, place):
            instance = await api.service_instance(place)
            found = await api.deployments(place, limit=10)
            return place, found, concerns(instance, grace=settings.shutdown_grace)

    place, found, warnings = _run(ask())
    if as_json:
        print_json({"service": str(place), "deployments": [_plain(each) for each in found], "concerns": warnings})
    else:
        rows = [
            (each.id, "STOPPED" if each.stopped and each.status == "SUCCESS" else each.status, each.commit[:12],
             f"{age(each.created_at)} ago", "yes" if each.can_rollback else "", shortened(each.message))
            for each in found
        ]  # fmt: skip
        note(str(place))
        print_table(("deployment", "status", "commit", "made", "rollback", "message"), rows)
        for each in warnings:
            note(f"! {each}")
    if not any(each.is_serving for each in found):
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  oxherd deploy logs --follow\n  oxherd deploy logs --only @level:error --lines 500"
)
def logs(
    deployment: Annotated[str, typer.Argument(metavar="[ID]", help="Which deployment; the newest when left out.")] = "",
    build: Annotated[bool, typer.Option("--build", help="Of the build, not of the process.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option(min=1, max=5000, help="How many of the last lines.")] = 100,
    only: Annotated[
        str, typer.Option(metavar="FILTER", help="In Railway's language, such as @level:error; not with --follow.")
    ] = "",
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Print a deployment's log. With --json, one JSON object a line."""
    from oxherd.errors import UsageError
    from oxherd.ops.deploy import newest

    if only and (follow or build):
        raise UsageError("--only is for the process's log as it is, without --follow and --build")
    settings = _settings()

    async def ask() -> None:
        async with railway_at(settings, service, environment) as (api, place):
            chosen = deployment or (await newest(api, place)).id
            if follow:
                async for line in api.follow_logs(chosen, build=build):
                    _print_line(line, as_json)
                return
            found = api.build_logs(chosen, limit=lines) if build else api.deploy_logs(chosen, limit=lines, only=only)
            for line in await found:
                _print_line(line, as_json)

    _run(ask())


@app.command(
    epilog="\b\nExamples:\n  git push && oxherd deploy watch --commit $(git rev-parse HEAD)\n"
    "  oxherd deploy watch --timeout 10m --json"
)
def watch(
    commit: Annotated[
        str, typer.Option(metavar="SHA", help="The newest deployment of this commit, waiting for it to appear.")
    ] = "",
    timeout: Timeout = "20m",
    settle: Settle = "30s",
    no_verify: NoVerify = False,
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Follow the newest deployment to its end, see that it stays up, and verify it; say why where it does not."""
    from oxherd.ops.deploy import newest
    from oxherd.ops.deploy import watch as to_its_end

    settings = _settings()
    seconds, calm = duration_of("--timeout", timeout), duration_of("--settle", settle)

    async def act() -> Watched:
        async with railway_at(settings, service, environment) as (api, place):
            found = await newest(api, place, commit=commit, timeout=seconds)
            _say_which(found)
            verify = None if no_verify else verifier(settings, api)
            return await to_its_end(api, found, timeout=seconds, settle=calm, verify=verify, told=tell)

    finish(_run(act()), as_json)


@app.command(epilog="\b\nExample:\n  oxherd deploy redeploy --yes")
def redeploy(
    timeout: Timeout = "20m",
    settle: Settle = "30s",
    no_verify: NoVerify = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Deploy the same commit again, with the variables of now, and watch it."""
    from oxherd.ops import deploy
    from oxherd.ops.lock import held
    from oxherd.ops.plan import Plan

    settings = _settings()
    seconds, calm = duration_of("--timeout", timeout), duration_of("--settle", settle)

    async def act() -> Watched | None:
        async with railway_at(settings, service, environment) as (api, place):
            latest = await deploy.newest(api, place)
            if not _agreed(Plan((deploy.redeploy_plan(place, latest),)), dry_run=dry_run, yes=yes, as_json=as_json):
                return None
            async with held(settings, place, "deploy redeploy", f"deploying {latest.id} again", note):
                made = await deploy.follow_up(api, place, lambda: api.redeploy(place))
                _say_which(made)
                verify = None if no_verify else verifier(settings, api)
                done = await deploy.watch(api, made, timeout=seconds, settle=calm, verify=verify, told=tell)
                await keep_record(settings, "deploy redeploy", place, done)
                return done

    finish(_run(act()), as_json)


@app.command(
    epilog="\b\nExamples:\n  oxherd deploy rollback --dry-run\n  oxherd deploy rollback --to DEPLOYMENT --yes\n\n"
    "Railway's rollback brings back old variables together with the old image, also a secret that was revoked since. "
    "Where variables were written since, the old commit is deployed with the variables of now instead; "
    "--restore-variables asks for the rollback all the same."
)
def rollback(
    to: Annotated[
        str, typer.Option(metavar="ID", help="A deployment; the last good one before the newest when left out.")
    ] = "",
    restore_variables: Annotated[
        bool, typer.Option("--restore-variables", help="Bring the variables of then back too, whatever changed.")
    ] = False,
    timeout: Timeout = "20m",
    settle: Settle = "30s",
    no_verify: NoVerify = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Bring an earlier deployment back, and watch it."""
    from oxherd.ops import deploy
    from oxherd.ops.lock import held

    settings = _settings()
    seconds, calm = duration_of("--timeout", timeout), duration_of("--settle", settle)

    async def act() -> Watched | None:
        async with railway_at(settings, service, environment) as (api, place):
            way = await deploy.way_back(api, place, to=to)
            way = deploy.forced(way) if restore_variables else way
            if not _agreed(deploy.rollback_plan(place, way), dry_run=dry_run, yes=yes, as_json=as_json):
                return None
            async with held(settings, place, "deploy rollback", f"going back to {way.target.id}", note):
                made = await deploy.go_back(api, place, way)
                _say_which(made)
                verify = None if no_verify else verifier(settings, api)
                done = await deploy.watch(api, made, timeout=seconds, settle=calm, verify=verify, told=tell)
                await keep_record(
                    settings, "deploy rollback", place, done, to=way.target.id, variables=way.restores_variables
                )
                return done

    finish(_run(act()), as_json)


@app.command(
    epilog="\b\nExample:\n  git push && oxherd deploy guard --commit $(git rev-parse HEAD)\n\n"
    "It goes back by itself, without asking: that is what it is for. A deployment that failed before it replaced the "
    "one before it is left alone, and so is one that a newer one has followed."
)
def guard(
    commit: Annotated[
        str, typer.Option(metavar="SHA", help="The newest deployment of this commit, waiting for it to appear.")
    ] = "",
    timeout: Timeout = "20m",
    settle: Settle = "30s",
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Watch and verify the newest deployment, and bring the one before it back where it is no good.

    The exit code says what was wrong, also where all is well again.
    """
    from oxherd.ops import deploy
    from oxherd.ops.lock import held

    settings = _settings()
    seconds, calm = duration_of("--timeout", timeout), duration_of("--settle", settle)

    async def act() -> deploy.Guarded:
        async with railway_at(settings, service, environment) as (api, place):
            await _can_verify(settings)
            found = await deploy.newest(api, place, commit=commit, timeout=seconds)
            _say_which(found)
            async with held(settings, place, "deploy guard", f"watching {found.id}", note):
                done = await deploy.guard(
                    api, place, found, verify=verifier(settings, api), timeout=seconds, settle=calm, told=tell
                )
                back = {"to": done.way.target.id, "variables": done.way.restores_variables} if done.way else {}
                await keep_record(settings, "deploy guard", place, done.watched, **back)
                return done

    done = _run(act())
    more = {
        "still_serving": done.still_serving and done.still_serving.id,
        "went_back_to": done.way and done.way.target.id,
        "after": _dump(done.after) if done.after else None,
    }
    if done.after is not None and not as_json:
        _show(done.after)
    finish(done.watched, as_json, **more)


def _settings() -> Settings:
    from oxherd import settings as variables

    return variables.load(needs=("RAILWAY",))


@asynccontextmanager
async def railway_at(settings: Settings, service: str, environment: str) -> AsyncIterator[tuple[Railway, Place]]:
    """The API, and the service that the settings and these names mean."""
    from oxherd.cloud.railway import Railway

    async with Railway.of(settings) as api:
        place = await api.place(
            project=settings.railway_project_id,
            environment=environment or settings.railway_environment_id,
            service=service or settings.railway_service_id,
        )
        yield api, place


def _run(work: Any) -> Any:
    from oxherd.app import run_loop

    return run_loop(work)


def duration_of(option: str, text: str) -> float:
    """Seconds; `option` is what errors name."""
    from oxherd.errors import UsageError
    from oxherd.settings import parse_duration

    try:
        return parse_duration(text)
    except ValueError as fault:
        raise UsageError(f"{option} {fault}") from None


def verifier(settings: Settings, api: Railway) -> Verify:
    """`oxherd verify` of a deployment, with its own log, address and commit."""
    from oxherd.ops.verify import Asked
    from oxherd.ops.verify import verify as make_checks

    has_redis = getattr(settings, "redis_url", None) is not None

    async def verify(deployment: Deployment) -> Any:
        async def said() -> list[str]:
            return [line.message for line in await api.deploy_logs(deployment.id)]

        asked = Asked(
            settings.job_queue_name, settings.public_url or deployment.url or None, settings if has_redis else None,
            settings.api_token, commit=deployment.commit or None, logs=said,
        )  # fmt: skip
        return await make_checks(asked, lambda check: tell(f"{check.outcome:<7}  {check.name}: {check.found}"))

    return verify


async def _can_verify(settings: Settings) -> None:
    """Refuse to judge a deployment by a Redis that this machine can't reach.

    Raises:
        RedisUnreachable, RedisRefused: it can't.
    """
    from oxherd.app import queue_client

    if getattr(settings, "redis_url", None) is not None:
        async with queue_client(settings):
            pass


def _agreed(plan: Any, *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show a plan; whether it is to be done."""
    steps = [{"action": step.action, "what": step.what, "detail": step.detail} for step in plan.steps]
    if as_json and dry_run:
        print_json({"dry_run": True, "steps": steps})
    elif not as_json:
        for step in plan.steps:
            note(f"{step.action} {step.what}: {step.detail}")
    return not dry_run and (yes or typer.confirm("Go on?", err=True))


def _say_which(deployment: Deployment) -> None:
    note(f"{deployment.id}  {deployment.commit[:12]}  {deployment.message}".rstrip())


def tell(text: str) -> None:
    """A line of progress, with its time."""
    from oxherd.clock import wall_ms

    note(f"{clock(wall_ms())}  {text}")


async def keep_record(settings: Settings, action: str, place: Place, done: Watched, **more: Any) -> None:
    """Keep in the database what was done and how it ended."""
    from oxherd.ops.recording import record
    from oxherd.store import Operation

    summary = {
        "deployment": done.deployment.id, "commit": done.deployment.commit, "status": done.deployment.status,
        "cause": done.diagnosis.cause.value if done.diagnosis else None, **more,
    }  # fmt: skip
    outcome = "ok" if done.diagnosis is None else "failed"
    await record(settings, action, Operation("deploy", str(place), outcome, done.seconds, summary), note)


def finish(done: Watched | None, as_json: bool, **more: Any) -> None:
    """Print how it ended, and exit with what that means."""
    if done is None:
        return
    if as_json:
        print_json(_dump(done) | more)
    else:
        _show(done)
    if done.diagnosis is not None:
        raise typer.Exit(done.diagnosis.exit_code)


def _show(done: Watched) -> None:
    each = done.deployment
    proved = ", verified" if done.report is not None and done.report.ok else ""
    print(f"{each.id} is {each.status}{proved} after {duration(done.seconds)}")
    if done.diagnosis is not None:
        print(done.diagnosis.text)


def _dump(done: Watched) -> dict[str, Any]:
    checks = [
        {"name": each.name, "outcome": each.outcome, "found": each.found, "fix": each.fix}
        for each in (done.report.checks if done.report else ())
    ]
    return {
        "ok": done.diagnosis is None, "deployment": _plain(done.deployment), "seconds": round(done.seconds, 1),
        "diagnosis": _diagnosed(done.diagnosis), "checks": checks,
    }  # fmt: skip


def _diagnosed(diagnosis: Diagnosis | None) -> dict[str, Any] | None:
    if diagnosis is None:
        return None
    return {
        "cause": diagnosis.cause.value, "exit_code": diagnosis.exit_code, "summary": diagnosis.summary,
        "fix": diagnosis.fix, "log": diagnosis.log or None, "lines": list(diagnosis.lines),
    }  # fmt: skip


def _plain(each: Deployment) -> dict[str, Any]:
    return {
        "id": each.id, "status": each.status, "stopped": each.stopped, "created_at": each.created_at,
        "commit": each.commit, "message": each.message, "branch": each.branch, "url": each.url or None,
        "can_rollback": each.can_rollback,
    }  # fmt: skip


def _print_line(line: LogLine, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "timestamp": line.timestamp, "severity": line.severity, "message": line.message,
                "attributes": dict(line.attributes), "instance": line.instance,
            },
            on_one_line=True,
        )  # fmt: skip
    else:
        print(f"{line.timestamp[:19]}Z  {line.severity[:5]:<5}  {line.message}", flush=True)
