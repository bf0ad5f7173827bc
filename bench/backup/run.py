"""What a backup costs beside a bare `pg_dump`, how much memory it takes, and whether every changed byte is noticed.

    python -m bench.backup.run [--gigabytes 1] [--rounds 3] [--flips 1000]

Makes a database, then dumps it in turns: PostgreSQL's own parallel dump into a folder (with its usual compression, and
with none), and `oxherd backup create` into a local folder, which also sums all rows, compresses, encrypts and hashes.
Then the last backup is verified, and bytes of its parts are changed one at a time.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from oxherd.backup import catalogue, runs, sealing, tools
from oxherd.backup.storage import open_storage
from oxherd.embedded.postgres import Postgres
from oxherd.errors import BackupDamaged
from oxherd.settings import load

ROWS = 2_570_000  # of events in a gigabyte; there is a run for every three
FILL = """
    create table runs (id text primary key, input jsonb, output text, at timestamptz, n bigint);
    create table events (id bigserial primary key, run text, kind text, body text, at timestamptz);
    insert into runs select 'agent-jobs/' || i, jsonb_build_object('n', i, 'prompt', repeat(md5(i::text), 4)),
        md5((i * 7)::text) || repeat('some words of an answer ', 8), now(), i from generate_series(1, {runs}) i;
    insert into events (run, kind, body, at) select 'agent-jobs/' || (i % {runs}), 'k' || (i % 9),
        md5(i::text) || md5((i + 1)::text) || ' and the words of a token', now() from generate_series(1, {events}) i;
    create index on events (run);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flips", type=int, default=1_000)
    given = parser.parse_args()
    if os.environ.get("BENCH_BACKUP_CHILD"):
        child()
        return
    with (
        tempfile.TemporaryDirectory(prefix="oxherd-bench-") as folder,
        Postgres(config={"max_wal_size": "4GB"}) as server,
    ):
        measure(given, Path(folder), server)


def measure(given: argparse.Namespace, folder: Path, server: Postgres) -> None:
    url = server.create_database("bench")
    size = asyncio.run(fill(url, int(ROWS * given.gigabytes)))
    recipient, identity = sealing.new_identity()
    environ = {
        "DATABASE_URL": url, "BACKUP_URL": str(folder / "backups"), "BACKUP_RECIPIENTS": recipient,
        "BACKUP_IDENTITY": identity.reveal(),
    }  # fmt: skip
    client = tools.fitting(18, tls=False)
    connection = client.variables(tools.connection_environ(tools.address_of(url), tls=False))
    times: dict[str, list[float]] = {"pg_dump -Fd -j2": [], "pg_dump -Fd -j2 -Z0": [], "oxherd backup create": []}
    memory = 0
    for _ in range(given.rounds):
        for flags in ([], ["-Z0"]):
            target = folder / "dump"
            command = [client.program("pg_dump"), "-Fd", "-j2", *flags, "-f", str(target)]
            began = time.perf_counter()
            subprocess.run(command, env=connection, check=True)
            times[" ".join(["pg_dump -Fd -j2", *flags])].append(time.perf_counter() - began)
            shutil.rmtree(target)
        done = subprocess.run(
            [sys.executable, "-m", "bench.backup.run"], env={**os.environ, **environ, "BENCH_BACKUP_CHILD": "1"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        said = json.loads(done.stdout)
        times["oxherd backup create"].append(said["seconds"])
        memory = max(memory, said["memory"])
    print(f"database of {size / 1e9:.2f} GB; medians of {given.rounds} rounds")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:24} {seconds:6.2f} s")
    ours = medians["oxherd backup create"]
    for name in ("pg_dump -Fd -j2", "pg_dump -Fd -j2 -Z0"):
        print(f"  speed, of {name}: {medians[name] / ours:.2f}")
    print(f"  memory at most: {memory / 1e6:.0f} MB, and pg_dump's 5 MB")
    prove(environ, given.flips)


def child() -> None:
    settings = load(needs=())
    began = time.perf_counter()
    asyncio.run(runs.take(settings, None, with_queue=False))
    seconds = time.perf_counter() - began
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # pg_dump has some 5 MB beside it
    print(json.dumps({"seconds": seconds, "memory": kilobytes * 1024}))


def prove(environ: dict[str, str], flips: int) -> None:
    settings = load({"REDIS_URL": "redis://localhost", **environ})
    report = asyncio.run(runs.prove(settings, None))
    print(f"  verified: {report.ok}, in {report.seconds:.1f} s, of which restoring {report.rto_seconds:.1f} s")
    storage = open_storage(settings)
    made = catalogue.load(storage, "latest")
    print(f"  stored: {made.stored / 1e6:.0f} MB of {made.raw / 1e6:.0f} MB, in {len(made.pieces[0].parts)} parts")
    noticed = sum(flipped(storage, Path(environ["BACKUP_URL"]), made) for _ in range(flips))
    print(f"  changed bytes noticed: {noticed} of {flips}")


def flipped(storage, folder: Path, made) -> bool:
    parts = made.pieces[0].parts
    part = random.choices(parts, weights=[each.size for each in parts])[0]
    path, place = folder / made.name / part.name, random.randrange(part.size)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << random.randrange(8))]))
    try:
        sealing.checked_part(storage, made.name, part)
    except BackupDamaged:
        return True
    finally:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
    return False


async def fill(url: str, events: int) -> int:
    connection = await asyncpg.connect(url)
    await connection.execute(FILL.format(events=events, runs=events // 3))
    await connection.execute("vacuum analyze")
    size = await connection.fetchval("select pg_database_size(current_database())")
    await connection.close()
    return size


if __name__ == "__main__":
    main()
