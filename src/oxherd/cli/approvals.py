from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from oxherd.cli.enqueue import read_json
from oxherd.cli.printing import Json, age, clock, note, print_json, print_table, shortened
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.store import WaitRow
    from oxherd.worker.approvals import Approvals

T = TypeVar("T")


class State(StrEnum):
    """What became of a question."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


app = typer.Typer(
    no_args_is_help=True,
    help="Questions that jobs ask people, and answering them.\n\n"
    "A job asks with `await ctx.wait_for(…)`, or by calling a tool with `approve=True`; it goes on when somebody has "
    "answered. The first answer counts. Exit code 1: there is no such question, or it can't be answered any more.",
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `oxherd approvals list` shows it.", show_default=False)]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who answers; the user of this machine when left out.")
]
Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="A few words for the job.")]


@app.command("list", epilog="\b\nExamples:\n  oxherd approvals list\n  oxherd approvals list --json | jq -r '.[].id'")
def list_(
    state: Annotated[State, typer.Option(help="Which ones.")] = State.OPEN,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List the questions of the queue: open ones the most urgent first, others the newest first."""
    rows = _ask(lambda approvals: approvals.list(state=state, limit=limit))
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    columns = ("id", "question", "job", "tenant", "asked", "until", "about")
    print_table(columns, [_line(row) for row in rows])
    if not rows:
        note(f"no {state} questions")


@app.command(epilog="\b\nExample:\n  oxherd approvals show 5f0c2d7a91b3e644 --url")
def show(
    wait_id: Id,
    url: Annotated[
        bool,
        typer.Option("--url", help="Print a link that answers it, once. Whoever has it may; treat it as a secret."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is asked, by which job, and what was answered."""

    async def ask(approvals: Approvals) -> tuple[WaitRow, str | None]:
        row = await approvals.show(wait_id)
        link = approvals.url(row) if url else None
        return row, None if link is None else link.reveal()

    row, link = _ask(ask)
    if url and link is None:
        raise UsageError(
            f"there is no link for question {wait_id}: {_why_no_link(row)}",
            hint="oxherd approvals approve|deny|answer work without a link",
        )
    if as_json:
        print_json(_plain(row) | ({"url": link} if url else {}))
    elif url:
        print(link)
    else:
        _print(row)


@app.command(epilog="\b\nExample:\n  oxherd approvals approve 5f0c2d7a91b3e644 --message 'this once'")
def approve(wait_id: Id, by: By = None, message: Message = "", as_json: Json = False) -> None:
    """Say yes."""
    _answer(wait_id, as_json, approved=True, by=by, message=message)


@app.command(epilog="\b\nExample:\n  oxherd approvals deny 5f0c2d7a91b3e644 --message 'ask the customer first'")
def deny(wait_id: Id, by: By = None, message: Message = "", as_json: Json = False) -> None:
    """Say no; the job, or its model, is told so, with your words."""
    _answer(wait_id, as_json, approved=False, by=by, message=message)


@app.command(
    epilog="\b\nExamples:\n  oxherd approvals answer 5f0c2d7a91b3e644 '{\"amount\": 25}'\n"
    "  oxherd approvals answer 5f0c2d7a91b3e644 @answer.json --by ana"
)
def answer(
    wait_id: Id,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, @file or - for stdin.", show_default=False)],
    by: By = None,
    message: Message = "",
    as_json: Json = False,
) -> None:
    """Say yes, and give a value: the handler finds it in the answer's `value`."""
    _answer(wait_id, as_json, approved=True, by=by, message=message, value=read_json(value, "the value")[0])


def _answer(wait_id: str, as_json: bool, *, approved: bool, by: str | None, message: str, value: Any = None) -> None:
    who = by or _user()
    row = _ask(lambda approvals: approvals.answer(wait_id, approved=approved, by=who, value=value, message=message))
    if as_json:
        print_json(_plain(row))
    else:
        print(f"{'approved' if approved else 'denied'} {row.key} of job {row.job_id} ({row.job})")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "command line"


def _line(row: WaitRow) -> tuple[object, ...]:
    about = "" if row.about is None else shortened(_json(row.about))
    until = clock(row.expires_at) if row.state == State.OPEN else _ended(row)
    return row.id, row.key, f"{row.job} {row.job_id}", row.tenant, f"{age(row.asked_at)} ago", until, about


def _ended(row: WaitRow) -> str:
    return f"{'approved' if row.approved else 'denied'} by {row.by}" if row.state == State.ANSWERED else row.state


def _print(row: WaitRow) -> None:
    told = {
        "question": row.key,
        "job": f"{row.job} {row.job_id}",
        "run": row.run_id,
        "tenant": row.tenant,
        "state": row.state,
        "asked": clock(row.asked_at),
        "until": clock(row.expires_at),
        "answer": _ended(row) if row.state == State.ANSWERED else None,
        "at": clock(row.answered_at),
        "value": None if row.value is None else _json(row.value),
        "message": row.message,
        "about": None if row.about is None else _json(row.about, indented=True),
    }
    for name, text in told.items():
        if text:
            print(f"{name.ljust(9)} {text}")


def _plain(row: WaitRow) -> dict[str, Any]:
    """A question as JSON: all but what is in its links."""
    from dataclasses import asdict

    return {name: value for name, value in asdict(row).items() if name not in {"nonce", "inputs"}}


def _json(value: Any, *, indented: bool = False) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else 0).decode()


def _why_no_link(row: WaitRow) -> str:
    return "ENCRYPTION_KEY or PUBLIC_URL is not set here" if row.state == State.OPEN else f"it is {row.state}"


def _ask(question: Callable[[Approvals], Awaitable[T]]) -> T:
    """Connect to the configured store and queue, ask, disconnect. Raises UsageError, Unreachable, RedisRefused."""
    from oxherd import settings as variables
    from oxherd.app import build_approvals, build_store, run_loop
    from oxherd.queue.connection import Link

    settings = variables.load()
    store = build_store(settings)
    if store is None:
        raise UsageError("questions are kept in the store, and none is configured", hint="set DATABASE_URL")

    async def ask() -> T:
        await store.start()
        link = Link(settings.redis_url, "cli")
        try:
            await link.start()
            return await question(build_approvals(settings, store, link))
        finally:
            await link.stop()
            await store.stop()

    return cast(T, run_loop(ask()))
