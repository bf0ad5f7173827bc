from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, note, print_json, print_table, writable
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.ops.audit_env import Environment, Inventory
    from oxherd.ops.audit_report import Evidence
    from oxherd.ops.audit_secrets import Report
    from oxherd.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Which secrets are where, who can read them, and what proves it.")

Kept = tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]  # operations by kind; the audit log's newest line
LONGEST = 366  # days for which a finding can be accepted
Baseline = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What was accepted; the repository's .oxherd-audit.toml when left out."),
]


@app.command(
    epilog="\b\nExamples:\n  oxherd audit secrets\n  oxherd audit secrets ../app --output report.html\n"
    "  oxherd audit secrets --staged            # a pre-commit hook\n"
    "  oxherd audit secrets --since origin/main --output audit.sarif   # CI, on a pull request\n"
    "  oxherd audit secrets --verify            # sends each finding to the service that issued it"
)
def secrets(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="A repository or a folder.")] = Path(),
    staged: Annotated[bool, typer.Option("--staged", help="Only what is about to be committed.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Only commits that this one does not have.")
    ] = None,
    shell_history: Annotated[bool, typer.Option("--shell-history", help="Also your shells' histories.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask each secret's service whether it still takes it: sends it there.")
    ] = False,
    baseline: Baseline = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there, in the form of its ending: html, sarif, json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for secrets in all of a repository's history, in files, and in what Docker would take. Exit code 1 on finds.

    Deleted files, stashes, tags, messages and unreachable objects are looked through, also in mojibake, archives and
    layers of base64. Nothing is sent anywhere unless --verify is given, and no secret is printed.
    """
    from oxherd import settings as variables
    from oxherd.app import run_loop
    from oxherd.ops import audit_formats, audit_known
    from oxherd.ops.audit_secrets import audit
    from oxherd.ops.audit_sources import Scope

    writable(output)
    root = _folder(path)
    settings = variables.load(needs=())
    marker = audit_known.Marker(settings.audit_key)
    known = audit_known.load(baseline or _baseline_of(root), marker)
    report = audit(
        root, Scope(staged, since, shell_history), marker, known, installed=settings.named_secrets,
        today=datetime.now(UTC).date(), progress=lambda number: note(f"{number:,} texts"),
    )  # fmt: skip
    if verify:
        from oxherd.ops.audit_verify import verified

        note(f"asking who takes them: {len(report.findings)}")
        report = run_loop(verified(report, settings))
    if output is not None:
        _write(report, output)
    if as_json:
        print_json(audit_formats.data(report))
    elif output is None:
        print(audit_formats.text(report), end="")
    else:
        note(f"written: {output}; {audit_formats.summary(report)}")
    if report.failing:
        raise typer.Exit(1)


def _write(report: Report, output: Path) -> None:
    import orjson

    from oxherd.ops import audit_formats

    match output.suffix:
        case ".html":
            output.write_text(audit_formats.page(report), "utf-8")
        case ".sarif":
            output.write_bytes(orjson.dumps(audit_formats.sarif(report), option=orjson.OPT_INDENT_2))
        case ".json":
            output.write_bytes(orjson.dumps(audit_formats.data(report), option=orjson.OPT_INDENT_2))
        case _:
            output.write_text(audit_formats.text(report), "utf-8")


@app.command(
    epilog="\b\nExample:\n  oxherd audit accept 3f0c9a52d1e84b7796aa0b1c2d3e4f50 "
    "--reason 'a key of the test server' --days 90"
)
def accept(
    fingerprint: Annotated[str, typer.Argument(metavar="FINGERPRINT", help="As `oxherd audit secrets` shows it.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it may stay.")],
    days: Annotated[int, typer.Option(min=1, max=LONGEST, help="After that it counts again.")] = 90,
    baseline: Baseline = None,
    as_json: Json = False,
) -> None:
    """Accept a finding for some time: it is still shown, and no longer fails the audit."""
    import re

    from oxherd import settings as variables
    from oxherd.ops import audit_known

    if not re.fullmatch(r"[0-9a-f]{32}", fingerprint):
        raise UsageError("FINGERPRINT must be the 32 hex digits that `oxherd audit secrets` shows")
    if not reason.strip():
        raise UsageError("--reason must say why the finding may stay")
    file = baseline or _baseline_of(Path.cwd())
    known = audit_known.load(file, audit_known.Marker(variables.load(needs=()).audit_key))
    kept = audit_known.Accepted(fingerprint, reason.strip(), _today() + timedelta(days=days))
    audit_known.save(file, audit_known.Known(known.key, {**known.accepted, fingerprint: kept}, known.installed))
    if as_json:
        print_json({"fingerprint": fingerprint, "reason": kept.reason, "expires": kept.expires, "file": str(file)})
    else:
        print(f"accepted until {kept.expires} in {file}")


@app.command(epilog="\b\nExample:\n  railway run oxherd audit fingerprints   # then commit .oxherd-audit.toml")
def fingerprints(baseline: Baseline = None, as_json: Json = False) -> None:
    """List this installation's secrets as fingerprints, so that others can look for them without having them.

    Needs AUDIT_KEY, which whoever looks needs too. The list replaces the one that the file has of the same variables.
    """
    from oxherd import settings as variables
    from oxherd.ops import audit_known

    settings = variables.load(needs=("AUDIT_KEY",))
    marker, file = audit_known.Marker(settings.audit_key), baseline or _baseline_of(Path.cwd())
    known = audit_known.load(file, marker)
    secrets = [(name, value) for name, value in settings.named_secrets if name != "AUDIT_KEY"]
    listed = audit_known.fingerprints(secrets, marker)
    named = {each.variable for each in listed}
    others = tuple(each for each in known.installed if each.variable not in named)
    audit_known.save(file, audit_known.Known(known.key, known.accepted, (*others, *listed)))
    if as_json:
        print_json(
            {"file": str(file), "installed": [{"variable": e.variable, "fingerprint": e.fingerprint} for e in listed]}
        )
    else:
        print_table(("variable", "fingerprint"), [(each.variable, each.fingerprint) for each in listed])
        note(f"written: {file}")


def _baseline_of(folder: Path) -> Path:
    """The file of what is accepted: in the repository's top folder, from wherever in it the command runs."""
    from oxherd.ops import audit_known
    from oxherd.ops.audit_sources import repository

    return (repository(folder) or folder) / audit_known.FILE


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"{path} is no folder")
    return path.resolve()


def _today() -> date:
    return datetime.now(UTC).date()


Files = Annotated[
    list[Path] | None,
    typer.Option("--file", metavar="FILE", help="A .env file of another environment to compare; several are fine."),
]
OnRailway = Annotated[
    bool, typer.Option("--railway", help="Also each environment of the service on Railway that the token may see.")
]


@app.command(
    epilog="\b\nExamples:\n  oxherd audit env\n  oxherd audit env --railway   # production, staging and all others\n"
    "  oxherd audit env --file .env.staging --file .env.production\n"
    "  oxherd audit env --inventory > SECRETS.md"
)
def env(
    file: Files = None,
    railway: OnRailway = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask neither Postgres nor Redis.")] = False,
    list_all: Annotated[
        bool, typer.Option("--inventory", help="Print a SECRETS.md: every secret, without values.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at every secret variable: where it is, how old, who shares it, what it may do. Exit code 1 on finds.

    Connects to Postgres and Redis with the variables of this environment and asks them what their users may do.
    """
    import dataclasses

    from oxherd import settings as variables
    from oxherd.app import run_loop
    from oxherd.ops.audit_env import secrets_page

    settings = variables.load(needs=("RAILWAY",) if railway else ())
    found, away, _ = run_loop(_inventory(settings, file or [], railway=railway, offline=offline))
    for words in away:
        note(words)
    if list_all:
        print(secrets_page(found), end="")
        return
    if as_json:
        faults = [{**dataclasses.asdict(each), "level": each.level.word} for each in found.faults]
        rows = [dataclasses.asdict(row) for row in found.rows]
        print_json({"variables": rows, "faults": faults, "asked": found.asked, "not_asked": away})
    else:
        _print_inventory(found)
    if found.failing or away:
        raise typer.Exit(1 if found.failing else 3)


def _print_inventory(found: Inventory) -> None:
    from oxherd.ops.audit_env import where_of

    rows = [row for row in found.rows if row.where]
    ages = ["not known" if row.rotated_days is None else f"{row.rotated_days} d" for row in rows]
    print_table(
        ("secret", "replaced", "shared", "where"),
        [(row.variable, age, "yes" if row.shared else "", where_of(row)) for row, age in zip(rows, ages, strict=True)],
    )
    if found.faults:
        print()
        print_table(
            ("level", "variable", "what", "to do"),
            [(each.level.word, each.variable, each.message, each.fix) for each in found.faults],
        )


async def _inventory(
    settings: Settings, files: list[Path], *, railway: bool, offline: bool
) -> tuple[Inventory, list[str], Kept | None]:
    """The inventory, what could not be asked and why, and what the store keeps."""
    from oxherd.clock import wall_ms
    from oxherd.ops import audit_env

    places, away = await _places(settings, files, railway=railway)
    asked: dict[str, list[audit_env.Fault]] = {}
    if not offline:
        asked, unasked = await audit_env.ask(settings)
        away += unasked
    kept = None if offline else await _kept(settings, away)
    rotations = None if kept is None else kept[0]["rotation"]
    made = audit_env.inventory(places, settings, rotations=rotations, now_ms=wall_ms(), asked=asked)
    return made, away, kept


async def _places(settings: Settings, files: list[Path], *, railway: bool) -> tuple[dict[str, Environment], list[str]]:
    """The places to compare, and which could not be asked and why."""
    from oxherd import settings as variables
    from oxherd.ops import audit_env, audit_railway
    from oxherd.ops.env import parse

    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise UsageError(f"--file {missing} is no file")
    here = {name: variables.Secret(value) for name, value in variables.set_here().items()}
    places = {
        audit_env.HERE: audit_env.Environment(here),
        **{str(path): audit_env.Environment(parse(path.read_text("utf-8", "replace"), str(path))[0]) for path in files},
    }
    if not railway:
        return places, []
    found, away = await audit_railway.environments(settings)
    if settings.railway_api_token is None:
        note("RAILWAY_TOKEN sees its own environment only; RAILWAY_API_TOKEN, in its place, compares them all")
    if settings.railway_environment_name and f"Railway {settings.railway_environment_name}" in found:
        del places[audit_env.HERE]  # Railway, or `railway run`, has set this environment up: it is one of those
    return places | found, away


async def _kept(settings: Settings, away: list[str]) -> Kept | None:
    """What the store keeps; None where it can't be asked."""
    from oxherd.app import build_store
    from oxherd.errors import OxherdError

    store = build_store(settings)
    if store is None:
        return None
    try:
        await store.start()
        kinds = ("rotation", "backup", "verify", "drill")
        return {kind: await store.operations(kind, limit=100) for kind in kinds}, await store.audit(limit=1)
    except OxherdError as error:
        away.append(f"the store could not be asked: {error.message}")
        return None
    finally:
        await store.stop()


@app.command(
    epilog="\b\nExamples:\n  oxherd audit report --output audit.html\n"
    "  oxherd audit report ../app --file .env.staging --json"
)
def report(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The repository to look through.")] = Path(),
    file: Files = None,
    railway: OnRailway = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask neither Postgres nor Redis.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there: Markdown, or HTML where it ends with .html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one page for an auditor: a score and the evidence for each control. Exit code 1 where one failed."""
    from oxherd import settings as variables
    from oxherd.app import run_loop
    from oxherd.ops import audit_report

    writable(output)
    root, settings = _folder(path), variables.load(needs=("RAILWAY",) if railway else ())
    evidence = run_loop(_evidence(root, settings, file or [], railway=railway, offline=offline))
    table = audit_report.controls(evidence)
    if as_json:
        print_json(audit_report.data(table, evidence))
    elif output is None:
        print(audit_report.markdown(table, evidence), end="")
    else:
        made = audit_report.page if output.suffix == ".html" else audit_report.markdown
        output.write_text(made(table, evidence), "utf-8")
        note(f"written: {output}")
    if any(each.score == 0 for each in table):
        raise typer.Exit(1)


async def _evidence(root: Path, settings: Settings, files: list[Path], *, railway: bool, offline: bool) -> Evidence:
    from oxherd.ops.audit_report import Evidence, locks_of
    from oxherd.ops.audit_sources import repository

    found, away, kept = await _inventory(settings, files, railway=railway, offline=offline)
    for words in away:
        note(words)
    looked, unable = None, "" if repository(root) else f"{root.name} is in no git repository, so there is no history"
    try:
        looked = _looked_through(root, settings)
    except UsageError as error:
        unable = error.message
    return Evidence(
        datetime.now(UTC), looked, unable, found, None if kept is None else kept[0],
        kept[1][0] if kept and kept[1] else None, locks_of(root),
        (settings.api_token is not None, settings.api_read_token is not None),
        (settings.encryption_key is not None, bool(settings.encryption_keys_previous)),
    )  # fmt: skip


def _looked_through(root: Path, settings: Settings) -> Report:
    from oxherd.ops import audit_known
    from oxherd.ops.audit_secrets import audit
    from oxherd.ops.audit_sources import Scope

    marker = audit_known.Marker(settings.audit_key)
    known = audit_known.load(_baseline_of(root), marker)
    return audit(root, Scope(), marker, known, installed=settings.named_secrets, today=_today())
