from __future__ import annotations

import dataclasses
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, clock, duration, note, print_json, print_table, shortened
from oxherd.errors import JobStateError, OxherdError, UsageError
from oxherd.job import State

if TYPE_CHECKING:
    from oxherd.queue.admin import Admin
    from oxherd.queue.dead import Bulk

app = typer.Typer(no_args_is_help=True, help="Look at jobs, follow them, and act on them.")

Ids = Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")]


@app.command(
    "list", epilog="\b\nExamples:\n  oxherd jobs list --state delayed\n  oxherd jobs list --json | jq '.jobs[].name'"
)
def list_jobs(
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List jobs, with counts.

    What runs comes first, then what is next, then the newest that ended.
    """
    from oxherd.cli.asking import ask_queue
    from oxherd.queue.pages import ORDER

    async def ask(_: object, admin: Admin) -> tuple[dict[str, int], list[dict[str, Any]]]:
        listed = await admin.pages.page([state] if state else ORDER, limit=limit)
        return await admin.counts(), listed.jobs

    counts, jobs = ask_queue(ask)
    if as_json:
        print_json({"counts": counts, "jobs": jobs})
        return
    print_table(("id", "name", "state", "attempts", "added", "took", "reason"), [_row(job) for job in jobs])
    note(" · ".join(f"{count} {name}" for name, count in counts.items() if count) or "no jobs")


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    reason = shortened(job["failed_reason"]) if job["failed_reason"] else None
    attempts = f"{job['attempts_made']}/{job['attempts']}"
    return job["id"], job["name"], job["state"], attempts, clock(job["timestamp"]), _took(job), reason


@app.command()
def show(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Show all the queue knows of a job.

    Payload, options, result, reason, log lines, stack traces.
    """
    from oxherd.cli.asking import ask_queue

    job = ask_queue(lambda _, admin: admin.job(job_id))
    if as_json:
        print_json(job)
    else:
        _show(job)


def _show(job: dict[str, Any]) -> None:
    rows = [(label, text) for label, text in _facts(job) if text not in {None, ""}]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label.ljust(width)}  {text}")
    for title, texts in (("log", job["logs"]), ("stack", job["stacktrace"])):
        for text in texts:
            print(f"\n{title}:\n{text.rstrip()}")


def _facts(job: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield from ((name, job[name]) for name in ("id", "name", "state"))
    yield "attempts", f"{job['attempts_made']} of {job['attempts']}"
    yield "workers lost", str(job["stalled"] or "")
    yield "priority", str(job["priority"] or "")
    yield "delay", duration(job["delay"] / 1000) if job["delay"] else None
    yield from (("added", clock(job["timestamp"])), ("started", clock(job["processed_on"])))
    yield from (("finished", clock(job["finished_on"])), ("took", _took(job)))
    yield from ((name, _as_text(job[name])) for name in ("progress", "parent", "scheduler"))
    yield from (("payload", _as_text(job["data"])), ("options", _as_text(job["opts"])))
    yield from (("result", _as_text(job["returnvalue"])), ("reason", job["failed_reason"]))


def _took(job: dict[str, Any]) -> str | None:
    started, finished = job["processed_on"], job["finished_on"]
    return duration((finished - started) / 1000) if started and finished else None


def _as_text(value: Any) -> str | None:
    import orjson

    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


@app.command(
    epilog="\b\nExamples:\n  oxherd jobs tail 42\n  oxherd jobs tail 42 --json --from 1764000000000-0\n"
    "  oxherd jobs tail --json | jq 'select(.event == \"failed\")'"
)
def tail(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="ENTRY", help="With ID: go on after this entry, by its id in --json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow a job until it ends, or all that happens on the queue until Ctrl-C.

    Of a job, what the models say goes to stdout as they say it; steps, tools, progress and log lines go to stderr. It
    may wait, run or have ended; what it said before is caught up on. A job that failed makes the exit code 1. With
    --json, an object per line.
    """
    from oxherd.app import run_loop

    if job_id is None and since is not None:
        raise UsageError("--from is for following one job", hint="oxherd jobs tail ID --from ENTRY")
    run_loop(_tail(as_json) if job_id is None else _follow(job_id, since or "0", as_json))


async def _follow(job_id: str, since: str, as_json: bool) -> None:
    from oxherd import settings as variables
    from oxherd.cli.asking import say_when_redis_is_away
    from oxherd.cli.following import Screen, fail_unless_completed, follow_job

    with say_when_redis_is_away():
        end = await follow_job(variables.load(), job_id, None if as_json else Screen(sys.stdout), since=since)
    fail_unless_completed(job_id, end.data["outcome"], end.data.get("reason"))


async def _tail(as_json: bool) -> None:
    from oxherd import settings as variables
    from oxherd.app import queue_client
    from oxherd.cli.asking import say_when_redis_is_away
    from oxherd.errors import RedisUnreachable

    settings = variables.load()
    async with queue_client(settings) as (_, admin), queue_client(settings) as (_, watcher):
        names = _Names(admin)
        since = await watcher.newest_event()
        note(f"following queue {settings.job_queue_name}; Ctrl-C ends")
        with say_when_redis_is_away():
            while True:
                try:
                    async for position, event in watcher.events(since):
                        since = position
                        await _print_event(position, event, names, as_json)
                except RedisUnreachable:
                    continue  # its link reconnects: go on from the last event seen


class _Names:
    """Job names by id, asked for once: most events carry the id alone."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._known: dict[str, str] = {}

    async def of(self, job_id: str) -> str:
        if job_id not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[job_id] = await self._ask(job_id)
        return self._known[job_id]

    async def _ask(self, job_id: str) -> str:
        try:
            return str((await self._admin.job(job_id))["name"])
        except OxherdError:  # removed by now, or Redis is away: the event is worth showing without it
            return ""


async def _print_event(position: str, event: dict[str, str], names: _Names, as_json: bool) -> None:
    from oxherd.queue.waiting import as_json as parsed

    job_id = event.get("jobId", "")
    name = event.get("name") or (await names.of(job_id) if job_id else "")
    moment = int(position.partition("-")[0])
    if as_json:
        fields = {key: parsed(value) if key in {"returnvalue", "data"} else value for key, value in event.items()}
        print_json({"at": moment, "name": name, **fields}, on_one_line=True)
        return
    rest = event.get("failedReason") or event.get("returnvalue") or event.get("data") or ""
    print(f"{clock(moment)}  {event['event']:<18}  {job_id:<8}  {name:<24}  {shortened(rest, 80)}".rstrip(), flush=True)


@app.command()
def retry(ids: Ids, as_json: Json = False) -> None:
    """Run failed or completed jobs again.

    A failed one gets all its attempts anew. Steps that had finished are not paid for again.
    """
    _act(ids, lambda admin, job_id: _said(admin.retry(job_id), "waiting"), as_json)


@app.command(epilog="\b\nExamples:\n  oxherd jobs promote 42\n  oxherd jobs promote --begun --yes")
def promote(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", show_default=False)] = None,
    begun: Annotated[bool, typer.Option("--begun", help="All that wait between two tries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Run delayed jobs now.

    With --begun all that had begun and wait for their next try, such as after an outage. What a producer or a
    schedule wants to run later keeps its time.
    """
    from oxherd.cli.asking import ask_queue

    if bool(ids) == begun:
        raise UsageError("say which delayed jobs: ids or --begun")
    if ids:
        _act(ids, lambda admin, job_id: _said(admin.promote(job_id), "waiting"), as_json)
        return
    if not yes:
        _confirm("every job that waits for another try")
    promoted = ask_queue(lambda _, admin: admin.promote_begun())
    if as_json:
        print_json({"promoted": promoted})
    else:
        print(f"{len(promoted)} put on the queue")


@app.command()
def cancel(ids: Ids, as_json: Json = False) -> None:
    """Cancel jobs, running or waiting.

    One that runs is stopped within a second and fails, one that waits is removed.
    """
    _act(ids, lambda admin, job_id: admin.cancel(job_id), as_json)


@app.command()
def remove(ids: Ids, as_json: Json = False) -> None:
    """Remove jobs that do not run, with all the queue knows of them."""
    _act(ids, _remove, as_json)


async def _said(action: Awaitable[None], word: str) -> str:
    await action
    return word


async def _remove(admin: Admin, job_id: str) -> str:
    await admin.job(job_id)  # JobNotFound: removing what is not there would look like success
    if not await admin.remove(job_id):
        raise JobStateError(f"job {job_id} runs right now", hint=f"oxherd jobs cancel {job_id}")
    return "removed"


def _act(ids: Iterable[str], action: Callable[[Admin, str], Awaitable[str]], as_json: bool) -> None:
    """Do it to each job; one that refuses does not keep the others from it, but makes the exit code 1."""
    from oxherd.cli.asking import ask_queue

    async def ask(_: object, admin: Admin) -> list[dict[str, Any]]:
        return [await _attempt(admin, job_id) for job_id in dict.fromkeys(ids)]

    async def _attempt(admin: Admin, job_id: str) -> dict[str, Any]:
        try:
            return {"id": job_id, "done": await action(admin, job_id)}
        except OxherdError as error:
            if error.exit_code != 1:
                raise
            return {"id": job_id, "error": error.message}

    done = ask_queue(ask)
    if as_json:
        print_json(done)
    for each in done:
        if "error" in each:
            note(f"Error: {each['error']}")
        elif not as_json:
            print(f"{each['id']}  {each['done']}")
    if any("error" in each for each in done):
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  oxherd jobs dead --json | jq '.[] | {name, reason, count}'")
def dead(limit: Limit = 1000, as_json: Json = False) -> None:
    """List the dead letters: jobs that failed for good.

    Those with the same name and the same reason are shown together.
    """
    from oxherd.cli.asking import ask_queue
    from oxherd.queue.dead import DeadLetters

    groups = ask_queue(lambda _, admin: DeadLetters(admin).groups(limit=limit))
    if as_json:
        print_json(groups)
        return
    rows = [
        (group["count"], group["name"], clock(group["newest"]), shortened(group["reason"]), _some(group["ids"]))
        for group in groups
    ]
    print_table(("count", "name", "newest", "reason", "ids"), rows)
    note("oxherd jobs replay puts them back" if groups else "no dead letters")


def _some(ids: Sequence[str]) -> str:
    return " ".join(ids[:5]) + (" …" if len(ids) > 5 else "")


@app.command(
    epilog="\b\nExamples:\n  oxherd jobs replay 42 43\n  oxherd jobs replay --name report.write\n"
    "  oxherd jobs replay --all --yes"
)
def replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", show_default=False)] = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Every dead letter of this job name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Put dead letters back on the queue.

    Each gets all its attempts anew. Steps that had finished are not paid for again.
    """
    if sum((bool(ids), all_jobs, name is not None)) != 1:
        raise UsageError("say which dead letters: ids, --name NAME or --all")
    if not yes:
        _confirm(_how_many(ids, name))
    done = _replay(list(dict.fromkeys(ids)) if ids else None, name)
    replayed = [job_id for bulk in done for job_id in bulk.done]
    gone = [job_id for bulk in done for job_id in bulk.gone]
    if as_json:
        print_json({"replayed": replayed, "gone": gone})
        return
    print(f"{len(replayed)} put back" + (f", {len(gone)} were no dead letters" if gone else ""))


def _how_many(ids: Sequence[str] | None, name: str | None) -> str:
    from oxherd.cli.asking import ask_queue

    if ids:
        return f"{len(ids)} {'job' if len(ids) == 1 else 'jobs'}"
    if name is not None:
        return f"every dead letter of {name}"
    return f"{ask_queue(lambda _, admin: admin.counts())['failed']} dead letters"


def _confirm(what: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{what} would be put on the queue; nobody is here to confirm it", hint="add --yes")
    typer.confirm(f"Put {what} on the queue?", abort=True, err=True)


def _replay(ids: Sequence[str] | None, name: str | None) -> list[Bulk]:
    from oxherd.cli.asking import ask_queue
    from oxherd.clock import wall_ms
    from oxherd.queue.dead import DeadLetters, Pick

    async def ask(_: object, admin: Admin) -> list[Bulk]:
        letters, pick, done = DeadLetters(admin), Pick(ids, name, until=wall_ms()), []
        if ids and (absent := await letters.absent(ids)):
            raise JobStateError(f"not among the dead letters: {', '.join(absent)}", hint="oxherd jobs dead")
        while True:
            done.append(await letters.replay(pick))
            if (place := done[-1].next) is None:
                return done
            pick = dataclasses.replace(pick, after=place)

    return ask_queue(ask)
