"""Asking services whether they still take a secret. Only for `--verify`: secrets go to those who issued them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from oxherd.ops.audit_secrets import Finding, Report
from oxherd.settings import Settings

SECONDS = 10


async def verified(report: Report, settings: Settings) -> Report:
    """The report with what each service said. A service that does not answer leaves it open."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        findings = [dataclasses.replace(each, live=await _live(session, each, settings)) for each in report.findings]
    return dataclasses.replace(report, findings=tuple(findings))


async def _live(session: Any, finding: Finding, settings: Settings) -> bool | None:
    question = _question(finding, settings)
    if question is None:
        return _asked_by_the_scanner(finding)
    import aiohttp

    url, headers = question
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as reply:
            return True if reply.status < 300 else False if reply.status in {401, 403} else None
    except (aiohttp.ClientError, TimeoutError):
        return None


def _question(finding: Finding, settings: Settings) -> tuple[str, Mapping[str, str]] | None:
    """A call that costs nothing and that only a live secret may make."""
    value = finding.value.reveal()
    match finding.kind.variable:
        case "OPENROUTER_API_KEY":
            return f"{settings.openrouter_base_url}/key", {"Authorization": f"Bearer {value}"}
        case "SENTRY_AUTH_TOKEN":
            return f"{settings.sentry_url}/api/0/", {"Authorization": f"Bearer {value}"}
        case "SUPABASE_SERVICE_ROLE_KEY" if settings.supabase_url is not None:
            bearer = {"Authorization": f"Bearer {value}"} if value.startswith("eyJ") else {}
            return f"{settings.supabase_url}/rest/v1/", {"apikey": value, **bearer}
        case _:
            return None


def _asked_by_the_scanner(finding: Finding) -> bool | None:
    """What the scanner's own call of the service says; None where its rule has none."""
    from kingfisher_sdk import Scanner, Validator

    alone = [each for each in Scanner().scan(finding.value.reveal()) if each.rule_id == finding.kind.rule]
    outcomes = {each.outcome for each in Validator(timeout=SECONDS).validate(alone)} if alone else set()
    if "verified_active" in outcomes:
        return True
    return False if "verified_inactive" in outcomes else None
