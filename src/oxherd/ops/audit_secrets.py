"""`oxherd audit secrets`: look through all texts, and put what is found together by secret."""

from __future__ import annotations

import dataclasses
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from oxherd.errors import OxherdError, UsageError
from oxherd.ops.audit_known import Accepted, Known, Marker, Recogniser
from oxherd.ops.audit_rules import BY_NAME, INSTALLED, RULES, Kind, Level, kind_of, looks_fake, masked
from oxherd.ops.audit_sources import Place, Scope, Text, texts
from oxherd.ops.audit_views import views
from oxherd.settings import TABLE, Secret

DEEPEST = 3  # archives within archives
AROUND = 1500  # bytes before and after a secret that are kept to ask its service with
CONTEXTS = 3  # surroundings of one secret that are kept


class AuditFailed(OxherdError):
    """The audit itself failed. What the fault says is left out: it could quote what was looked at."""


@contextmanager
def _quoting_nothing(what: str) -> Iterator[None]:
    """Turn a fault of ours, or of the scanner's, into one that says where it is and not what it says."""
    try:
        yield
    except OxherdError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, its words may quote a text
        at = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"
        raise AuditFailed(f"{what}: {kind}", hint="please report it") from None


@dataclass(frozen=True, slots=True)
class Seen:
    """One place in which a secret was seen.

    Attributes:
        path, line: where.
        place: which kind of place.
        commit, author, at: what brought it, at what time (seconds since 1970); None where it is in no commit.
        in_head: whether the newest commit has it.
        encoding: how it was written, such as `base64`; empty where plainly.
    """

    path: str
    line: int
    place: Place
    commit: str | None
    author: str | None
    at: int | None
    in_head: bool
    encoding: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret and everywhere it was seen, the earliest first.

    Attributes:
        fingerprint: identifies the secret without showing it.
        shown: the secret, masked.
        kind: whose it is.
        level: how bad it is.
        seen: where.
        live: whether its service still takes it; None where nobody asked, or nobody can tell.
        answer: which service said so, or why it is open; empty where nobody asked.
        accepted: who looked at it said that it may stay; also where that has expired.
        value: the secret itself.
        around: the text that it stands in, at some of its places: the address that it belongs to may stand there.
    """

    fingerprint: str
    shown: str
    kind: Kind
    level: Level
    seen: tuple[Seen, ...]
    live: bool | None = None
    answer: str = ""
    accepted: Accepted | None = None
    value: Secret = field(default_factory=lambda: Secret(""), repr=False)
    around: tuple[Secret, ...] = field(default=(), repr=False)

    @property
    def in_head(self) -> bool:
        """Whether it is in the newest commit, or in a file that is about to be in one."""
        return any(each.in_head or each.place in {Place.FILE, Place.STAGED} for each in self.seen)

    @property
    def first(self) -> Seen:
        """The earliest place."""
        return self.seen[0]

    @property
    def last(self) -> Seen:
        """The latest place."""
        return self.seen[-1]

    def counts(self, today: date) -> bool:
        """Whether it fails the audit: it is no note, and nobody has accepted it until a later day."""
        accepted = self.accepted is not None and today < self.accepted.expires
        return self.level > Level.NOTE and not accepted


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found.

    Attributes:
        root: what was looked through, by its name.
        findings: the worst first.
        looked_at: how many texts, and how many bytes of them.
        skipped: what could not be read, and why.
        today: the day of the audit.
    """

    root: str
    findings: tuple[Finding, ...]
    looked_at: tuple[int, int]
    skipped: tuple[str, ...]
    today: date

    @property
    def failing(self) -> tuple[Finding, ...]:
        """What has to be dealt with."""
        return tuple(each for each in self.findings if each.counts(self.today))


@dataclass(frozen=True, slots=True)
class _Hit:
    rule: str
    value: Secret
    line: int
    encoding: str
    around: Secret


def audit(
    root: Path,
    scope: Scope,
    marker: Marker,
    known: Known,
    *,
    installed: Iterable[tuple[str, Secret]] = (),
    today: date,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Look through everything of the scope. Sends nothing anywhere.

    Parameters:
        root: a folder; where it is in a git repository, the whole of that.
        scope: what to look through.
        marker: makes the fingerprints.
        known: what was accepted, and fingerprints of the installation's secrets.
        installed: the installation's secrets, as far as they are here, with their variables.
        today: the day, to tell what has expired.
        progress: told how many texts were looked at, now and then.

    Raises:
        UsageError: kingfisher is not installed, or git can't read the repository.
        AuditFailed: the scanner failed.
    """
    with _quoting_nothing("the audit failed"):
        return _audit(root, scope, marker, known, installed, today, progress)


def _audit(
    root: Path,
    scope: Scope,
    marker: Marker,
    known: Known,
    installed: Iterable[tuple[str, Secret]],
    today: date,
    progress: Callable[[int], None],
) -> Report:
    detector = Detector(Recogniser(marker, installed, known.installed))
    skipped: list[str] = []
    gathered: dict[str, dict[Seen, _Hit]] = {}
    number = size = 0
    names: dict[str, bool] = {}
    for text in _and_their_names(texts(root, scope, skipped.append), names):
        number, size = number + 1, size + len(text.data)
        for hit, seen in _hits(detector, text, skipped):
            if text.place is Place.NAME:
                name = [*names][min(hit.line, len(names)) - 1]  # an escape may make lines
                seen = dataclasses.replace(seen, path=name, line=1, in_head=names[name])  # noqa: PLW2901
            gathered.setdefault(hit.value.reveal(), {})[seen] = hit
        if number % 500 == 0:
            progress(number)
    findings = [_finding(value, places, marker, known) for value, places in gathered.items()]
    findings.sort(key=lambda each: (-each.level, not each.in_head, each.kind.rule, each.fingerprint))
    values = [each.value.reveal() for each in findings]
    return Report(
        root.resolve().name, tuple(_with_masked_paths(each, values) for each in findings), (number, size),
        tuple(sorted({_hidden(each, values) for each in skipped})), today,
    )  # fmt: skip


def _and_their_names(found: Iterable[Text], names: dict[str, bool]) -> Iterator[Text]:
    """The texts, and at the end the names of all files and authors: people put tokens there too.

    Parameters:
        found: the texts.
        names: is given each name, a line of the last text, and whether the newest commit or a file has it.
    """
    for text in found:
        here = text.in_head or text.place in {Place.FILE, Place.STAGED}
        for name in (text.path, *(origin.author for origin in text.origins)):
            line = " ".join(name.splitlines())
            names[line] = names.get(line, False) or here
        yield text
    yield Text("names", "\n".join(names).encode(errors="replace"), Place.NAME)


def _hits(detector: Detector, text: Text, skipped: list[str]) -> Iterator[tuple[_Hit, Seen]]:
    origins: Sequence[Any] = sorted(text.origins, key=lambda origin: origin.at) or [None]
    for path, data in detector.unpacked(text.path, text.data, skipped):
        with _quoting_nothing(f"{_LONG_WORD.sub('…', text.path)} could not be scanned"):
            found = detector.hits(path, data)
        for hit in found:
            for origin in dict.fromkeys((origins[0], origins[-1])):
                yield (
                    hit,
                    Seen(
                        path, hit.line, text.place, origin and origin.commit, origin and origin.author,
                        origin and origin.at, text.in_head, hit.encoding,
                    ),
                )  # fmt: skip


def _finding(value: str, places: dict[Seen, _Hit], marker: Marker, known: Known) -> Finding:
    hit = min(places.values(), key=lambda hit: _trust(hit.rule))
    kind = kind_of(hit.rule, value)
    if kind.level > Level.NOTE and not hit.rule.startswith(INSTALLED):
        named = next(filter(None, (_assigned_to(each.around.reveal(), value) for each in places.values())), "")
        kind = dataclasses.replace(kind, variable=named or kind.variable)
    mark = marker.of(value.encode(errors="surrogateescape"))
    seen = sorted(places, key=lambda seen: (seen.at is None, seen.at or 0, seen.path, seen.line))
    level = min(kind.level, _worst(seen))
    around = list(dict.fromkeys(places[each].around.reveal() for each in seen))[-CONTEXTS:]
    return Finding(
        mark, masked(value), kind, level, tuple(seen), accepted=known.accepted.get(mark), value=Secret(value),
        around=tuple(map(Secret, around)),
    )  # fmt: skip


def _assigned_to(around: str, value: str) -> str:
    """The variable of Oxherd's that a text gives a value to: a management key looks like any other. Or nothing."""
    before = around[: max(around.find(value), 0)]
    found = _ASSIGNMENT.search(before[-AROUND:]) or _ENTRY.match(value)
    return found[1] if found and found[1] in _SECRETS else ""


_SECRETS = frozenset(variable.name for variable in TABLE if variable.secret)
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]{3,60})[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:[a-z+]{2,20}://\S{0,100})?$")
_ENTRY = re.compile(r"[\"']?([A-Z][A-Z0-9_]{3,60})[\"']?:\s")  # of a Kubernetes secret, which is found with its name


def _worst(seen: Sequence[Seen]) -> Level:
    """How bad it can be at most, by where it is: a laptop's own files are where its secrets belong."""
    places = {each.place for each in seen}
    if places <= {Place.IGNORED}:
        return Level.NOTE
    return Level.WARNING if places <= {Place.IGNORED, Place.READABLE, Place.SHELL} else Level.ERROR


def _trust(rule: str) -> int:
    """Which of several rules that found the same says best what it is."""
    generic = rule in BY_NAME or "generic" in rule or "jwt" in rule
    order = (rule.startswith(INSTALLED), rule.startswith("oxherd.") and not generic, not generic, True)
    return order.index(True)


def _with_masked_paths(finding: Finding, values: Sequence[str]) -> Finding:
    seen = tuple(
        dataclasses.replace(
            each, path=_hidden(each.path, values), author=each.author and _hidden(each.author, values)
        )
        for each in finding.seen
    )  # fmt: skip
    return dataclasses.replace(finding, seen=seen)


def _hidden(text: str, values: Sequence[str]) -> str:
    """A name, or words with one, without the secrets in it, nor characters that a terminal would obey."""
    for value in values:
        text = text.replace(value, masked(value))
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


_LONG_WORD = re.compile(r"[A-Za-z0-9_+=-]{20,}")  # in a path; before the end nobody knows whether it is a secret


class Detector:
    """Finds secrets in one text: by rules, by what they are here, and in the text's other readings."""

    def __init__(self, recogniser: Recogniser) -> None:
        self._scanner = _scanner()
        self._own = recogniser

    def hits(self, path: str, data: bytes) -> list[_Hit]:
        """All secrets in it, each value once."""
        found = {hit.value.reveal(): hit for hit in self._of(path, data, "", None)}
        for encoding, view, line in views(data):
            for hit in self._of(path, view, encoding, line):
                found.setdefault(hit.value.reveal(), hit)
        found = {value: hit for value, hit in found.items() if not _cut_off(value, hit, found)}
        opened = {hit.line for hit in found.values() if "base64" in hit.encoding}
        # A block that was opened is told by what is in it.
        return [hit for hit in found.values() if not ("kubernetes-secret" in hit.rule and hit.line in opened)]

    def _of(self, path: str, data: bytes, encoding: str, line: int | None) -> Iterator[_Hit]:
        from kingfisher_sdk import ScanInput

        best: dict[str, _Hit] = {}
        for each in self._scanner.scan_input(ScanInput(path=path, data=data)):
            if each.visible and not looks_fake(each.rule_id, each.secret):
                how = _joined(encoding, "base64") if each.is_base64_encoded else encoding
                around = _around(data, data.find(each.secret.encode(errors="surrogateescape")), each.secret)
                hit = _Hit(each.rule_id, Secret(each.secret), line or each.location["line"], how, around)
                other = best.get(each.secret)
                if other is None or _trust(hit.rule) < _trust(other.rule):
                    best[each.secret] = hit
        yield from best.values()
        for variable, value, at in self._own.found(data):
            place = line or data.count(b"\n", 0, at) + 1
            secret = Secret(value.decode(errors="surrogateescape"))
            yield _Hit(f"{INSTALLED}{variable}", secret, place, encoding, _around(data, at, secret.reveal()))

    def unpacked(self, path: str, data: bytes, skipped: list[str]) -> Iterator[tuple[str, bytes]]:
        """The text, and what is in it where it is an archive, a database or bytecode."""
        from kingfisher_sdk import ScanInput, expand_archives, expand_content

        yield path, data
        if not _may_be_packed(path, data):
            return
        try:
            for each in expand_content(expand_archives([ScanInput(path=path, data=data)], depth=DEEPEST)):
                if each.data is not None and each.data != data:
                    yield each.path, each.data
        except RuntimeError:  # many a file only has an archive's ending; it was read as it is
            if data[:4] in _ARCHIVES:
                skipped.append(f"{path} is no archive that can be opened; it was read as it is")


def _around(data: bytes, at: int, value: str) -> Secret:
    """What stands before and after a secret; the secret alone where it does not stand there as it is."""
    if at < 0:
        return Secret(value)
    return Secret(
        data[max(at - AROUND, 0) : at + len(value.encode(errors="surrogateescape")) + AROUND].decode("utf-8", "replace")
    )


_ARCHIVES = {b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08", b"SQLi", b"BZh9", b"\xfd7zX"}
_PACKED = re.compile(
    r"\.(?:zip|jar|whl|egg|docx|xlsx|pptx|odt|tar|t?gz|bz2|xz|asar|hwp|pyc|sqlite3?|db|key|apk)$", re.IGNORECASE
)


def _may_be_packed(path: str, data: bytes) -> bool:
    return data[:4] in _ARCHIVES or data[:2] == b"\x1f\x8b" or _PACKED.search(path) is not None


def _joined(first: str, then: str) -> str:
    return f"{first}, {then}" if first else then


def _cut_off(value: str, hit: _Hit, found: dict[str, _Hit]) -> bool:
    """Whether it is a piece of a longer one: encodings that go over several lines are also seen line by line."""
    kind = kind_of(hit.rule, value)
    return any(value != other and value in other and kind == kind_of(more.rule, other) for other, more in found.items())


@cache
def _scanner() -> Any:
    try:
        from kingfisher_sdk import DetectionScanner, Rules
    except ImportError:
        raise UsageError(
            "the scanner of `oxherd audit secrets` is not installed", hint="pip install 'oxherd[audit]'"
        ) from None
    # Comments that tell scanners to look away are not heeded: what may stay is in the baseline, with a reason.
    return DetectionScanner(Rules([os.fspath(RULES)], confidence="medium"), inline_ignores=False)
