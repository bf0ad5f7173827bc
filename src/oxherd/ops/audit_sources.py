"""Everything that may hold a secret: git's objects, messages, files, what goes into an image, shell histories."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from oxherd.errors import UsageError

LARGEST = 64 << 20  # bytes; larger files are named in the report and not read
_NEVER = {".git", ".hg", "node_modules", ".venv", "venv", "__pycache__", ".tox", ".mypy_cache", ".ruff_cache"}
_SHELLS = (
    ".bash_history", ".zsh_history", ".sh_history", ".ash_history", ".python_history", ".psql_history",
    ".rediscli_history", ".node_repl_history", ".local/share/fish/fish_history", ".config/fish/fish_history",
)  # fmt: skip


class Place(StrEnum):
    """Where a text stands."""

    HISTORY = "history"
    UNREACHABLE = "unreachable object"
    COMMIT = "commit message"
    TAG = "tag message"
    STAGED = "staged"
    FILE = "file"
    IGNORED = "file that git ignores"
    READABLE = "file that git ignores and others on the machine can read"
    IMAGE = "Docker build context"
    SHELL = "shell history"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Origin:
    """A commit that brought a version of a file, or the commit or tag whose message it is."""

    commit: str
    author: str
    at: int  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Text:
    """Something to look through.

    Attributes:
        path: within the repository or folder; `commit message`, `tag message` or `names` where it is no file.
        data: its bytes.
        place: where it stands.
        origins: the commits that brought it, in no order; empty where there are none.
        in_head: whether the newest commit has it.
    """

    path: str
    data: bytes
    place: Place
    origins: tuple[Origin, ...] = ()
    in_head: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look through.

    Attributes:
        staged: what is about to be committed, and nothing else.
        since: commits that this one does not have, and nothing else; None for all.
        shell_history: also this person's shell histories.
    """

    staged: bool = False
    since: str | None = None
    shell_history: bool = False


def texts(root: Path, scope: Scope, skipped: Callable[[str], None]) -> Iterator[Text]:
    """All texts of the scope.

    Parameters:
        root: a folder; where it is in a git repository, the whole of that.
        scope: what to look through.
        skipped: told of each that was too large or could not be read, by its path and why.

    Raises:
        UsageError: a scope of git's in a folder that is no repository, or git can't read it.
    """
    top = repository(root)
    if scope.since == "":
        raise UsageError("--since is empty", hint="a commit, a branch or a tag, such as origin/main")
    if top is None and (scope.staged or scope.since):
        raise UsageError(f"{root} is in no git repository", hint="leave out --staged and --since to look at files")
    if top is not None:
        if not scope.staged:
            _tell_what_is_elsewhere(top, skipped)
        yield from _of_git(top, scope, skipped)
    if not scope.staged and scope.since is None:
        yield from _files(top or root, skipped, tracked=top is not None)
    if scope.shell_history:
        for name in _SHELLS:
            yield from _read(Path.home() / name, f"~/{name}", Place.SHELL, skipped)


def _tell_what_is_elsewhere(top: Path, skipped: Callable[[str], None]) -> None:
    for line in git(top, "ls-files", "-z", "--stage").split(b"\0"):
        about, _, name = line.partition(b"\t")
        if about.startswith(b"160000 "):
            skipped(f"{_readable(name)} is a submodule: audit that folder itself")
    if git(top, "rev-parse", "--is-shallow-repository").strip() == b"true":
        skipped("older commits are not here, this is a shallow clone: `git fetch --unshallow` brings them")


def _readable(name: bytes) -> str:
    """A file's name, of which git and the system only know bytes."""
    return name.decode("utf-8", "replace")


def repository(root: Path) -> Path | None:
    """The top folder of the git repository that a folder is in (of a bare one, the folder itself), or None."""
    for folder in (root, *root.parents):
        if (folder / ".git").exists():
            return folder
        if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
            return folder
    return None


def git(root: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a git command prints.

    Raises:
        UsageError: git is not installed, or refuses the repository.
    """
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        raise UsageError("git is not installed, and history can't be read without it") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"git {arguments[0]} failed: {words[-1] if words else done.returncode}")
    return done.stdout


def _of_git(top: Path, scope: Scope, skipped: Callable[[str], None]) -> Iterator[Text]:
    head = _head_blobs(top)
    seen: set[str] = set()
    if scope.since is None:
        yield from _inputs(top, {"mode": "staged"}, head, seen, skipped)
    if scope.staged:
        return
    if scope.since is not None:
        yield from _inputs(top, {"refs": None, "since_commit": scope.since}, head, seen, skipped)
    else:
        yield from _inputs(top, {"refs": None, "include_unreachable": True}, head, seen, skipped)
    yield from _messages(top, scope.since)


def _head_blobs(top: Path) -> set[str]:
    try:
        listed = git(top, "ls-tree", "-r", "-z", "HEAD")
    except UsageError:
        return set()  # no commit yet
    return {line.split(b"\t")[0].split()[2].decode() for line in listed.split(b"\0") if line}


def _inputs(
    top: Path, scope: dict[str, object], head: set[str], seen: set[str], skipped: Callable[[str], None]
) -> Iterator[Text]:
    from kingfisher_sdk import GitScope, git_inputs

    staged = scope.get("mode") == "staged"
    try:
        listed = git_inputs(top, scope=GitScope(**scope), max_blob_size=LARGEST, skip_missing_blobs=True)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, OSError) as error:
        if scope.get("since_commit"):
            raise UsageError(f"--since {scope['since_commit']} is no commit that git knows here") from None
        if not staged:  # a bare repository and one without a commit have nothing staged to compare
            raise UsageError(f"git's history can't be read: {type(error).__name__}", hint=_why_not(top)) from None
        return
    for each in _warned(listed, top, skipped):
        if staged and each.blob_id in head:
            continue
        if each.unreachable is None and each.blob_id in seen:
            continue
        seen.add(each.blob_id)
        place = Place.STAGED if staged else Place.HISTORY if each.unreachable is False else Place.UNREACHABLE
        origins = tuple(
            Origin(commit.id, f"{commit.author.name} <{commit.author.email}>", commit.committer.timestamp)
            for commit in each.origins
        )
        if each.data.startswith(_LFS):
            skipped(f"{each.path} is kept by Git LFS, and only its pointer was read")
        yield Text(each.path, each.data, place, origins, in_head=each.blob_id in head)


_LFS = b"version https://git-lfs.github.com/spec/"
_WHOLE = "`git fetch --refetch --no-filter` makes a partial clone whole"


def _why_not(top: Path) -> str:
    """What to do about a history that the scanner does not read."""
    if git(top, "rev-parse", "--show-object-format").strip() != b"sha1":
        return "the scanner reads repositories with SHA-1 only; `git archive HEAD` makes a folder that can be audited"
    partial = b"promisor" in git(top, "config", "--list", "--name-only")
    return _WHOLE if partial else "`git fsck` says more"


def _warned(listed: Iterator[Any], top: Path, skipped: Callable[[str], None]) -> Iterator[Any]:
    """The versions of files; tells in the end which were missing or too large."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield from listed
    found = map(_LEFT_OUT.search, (str(each.message) for each in caught))
    reasons = {each[1]: each[2] for each in found if each is not None}
    missing = [id_ for id_, reason in reasons.items() if reason == "missing"]
    if missing:
        skipped(f"versions of files that are not here: {len(missing):,}; {_WHOLE}")
    if len(missing) < len(reasons):
        listing = git(top, "rev-list", "--all", "--objects").splitlines()
        paths = dict(line.split(b" ", 1) for line in listing if line.count(b" "))
        for id_, reason in reasons.items():
            if reason != "missing":
                skipped(f"{_readable(paths.get(id_.encode(), id_.encode()))} is larger than {LARGEST >> 20} MB")


_LEFT_OUT = re.compile(r"^Git blob ([0-9a-f]+) skipped \((\w+)\)")


def _messages(top: Path, since: str | None) -> Iterator[Text]:
    """The messages of all commits and tags, also of those that nothing leads to any more."""
    if since is not None:
        ids = git(top, "rev-list", "--all", f"^{since}")
    else:
        listed = git(top, "cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)")
        lines = (line.split() for line in listed.splitlines())
        ids = b"\n".join(id_ for id_, kind in lines if kind in {b"commit", b"tag"})
    stream, place = git(top, "cat-file", "--batch", stdin=ids), 0
    while place < len(stream):
        end = stream.index(b"\n", place)
        name, kind, size = stream[place:end].split()
        body = stream[end + 1 : end + 1 + int(size)]
        place = end + 2 + int(size)
        yield _message(name.decode(), kind.decode(), body)


def _message(name: str, kind: str, body: bytes) -> Text:
    head, _, message = body.partition(b"\n\n")
    who = re.search(rb"^(?:committer|tagger) (.*) (\d+) [+-]\d{4}$", head, re.MULTILINE)
    author = re.search(rb"^author (.*) \d+ [+-]\d{4}$", head, re.MULTILINE) or who
    origin = Origin(name, author[1].decode(errors="replace") if author else "", int(who[2]) if who else 0)
    place = Place.COMMIT if kind == "commit" else Place.TAG
    return Text(place.value, message, place, (origin,))


def _files(root: Path, skipped: Callable[[str], None], *, tracked: bool) -> Iterator[Text]:
    """Files that are not as in the last commit, those that git ignores and that matter, and what Docker would take."""
    bare = tracked and not (root / ".git").exists()
    if bare:
        return
    open_to_git = _listed(root, "--modified", "--others", "--exclude-standard") | _unwatched(root) if tracked else None
    committed = _listed(root) if tracked else set()
    into_image = _docker_filter(root)
    for path in _walk(root, skipped):
        name = path.relative_to(root).as_posix()
        if open_to_git is None or name in open_to_git:
            yield from _read(path, name, Place.FILE, skipped)
        elif name in committed:
            continue  # as committed: it was read there
        elif into_image is not None and into_image(name):
            yield from _read(path, name, Place.IMAGE, skipped)
        elif path.name.startswith(".env"):
            yield from _read(path, name, Place.IGNORED, skipped)


def _listed(root: Path, *which: str) -> set[str]:
    listed = git(root, "ls-files", "-z", *which)
    return {name.decode(errors="surrogateescape") for name in listed.split(b"\0") if name}


def _unwatched(root: Path) -> set[str]:
    """Files whose changes git was told not to see: `--skip-worktree`, which it tags S, and `--assume-unchanged`."""
    listed = (line.decode(errors="surrogateescape") for line in git(root, "ls-files", "-v", "-z").split(b"\0"))
    return {line[2:] for line in listed if line[:1] == "S" or line[:1].islower()}


def _walk(folder: Path, skipped: Callable[[str], None]) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        skipped(f"{_readable(os.fsencode(folder.name))} can't be read: {error.strerror}")
        return
    for path in inside:
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in _NEVER:
                yield from _walk(path, skipped)
        elif path.is_file():
            yield path


def _read(path: Path, name: str, place: Place, skipped: Callable[[str], None]) -> Iterator[Text]:
    name = _readable(os.fsencode(name))
    try:
        about = path.stat()
        if about.st_size > LARGEST:
            skipped(f"{name} is larger than {LARGEST >> 20} MB")
            return
        if place is Place.IGNORED and about.st_mode & 0o077:
            place = Place.READABLE
        yield Text(name, path.read_bytes(), place)
    except FileNotFoundError:
        return
    except OSError as error:
        skipped(f"{name} can't be read: {error.strerror}")


def _docker_filter(root: Path) -> Callable[[str], bool] | None:
    """Whether a file goes into the build context, by `.dockerignore`; None without a Dockerfile."""
    if not any(root.glob("*Dockerfile*")):
        return None
    try:
        lines = (root / ".dockerignore").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    rules = [
        (_pattern(line.removeprefix("!")), line.startswith("!"))
        for each in lines
        if (line := each.strip()) and not line.startswith("#")
    ]

    def taken(name: str) -> bool:
        inside = True
        for pattern, back in rules:
            if pattern.fullmatch(name):
                inside = back
        return inside

    return taken


def _pattern(line: str) -> re.Pattern[str]:
    """A line of `.dockerignore`: Go's filepath.Match, `**` for any depth, and a folder stands for all in it."""
    parts = [part for part in PurePosixPath(line.strip().lstrip("/")).parts if part not in {".", "/"}]
    regex = ""
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            regex += ".*" if last else "(?:[^/]+/)*"
            continue
        regex += _glob(part) + ("" if last else "/")
    return re.compile(f"{regex}(?:/.*)?", re.DOTALL)


def _glob(part: str) -> str:
    made = re.sub(r"\\\*", "[^/]*", re.sub(r"\\\?", "[^/]", re.escape(part)))
    return re.sub(r"\\\[(\\\^)?(.*?)\\\]", lambda m: f"[{'^' if m[1] else ''}{m[2].replace(chr(92), '')}]", made)
