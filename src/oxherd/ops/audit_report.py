"""`oxherd audit report`: one page for an auditor. Each control has a score, and the evidence it rests on."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oxherd import __version__
from oxherd.ops.audit_env import OLD_DAYS, Inventory
from oxherd.ops.audit_formats import summary
from oxherd.ops.audit_page import chip, document, figures, ring, words
from oxherd.ops.audit_rules import Level
from oxherd.ops.audit_secrets import Report
from oxherd.ops.rotate_known import how_to_replace

_DAY_MS = 86_400_000
_LOCKS = (
    "uv.lock",
    "poetry.lock",
    "pdm.lock",
    "Pipfile.lock",
    "requirements.txt",
    "package-lock.json",
    "pnpm-lock.yaml",
)


@dataclass(frozen=True, slots=True)
class Control:
    """One thing that an auditor asks for.

    Attributes:
        name: what is asked.
        score: from 0 to 100; None where it could not be found out.
        evidence: what the score rests on.
        fix: what to do for a better one; empty at 100.
    """

    name: str
    score: int | None
    evidence: str
    fix: str = ""

    @property
    def verdict(self) -> str:
        """passed, partly, failed or not known."""
        if self.score is None:
            return "not known"
        return "passed" if self.score == 100 else "partly" if self.score else "failed"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report is made from.

    Attributes:
        made: when, in UTC.
        secrets: the audit of secrets; None where it could not be done.
        unable: why it could not be done, or only in part; empty where it was done.
        variables: the audit of the variables.
        operations: by kind the newest first; None where the store can't be asked.
        audit_log: its newest line; None where there is none.
        locks: the lock files that there are.
        tokens: whether API_TOKEN and API_READ_TOKEN are set.
        sealed: whether ENCRYPTION_KEY is set, and whether older keys still are.
    """

    made: datetime
    secrets: Report | None
    unable: str
    variables: Inventory
    operations: Mapping[str, Sequence[Mapping[str, Any]]] | None
    audit_log: Mapping[str, Any] | None
    locks: tuple[str, ...]
    tokens: tuple[bool, bool]
    sealed: tuple[bool, bool]


def locks_of(root: Path) -> tuple[str, ...]:
    """The files that pin a project's dependencies: those that have hashes."""
    found = [root / name for name in _LOCKS if (root / name).is_file()]
    return tuple(file.name for file in found if _HASH.search(file.read_text("utf-8", "replace")))


_HASH = re.compile(r"\bsha(?:1|256|384|512)[:-]")


def controls(evidence: Evidence) -> tuple[Control, ...]:
    """The table of controls."""
    made: tuple[Callable[[Evidence], Control], ...] = (
        _no_secrets, _least_privilege, _row_security, _encrypted_ways, _own_secrets, _rotated, _sealed, _tokens,
        _backed_up, _restorable, _rehearsed, _logged, _locked,
    )  # fmt: skip
    return tuple(each(evidence) for each in made)


def score(table: Sequence[Control]) -> int | None:
    """The mean of what is known; None where nothing is."""
    known = [each.score for each in table if each.score is not None]
    return round(sum(known) / len(known)) if known else None


def _no_secrets(evidence: Evidence) -> Control:
    name = "No secret is in the repository, its history or its image"
    found = evidence.secrets
    if found is None:
        return Control(name, None, evidence.unable, "pip install 'oxherd[audit]'")
    if found.failing:
        return Control(name, 0, summary(found), "`oxherd audit secrets` lists them; docs/incident/leaked-secret.md")
    if evidence.unable:
        return Control(name, None, f"{evidence.unable}; {summary(found)}", "run it in a whole clone of the repository")
    if found.skipped:
        more = f"; and {len(found.skipped) - 3} more" if len(found.skipped) > 3 else ""
        return Control(name, None, f"{summary(found)}: {'; '.join(found.skipped[:3])}{more}", "look through those, too")
    return Control(name, 100, summary(found))


def _from_faults(evidence: Evidence, name: str, control: str, fine: str, unknown: str) -> Control:
    """A control that is met where there is no such fault; `unknown` says why that can't be told, if it can't.

    Notes say of what nobody could tell: of a sealed variable, a place with malformed ones, a Redis that keeps its users
    to itself.
    """
    found = [each for each in evidence.variables.failing if each.control == control]
    notes = [each for each in evidence.variables.faults if each.control == control and each.level is Level.NOTE]
    unknown = unknown or "; ".join(f"{each.variable} {each.message}".strip() for each in notes[:3])
    if not found:
        return Control(name, None, unknown) if unknown else Control(name, 100, fine)
    bad = any(each.level is Level.ERROR for each in found)
    words = "; ".join(f"{each.variable}: {each.message}" for each in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return Control(name, 0 if bad else 50, words + more, found[0].fix)


def _least_privilege(evidence: Evidence) -> Control:
    missing = [service for service in ("postgres", "redis") if service not in evidence.variables.asked]
    return _from_faults(
        evidence, "Credentials may do what they must and no more", "privilege",
        "no user of Postgres or Redis has more rights than it needs",
        f"{' and '.join(missing)} {'was' if len(missing) == 1 else 'were'} not asked" if missing else "",
    )  # fmt: skip


def _row_security(evidence: Evidence) -> Control:
    return _from_faults(
        evidence, "Row-level security is on", "rls", "on for every table of the schemas oxherd and public",
        "" if "postgres" in evidence.variables.asked else "postgres was not asked",
    )  # fmt: skip


def _encrypted_ways(evidence: Evidence) -> Control:
    there = {row.variable for row in evidence.variables.rows if row.where}
    return _from_faults(
        evidence, "What crosses public networks is encrypted", "tls",
        "TLS, or a private network, to Redis and Postgres",
        "" if there & {"REDIS_URL", "DATABASE_URL"} else "neither REDIS_URL nor DATABASE_URL is set here",
    )  # fmt: skip


def _own_secrets(evidence: Evidence) -> Control:
    return _from_faults(
        evidence, "Environments share no secrets", "sharing", "no value is the same in two of the places looked at",
        "" if evidence.variables.places > 1
        else "no two environments with secrets were looked at (--railway and --file add others)",
    )  # fmt: skip


def _rotated(evidence: Evidence) -> Control:
    name = f"Secrets are replaced within {OLD_DAYS} days"
    rows = [row for row in evidence.variables.rows if row.where]
    if not rows or "operations" not in evidence.variables.asked:
        return Control(name, None, "the record of rotations could not be read" if rows else "no secret is set")
    fresh = [row for row in rows if row.rotated_days is not None and row.rotated_days <= OLD_DAYS]
    rest = [row.variable for row in rows if row not in fresh]
    fix = how_to_replace(rest[0]) if rest else ""
    return Control(name, 100 * len(fresh) // len(rows), f"{len(fresh)} of {len(rows)} have been", fix)


def _sealed(evidence: Evidence) -> Control:
    name = "Customers' credentials are encrypted, with one key"
    key, older = evidence.sealed
    if not key:
        return Control(name, None, "ENCRYPTION_KEY is not set: none can be stored")
    if older:
        return Control(name, 50, "older keys are still in use", "`oxherd credentials rewrap`, then remove them")
    return Control(name, 100, "AES-256-GCM with ENCRYPTION_KEY; no older key is set")


def _tokens(evidence: Evidence) -> Control:
    name = "The HTTP API asks who is there"
    full, read = evidence.tokens
    if not full:
        return Control(name, 100, "API_TOKEN is not set: only the machine itself is answered")
    if not read:
        return Control(name, 50, "API_TOKEN is set; readers share it with those who act", "set API_READ_TOKEN")
    return Control(name, 100, "API_TOKEN and API_READ_TOKEN are set")


def _newest(evidence: Evidence, name: str, kind: str, steps: Sequence[tuple[int, int]], fix: str) -> Control:
    """A control that is met where an operation succeeded lately: `steps` are days and the score within them."""
    if evidence.operations is None:
        return Control(name, None, "the record of operations could not be read")
    done = next((each for each in evidence.operations.get(kind, ()) if each["outcome"] == "ok"), None)
    if done is None:
        return Control(name, 0, f"no {kind} that succeeded is on record", fix)
    days = (evidence.made.timestamp() * 1000 - int(done["at"])) / _DAY_MS
    points = next((points for most, points in steps if days <= most), 0)
    when = datetime.fromtimestamp(int(done["at"]) / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Control(name, points, f"{done['target']}, {when}", "" if points == 100 else fix)


def _backed_up(evidence: Evidence) -> Control:
    return _newest(evidence, "There is a backup of the last day", "backup", ((1, 100), (7, 50)), "take one every day")


def _restorable(evidence: Evidence) -> Control:
    return _newest(
        evidence, "A backup was restored and compared within eight days", "verify", ((8, 100), (31, 50)),
        "verify one every week",
    )  # fmt: skip


def _rehearsed(evidence: Evidence) -> Control:
    return _newest(
        evidence, "A disaster was rehearsed within three months", "drill", ((92, 100), (183, 50)),
        "rehearse one every quarter",
    )  # fmt: skip


def _logged(evidence: Evidence) -> Control:
    name = "Who did what is kept"
    if evidence.operations is None:
        return Control(name, None, "the audit log could not be read")
    if evidence.audit_log is None:
        return Control(name, 50, "the audit log is there and empty", "it fills as people act over HTTP or by command")
    return Control(name, 100, f"the audit log's newest line is of {_moment(evidence.audit_log['at'])}")


def _moment(at: Any) -> str:
    return datetime.fromtimestamp(int(at) / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _locked(evidence: Evidence) -> Control:
    name = "Dependencies are locked, with hashes"
    if evidence.locks:
        return Control(name, 100, ", ".join(evidence.locks))
    return Control(name, 0, "no lock file was found", "`uv lock`, and commit uv.lock")


def data(table: Sequence[Control], evidence: Evidence) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "made": evidence.made.isoformat(timespec="seconds"), "version": __version__, "score": score(table),
        "controls": [
            {"name": c.name, "score": c.score, "verdict": c.verdict, "evidence": c.evidence, "fix": c.fix or None}
            for c in table
        ],
    }  # fmt: skip


def markdown(table: Sequence[Control], evidence: Evidence) -> str:
    """The report as Markdown."""
    lines = ["# Security audit", "", _preface(table, evidence), ""]
    lines += ["| control | verdict | score | evidence | to do |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(each))} |" for each in table]
    return "\n".join(lines) + "\n"


def page(table: Sequence[Control], evidence: Evidence) -> str:
    """The report as one HTML file that needs nothing else."""
    verdicts = Counter(each.verdict for each in table)
    root = evidence.secrets.root if evidence.secrets else ""
    heading = (
        f'<header><div><p class="over">Security audit · {evidence.made.strftime("%Y-%m-%d %H:%M UTC")}</p>'
        f"<h1>{html.escape(root) or 'This installation'}</h1>"
        f'<p>{words(_summary(verdicts))} <span class="soft">{html.escape(_scope(evidence))}</span></p></div>'
        f"{ring(score(table))}</header>"
    )
    numbers = figures([(name, verdicts[name], name == "failed") for name in _TONES])
    rows = "".join(map(_item, table))
    about = (
        "Each control is scored from 0 to 100 by what was found, and the score is their mean; what could not be found "
        "out does not count. No value of a secret is in this page. Made by `oxherd audit report`,"
    )
    title = f"Security audit of {root}" if root else "Security audit"
    return document(title, f'{heading}{numbers}<h2>Controls and evidence</h2><ul class="list">{rows}</ul>', about)


_TONES = {"passed": "good", "partly": "warm", "failed": "bad", "not known": "plain"}


def _summary(verdicts: Mapping[str, int]) -> str:
    bad = [
        f"{verdicts[word]} {words}"
        for word, words in (("failed", "failed"), ("partly", "are met in part"))
        if verdicts[word]
    ]
    return (
        f"Of {sum(verdicts.values())} controls {' and '.join(bad)}." if bad else "Every control that is known is met."
    )


def _scope(evidence: Evidence) -> str:
    """What the evidence was taken from."""
    asked = [_ASKED[each] for each in evidence.variables.asked]
    places = f"the variables of {evidence.variables.places} place{'' if evidence.variables.places == 1 else 's'}"
    return f"Looked at: {', '.join(['the repository with its history'] * bool(evidence.secrets) + [places, *asked])}."


_ASKED = {"postgres": "Postgres", "redis": "Redis", "operations": "the record of operations"}


def _item(each: Control) -> str:
    todo = f'<p class="todo"><b>To do:</b> {words(each.fix)}</p>' if each.fix else ""
    tone = _TONES[each.verdict]
    width = 0 if each.score is None else each.score
    points = "?" if each.score is None else str(each.score)
    bar = f'<div class="bar {tone}">{points}<span><i style="width:{width}%"></i></span></div>'
    return (
        f'<li class="control"><div>{chip(tone, each.verdict)}</div><div><h3>{html.escape(each.name)}</h3>'
        f"<p>{words(each.evidence)}</p>{todo}</div>{bar}</li>"
    )


def _preface(table: Sequence[Control], evidence: Evidence) -> str:
    total = score(table)
    unknown = sum(each.score is None for each in table)
    left = f"; {unknown} could not be found out and do not count" if unknown else ""
    made = evidence.made.strftime("%Y-%m-%d %H:%M UTC")
    shown = "not known" if total is None else f"{total} of 100"
    return f"Score: {shown}, the mean of {len(table) - unknown} controls{left}. Made on {made} by Oxherd {__version__}."


def _cells(each: Control) -> tuple[str, ...]:
    return (each.name, each.verdict, "-" if each.score is None else str(each.score), each.evidence, each.fix)
