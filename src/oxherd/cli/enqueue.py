from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, console, note, print_json
from oxherd.errors import OxherdError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from oxherd.queue.admin import Admin
    from oxherd.queue.waiting import Ending
    from oxherd.settings import Settings

LAST_WORDS = 2.0  # seconds that a stream may lag behind its job's end
EXAMPLES = """\b
Examples:
  oxherd enqueue agent.run '{"agent": "support", "input": "Where is my order?"}' --wait
  oxherd enqueue report.write @payload.json --delay 10m --attempts 5 --backoff exponential:2s
  jq .report payload.json | oxherd enqueue report.write - --job-id report-2026-11

With --wait the result goes to stdout, everything else to stderr; a failed job makes the exit code 1."""


def read_payload(text: str | None) -> dict[str, Any]:
    """The payload from JSON text, `@file` or `-` for stdin; an empty object where none is given.

    Raises:
        UsageError: it can't be read, is no JSON, or no object.
    """
    if text is None:
        return {}
    payload, source = read_json(text, "the payload")
    if not isinstance(payload, dict):
        raise UsageError(f'{source} must be a JSON object, such as {{"key": "value"}}')
    return payload


def read_json(text: str, what: str) -> tuple[Any, str]:
    """A value from JSON text, `@file` or `-` for stdin, and where it was read from, in words.

    Raises:
        UsageError: it can't be read, or is no JSON; `what` names it.
    """
    source, text = _read(text, what)
    try:
        return json.loads(text), source
    except ValueError as error:
        raise UsageError(
            f"{source} is not JSON: {error}", hint='quote it for the shell: \'{"key": "value"}\''
        ) from None


def _read(text: str, what: str) -> tuple[str, str]:
    if text == "-":
        return f"{what} on stdin", sys.stdin.read()
    if not text.startswith("@"):
        return what, text
    try:
        return f"{what} in {text[1:]}", Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {text[1:]}: {error}") from None


def seconds(text: str) -> float:
    """A duration on the command line."""
    from oxherd.settings import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def backoff(text: str) -> dict[str, Any]:
    """BullMQ's backoff from `2s`, `fixed:2s` or `exponential:2s`."""
    kind, mark, delay = text.rpartition(":")
    if mark and kind not in {"fixed", "exponential"}:
        raise typer.BadParameter("must be a duration, or fixed: or exponential: and a duration")
    return {"type": kind or "fixed", "delay": round(seconds(delay) * 1000)}


def enqueue(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job's name: which handler runs it.")],
    payload: Annotated[
        str | None,
        typer.Argument(metavar="JSON|@FILE|-", help="The payload, an object: as text, from a file, from stdin."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the job's end and print its result.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="With --wait: show what it says meanwhile, on stderr.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="DURATION", help="How long to --wait; the job itself goes on."),
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="An id of your own: while the first job with it is kept, no second is added."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2_097_151,
            metavar="N",
            help="1 is the most urgent; jobs without a priority run before those with one.",
        ),
    ] = None,
    delay: Annotated[
        float | None, typer.Option(parser=seconds, metavar="DURATION", help="Run it that much later.")
    ] = None,
    attempts: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many attempts it has in all.")] = None,
    backoff: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=backoff, metavar="[fixed:|exponential:]DURATION", help="The pause before another attempt."),
    ] = None,
    lifo: Annotated[bool, typer.Option("--lifo", help="Before the jobs that wait already.")] = False,
    as_json: Json = False,
) -> None:
    """Put a job on the queue; print its id, or its result with --wait."""
    data = read_payload(payload)
    options = {
        "jobId": job_id,
        "priority": priority,
        "delay": None if delay is None else round(delay * 1000),
        "attempts": attempts,
        "backoff": backoff,
        "lifo": lifo or None,
    }
    if stream and not wait:
        raise UsageError("--stream shows a job while it is waited for", hint="add --wait")
    if wait:
        _add_and_wait(name, data, options, timeout, stream, as_json)
    else:
        _add(name, data, options, as_json)


def _add(name: str, data: dict[str, Any], options: dict[str, Any], as_json: bool) -> None:
    from oxherd.cli.asking import ask_queue

    job_id = ask_queue(lambda producer, _: producer.add(name, data, **options))
    if as_json:
        print_json({"id": job_id})
    else:
        print(job_id)


def _add_and_wait(
    name: str, data: dict[str, Any], options: dict[str, Any], patience: float | None, stream: bool, as_json: bool
) -> None:
    from oxherd.app import run_loop
    from oxherd.cli.following import fail_unless_completed

    job_id, ending, job = run_loop(_wait(name, data, options, patience, stream))
    if as_json:
        print_json(_summary(job_id, ending, job))
    elif ending.state == "completed":
        print_json(ending.value)
    fail_unless_completed(job_id, ending.state, ending.reason)


async def _wait(
    name: str, data: dict[str, Any], options: dict[str, Any], patience: float | None, stream: bool
) -> tuple[str, Ending, dict[str, Any]]:
    import asyncio

    from oxherd import settings as variables
    from oxherd.app import queue_client
    from oxherd.cli.asking import say_when_redis_is_away
    from oxherd.queue.waiting import wait_for_end

    settings = variables.load()
    async with queue_client(settings) as (producer, admin), queue_client(settings) as (_, watcher):
        since = await watcher.newest_event()
        job_id = await producer.add(name, data, **options)
        note(f"job {job_id}")
        try:
            with say_when_redis_is_away():
                async with asyncio.timeout(patience):
                    if stream:
                        ending = await _stream(settings, job_id, wait_for_end(admin, watcher, job_id, since=since))
                    else:
                        with _progress() as show:
                            ending = await wait_for_end(admin, watcher, job_id, since=since, on_event=show)
        except TimeoutError:
            raise OxherdError(
                f"job {job_id} has not ended within {patience:g} s; it goes on", hint=f"oxherd jobs show {job_id}"
            ) from None
        return job_id, ending, await _job(admin, job_id)


async def _stream(settings: Settings, job_id: str, ending: Coroutine[Any, Any, Ending]) -> Ending:
    """Show the job's stream until it has ended; the ending is what the queue says."""
    import asyncio

    from oxherd.cli.following import Screen, follow_job

    following = asyncio.create_task(follow_job(settings, job_id, Screen(sys.stderr)))
    try:
        ended = await ending
        await asyncio.wait({following}, timeout=LAST_WORDS)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return ended


async def _job(admin: Admin, job_id: str) -> dict[str, Any]:
    from oxherd.errors import JobNotFound

    try:
        return await admin.job(job_id)
    except JobNotFound:  # removed when it ended, as its options said
        return {}


def _summary(job_id: str, ending: Ending, job: dict[str, Any]) -> dict[str, Any]:
    started, finished = job.get("processed_on"), job.get("finished_on")
    return {
        "id": job_id,
        "state": ending.state,
        "result": ending.value,
        "reason": ending.reason,
        "attempts": job.get("attempts_made"),
        "ms": finished - started if started and finished else None,
    }


@contextmanager
def _progress() -> Iterator[Callable[[dict[str, str]], None]]:
    """Show what happens to the job on stderr: one changing line on a terminal, a line each otherwise."""
    if not sys.stderr.isatty():
        yield lambda event: note(describe(event))
        return
    from rich.markup import escape

    with console(stderr=True).status("waiting") as status:
        yield lambda event: status.update(escape(describe(event)))


def describe(event: dict[str, str]) -> str:
    """An event of a job in words."""
    match event["event"]:
        case "progress":
            return f"progress: {event.get('data', '')}"
        case "active":
            return "running"
        case "delayed":
            return "waiting for its time"
        case "waiting" | "prioritized":
            return "waiting for a worker"
        case other:
            return other
