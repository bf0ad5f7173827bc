"""ENCRYPTION_KEY is rotated while workers run jobs that read the rows it seals: how long, and how many jobs failed?

`python -m bench.rotation.run --rows 100000` ends with exit code 0 only if no job failed, every row is sealed with the
new key and opens, and no worker has the old key any more.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg

from oxherd import settings as variables
from oxherd.app import queue_client
from oxherd.embedded.engine import free_port
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey
from oxherd.ops.child import WorkerProcess
from oxherd.ops.rotate import Rotator, Scene
from oxherd.ops.rotate_encryption import EncryptionKey
from oxherd.ops.rotate_state import Locks, Progress, StateFile
from oxherd.queue.waiting import wait_for_end
from oxherd.settings import Secret
from oxherd.store.migrate import migrate
from oxherd.vault.crypto import Key, binding, seal
from oxherd.vault.vault import LABEL

APP = """
from oxherd import Context, Herd

herd = Herd()


@herd.job("read")
async def read(ctx: Context, payload: dict) -> str:
    return (await ctx.credential(payload["name"])).reveal()[:5]
"""
TENANT = "acme"


class Local:
    """Workers on this machine as consumers: new ones are started and healthy before the old ones are stopped."""

    def __init__(self, environ: Mapping[str, str], folder: Path, count: int) -> None:
        self.environ = dict(environ)
        self._folder = folder
        self._count = count
        self._running: list[WorkerProcess] = []
        self.deployments = 0

    async def look(self, names: tuple[str, ...]) -> str:
        return f"start new workers with {' and '.join(names)}, then stop the old ones"

    async def current(self, name: str) -> Secret | None:
        return Secret(self.environ[name]) if self.environ.get(name) else None

    async def give(self, values: Mapping[str, Secret], memo: dict[str, Any], keep: Callable[[], None]) -> None:  # noqa: ARG002
        self.environ |= {name: value.reveal() for name, value in values.items()}
        await self.deploy()

    def doubt(self, memo: dict[str, Any]) -> None:
        """Nobody is asked."""

    async def deploy(self) -> None:
        old, self._running = self._running, []
        for _ in range(self._count):
            environ = {**self.environ, "PORT": str(free_port()), "HOST": "127.0.0.1", "PYTHONPATH": str(self._folder)}
            worker = WorkerProcess(environ, app="reading:herd", log=self._folder / "log", inherit=False)
            worker.start()
            self._running.append(worker)
        for worker in self._running:
            await asyncio.to_thread(worker.wait_until_healthy)
        await self._stop(old)
        self.deployments += 1

    async def close(self) -> None:
        await self._stop(self._running)

    async def _stop(self, workers: list[WorkerProcess]) -> None:
        for worker in workers:
            await asyncio.to_thread(worker.stop)


class Nobody:
    """Asked for nothing: all of it is done by itself."""

    def confirms(self, question: str, *, again: bool) -> bool:  # noqa: ARG002
        raise AssertionError(question)

    def value(self, prompt: str) -> Secret:
        raise AssertionError(prompt)


async def fill(url: str, key: Key, rows: int) -> None:
    """Put so many credentials, as fast as Postgres takes them."""

    def made(number: int) -> tuple[str, str, str]:
        name = f"c{number}"
        return TENANT, name, seal(f"value of {name}", key, binding(LABEL, TENANT, name))

    connection = await asyncpg.connect(url)
    try:
        for start in range(0, rows, 10_000):
            page = [made(number) for number in range(start, min(start + 10_000, rows))]
            await connection.copy_records_to_table(
                "credentials", schema_name="oxherd", columns=("tenant", "name", "envelope"), records=page
            )
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def under_load(
    environ: Mapping[str, str], rows: int, *, rate: float, job: str = "read"
) -> AsyncIterator[Counter[str]]:
    """Meanwhile, jobs that each name a random credential; how they ended. All have ended on exit."""
    ended: Counter[str] = Counter()
    stop = asyncio.Event()
    async with queue_client(variables.load(environ)) as (producer, admin), queue_client(variables.load(environ)) as (
        _, watcher,
    ):  # fmt: skip
        since, ids = await watcher.newest_event(), []

        async def load() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                data = {"tenant": TENANT, "name": f"c{random.randrange(rows)}"}
                ids.append(await producer.add(job, data, jobId=f"load-{number}"))
                await asyncio.sleep(1 / rate)

        task = asyncio.create_task(load())
        try:
            yield ended
        finally:
            stop.set()
            await task
            for job_id in ids:
                ended[(await wait_for_end(admin, watcher, job_id, since=since)).state] += 1


async def measure(
    valkey_url: str, database_url: str, folder: Path, *, rows: int, workers: int, rate: float, queue: str
) -> dict[str, Any]:
    """Rotate under load; what came of it. The database has no schema yet."""
    await migrate(database_url)
    old = base64.b64encode(secrets.token_bytes(32)).decode()
    (folder / "reading.py").write_text(APP)
    environ = {
        "REDIS_URL": valkey_url, "DATABASE_URL": database_url, "JOB_QUEUE_NAME": queue, "ENCRYPTION_KEY": old,
        "OPENROUTER_BASE_URL": "http://127.0.0.1:9", "JOB_CONCURRENCY": "20", "LOG_LEVEL": "warning",
    }  # fmt: skip
    await fill(database_url, Key.of(Secret(old)), rows)
    local = Local(environ, folder, workers)
    try:
        await local.deploy()
        async with under_load(environ, rows, rate=rate) as ended:
            began = time.monotonic()
            progress, spent = Progress.begin("ENCRYPTION_KEY"), {}
            file = StateFile(folder / "state", "ENCRYPTION_KEY", Locks((Secret(old),)))
            settings = variables.load(environ)
            scene = Scene(progress, lambda: file.save(progress), local, Nobody(), settings, lambda _: None)
            plan, last = await Rotator(EncryptionKey(scene), file).plan(), time.monotonic()

            def told(step: Any) -> None:
                nonlocal last
                spent[step.action] = round(time.monotonic() - last, 2)
                last = time.monotonic()

            await plan.run(told)
            seconds = time.monotonic() - began
    finally:
        await local.close()
    connection = await asyncpg.connect(database_url)
    keys = [row[0] for row in await connection.fetch("select distinct key_id from oxherd.credentials")]
    audit = await connection.fetchval("select count(*) from oxherd.audit_log where action = 'rotate'")
    await connection.close()
    new = local.environ["ENCRYPTION_KEY"]
    return {
        "rows": rows, "seconds": round(seconds, 2), "stages": spent, "deployments": local.deployments - 1,
        "jobs": sum(ended.values()), "failed": ended["failed"] + ended["removed"], "audit": audit,
        "all_on_the_new_key": keys == [Key.of(Secret(new)).id] and new != old,
        "old_key_gone": old not in local.environ.values(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=100.0, help="jobs in a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Valkey(tcp=True) as valkey, Postgres() as postgres:
        done = asyncio.run(
            measure(
                valkey.url, postgres.create_database("rotation"), Path(folder), rows=options.rows,
                workers=options.workers, rate=options.rate, queue="rotation",
            )
        )  # fmt: skip
    print(json.dumps(done, indent=2))
    return 0 if not done["failed"] and done["all_on_the_new_key"] and done["old_key_gone"] else 1


if __name__ == "__main__":
    sys.exit(main())
