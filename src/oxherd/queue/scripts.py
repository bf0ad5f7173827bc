"""The Lua scripts: BullMQ's, read from the pinned `bullmq` package, and the few of our own in `lua/`."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from oxherd.errors import OxherdError

_OURS = Path(__file__).parent / "lua"

# BullMQ 5 pauses a queue by renaming `wait` to `paused`, and resumes it by renaming that back, over whatever `wait` has
# by then. The packaged scripts are of BullMQ 6, which puts jobs into `wait` at any time: a job that we give back during
# such a pause would be lost. So while a queue is paused they push to `paused`, which both versions bring back.
_PUSH_TO_WAIT = re.compile(rb'rcall\((pushCmd|"LPUSH"), targetKey, jobId\)')
_PARKED = b"""local function parked(key)
  local queue = string.match(key, '^(.*:)wait$')
  if queue and redis.call('HEXISTS', queue .. 'meta', 'paused') == 1 then
    return queue .. 'paused'
  end
  return key
end
"""
_TAKE = b'local jobId = rcall("RPOPLPUSH", waitKey, activeKey)'  # once in each script that takes a job
_IN_TURN = b"""if not nextInTurn(waitKey, activeKey, opts) then
  return {0, 0, 0, getNextDelayedTimestamp(delayedKey) or 0}
end
"""


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
    path = _file(name)
    return _loaded(path, _in_turn(_parking(path.read_bytes())))


def _file(name: str) -> Path:
    for folder in (_OURS, _bullmq_commands()):
        for path in folder.glob(f"{name}-*.lua"):
            return path
    raise OxherdError(
        f"the installed bullmq package has no script {name}", hint="install the locked version: bullmq 3.4.4"
    )


def read_script(path: Path) -> Script:
    """Read a script of ours from `<name>-<number of keys>.lua`."""
    return _loaded(path, path.read_bytes())


def _loaded(path: Path, body: bytes) -> Script:
    name, _, numkeys = path.stem.rpartition("-")
    return Script(name, body, hashlib.sha1(body, usedforsecurity=False).hexdigest().encode(), numkeys.encode())


def _parking(body: bytes) -> bytes:
    body, pushes = _PUSH_TO_WAIT.subn(rb"rcall(\1, parked(targetKey), jobId)", body)
    return _PARKED + body if pushes else body


def _in_turn(body: bytes) -> bytes:
    """Let tenants take turns in a script that takes a job, see `lua/turns.lua`."""
    if _TAKE not in body:
        return body
    body = body.replace(_TAKE, _IN_TURN + _TAKE)
    turns = (_OURS / "turns.lua").read_bytes()
    return turns + b"local function bullmq()\n" + body + b"\nend\nreturn told(bullmq())\n"


@cache
def _bullmq_commands() -> Path:
    # find_spec does not run the package: importing bullmq costs 0.36 s that a worker has no use for
    spec = importlib.util.find_spec("bullmq")
    if spec is None or spec.origin is None:
        raise OxherdError("the bullmq package is not installed", hint="uv sync")
    return Path(spec.origin).parent / "commands"
