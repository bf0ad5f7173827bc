"""The Lua scripts: BullMQ's, read from the pinned `bullmq` package, and the few of our own in `lua/`."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from oxherd.errors import OxherdError

_OURS = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis knows it.

    Attributes:
        name: the file's name without the number of keys.
        body: the source.
        sha: SHA-1 of the source, as EVALSHA wants it.
        numkeys: how many KEYS it takes, as EVALSHA wants it.
    """

    name: str
    body: bytes
    sha: bytes
    numkeys: bytes


@cache
def script(name: str) -> Script:
    """Load a script by its name, such as `moveToActive`; ours win over BullMQ's (no name is in both).

    Raises:
        OxherdError: no such script in the installed `bullmq` package.
    """
    for folder in (_OURS, _bullmq_commands()):
        for path in folder.glob(f"{name}-*.lua"):
            return read_script(path)
    raise OxherdError(
        f"the installed bullmq package has no script {name}", hint="install the locked version: bullmq 3.4.4"
    )


def read_script(path: Path) -> Script:
    """Read a script from `<name>-<number of keys>.lua`."""
    name, _, numkeys = path.stem.rpartition("-")
    body = path.read_bytes()
    return Script(name, body, hashlib.sha1(body, usedforsecurity=False).hexdigest().encode(), numkeys.encode())


@cache
def _bullmq_commands() -> Path:
    # find_spec does not run the package: importing bullmq costs 0.36 s that a worker has no use for
    spec = importlib.util.find_spec("bullmq")
    if spec is None or spec.origin is None:
        raise OxherdError("the bullmq package is not installed", hint="uv sync")
    return Path(spec.origin).parent / "commands"
