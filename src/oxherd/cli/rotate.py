from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oxherd.cli.deploy import Settle, duration_of
from oxherd.cli.printing import Json, clock, note, print_json, print_table, writable
from oxherd.errors import RotationStopped, UsageError

if TYPE_CHECKING:
    from oxherd.ops.plan import Plan
    from oxherd.ops.rotate_known import Wanted
    from oxherd.settings import Secret, Settings

EXAMPLES = """\b
Examples:
  oxherd rotate OPENROUTER_API_KEY --dry-run           shows what would be done
  oxherd rotate ENCRYPTION_KEY --service worker --service web
  oxherd rotate REDIS_URL --consumers railway --consumers manual
  oxherd rotate DATABASE_URL --consumers manual --to ./new.env
  oxherd rotate API_TOKEN --resume                     goes on where it was stopped
  oxherd rotate API_TOKEN --rollback                   until the old one is retired
  oxherd rotate --status
  oxherd audit secrets --json > report.json; oxherd rotate --leaked report.json
  oxherd rotate --leaked report.json --resume --done   goes on with the one that waits for you, and with the rest

Never roll a deployment back across a rotation: Railway brings the old variables back with it, and with them a secret
that is dead. `oxherd deploy rollback` knows that; Railway's own button does not."""

HOME = Path(".oxherd")


def rotate(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The variable, such as REDIS_URL.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a rotation that was stopped.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Bring the old value back; until it is retired.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say which rotations are under way.")] = False,
    leaked: Annotated[
        Path | None, typer.Option(metavar="REPORT", help="Rotate what `oxherd audit secrets --json` found.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    consumers: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Who gets the new value: railway, manual, or both. "
                     "Railway where a token of it is set."),
    ] = None,
    service: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A service on Railway that uses it; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the new value goes with --consumers manual: a file that "
                                  "only you can read, or a named pipe.")
    ] = None,
    done: Annotated[
        bool, typer.Option("--done", help="With --resume or --rollback: what waited for you to set or revoke is done.")
    ] = False,
    value_from: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read a value that you made from this file instead of asking.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the HTTP server is, for API_TOKEN; else PUBLIC_URL.")
    ] = None,
    disable_legacy: Annotated[
        bool, typer.Option("--disable-legacy", help="Supabase: nothing uses the anon JWT any more, switch both off.")
    ] = False,
    test_job: Annotated[
        bool, typer.Option("--test-job/--no-test-job", help="Run a job on the queue after the switch.")
    ] = True,
    settle: Settle = "30s",
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Also lock the state with what this file holds. Needed where "
                                  "ENCRYPTION_KEY is not set.")
    ] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="Where the encrypted state is kept.")] = HOME / "rotations",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Replace a secret: new, install beside the old, prove, switch all that use it, retire the old, prove it dead.

    It may be stopped at any moment, also by a crash, and goes on with --resume. No value is ever shown.
    """
    from oxherd import settings as variables
    from oxherd.ops.rotate_known import NAMES, Wanted
    from oxherd.ops.rotate_state import Locks

    if status:
        _show_status(state, as_json)
        return
    if leaked is not None and (name is not None or rollback):
        raise UsageError("--leaked names the secrets itself, and each is taken back by its name",
                         hint="oxherd rotate --leaked REPORT, or: oxherd rotate NAME --rollback")  # fmt: skip
    if done and not (resume or rollback):
        raise UsageError(
            "--done says that what a stopped rotation waits for is done", hint="add --resume or --rollback"
        )
    writable(to)
    settings = variables.load(needs=())
    known = [each for each in (settings.encryption_key, *settings.encryption_keys_previous) if each is not None]
    phrase = None if passphrase_file is None else _read(passphrase_file)
    wanted = Wanted(
        name or "", state, Locks(tuple(known), phrase), tuple(consumers or ()), tuple(service or ()), to, url,
        disable_legacy, resume or rollback, test_job, duration_of("--settle", settle),
    )  # fmt: skip
    person = _Terminal(value_from, yes=yes, done=done)
    if leaked is not None:
        _rotate_leaked(leaked, wanted, settings, person, dry_run=dry_run, yes=yes, as_json=as_json)
    elif name is None:
        raise UsageError("which secret?", hint=f"oxherd rotate NAME, with one of {', '.join(sorted(NAMES))}")
    elif rollback:
        _roll_back(wanted, settings, person, as_json=as_json)
    else:
        made = _rotate(wanted, settings, person, dry_run=dry_run, yes=yes, as_json=as_json)
        if as_json:
            print_json({"name": name, "dry_run": dry_run, "steps": _plain(made)})


def _rotate(wanted: Wanted, settings: Settings, person: _Terminal, *, dry_run: bool, yes: bool, as_json: bool) -> Plan:
    from oxherd.app import run_loop
    from oxherd.ops.rotate_known import check_name, prepared
    from oxherd.ops.rotate_state import Locks, StateFile

    check_name(wanted.name)
    # Before the state is read: what another process does with it meanwhile would be done twice.
    lock = nullcontext() if dry_run else StateFile(wanted.folder, wanted.name, Locks()).locked()

    async def act() -> Plan:
        async with prepared(wanted, settings, person, note) as rotator:
            made = await rotator.plan()
            if not as_json:
                print_table(("stage", "what"), [(_stage(step), step.detail) for step in made.steps])
            if dry_run:
                return made
            if not yes and not typer.confirm("Go on?", err=True):
                raise RotationStopped("nothing was done")
            await made.run(lambda step: note(f"{step.action}: done"))
            return made

    with lock:
        made: Plan = run_loop(act())
    return made


def _roll_back(wanted: Wanted, settings: Settings, person: _Terminal, *, as_json: bool) -> None:
    from oxherd.app import run_loop
    from oxherd.ops.rotate_known import check_name, prepared
    from oxherd.ops.rotate_state import Locks, StateFile

    check_name(wanted.name)

    async def act() -> None:
        async with prepared(wanted, settings, person, note) as rotator:
            await rotator.roll_back()

    with StateFile(wanted.folder, wanted.name, Locks()).locked():
        run_loop(act())
    if as_json:
        print_json({"name": wanted.name, "rolled_back": True})
    else:
        print(f"{wanted.name} is the old one again")


def _rotate_leaked(
    report: Path, wanted: Wanted, settings: Settings, person: _Terminal, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    from oxherd.ops.rotate_leaked import Replaced, due, read_report
    from oxherd.ops.rotate_state import Locks, StateFile

    findings = read_report(report)
    todo = due(findings, settings)
    if not todo:
        note(f"{report} has nothing to replace")
    dead = sorted({each["variable"] or each["what"] for each in findings if each["fails"] and each["live"] is False})
    if dead:
        note(f"left out, as its service refused it when the report was made: {', '.join(dead)}")
    if as_json:
        print_json([{"variable": each.variable or None, "what": each.what, "why": each.why, "todo": each.todo}
                    for each in todo])  # fmt: skip
    else:
        print_table(("what", "why", "to do"), [(each.variable or each.what, each.why, each.todo) for each in todo])
    if dry_run:
        return
    replaced = Replaced(wanted.folder, report, resume=wanted.resume)
    replaced.save()
    for each in todo:
        if not each.can_rotate:
            note(f"{each.variable or each.what}: {each.todo}")
        elif each.variable in replaced.names:
            note(f"{each.variable}: replaced already")
        elif yes or typer.confirm(f"Rotate {each.variable} now?", err=True):
            begun = StateFile(wanted.folder, each.variable, Locks()).head() is not None
            one = replace(wanted, name=each.variable, resume=wanted.resume and begun)
            _rotate(one, settings, person, dry_run=False, yes=yes, as_json=as_json)
            replaced.add(each.variable)
    replaced.remove()


def _show_status(folder: Path, as_json: bool) -> None:
    from oxherd.ops.rotate_state import under_way

    found = under_way(folder)
    shown = ("name", "stage", "began_at", "saved_at")
    if as_json:
        print_json([{key: each[key] for key in shown} for each in found])
    elif found:
        rows = [(each["name"], each["stage"], clock(each["began_at"]), clock(each["saved_at"])) for each in found]
        print_table(("name", "next", "begun", "last"), rows)
    else:
        note("no rotation is under way")


def _stage(step: object) -> str:
    from oxherd.ops.plan import Step

    assert isinstance(step, Step)
    return step.action if step.apply is not None else f"{step.action} (done)"


def _plain(made: Plan) -> list[dict[str, object]]:
    return [
        {"stage": step.action, "what": step.what, "detail": step.detail, "to_do": step.apply is not None}
        for step in made.steps
    ]


def _read(path: Path) -> Secret:
    from oxherd.settings import Secret

    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', 'it is no text')}") from None
    if not text:
        raise UsageError(f"{path} is empty")
    return Secret(text)


class _Terminal:
    """Whoever sits there; nobody, where there is no terminal."""

    def __init__(self, value_from: Path | None, *, yes: bool, done: bool) -> None:
        self._value_from = value_from
        self._done = done
        self._asks = sys.stdin.isatty() and not yes

    def confirms(self, question: str, *, again: bool) -> bool:
        if again and self._done:
            self._done = False  # it answers one question: the next one is about something else
            return True
        return self._asks and typer.confirm(question, err=True)

    def value(self, prompt: str) -> Secret:
        from oxherd.settings import Secret

        if self._value_from is not None:
            return _read(self._value_from)
        if not sys.stdin.isatty():
            raise UsageError("there is nobody to ask for a value", hint="give --value-from FILE")
        return Secret(typer.prompt(prompt, hide_input=True, err=True))
