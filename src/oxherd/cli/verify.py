from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.enqueue import seconds
from oxherd.cli.printing import Json, print_json, writable
from oxherd.errors import OxherdError, UsageError

if TYPE_CHECKING:
    from oxherd.ops.verify import Check, Logs, Report

COLOURS = {"passed": "green", "failed": "red", "warned": "yellow", "skipped": None}
EXAMPLES = """\b
Examples:
  oxherd verify https://worker.up.railway.app --commit "$(git rev-parse HEAD)"
  oxherd verify --logs worker.log            # no address: through Redis alone
  docker logs worker 2>&1 | oxherd verify http://localhost:8080 --logs - --junit verify.xml
  oxherd verify https://worker.example.com --agent support --max-usd 0.02

The test job goes through Redis where REDIS_URL is set, else through the HTTP API with API_TOKEN. A check that could not
be made is skipped, and said so; a warning does not fail, except with --strict."""


def dollars(text: str) -> Decimal:
    """An amount on the command line."""
    from oxherd.settings import parse_dollars

    try:
        return parse_dollars(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def verify(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Where the worker is; PUBLIC_URL or Railway's when left out.")
    ] = None,
    commit: Annotated[str | None, typer.Option(metavar="SHA", help="The commit that must be deployed.")] = None,
    version: Annotated[str | None, typer.Option(metavar="X.Y.Z", help="The Oxherd that must be deployed.")] = None,
    logs: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Its log, to look for the start and for failed imports.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run this agent too: a real call of its model.")
    ] = None,
    max_usd: Annotated[str, typer.Option(metavar="USD", help="What that may cost.")] = "0.05",
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long health and each job may take.")] = "60s",
    queue_age: Annotated[
        str, typer.Option(metavar="DURATION", help="Warn where the next job has waited for longer.")
    ] = "15m",
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Fail where more of its attempts failed.")
    ] = 0.2,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report there as JUnit's XML.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that a deployment works: health, version, log, and a real job that this very deployment runs.

    Works against any host. Changes nothing; the jobs it runs are removed. Exit code 1 where a check failed.
    """
    from oxherd import settings as variables
    from oxherd.app import run_loop
    from oxherd.ops.junit import junit as as_junit
    from oxherd.ops.verify import Asked
    from oxherd.ops.verify import verify as make_checks

    writable(junit)
    settings = variables.load(needs=())
    url = _address(url) or settings.reached_at
    has_redis = getattr(settings, "redis_url", None) is not None
    if url is None and not has_redis:
        raise UsageError("there is nothing to verify by", hint="give the worker's address, or set REDIS_URL")
    asked = Asked(
        settings.job_queue_name, url, settings if has_redis else None, settings.api_token, commit, version,
        logs=None if logs is None else _reader(logs), agent=agent, max_usd=dollars(max_usd), patience=seconds(timeout),
        queue_age=seconds(queue_age), error_rate=error_rate,
    )  # fmt: skip
    report: Report = run_loop(make_checks(asked, (lambda _: None) if as_json else tell))
    if junit is not None:
        junit.write_text(as_junit(report, f"oxherd verify {url or asked.queue}"), encoding="utf-8")
    ok = report.ok and not (strict and any(check.outcome == "warned" for check in report.checks))
    if as_json:
        print_json(plain(report) | {"ok": ok})
    else:
        typer.secho(_summary(report, ok=ok), fg="green" if ok else "red")
    if not ok:
        raise typer.Exit(1)


def tell(check: Check) -> None:
    """Print a check, and what to do where it is not fine."""
    mark = typer.style(check.outcome.ljust(7), fg=COLOURS[check.outcome])
    print(f"{mark}  {check.name:<12}  {check.found}", flush=True)
    if check.fix and check.outcome in {"failed", "warned"}:
        print(f"{'':23}→ {check.fix}", flush=True)


def plain(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    checks = [
        {"name": each.name, "outcome": each.outcome, "found": each.found, "fix": each.fix, "seconds": each.seconds}
        for each in report.checks
    ]
    return {"ok": report.ok, "checks": checks}


def _summary(report: Report, *, ok: bool) -> str:
    counts = {word: sum(check.outcome == word for check in report.checks) for word in COLOURS}
    numbers = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{'verified' if ok else 'not verified'}: {numbers}"


def _address(url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise UsageError("the address must begin with http:// or https://", hint=f"https://{url}?")
    return url


def _reader(path: str) -> Logs:
    text = sys.stdin.read() if path == "-" else None

    async def read() -> list[str]:
        return (_text_of(path) if text is None else text).splitlines()

    return read


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OxherdError(f"can't read the log {path}: {error.strerror}") from None
