"""A report on secrets as text for people, JSON, SARIF 2.1.0 and one HTML page. No form holds a secret."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from typing import Any

from oxherd import __version__
from oxherd.ops.audit_page import chip, document, figures, words
from oxherd.ops.audit_rules import Level
from oxherd.ops.audit_secrets import Finding, Report, Seen

SHOWN = 20  # places of one secret that a page lists
_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.NOTE: "note"}
_ABOUT = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def data(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    texts, size = report.looked_at
    return {
        "root": report.root, "day": report.today, "texts": texts, "bytes": size, "skipped": report.skipped,
        "failing": len(report.failing), "findings": [_plain(each, report) for each in report.findings],
    }  # fmt: skip


def _plain(finding: Finding, report: Report) -> dict[str, Any]:
    kept = finding.accepted
    return {
        "fingerprint": finding.fingerprint, "rule": finding.kind.rule, "what": finding.kind.name,
        "service": finding.kind.service, "variable": finding.kind.variable or None, "shown": finding.shown,
        "level": finding.level.word, "fails": finding.counts(report.today), "in_head": finding.in_head,
        "live": finding.live, "answer": finding.answer or None, "rotation": finding.kind.rotation,
        "first": _place(finding.first), "last": _place(finding.last), "seen": [_place(each) for each in finding.seen],
        "accepted": None if kept is None else {"reason": kept.reason, "expires": kept.expires},
    }  # fmt: skip


def _place(seen: Seen) -> dict[str, Any]:
    at = None if seen.at is None else _moment(seen.at)
    return {
        "path": seen.path, "line": seen.line, "place": seen.place.value, "commit": seen.commit, "author": seen.author,
        "at": at, "in_head": seen.in_head, "encoding": seen.encoding or None,
    }  # fmt: skip


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text(report: Report) -> str:
    """The report for people: a paragraph for each secret, the worst first."""
    blocks = [_paragraph(each, report) for each in report.findings]
    if report.skipped:
        blocks.append("\n".join(f"skipped: {each}" for each in report.skipped))
    return "\n\n".join([*blocks, summary(report)]) + "\n"


def summary(report: Report) -> str:
    """One line: how many were found, in how much."""
    failing, rest = len(report.failing), len(report.findings) - len(report.failing)
    found = f"{_number(failing)} to deal with" if failing else "no secret to deal with"
    kept = f", {rest} accepted or harmless" if rest else ""
    missed = f", {len(report.skipped)} skipped" if report.skipped else ""
    return f"{found}{kept}; {_extent(report)} looked at{missed}"


def _extent(report: Report) -> str:
    texts, size = report.looked_at
    return f"{texts:,} texts, {f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size / 1e3:.0f} kB'}"


def _paragraph(finding: Finding, report: Report) -> str:
    lines = [
        f"{finding.level.word}: {finding.kind.name}, {finding.shown}",
        f"  first seen   {_where(finding.first)}",
    ]
    if finding.last != finding.first:
        lines.append(f"  last seen    {_where(finding.last)}")
    if len(finding.seen) > 2:
        lines.append(f"  places       {len(finding.seen)} in all")
    lines += [f"  in HEAD      {'yes' if finding.in_head else 'no'}", f"  still live   {_live(finding)}"]
    lines += [f"  to do        {finding.kind.rotation}", f"  fingerprint  {finding.fingerprint}"]
    if finding.accepted is not None:
        lines.append(f"  accepted     {_accepted(finding, report)}")
    return "\n".join(lines)


def _where(seen: Seen) -> str:
    place = f"{seen.path}:{seen.line}" if seen.commit is None or seen.path != seen.place.value else seen.path
    how = f", in {seen.encoding}" if seen.encoding else ""
    if seen.commit is None:
        return f"{place} ({seen.place.value}{how})"
    when = f" on {_moment(seen.at)[:10]}" if seen.at else ""
    return f"{place} ({seen.place.value}{how}), {seen.commit[:12]}{when} by {seen.author}"


def _live(finding: Finding) -> str:
    if not finding.answer:
        return "not asked"
    return f"{ {None: 'not known', True: 'YES', False: 'no'}[finding.live] }: {finding.answer}"


def _accepted(finding: Finding, report: Report) -> str:
    assert finding.accepted is not None
    over = "" if finding.accepted.expires > report.today else ", which has passed"
    return f"until {finding.accepted.expires}{over}: {finding.accepted.reason}"


def sarif(report: Report) -> dict[str, Any]:
    """The report as SARIF 2.1.0, for GitHub's code scanning and others. Accepted findings are suppressed results."""
    kinds = {each.kind.rule: each.kind for each in report.findings}
    order = sorted(kinds)
    rules = [
        {
            "id": rule, "name": kinds[rule].name, "shortDescription": {"text": kinds[rule].name},
            "help": {"text": kinds[rule].rotation}, "defaultConfiguration": {"level": _LEVELS[kinds[rule].level]},
            "properties": {"tags": ["security", "secret"], "security-severity": _severity(kinds[rule].level)},
        }
        for rule in order
    ]  # fmt: skip
    driver = {"name": "oxherd audit secrets", "semanticVersion": __version__, "rules": rules}
    results = [_result(each, order.index(each.kind.rule), report) for each in report.findings]
    run = {
        "tool": {"driver": driver}, "results": results, "columnKind": "utf16CodeUnits",
        "originalUriBaseIds": {"ROOT": {"description": {"text": "the repository's top folder"}}},
    }  # fmt: skip
    return {"$schema": _ABOUT, "version": "2.1.0", "runs": [run]}


def _severity(level: Level) -> str:
    return {Level.ERROR: "9.0", Level.WARNING: "5.0", Level.NOTE: "1.0"}[level]


def _result(finding: Finding, index: int, report: Report) -> dict[str, Any]:
    from urllib.parse import quote

    places = [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": quote(each.path, errors="surrogateescape"), "uriBaseId": "ROOT"},
                "region": {"startLine": each.line},
            },
            "message": {"text": _where(each)},
        }
        for each in finding.seen
    ]
    made: dict[str, Any] = {
        "ruleId": finding.kind.rule, "ruleIndex": index, "level": _LEVELS[finding.level],
        "message": {"text": f"{finding.kind.name}, {finding.shown}. {finding.kind.rotation}"},
        "locations": places[:1], "partialFingerprints": {"oxherdSecret/v1": finding.fingerprint},
        "properties": {"inHead": finding.in_head, "live": finding.live, "answer": finding.answer},
    }  # fmt: skip
    if places[1:]:
        made["relatedLocations"] = [{**each, "id": number} for number, each in enumerate(places[1:], 1)]
    if finding.accepted is not None and report.today < finding.accepted.expires:
        made["suppressions"] = [{"kind": "external", "justification": finding.accepted.reason}]
    return made


def page(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    open_ = report.failing
    notes = [each for each in report.findings if each.level is Level.NOTE]
    kept = [each for each in report.findings if each not in open_ and each not in notes]
    live = sum(each.live is True for each in open_)
    in_head = sum(each.in_head for each in open_)
    verdict = "No secret has to be dealt with." if not open_ else f"{_number(len(open_))} to deal with."
    heading = (
        f'<header><div><p class="over">Secrets audit · {report.today}</p><h1>{html.escape(report.root)}</h1>'
        f'<p>{verdict} <span class="soft">Looked at: {_extent(report)}.</span></p></div></header>'
    )
    numbers = figures([
        ("to deal with", len(open_), True), ("of them live", live, True), ("in the newest commit", in_head, True),
        ("accepted", len(kept), False), ("harmless", len(notes), False),
    ])  # fmt: skip
    sections = [
        f'<h2>{title}</h2><ul class="list">{"".join(_item(each, report) for each in found)}</ul>'
        for title, found in (("To deal with", open_), ("Accepted for a time", kept), ("Harmless where they are", notes))
        if found
    ]
    missed = "".join(f"<li>{html.escape(each)}</li>" for each in report.skipped)
    skipped = f'<h2>Not read</h2><ul class="list">{missed}</ul>' if missed else ""
    about = (
        "Values are masked; a fingerprint tells whether two findings are the same secret. "
        "Made by `oxherd audit secrets`,"
    )
    return document(f"Secrets in {report.root}, {report.today}", heading + numbers + "".join(sections) + skipped, about)


def _number(count: int) -> str:
    return f"{count} secret{'' if count == 1 else 's'}"


_TONES = {Level.ERROR: "bad", Level.WARNING: "warm", Level.NOTE: "plain"}


def _item(finding: Finding, report: Report) -> str:
    facts = [("first seen", html.escape(_where(finding.first)))]
    if finding.last != finding.first:
        facts.append(("last seen", html.escape(_where(finding.last))))
    if len(finding.seen) > 2:
        facts.append(("places", _places(finding)))
    facts += [
        ("in HEAD", "yes" if finding.in_head else "no"), ("still live", html.escape(_live(finding))),
        ("to do", words(finding.kind.rotation)), ("fingerprint", f"<code>{finding.fingerprint}</code>"),
    ]  # fmt: skip
    if finding.accepted is not None:
        facts.append(("accepted", html.escape(_accepted(finding, report))))
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    live = chip("bad", "live") if finding.live else chip("good", "dead") if finding.live is False else ""
    level, name = chip(_TONES[finding.level], finding.level.word), html.escape(finding.kind.name)
    return (
        f'<li><div class="top">{level}<h3>{name}</h3><span class="soft">{html.escape(finding.shown)}</span>{live}</div>'
        f'<dl class="facts">{rows}</dl></li>'
    )


def _places(finding: Finding) -> str:
    listed = "".join(f"<li>{html.escape(_where(each))}</li>" for each in finding.seen[:SHOWN])
    more = f"<li>and {len(finding.seen) - SHOWN} more</li>" if len(finding.seen) > SHOWN else ""
    return f"<details><summary>{len(finding.seen)} in all</summary><ul>{listed}{more}</ul></details>"
