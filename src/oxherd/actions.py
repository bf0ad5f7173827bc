"""What people ask of runs that takes both the queue and the store: the command line and the HTTP API call these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from oxherd.clock import wall_ms
from oxherd.errors import JobNotFound, JobStateError, UsageError
from oxherd.job import State
from oxherd.queue.admin import Admin
from oxherd.queue.producer import Producer
from oxherd.store import SpendSum, Store

DAY_MS = 86_400_000


async def find_run(store: Store, queue: str, run_id: str) -> dict[str, Any]:
    """A run with everything, by its id, with or without the queue's name, or by its job's id: then the newest.

    Raises:
        JobNotFound: there is none.
        StoreUnreachable: the database did not answer.
    """
    found: dict[str, object] | None = None
    if "@" in run_id:
        found = await store.run(run_id) or await store.run(f"{queue}/{run_id}")
    if found is None and (newest := await store.find_run(queue, run_id)) is not None:
        found = await store.run(newest)
    if found is None:
        raise JobNotFound(f"no run {run_id} on queue {queue}", hint="oxherd runs list")
    return cast(dict[str, Any], found)


async def replay_run(
    store: Store, producer: Producer, admin: Admin, run: dict[str, Any], *, queue: str, fork_from: str | None = None
) -> dict[str, Any]:
    """Run a completed or failed run's job again, with its finished steps from the journal.

    A job that was removed from the queue meanwhile is put back under its id.

    Parameters:
        store, producer, admin: of the run's queue.
        run: as `find_run` has it.
        queue: the name of theirs.
        fork_from: the key of a step: it and what finished after it are run anew.

    Returns:
        `run_id`, `job_id`, `kept` (how many steps), `dropped` (keys of the steps that are run anew).

    Raises:
        UsageError: the run was on another queue, or has no such step.
        JobStateError: its job is waiting or running.
    """
    if run["queue"] != queue:
        raise UsageError(f"the run was on queue {run['queue']}", hint=f"set JOB_QUEUE_NAME={run['queue']}")
    state = await admin.state(run["job_id"])
    if state not in {State.COMPLETED, State.FAILED, "unknown"}:
        raise JobStateError(f"job {run['job_id']} is {state}; only completed or failed ones can be replayed")
    dropped = await _drop(store, run, fork_from)
    kept = len(await store.steps(run["id"]))  # before it runs again and keeps more
    if state == "unknown":
        await producer.restore(
            run["job_id"],
            run["name"],
            run["input"].encode(),
            timestamp=run["enqueued_at"],
            attempts=run["attempts"],
            attempts_started=run["fence"],
            # A completed run's result is final for its attempt: this is another one.
            attempts_made=run["attempt"] if run["status"] == "completed" else 0,
        )
    else:
        await admin.retry(run["job_id"])
    return {"run_id": run["id"], "job_id": run["job_id"], "kept": kept, "dropped": dropped}


async def _drop(store: Store, run: dict[str, Any], fork_from: str | None) -> list[str]:
    if fork_from is None:
        return []
    dropped = await store.drop_steps(run["id"], fork_from)
    if not dropped:
        raise UsageError(f"run {run['id']} has no step {fork_from!r}", hint=f"oxherd runs show {run['job_id']}")
    return dropped


async def spend_report(store: Store, *, by: str, days: int) -> Sequence[SpendSum]:
    """What was spent, summed. Raises StoreUnreachable.

    Parameters:
        store: where the ledger is.
        by: day, tenant, agent or model.
        days: of so many days (UTC), today included.
    """
    now = wall_ms()
    since = (now // DAY_MS - days + 1) * DAY_MS
    return await store.spend_report(by=by, since=since, until=now + DAY_MS)
