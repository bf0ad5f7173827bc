from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.deploy import Environment, NoVerify, Service, Settle, Timeout
from oxherd.cli.printing import Json, note, print_json, print_table
from oxherd.errors import OxherdError, UsageError

if TYPE_CHECKING:
    from oxherd.cloud.railway import Place, Railway
    from oxherd.ops.deploy import Watched
    from oxherd.ops.env import Fault
    from oxherd.ops.env_push import Push
    from oxherd.ops.verify import Check
    from oxherd.settings import Secret, Settings

app = typer.Typer(
    no_args_is_help=True,
    help="The worker's variables: checked, compared, brought to Railway.\n\nOnly `export` and `open` show values.",
)

FromFile = Annotated[
    Path | None, typer.Option("--from-file", metavar="FILE|-", help="A .env file or JSON; - for stdin.")
]
FromCommand = Annotated[
    str | None, typer.Option("--from-command", metavar="COMMAND", help="A secret manager's command that prints them.")
]
OnRailway = Annotated[bool, typer.Option("--railway", help="The variables of the service on Railway.")]
HERE = "here"


@app.command(
    epilog="\b\nExamples:\n  oxherd env check\n  oxherd env check --from-file .env --probe\n"
    "  oxherd env check --railway --json"
)
def check(
    from_file: FromFile = None,
    railway: OnRailway = False,
    probe: Annotated[bool, typer.Option("--probe", help="Also ask the services whether they let us in.")] = False,
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Say what is missing, malformed, a placeholder, weak, duplicated, unused, or differs between places.

    Looked at are this environment, a file, or Railway; held against them are `.env`, Dockerfile and
    .railway/railway.py. Exit code 1 where something is wrong.
    """
    from oxherd.app import run_loop
    from oxherd.ops import env
    from oxherd.ops.env_probes import probe as ask_services

    place, values, twice, sealed = _looked_at(from_file, railway, service, environment)
    others: dict[str, dict[str, Secret]] = env.in_project(Path())
    if place != ".env" and Path(".env").is_file():
        others[".env"] = env.parse(Path(".env").read_text(encoding="utf-8"), ".env")[0]
    faults = env.check(place, values, others=others, sealed=sealed, twice=twice, is_file=place != HERE)
    unreadable = any(fault.kind == "malformed" for fault in faults)
    if probe and unreadable:
        note("the services are not asked: first correct what is malformed")
    probes = run_loop(ask_services(_parsed(values))) if probe and not unreadable else []
    failed = [fault for fault in faults if not fault.is_note] or [each for each in probes if each.outcome == "failed"]
    if as_json:
        print_json(_report(place, values, sealed, faults, probes))
    else:
        _show(place, values, sealed, faults, probes)
    if failed:
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  oxherd env template > .env")
def template() -> None:
    """Print a .env with every variable, what it does, and its default."""
    from oxherd.settings import env_example

    print(env_example(), end="")


@app.command("generate-key", epilog="\b\nExample:\n  oxherd env generate-key ENCRYPTION_KEY >> .env")
def generate_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ENCRYPTION_KEY.")] = "ENCRYPTION_KEY",
) -> None:
    """Make a key and print it as NAME=value. Keep a copy where the database's backups are not."""
    from oxherd.ops import env

    if name not in {"ENCRYPTION_KEY", "AUDIT_KEY"}:
        raise UsageError(
            f"{name} is no key that is made here", hint="ENCRYPTION_KEY or AUDIT_KEY; tokens: openssl rand -hex 24"
        )
    print(f"{name}={env.new_key()}")


@app.command(epilog="\b\nExamples:\n  oxherd env diff --from-file .env\n  oxherd env diff --json")
def diff(
    from_file: FromFile = None, service: Service = "", environment: Environment = "", as_json: Json = False
) -> None:
    """Compare a file, or this environment, with Railway, by names and fingerprints. Exit code 1 where they differ."""
    from oxherd.ops import env

    _, here, _, _ = _looked_at(from_file, False, service, environment)
    _, there, _, sealed = _looked_at(None, True, service, environment)
    found = env.differences(here, there, sealed, env.Fingerprints(_own().audit_key))
    if as_json:
        print_json(
            {
                "variables": [
                    {"name": each.name, "state": each.state, "here": each.here, "there": each.there} for each in found
                ]
            }
        )
    else:
        print_table(
            ("variable", "state", "here", "there"), [(each.name, each.state, each.here, each.there) for each in found]
        )
        note("a sealed variable is never returned, so it can't be compared" if sealed else "")
    if any(each.state not in {"same", "unknown"} for each in found):
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  oxherd env push --from-file .env --dry-run\n"
    "  op inject -i .env.tpl | oxherd env push --from-file - --yes\n"
    "  oxherd env push --from-command 'doppler secrets download --no-file --format env'\n"
    "  oxherd env push --from-file .env --via browser      # for accounts without API access"
)
def push(
    from_file: FromFile = None,
    from_command: FromCommand = None,
    via: Annotated[str, typer.Option(metavar="api|browser", help="By the API, or through the dashboard.")] = "api",
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --via browser: where things are on the page.")
    ] = None,
    login: Annotated[str, typer.Option(metavar="DURATION", help="With --via browser: time to log in.")] = "5m",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    no_deploy: Annotated[bool, typer.Option("--no-deploy", help="Write them, and leave the deploy to you.")] = False,
    timeout: Timeout = "20m",
    settle: Settle = "30s",
    no_verify: NoVerify = False,
    service: Service = "",
    environment: Environment = "",
    as_json: Json = False,
) -> None:
    """Bring variables to Railway: plan, confirm, write all in one call, redeploy once, watch, verify.

    Only what is given is written; nothing is removed. Values come from a file, stdin or a command, not from arguments.
    """
    from oxherd.app import run_loop
    from oxherd.cli.deploy import finish

    if (from_file is None) == (from_command is None):
        raise UsageError(
            "say where the values are", hint="either --from-file FILE (- for stdin) or --from-command COMMAND"
        )
    if via not in {"api", "browser"}:
        raise UsageError("--via must be api or browser")
    wanted = _given(from_file)[0] if from_file is not None else _from_command(from_command or "")
    agreed = _asking(dry_run=dry_run, yes=yes, as_json=as_json, on_stdin=str(from_file) == "-")
    if via == "browser":
        made = run_loop(_by_browser(wanted, recipe, login, service, environment, agreed))
        note("" if made.is_empty or dry_run else "saved; the dashboard deploys it: oxherd deploy watch")
        if as_json:
            print_json(_planned(made, dry_run=dry_run))
        return
    made, done = run_loop(
        _by_api(wanted, agreed, (timeout, settle), no_deploy=no_deploy, no_verify=no_verify, at=(service, environment))
    )
    if done is None:
        if as_json:
            print_json(_planned(made, dry_run=dry_run))
        return
    finish(done, as_json, plan=_planned(made, dry_run=dry_run)["changes"])


@app.command(epilog="\b\nExamples:\n  oxherd env pull production.env.age\n  oxherd env open production.env.age")
def pull(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Is written; must not be there.")],
    service: Service = "",
    environment: Environment = "",
) -> None:
    """Save the service's variables to a file that is encrypted to a passphrase. Needs the extra backup.

    Sealed ones are never returned, so they are missing there. `oxherd env open` opens it, and so does `age --decrypt`.
    """
    from oxherd.backup.sealing import lock
    from oxherd.ops import env

    _, values, _, sealed = _looked_at(None, True, service, environment)
    own = {name: value for name, value in values.items() if not name.startswith("RAILWAY_")}
    data = lock(env.render(own), _passphrase(twice=True))
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
    except OSError as error:
        raise UsageError(f"can't write {file}: {error.strerror}") from None
    note(f"{len(own)} variables in {file}" + (f"; not there, since sealed: {', '.join(sealed)}" if sealed else ""))


@app.command("open", epilog="\b\nExample:\n  oxherd env open production.env.age > .env")
def open_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by `oxherd env pull`.")],
    show: Annotated[bool, typer.Option("--show", help="Also on a terminal, where others may look on.")] = False,
) -> None:
    """Print what is in a file that `oxherd env pull` has saved: the values themselves."""
    from oxherd.backup.sealing import unlock

    _guard_terminal(show)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None
    print(unlock(data, _passphrase()), end="")


@app.command(
    epilog="\b\nExamples:\n  oxherd env export --raw | pbcopy\n  oxherd env export --raw --from-file .env | wl-copy"
)
def export(
    raw: Annotated[bool, typer.Option("--raw", help="NAME=value lines, for the dashboard's raw editor.")] = False,
    from_file: FromFile = None,
    show: Annotated[bool, typer.Option("--show", help="Also on a terminal, where others may look on.")] = False,
) -> None:
    """Print this environment's (or a file's) variables of the settings table, to be pasted by hand: values included."""
    from oxherd.ops import env

    if not raw:
        raise UsageError("the values themselves are printed", hint="say so with --raw")
    _guard_terminal(show)
    _, values, _, _ = _looked_at(from_file, False, "", "")
    own = {
        name: value for name, value in values.items()
        if (name in env.KNOWN or from_file is not None) and not name.startswith("RAILWAY_")
    }  # fmt: skip
    print(env.render(own), end="")


# -- where values are


def _looked_at(
    from_file: Path | None, railway: bool, service: str, environment: str
) -> tuple[str, Mapping[str, Secret], list[str], list[str]]:
    """A place's name, its values, names that are there twice, and names that are sealed."""
    from oxherd.app import run_loop
    from oxherd.settings import Secret, child_environ

    if railway and from_file is not None:
        raise UsageError("--railway and --from-file are two places", hint="compare them with: oxherd env diff")
    if railway:
        place, values, sealed = run_loop(_on_railway(service, environment))
        return f"Railway ({place})", values, [], sealed
    if from_file is not None:
        values, twice = _given(from_file)
        return from_file.name, values, twice, []
    return HERE, {name: Secret(value) for name, value in child_environ({}).items()}, [], []


async def _on_railway(service: str, environment: str) -> tuple[Place, dict[str, Secret], list[str]]:
    from oxherd.cli.deploy import railway_at

    async with railway_at(_railway_settings(), service, environment) as (api, place):
        return place, await api.variables(place), await _sealed(api, place)


async def _sealed(api: Railway, place: Place) -> list[str]:
    return sorted(each.name for each in await api.variable_names(place) if each.is_sealed)


def _given(path: Path) -> tuple[dict[str, Secret], list[str]]:
    from oxherd.ops import env

    if str(path) == "-":
        return env.parse(sys.stdin.read(), "stdin")
    try:
        return env.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {path}: {error}") from None


def _from_command(command: str) -> dict[str, Secret]:
    from oxherd.ops import env

    words = shlex.split(command)
    if not words:
        raise UsageError("--from-command is empty")
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False, text=True)
    except OSError as error:
        raise UsageError(f"--from-command: can't run {words[0]}: {error.strerror}") from None
    if done.returncode:
        raise OxherdError(f"--from-command: {words[0]} ended with exit code {done.returncode}; nothing was changed")
    return env.parse(done.stdout, f"what {words[0]} printed")[0]


def _own() -> Settings:
    from oxherd import settings as variables

    return variables.load(needs=())


def _railway_settings() -> Settings:
    from oxherd import settings as variables

    return variables.load(needs=("RAILWAY",))


def _parsed(values: Mapping[str, Secret]) -> Settings:
    from oxherd import settings as variables

    return variables.load({name: value.reveal() for name, value in values.items()}, needs=())


def _passphrase(*, twice: bool = False) -> Secret:
    """From the terminal, unseen, or the first line of stdin where that is none."""
    from oxherd.settings import Secret

    text = (
        typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\n")
    )
    if len(text) < 12:
        raise UsageError("the passphrase must have 12 characters or more")
    return Secret(text)


def _guard_terminal(show: bool) -> None:
    if sys.stdout.isatty() and not show:
        raise UsageError(
            "the values would stand on the screen", hint="pipe it to the clipboard or a file, or add --show"
        )


# -- pushing


def _asking(*, dry_run: bool, yes: bool, as_json: bool, on_stdin: bool) -> Any:
    def agreed(made: Push) -> bool:
        if not as_json:
            print_table(
                ("action", "variable", "value"), [(each.action, each.name, each.detail) for each in made.changes]
            )
        if dry_run or made.is_empty:
            return False
        if not yes and on_stdin:
            raise UsageError("stdin has the values, so it can't answer", hint="look with --dry-run, then add --yes")
        return yes or typer.confirm("Go on?", err=True)

    return agreed


async def _by_api(
    wanted: Mapping[str, Secret],
    agreed: Any,
    times: tuple[str, str],
    *,
    no_deploy: bool,
    no_verify: bool,
    at: tuple[str, str],
) -> tuple[Push, Watched | None]:
    from oxherd.cli.deploy import duration_of, keep_record, railway_at, tell, verifier
    from oxherd.ops import env_push
    from oxherd.ops.deploy import follow_up, watch
    from oxherd.ops.lock import held

    settings = _railway_settings()
    patience, calm = duration_of("--timeout", times[0]), duration_of("--settle", times[1])
    async with railway_at(settings, *at) as (api, place):
        made = env_push.plan(wanted, await api.variables(place, unrendered=True), await _sealed(api, place))
        if not agreed(made):
            return made, None
        async with held(settings, place, "env push", f"writing {', '.join(sorted(made.values))}", note):
            await api.write_variables(place, made.values, skip_deploys=True)
            tell(f"{len(made.values)} variables written to {place}")
            if no_deploy:
                await _record(settings, str(place), made)
                note("the running worker keeps its old values until: oxherd deploy redeploy")
                return made, None
            deployment = await follow_up(api, place, lambda: api.redeploy(place))
            verify = None if no_verify else verifier(_after(settings, wanted), api)
            done = await watch(api, deployment, timeout=patience, settle=calm, verify=verify, told=tell)
            await keep_record(settings, "env push", place, done, variables=sorted(made.values))
            return made, done


def _after(settings: Settings, wanted: Mapping[str, Secret]) -> Settings:
    """The settings that the deployment is verified by: which queue it serves is what was just pushed."""
    from dataclasses import replace

    queue = wanted.get("JOB_QUEUE_NAME")
    return settings if queue is None else replace(settings, job_queue_name=queue.reveal())


async def _by_browser(
    wanted: Mapping[str, Secret], recipe: Path | None, login: str, service: str, environment: str, agreed: Any
) -> Push:
    from oxherd.cli.deploy import duration_of
    from oxherd.cloud.railway import Place
    from oxherd.ops.env_browser import Recipe, push
    from oxherd.ops.lock import held

    known = _own()
    ids = {
        "project": known.railway_project_id, "environment": environment or known.railway_environment_id,
        "service": service or known.railway_service_id,
    }  # fmt: skip
    read = Recipe.read(recipe)
    for name, value in ids.items():
        if "{" + name + "}" in read.url and not value:
            raise UsageError(f"RAILWAY_{name.upper()}_ID is missing; it is part of the page's address")
    done = False

    def asked(made: Push) -> bool:
        nonlocal done
        done = bool(agreed(made))
        return done

    place = Place(*ids.values(), *ids.values())
    async with held(known, place, "env push", f"writing {', '.join(sorted(wanted))}", note):
        made = await push(wanted, read, ids, agreed=asked, told=note, patience=duration_of("--login", login))
    if done:
        await _record(known, ids["service"] or read.url, made)
    return made


async def _record(settings: Settings, place: str, made: Push) -> None:
    from oxherd.ops.recording import record
    from oxherd.store import Operation

    await record(settings, "env push", Operation("deploy", place, "ok", 0.0, {"variables": sorted(made.values)}), note)


def _planned(made: Push, *, dry_run: bool) -> dict[str, Any]:
    changes = [{"action": each.action, "name": each.name, "detail": each.detail} for each in made.changes]
    return {"dry_run": dry_run, "changes": changes}


# -- showing


def _report(
    place: str, values: Mapping[str, Secret], sealed: list[str], faults: list[Fault], probes: list[Check]
) -> dict[str, Any]:
    from oxherd.cli.verify import plain
    from oxherd.ops.verify import Report

    return {
        "place": place,
        "variables": _rows(values, sealed),
        "faults": [
            {
                "variable": each.variable,
                "kind": each.kind,
                "message": each.message,
                "fix": each.fix,
                "note": each.is_note,
            }
            for each in faults
        ],
        "probes": plain(Report(tuple(probes)))["checks"],
    }


def _rows(values: Mapping[str, Secret], sealed: list[str]) -> list[dict[str, str]]:
    from oxherd.ops import env

    prints = env.Fingerprints(_own().audit_key)
    shown = [name for name in env.KNOWN if values.get(name) is not None and values[name].reveal()]
    rows = [
        {"name": name, "value": env.shape_of(values[name]), "fingerprint": prints.of(values[name])} for name in shown
    ]
    return [*rows, *({"name": name, "value": "sealed: never returned", "fingerprint": ""} for name in sealed)]


def _show(
    place: str, values: Mapping[str, Secret], sealed: list[str], faults: list[Fault], probes: list[Check]
) -> None:
    from oxherd.cli.verify import tell
    from oxherd.ops import env

    rows = [(row["name"], row["value"], row["fingerprint"]) for row in _rows(values, sealed)]
    print_table(("variable", "value", "fingerprint"), rows)
    for fault in faults:
        mark = "note" if fault.is_note else fault.kind
        print(f"{mark:<11}  {fault.variable}: {fault.message}\n{'':11}  → {fault.fix}")
    for each in probes:
        tell(each)
    note(f"{place}: {env.counted(faults)}")
