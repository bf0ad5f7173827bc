"""Two releases on one queue and one database, as during every deploy: this one, and the one before."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from stage import Stream

from oxherd.queue.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
# The release before, until there are tags. Move it on when one is made.
BEFORE = "a0b7df2fdab3ed45f72b184d4379df603a313c83"
JOBS = 60


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The source of the release before."""
    git = subprocess.run(["git", "archive", BEFORE, "src"], cwd=ROOT, capture_output=True)
    if git.returncode:
        pytest.skip(f"this checkout does not have the history up to {BEFORE}: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(git.stdout)) as archive:
        archive.extractall(folder, filter="data")
    command = [sys.executable, "-c", "import oxherd; print(oxherd.__file__)"]
    asked = {**os.environ, "PYTHONPATH": str(folder / "src")}
    told = subprocess.run(command, env=asked, cwd=folder, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(str(folder)), "the environment's own oxherd comes first: nothing old would run"
    return folder / "src"


@pytest.fixture
async def stream(redis_url, queue_name):
    witness = Stream(redis_url, Keys(queue_name))
    await witness.start()
    yield witness
    await witness.stop()


async def test_two_releases_share_a_queue_and_hand_jobs_to_each_other(earlier, start, stage, stream, runs_url):
    old = await start(database_url=runs_url, PYTHONPATH=str(earlier), JOB_CONCURRENCY="5", SHUTDOWN_GRACE="0.2s")
    new = await start(database_url=runs_url, JOB_CONCURRENCY="5", SHUTDOWN_GRACE="0.2s")
    jobs = [await stage.producer.add("ok", {"takes": 0.05}) for _ in range(JOBS)]
    await settled(stream, jobs)
    took = Counter(line["id"] for worker in (old, new) for line in worker.lines if line.get("event") == "job.ended")
    assert set(took.values()) == {1}
    assert all(any(line.get("event") == "job.ended" for line in worker.lines) for worker in (old, new))

    held = [await stage.producer.add("ok", {"takes": 1.0}) for _ in range(8)]
    await stream.news.until(lambda: all("active" in stream.by_job.get(job, ()) for job in held) or None, 40)
    old.terminate()
    assert await old.exited() == 0
    await settled(stream, held)
    assert all(stream.finishes(job) == ["completed"] for job in jobs + held), "none lost, none twice"


async def test_a_job_of_a_killed_new_worker_is_finished_by_an_old_one(earlier, start, stage, stream, runs_url, witness):
    new = await start(database_url=runs_url)
    job = await stage.producer.add("slow-step", {})
    await stream.news.until(lambda: "active" in stream.by_job.get(job, ()) or None, 40)
    old = await start(database_url=runs_url, PYTHONPATH=str(earlier))
    new.kill()
    witness.set("gate", 1)
    await settled(stream, [job])
    assert stream.finishes(job) == ["completed"]
    await old.said("job.ended", id=job, outcome="completed")


async def settled(stream: Stream, jobs: list[str]) -> None:
    """Wait until the queue itself says that all have finished."""
    await stream.news.until(lambda: all(stream.finishes(job) for job in jobs) or None, 40)
