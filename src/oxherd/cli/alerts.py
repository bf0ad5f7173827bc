from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, clock, duration, note, print_json, print_table
from oxherd.errors import OxherdError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from oxherd.queue.alertbook import AlertBook
    from oxherd.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See what is wrong, be left in peace for a while, try the channels.")

Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", help="An alert, such as queue-age, slo-burn-fast/wait or 'slo-*'.")
]


@app.command("list")
def list_alerts(as_json: Json = False) -> None:
    """List what is wrong now. Exit code 1 where people were told of something that is not over."""
    from oxherd.clock import wall_ms

    alerts = _ask(lambda book: book.alerts())
    now = wall_ms() / 1000
    if as_json:
        print_json({"alerts": [alert.dump() for alert in alerts]})
    else:
        rows = [
            (alert.severity, alert.key, duration(now - alert.since), alert.summary)
            for alert in sorted(alerts, key=lambda alert: alert.since)
        ]
        print_table(("severity", "alert", "for", "summary"), rows)
        note("" if alerts else "nothing is wrong")
    if any(alert.told is not None for alert in alerts):
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  oxherd alerts silence 'slo-*' --for 2h --reason 'moving to another Redis'")
def silence(
    pattern: Pattern,
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long, such as 2h.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why: shown by `oxherd alerts silences`.")] = "",
    as_json: Json = False,
) -> None:
    """Tell nobody of these alerts for a while. What still goes on then is told then."""
    from oxherd.clock import wall_ms
    from oxherd.settings import parse_duration
    from oxherd.telemetry.alerts import KINDS, Silence, covers_any

    try:
        seconds = parse_duration(for_)
    except ValueError as fault:
        raise UsageError(f"--for {fault}") from None
    if not covers_any(pattern):
        raise UsageError(f"no alert is called {pattern!r}; there are {', '.join(KINDS)}")
    made = Silence(pattern, wall_ms() / 1000 + seconds, getpass.getuser(), reason)
    _ask(lambda book: book.silence(made))
    if as_json:
        print_json({"pattern": pattern, "until": made.until})
    else:
        print(f"{pattern} is silent until {clock(int(made.until * 1000))}")


@app.command()
def unsilence(pattern: Pattern) -> None:
    """End a silence."""
    if not _ask(lambda book: book.unsilence(pattern)):
        raise OxherdError(f"there is no silence of {pattern!r}", hint="oxherd alerts silences")
    print(f"{pattern} is told again")


@app.command()
def silences(as_json: Json = False) -> None:
    """List the silences that have not ended."""
    found = _ask(lambda book: book.silences())
    if as_json:
        listed = [{"pattern": s.pattern, "until": s.until, "by": s.by, "reason": s.reason} for s in found]
        print_json({"silences": listed})
        return
    rows = [(each.pattern, clock(int(each.until * 1000)), each.by, each.reason) for each in found]
    print_table(("pattern", "until", "by", "reason"), rows)
    note("" if found else "no silences")


@app.command("test")
def try_channels(as_json: Json = False) -> None:
    """Send a message to each configured channel, Sentry included. Exit code 1 where one did not take it."""
    import asyncio

    from oxherd import settings as variables
    from oxherd.app import in_time, run_loop, start_sentry
    from oxherd.clock import wall_ms
    from oxherd.telemetry.alerts import Alert, Notice
    from oxherd.telemetry.channels import Undelivered, Wording, channels_of

    settings = variables.load()
    channels, stop_sentry = channels_of(settings), start_sentry(settings)
    if stop_sentry is not None:
        from oxherd.telemetry.sentry import Trial

        channels.append(Trial())
    elif settings.sentry_dsn is not None:
        raise UsageError("SENTRY_DSN is set, but not the extra", hint="pip install 'oxherd[sentry]'")
    if not channels:
        raise OxherdError(
            "no channel is configured", hint="set ALERT_WEBHOOK_URL, SENTRY_DSN or another: docs/alerts.md"
        )
    now = wall_ms() / 1000
    alert = Alert("queue-age", "test", "This is a test: nothing is wrong.", "ticket", since=now, seen=now)
    words = Wording(Notice("fired", alert), settings.job_queue_name, settings.runbooks_url)

    async def tell() -> list[str]:
        async def one(channel: Any) -> str:
            try:
                await channel.send(words)
            except Undelivered as error:
                return str(error)
            return ""

        found = await asyncio.gather(*(one(channel) for channel in channels))
        await in_time(stop_sentry)
        return found

    faults = dict(zip((channel.name for channel in channels), run_loop(tell()), strict=True))
    if as_json:
        print_json({"channels": {name: {"ok": not fault, "error": fault or None} for name, fault in faults.items()}})
    else:
        print_table(("channel", "result"), [(name, fault or "delivered") for name, fault in faults.items()])
    if any(faults.values()):
        raise typer.Exit(1)


def _ask(question: Callable[[AlertBook], Awaitable[Any]]) -> Any:
    from oxherd import settings as variables
    from oxherd.app import run_loop, watch_client

    settings: Settings = variables.load()

    async def ask() -> Any:
        async with watch_client(settings) as (book, _):
            return await question(book)

    return run_loop(ask())
