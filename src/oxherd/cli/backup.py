from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, age, clock, console, duration, note, print_json, print_table, writable
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.backup import pgbackrest, pitr
    from oxherd.backup.catalogue import Entry
    from oxherd.backup.create import Told
    from oxherd.ops.plan import Plan
    from oxherd.settings import Secret, Settings
    from oxherd.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Backups of the database and the queue: encrypted, proven by restoring them, put back.\n\n"
    "BACKUP_URL says where they are, BACKUP_RECIPIENTS who can read them. docs/backups.md has the rest.",
)

Name = Annotated[str, typer.Argument(help="A backup's name, the beginning of it, or `latest`.")]
IdentityFile = Annotated[
    Path | None, typer.Option("--identity-file", metavar="PATH", help="Read the age identity from this file.")
]


@app.command(epilog="\b\nExample:\n  oxherd backup doctor")
def doctor(as_json: Json = False) -> None:
    """Say which pg_dump would be used and why, and whether storage and keys are in order; exit code 1 where not."""
    from oxherd.app import run_loop
    from oxherd.ops.backup import diagnose

    found = run_loop(diagnose(_settings()))
    if as_json:
        print_json([{"what": each.what, "ok": each.ok, "detail": each.detail} for each in found])
    else:
        print_table(("", "what", "detail"), [("ok" if each.ok else "FAULT", each.what, each.detail) for each in found])
    if not all(each.ok for each in found):
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  oxherd backup keygen --output backup.key   # then keep the file in a safe place")
def keygen(
    output: Annotated[Path, typer.Option("--output", metavar="PATH", help="Where the secret half is written.")],
    as_json: Json = False,
) -> None:
    """Make a pair of keys: prints the public half, for BACKUP_RECIPIENTS, and writes the secret one to a new file."""
    from oxherd.backup.sealing import new_identity

    writable(output)
    recipient, identity = new_identity()
    try:
        output.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise UsageError(f"{output} is there already, and may be the only key to your backups") from None
    output.write_text(f"# public key: {recipient}\n{identity.reveal()}\n")
    if as_json:
        print_json({"recipient": recipient, "identity_file": str(output)})
    else:
        print(recipient)
        note(f"the secret half is in {output}: without it no backup can be read")


@app.command(
    epilog="\b\nExamples:\n  oxherd backup create\n  oxherd backup create --throttle 20 --no-queue\n"
    "  oxherd backup create --resume   # goes on with the upload of a killed one, with BACKUP_SPOOL"
)
def create(
    throttle: Annotated[
        float | None, typer.Option(metavar="MB", min=0.1, help="Read at most so many megabytes a second.")
    ] = None,
    with_queue: Annotated[bool, typer.Option("--queue/--no-queue", help="Back up the queue in Redis, too.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take none where a killed process left one in BACKUP_SPOOL: store that.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a backup: a consistent dump, compressed, encrypted, stored, with a manifest that is written last.

    Exit code 1 where another one is being taken, 3 where a service could not be reached. Nothing is listed then.
    """
    from oxherd.backup import runs

    settings = _settings(*(("REDIS_URL",) if with_queue else ()))
    if resume and settings.backup_spool is None:
        raise UsageError("--resume needs BACKUP_SPOOL: without it nothing is left of a killed process's backup")
    limit = throttle * 1_000_000 if throttle else None

    async def act(store: Store | None, told: Told) -> Any:
        from oxherd.ops.recording import audited

        work = runs.take(
            settings, store, told=told, limit=limit, with_queue=with_queue, resume=resume, note=note
        )  # fmt: skip
        return await audited(store, "createBackup", work)

    made = _run(settings, act, quiet=as_json)
    if as_json:
        print_json({"name": made.name, "seconds": made.seconds, **runs.summary(made)})
        return
    print(made.name)
    note(_words(made))


@app.command("list")
def list_(
    base_backups: Annotated[
        bool, typer.Option("--bases", help="The base backups instead, from which `rewind` goes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List finished backups, the newest first, and whether restoring them was proven.

    Exit code 1 where the manifest of one can't be read.
    """
    from oxherd.backup import catalogue, runs
    from oxherd.backup.storage import open_storage

    settings = _settings()
    if base_backups:
        _list_bases(*runs.bases(settings), as_json=as_json)
        return
    found = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time())
    entries = found.entries
    if as_json:
        print_json(
            [
                {
                    "name": each.name, "seconds": each.manifest.seconds, **runs.summary(each.manifest),
                    "row_counts": each.manifest.tables, "queue": each.manifest.queue, "verified": each.verified,
                }
                for each in entries
            ]
        )  # fmt: skip
    else:
        _print_entries(entries)
    _tell(found.damaged)


def _list_bases(bases: Sequence[pitr.Base | pgbackrest.Taken], damaged: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json([_base_data(each) for each in bases])
    else:
        rows = [(each.name, age(each.ended_at), _size(each.bytes), each.after or "", each.server) for each in bases]
        print_table(("name", "age", "size", "changes since", "postgres"), rows)
    _tell(damaged)


def _base_data(base: pitr.Base | pgbackrest.Taken) -> dict[str, Any]:
    return {
        "name": base.name, "ended_at": base.ended_at, "after": base.after, "server": base.server, "bytes": base.bytes
    }  # fmt: skip


def _tell(damaged: Sequence[str]) -> None:
    for fault in damaged:
        note(fault)
    if damaged:
        raise typer.Exit(1)


def _print_entries(entries: Sequence[Entry]) -> None:
    rows = [
        (
            each.name, age(each.manifest.taken_at), _size(each.manifest.stored), each.manifest.rows,
            each.manifest.database["server"], _verified(each.verified),
        )
        for each in entries
    ]  # fmt: skip
    print_table(("name", "age", "size", "rows", "postgres", "verified"), rows)


@app.command(
    epilog="\b\nExamples:\n  oxherd backup verify                                 the newest\n"
    "  oxherd backup verify 2026-11-28 --identity-file backup.key --report proof.json"
)
def verify(
    name: Name = "latest",
    identity_file: IdentityFile = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the signed report there, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that a backup restores: into a scratch Postgres that is started here, compared, thrown away.

    Rows, checksums, sequences, constraints, indexes, policies and more must be those of the backup; migrations must
    run; a credential must open. RTO is how long the restore took, RPO how old the backup is. Exit code 1 where it
    failed.
    """
    import orjson

    from oxherd.backup import runs

    writable(report_file)
    settings = _settings()
    identity = _identity(identity_file)
    report = _run(
        settings, lambda store, told: runs.prove(settings, store, name, told=told, identity=identity), quiet=as_json
    )
    if report_file is not None:
        report_file.write_bytes(orjson.dumps(report.data(), option=orjson.OPT_INDENT_2))
    if as_json:
        print_json(report.data())
    else:
        rows = [("ok" if check.ok else "FAULT", check.name, check.detail) for check in report.checks]
        print_table(("", "check", "detail"), rows)
        note(
            f"{report.backup}: {'proven' if report.ok else 'NOT restorable as it was'}; "
            f"RTO {duration(report.rto_seconds) or 'unknown'}, RPO {duration(report.rpo_seconds)}"
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    epilog="\b\nExamples:\n  oxherd backup restore latest --identity-file backup.key    in place of the live one\n"
    "  oxherd backup restore 2026-11-28 --into copy               into an empty database of that name\n"
    "  oxherd backup restore latest --into - < url.txt            on another server\n"
    "  oxherd backup restore latest --table public.users --into copy\n"
    "  oxherd backup restore latest --queue                       the queue, into an empty one"
)
def restore(
    name: Name,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Another database on DATABASE_URL's server; `-` reads a whole URL from stdin."
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(metavar="SCHEMA.TABLE", help="Only this table.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="The queue instead of the database.")] = False,
    identity_file: IdentityFile = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", metavar="TARGET", help="The target's name, instead of typing it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Put a backup back, after its plan was shown and the target's name typed.

    An empty or missing database is filled. One that has tables is never written into: the backup is restored beside
    it, compared, and takes its name; what was live stays under another one. Jobs that ended after the backup are
    listed, and are not run again.
    """
    from oxherd.app import run_loop
    from oxherd.ops import backup as ops

    settings = _settings(*(("REDIS_URL",) if queue else ()))
    target_url = _url(into)

    async def main() -> tuple[Plan, Any]:
        opened = await ops.unlocked(settings, name, _identity(identity_file))
        work = await ops.restoring(settings, opened, into=target_url, table=table, queue=queue)
        if not as_json:
            print_table(
                ("action", "what", "detail"), [(each.action, each.what, each.detail) for each in work.plan.steps]
            )
        if dry_run:
            return work.plan, None
        _confirmed(work.target, confirm)
        with _bar(quiet=as_json) as told:
            return work.plan, await work.run(told, lambda step: note(f"done: {step.action} {step.what}"), note)

    plan, outcome = run_loop(main())
    if as_json:
        steps = [{"action": step.action, "what": step.what, "detail": step.detail} for step in plan.steps]
        print_json({"dry_run": dry_run, "steps": steps, "outcome": outcome and asdict(outcome)})
    elif outcome is not None:
        _print_outcome(outcome)


@app.command(epilog="\b\nExamples:\n  oxherd backup prune --dry-run\n  oxherd backup prune --yes")
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Delete backups that retention no longer keeps: the newest of 7 days, 5 weeks and 12 months stay.

    The last one that was verified always stays. Of base backups and WAL what `rewind` needs for the last 7 days stays.
    An object lock that refuses a delete is said, and no fault.
    """
    from oxherd.app import run_loop
    from oxherd.backup import runs
    from oxherd.backup.storage import open_storage
    from oxherd.ops.recording import audited

    settings = _settings()
    storage = open_storage(settings)
    plan = run_loop(runs.due(settings, storage))
    rows = [("keep", entry.name, why) for entry, why in plan.keep]
    rows += [("delete", entry.name, f"{_size(entry.manifest.stored)}") for entry in plan.drop]
    rows += [("keep", f"base {base.name}", why) for base, why in plan.keep_bases]
    rows += [("delete", f"base {base.name}", f"{_size(base.bytes)}") for base in plan.drop_bases]
    if plan.wal:
        rows.append(("delete", "WAL", f"{len(plan.wal)} files, {_size(sum(each.size for each in plan.wal))}"))
    rows += [("delete", name, "left behind by a backup that never ended") for name in plan.abandoned]
    if not as_json:
        print_table(("action", "backup", "why"), rows)
    for fault in plan.damaged:
        note(f"no base backup and no WAL is deleted: {fault}")
    refused: dict[str, str] = {}
    if not plan.does_nothing and not dry_run and (yes or typer.confirm("Go on?", err=True)):
        refused = _run(
            settings, lambda store, _: audited(store, "pruneBackups", runs.clear(storage, plan), target=storage.shown),
            quiet=as_json,
        )  # fmt: skip
    for name, why in refused.items():
        note(f"not deleted: {name}: {why}")
    if as_json:
        steps = [{"action": action, "backup": name, "why": why} for action, name, why in rows]
        print_json({"dry_run": dry_run, "steps": steps, "refused": refused, "damaged": plan.damaged})


@app.command(
    epilog="\b\nExamples:\n  oxherd backup schedule\n  oxherd backup schedule --at '0 */6 * * *' --no-verify\n"
    "  oxherd backup schedule --off"
)
def schedule(
    at: Annotated[str | None, typer.Option("--at", metavar="CRON", help="When to back up; daily at 03:17.")] = None,
    verify_at: Annotated[
        str | None, typer.Option("--verify-at", metavar="CRON", help="When to verify; Sundays at 04:43.")
    ] = None,
    verifying: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify, too; workers then need BACKUP_IDENTITY.")
    ] = True,
    tz: Annotated[str | None, typer.Option(metavar="ZONE", help="The time zone; UTC when left out.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the schedules.")] = False,
    as_json: Json = False,
) -> None:
    """Have the workers back up and verify on a schedule: one of them each time, however many there are.

    A schedule is a BullMQ job scheduler; `oxherd jobs` and the dashboard show its jobs. Each backup is followed by
    deleting those that retention no longer keeps.
    """
    from oxherd.app import run_loop
    from oxherd.ops.backup import set_schedules

    settings = _settings("REDIS_URL")
    wanted = {} if off else {"oxherd.backup": at, **({"oxherd.backup-verify": verify_at} if verifying else {})}
    found = run_loop(set_schedules(settings, wanted, tz=tz))
    if as_json:
        print_json(found)
    else:
        print_table(
            ("schedule", "pattern", "next"), [(each["id"], each["pattern"], clock(each["next"])) for each in found]
        )
        note("" if found else "no backups are scheduled")


@app.command(
    epilog="\b\nExamples:\n  oxherd backup base                 # weekly; WAL is archived in between, see wal-push\n"
    "  oxherd backup base --incremental   # daily"
)
def base(
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what changed since the last one; needs summarize_wal = on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a base backup of your own server, from which `rewind` goes to any moment after it.

    With PostgreSQL's own programs, or with pgBackRest where BACKUP_PGBACKREST_STANZA is set.
    """
    from oxherd.backup import runs
    from oxherd.ops.recording import audited

    settings = _settings()

    async def act(store: Store | None, told: Told) -> Any:
        return await audited(store, "takeBase", runs.take_base(settings, incremental=incremental, told=told))

    made = _run(settings, act, quiet=as_json)
    if as_json:
        print_json(_base_data(made))
    else:
        print(made.name)


@app.command(
    "wal-push",
    epilog="\b\nIn postgresql.conf:\n  archive_mode = on\n  archive_command = 'oxherd backup wal-push %p'",
)
def wal_push(path: Annotated[Path, typer.Argument(help="A finished WAL file, or a folder of them.")]) -> None:
    """Store finished WAL files, for Postgres's `archive_command`. Those of a folder are then removed."""
    from oxherd.backup.pitr import push_wal
    from oxherd.backup.storage import open_storage

    settings = _settings()
    for name in push_wal(path, open_storage(settings, patience=60), settings.backup_recipients):
        note(f"stored {name}")


@app.command(
    epilog="\b\nExamples:\n  oxherd backup rewind --to 2026-11-28T09:41:00Z --data-dir /srv/pg-rewound\n"
    "  oxherd backup rewind --to 2026-11-28T09:41:00Z --supabase"
)
def rewind(
    to: Annotated[str, typer.Option("--to", metavar="TIME", help="The moment, with its zone: 2026-11-28T09:41:00Z.")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Make a data folder for your own server there.")
    ] = None,
    supabase: Annotated[bool, typer.Option("--supabase", help="Have Supabase do it, in place.")] = False,
    identity_file: IdentityFile = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", metavar="REF", help="The project's ref, instead of typing it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Go back to a moment: before a table was dropped, for example.

    For your own server a new data folder is made from the last base backup before that moment and the archived WAL;
    start a Postgres of the same version on it. On Supabase its own point-in-time recovery is used: **in place**, the
    project is offline meanwhile, and what came after that moment is gone.
    """
    from oxherd.app import run_loop
    from oxherd.ops import rewind as ops

    moment, settings = ops.moment(to), _settings()
    if supabase == (data_dir is not None):
        raise UsageError("rewind needs one of --data-dir and --supabase")
    if data_dir is not None:
        with _bar(quiet=as_json) as told:
            made = ops.into_folder(settings, _identity(identity_file), moment, data_dir, told, dry_run=dry_run)
        words = f"{data_dir} goes from base backup {made['base']} to {made['to']}; start Postgres on it"
        for doubt in made["doubts"]:
            note(doubt)
    else:
        made = run_loop(ops.supabase(settings, moment, lambda ref: _confirmed(ref, confirm), note, dry_run=dry_run))
        words = f"Supabase project {made['project']} is asked to go back to {made['to']}"
    if as_json:
        print_json({"dry_run": dry_run, **made})
    else:
        print(f"would be done: {words}" if dry_run else words)


def _confirmed(target: str, given: str | None) -> None:
    typed = given if given is not None else typer.prompt(f"Type {target} to go on", err=True)
    if typed != target:
        raise UsageError(f"that is not the target's name, {target}: nothing was done")


def _url(into: str | None) -> str | None:
    if into is not None and "://" in into:
        raise UsageError(
            "--into: a URL does not belong on the command line, where others can see its password",
            hint="give a database's name, or `-` and the URL on stdin",
        )
    return sys.stdin.readline().strip() if into == "-" else into


def _print_outcome(outcome: Any) -> None:
    print(f"restored {outcome.rows} rows into {outcome.database} in {duration(outcome.seconds)}")
    if outcome.kept:
        note(f"what was live is kept as {outcome.kept}; drop it when you no longer need it")
    if outcome.left_out:
        note(f"extensions that the server lacks: {', '.join(outcome.left_out)}")
    for each in outcome.unlike:
        note(f"the database is not in all as it was: {each}")
    if outcome.unread:
        note(f"which jobs went on after the backup is not known, the live journal could not be read: {outcome.unread}")
    if outcome.finished:
        note(f"{len(outcome.finished)} jobs ended after the backup, and are not run again:")
        print_table(("job", "name", "status", "ended"), [
            (each["job_id"], each["name"], each["status"], clock(each["finished_at"])) for each in outcome.finished[:50]
        ])  # fmt: skip
    if outcome.repeated:
        note(f"{len(outcome.repeated)} jobs had not ended: steps that they paid for after the backup are paid again")
    if outcome.interrupted:
        note(f"{len(outcome.interrupted)} jobs were running, and wait again: {', '.join(outcome.interrupted[:20])}")


def _settings(*needs: str) -> Settings:
    from oxherd import settings as variables

    return variables.load(needs=needs)


def _identity(path: Path | None) -> list[Secret]:
    from oxherd.settings import Secret

    if path is None:
        return []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--identity-file: {path} can't be read: {getattr(error, 'strerror', 'no text')}") from None
    if text.startswith("-----BEGIN"):
        return [Secret(text)]
    return [Secret(line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _run(settings: Settings, act: Callable[[Store | None, Told], Awaitable[Any]], *, quiet: bool) -> Any:
    from oxherd.app import run_loop
    from oxherd.ops.recording import optional_store

    async def main() -> Any:
        async with optional_store(settings, note) as store:
            with _bar(quiet=quiet) as told:
                return await act(store, told)

    return run_loop(main())


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Told]:
    """A bar with rate and time left on a terminal, a line every ten seconds otherwise."""
    terminal = console(stderr=True, quiet=quiet)
    if quiet or not terminal.is_terminal:
        yield _Lines(quiet=quiet).told
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=terminal, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=max(total, done) or None)

        yield told


class _Lines:
    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began: dict[str, float] = {}
        self._told = time.monotonic()

    def told(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._began.setdefault(stage, now)
        if self._quiet or now - self._told < 10 or not done:
            return
        self._told = now
        rate = done / max(now - began, 0.001)
        left = f", about {duration((total - done) / rate)} left" if total > done else ""
        note(f"{stage}: {_size(done)}, {_size(rate)}/s{left}")


def _words(made: Any) -> str:
    queue = f", {made.queue['keys']} keys of the queue" if made.queue else ""
    signed = "" if made.signature else "; unsigned, as ENCRYPTION_KEY is not set"
    return (
        f"{_size(made.stored)} stored, {_size(made.raw)} before compression, {made.rows} rows of {len(made.tables)} "
        f"tables{queue}, {duration(made.seconds)}{signed}"
    )


def _verified(report: dict[str, Any] | None) -> str:
    if report is None:
        return "never"
    ok = "ok" if report.get("ok") else "FAILED"
    return f"{ok}, {age(report.get('at') or 0)} ago"


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
