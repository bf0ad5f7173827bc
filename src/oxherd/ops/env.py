"""The variables of a worker, held against the settings table: what is missing, wrong, weak, or differs between places.

Nothing here prints a value: people see its length, its shape and a fingerprint.
"""

from __future__ import annotations

import ast
import base64
import difflib
import itertools
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oxherd.errors import SettingsError, UsageError
from oxherd.ops.audit_known import Marker
from oxherd.settings import TABLE, Secret, load

NEEDED = ("REDIS_URL", "STORE")
KNOWN = {variable.name: variable for variable in TABLE}
SHORTEST = 16  # characters of a secret that nobody chose by hand
LEAST_DISTINCT = 8  # different characters in one that was drawn by lot
_PLACEHOLDER = re.compile(r"your[-_]|change[-_]?me|placeholder|example\.com|xxxx|<[^>]*>|\.\.\.", re.IGNORECASE)
_LINE = re.compile(
    r"""^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=(?:\s*(?!#)|)("(?:[^"\\]|\\.)*"|'[^']*'|[^\n]*?)\s*(?:\s#.*)?$"""
)
_DOCKER = re.compile(r"^\s*(?:ENV|ARG)\s+(.+)$", re.MULTILINE | re.IGNORECASE)
_PAIR = re.compile(r"""([A-Za-z_]\w*)=("[^"]*"|'[^']*'|\S*)""")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a variable.

    Attributes:
        variable: its name.
        kind: missing, malformed, placeholder, weak, duplicated, conflicting or unused.
        message: what is so, without a value.
        fix: what to do.
        is_note: whether it may stay as it is.
    """

    variable: str
    kind: str
    message: str
    fix: str
    is_note: bool = False


class Fingerprints:
    """Tells values apart without showing them.

    With AUDIT_KEY they are keyed hashes that all who have the key compute alike. Without it the key is made for this
    run alone: the same value has the same fingerprint within one output, and nobody can test a guess against it later.

    Parameters:
        key: AUDIT_KEY, or None.
    """

    def __init__(self, key: Secret | None) -> None:
        self._marker = Marker(key or Secret(base64.b64encode(secrets.token_bytes(32)).decode()))

    def of(self, value: Secret) -> str:
        """Twelve hex digits."""
        return self._marker.of(value.reveal().encode(errors="surrogateescape"))[:12]


def shape_of(value: Secret) -> str:
    """A value in words: how long it is, and of what it is made."""
    text = value.reveal()
    kinds = (
        ("empty", r""), ("digits", r"\d+"), ("hex", r"[0-9a-fA-F]+"), ("a URL", r"[a-z][a-z0-9+.-]*://\S+"),
        ("base64", r"[A-Za-z0-9+/]+=*"), ("letters, digits and - _ .", r"[\w.-]+"), ("one line of text", r"[^\n]+"),
    )  # fmt: skip
    kind = next((words for words, pattern in kinds if re.fullmatch(pattern, text)), "several lines of text")
    return f"{len(text)} characters, {kind}"


def parse(text: str, where: str) -> tuple[dict[str, Secret], list[str]]:
    """Names and values of a `.env` file or a JSON object, and the names that are there twice.

    Parameters:
        text: of the file.
        where: what errors call it.

    Raises:
        UsageError: naming the line that is neither empty, nor a comment, nor NAME=value.
    """
    if text.lstrip().startswith("{"):
        return _parse_json(text, where), []
    found: dict[str, Secret] = {}
    twice = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise UsageError(f"{where}, line {number}: must be NAME=value, with quotes around spaces and #")
        if match[1] in found:
            twice.append(match[1])
        found[match[1]] = Secret(_unquoted(match[2]))
    return found, twice


def _parse_json(text: str, where: str) -> dict[str, Secret]:
    try:
        read = json.loads(text)
    except ValueError:
        raise UsageError(f"{where} begins with {{ but is not JSON") from None
    wrong = [name for name, value in read.items() if not isinstance(value, str) or not _NAME.fullmatch(name)]
    if wrong:
        raise UsageError(f"{where}: {wrong[0]} must be a variable's name, and its value text")
    return {name: Secret(value) for name, value in read.items()}


def _unquoted(text: str) -> str:
    if text[:1] == '"' == text[-1:] and len(text) > 1:
        return re.sub(r"\\(.)", lambda each: {"n": "\n", "t": "\t"}.get(each[1], each[1]), text[1:-1])
    if text[:1] == "'" == text[-1:] and len(text) > 1:
        return text[1:-1]
    return text


def render(values: Mapping[str, Secret]) -> str:
    """The values as a `.env` file, which is also what Railway's raw editor takes. Holds the values themselves."""
    return "".join(f"{name}={_quoted(value.reveal())}\n" for name, value in sorted(values.items()))


def _quoted(text: str) -> str:
    if not re.search(r"[\s#\"'\\$]", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def in_project(folder: Path) -> dict[str, dict[str, Secret]]:
    """What a project's files say of the table's variables: its Dockerfile and `.railway/railway.py`, by place.

    Both are read as text: nothing is run.
    """
    places = {"Dockerfile": _in_dockerfile, ".railway/railway.py": _in_python}
    found = {}
    for place, read in places.items():
        path = folder / place
        if path.is_file():
            pairs = read(path.read_text(encoding="utf-8", errors="replace"))
            found[place] = {name: Secret(value) for name, value in pairs if name in KNOWN}
    return found


def _in_dockerfile(text: str) -> Iterator[tuple[str, str]]:
    for line in _DOCKER.findall(text.replace("\\\n", " ")):
        yield from ((name, _unquoted(value)) for name, value in _PAIR.findall(line))


def _in_python(text: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str | int):
                yield str(key.value), str(value.value)


def check(
    place: str,
    values: Mapping[str, Secret],
    *,
    others: Mapping[str, Mapping[str, Secret]],
    sealed: Iterable[str] = (),
    twice: Iterable[str] = (),
    is_file: bool = True,
) -> list[Fault]:
    """All that is wrong with the variables of a place.

    Parameters:
        place: its name.
        values: what it has.
        others: what other places say, by name.
        sealed: names whose values can't be had: they are there, and that is all that is known of them.
        twice: names that stand in its file more than once.
        is_file: whether all that is in it was meant for the worker; an environment has much else.
    """
    faults = [*_malformed(values, frozenset(sealed)), *_bad_values(values), *_alike(values)]
    faults += [
        Fault(name, "duplicated", f"stands in {place} more than once; the last one counts", "keep one of the lines")
        for name in twice
    ]
    faults += _unused(values, is_file=is_file)
    faults += [
        Fault(
            name, "conflicting", f"{place} and {other} have different values",
            f"decide which is right; on Railway its variables win over {other}" if other == "Dockerfile"
            else "make them the same, or remove one",
        )
        for other, theirs in others.items()
        for name in sorted(values.keys() & theirs.keys() & KNOWN.keys())
        if values[name] != theirs[name] and values[name].reveal().strip() and theirs[name].reveal().strip()
    ]  # fmt: skip
    return faults


def _malformed(values: Mapping[str, Secret], sealed: frozenset[str]) -> Iterator[Fault]:
    needs = tuple(
        name
        for name in NEEDED
        if name not in sealed and not (name == "STORE" and {"DATABASE_URL", "SUPABASE_URL"} & sealed)
    )
    try:
        load({name: value.reveal() for name, value in values.items()}, needs=needs)
    except SettingsError as error:
        for fault in error.faults:
            name, _, rest = fault.partition(" ")
            is_missing = "missing" in rest.split(";")[0].split(":")[0]
            if is_missing and name in sealed:
                continue
            message, _, fix = rest.partition("; ")
            yield Fault(name, "missing" if is_missing else "malformed", message, fix or "docs/settings.md")


def _bad_values(values: Mapping[str, Secret]) -> Iterator[Fault]:
    for name, value in values.items():
        variable, text = KNOWN.get(name), value.reveal().strip()
        if variable is None or not text:
            continue
        if (variable.secret and text == variable.example) or _PLACEHOLDER.search(text):
            yield Fault(name, "placeholder", "still has the text of an example", "set the real value")
        elif variable.secret and "://" not in text and (len(text) < SHORTEST or len(set(text)) < LEAST_DISTINCT):
            yield Fault(
                name, "weak", f"{len(text)} characters, {len(set(text))} of them different: it can be guessed",
                "oxherd env generate-key ENCRYPTION_KEY" if name == "ENCRYPTION_KEY"
                else "make a new one where it is issued, or with: openssl rand -hex 24",
            )  # fmt: skip


def _alike(values: Mapping[str, Secret]) -> Iterator[Fault]:
    hidden = [
        name for name in values if name in KNOWN and KNOWN[name].secret and len(values[name].reveal()) >= SHORTEST
    ]
    for one, other in itertools.combinations(hidden, 2):
        if values[one] == values[other]:
            yield Fault(other, "duplicated", f"has the same value as {one}", "give each its own: one leak is then one")


def _unused(values: Mapping[str, Secret], *, is_file: bool) -> Iterator[Fault]:
    for name in sorted(values.keys() - KNOWN.keys()):
        if name.startswith(("RAILWAY_", "OTEL_", "SENTRY_")):
            continue
        close = difflib.get_close_matches(name.upper(), KNOWN.keys() - values.keys(), n=1, cutoff=0.88)
        if close:
            yield Fault(
                name, "unused", f"Oxherd reads no such variable; did you mean {close[0]}?", f"rename it {close[0]}"
            )
        elif is_file:
            yield Fault(name, "unused", "Oxherd does not read it", "remove it, unless your own code does", is_note=True)


@dataclass(frozen=True, slots=True)
class Difference:
    """One variable in two places.

    Attributes:
        name: the variable.
        state: same, differs, only here, only there, or unknown (it is sealed there).
        here, there: fingerprints; empty where it is not, or not known.
    """

    name: str
    state: str
    here: str
    there: str


def differences(
    here: Mapping[str, Secret], there: Mapping[str, Secret], sealed: Iterable[str], prints: Fingerprints
) -> list[Difference]:
    """Compare two places, by name. Railway's own variables are left out."""
    hidden = set(sealed)
    found = []
    for name in sorted(here.keys() | there.keys() | hidden):
        if name.startswith("RAILWAY_"):
            continue
        one, other = here.get(name), there.get(name)
        if name in hidden:
            state = "unknown"
        elif one is None or other is None:
            state = "only there" if one is None else "only here"
        else:
            state = "same" if one == other else "differs"
        found.append(Difference(name, state, prints.of(one) if one else "", prints.of(other) if other else ""))
    return found


def counted(faults: Sequence[Fault]) -> str:
    """How many of each kind, in words."""
    kinds = Counter(fault.kind for fault in faults if not fault.is_note)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing is wrong"


def new_key() -> str:
    """A key for ENCRYPTION_KEY, from the system's source of randomness."""
    return base64.b64encode(secrets.token_bytes(32)).decode()
