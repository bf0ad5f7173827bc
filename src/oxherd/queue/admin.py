"""Looking at the queue and acting on it from outside: counts, jobs, retry, cancel, remove, drain, the intake gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

from oxherd.clock import wall_ms
from oxherd.errors import JobNotFound, JobStateError
from oxherd.job import Job, State
from oxherd.queue.connection import Link
from oxherd.queue.consumer import READY_AT, parse
from oxherd.queue.keys import Keys
from oxherd.queue.pages import Pages, summary
from oxherd.queue.scripts import script

STATES = tuple(State)
AT_ONCE = 500  # jobs that are removed or promoted together
REOPEN = "then: oxherd gate open"  # how a reason ends where a worker closed the gate, not a person
CANCEL_KEPT_MS = 3_600_000  # a cancel request outlives its message, for workers that reconnect


class Admin:
    """Inspection and control of one queue over a link it is given."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self.pages = Pages(link, keys)

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state; `wait` includes those a BullMQ v5 pause parked in `paused`."""
        names = [state.value for state in STATES]
        numbers = await self._link.run(script("getCounts"), self._keys.base, *names, "paused")
        counts = dict(zip([*names, "paused"], numbers, strict=True))
        counts["wait"] += counts.pop("paused")
        return counts

    async def job(self, job_id: str) -> dict[str, Any]:
        """One job for people: its fields decoded, its state, its log lines. Raises JobNotFound."""
        # The state first: whoever reads that it is completed must find its result, also where Redis has to be sent the
        # script of the state and so answers what was asked after it before it.
        state = await self.state(job_id)
        fields, logs = await asyncio.gather(
            self._link.call(b"HGETALL", self._keys.job(job_id)),
            self._link.call(b"LRANGE", self._keys.job(job_id) + b":logs", 0, -1),
        )
        if not fields:
            raise JobNotFound(f"no job {job_id} on queue {self._keys.queue}", hint="oxherd jobs list")
        return {**_view(job_id, state, fields), "logs": [line.decode("utf-8", "replace") for line in logs]}

    async def state(self, job_id: str) -> str:
        """BullMQ's word for where the job is (`wait` for waiting), or `unknown`."""
        k = self._keys
        found: bytes = await self._link.run(
            script("getStateV2"), k.completed, k.failed, k.delayed, k.active, k.wait, k.paused, k.waiting_children,
            k.prioritized, job_id, k.job(job_id),
        )  # fmt: skip
        state = found.decode()
        return "wait" if state == "waiting" else state

    async def retry(self, job_id: str) -> None:
        """Put a failed or completed job back to be run again; a failed one with its attempts counted anew.

        A completed one keeps its count: that is how its worker tells a wanted second run from the end of a first one
        that died after it had stored its result.

        Raises:
            JobNotFound, JobStateError: it is not there, or neither failed nor completed.
        """
        state = await self.state(job_id)
        if state not in (State.FAILED, State.COMPLETED):
            if state == "unknown":
                raise JobNotFound(f"no job {job_id} on queue {self._keys.queue}")
            raise JobStateError(f"job {job_id} is {state}; only failed or completed jobs can be retried")
        k, failed = self._keys, state == State.FAILED
        fields = await self._link.call(b"HGETALL", k.job(job_id))
        await self._link.call(b"HDEL", k.job(job_id), b"stc", READY_AT)  # crashes are counted anew, too
        await self._link.call(b"ZREM", k.cancels, job_id)  # a request that came too late must not meet this run
        job = parse(job_id, fields, "")
        code = await self._link.run(
            script("reprocessJob"), k.job(job_id), k.events, k.state(state), k.wait, k.meta, k.active, k.marker,
            k.prioritized, k.pc, job_id, "RPUSH" if job.opts.get("lifo") else "LPUSH",
            "failedReason" if failed else "returnvalue", state, b"1" if failed else b"0", b"0",
        )  # fmt: skip
        if code != 1:
            raise JobStateError(f"job {job_id} changed its state meanwhile; look again with: oxherd jobs show {job_id}")

    async def cancel(self, job_id: str) -> str:
        """Cancel a job wherever it is: a running one is stopped by its worker, a waiting one is removed.

        Returns:
            `stopping` or `removed`.

        Raises:
            JobNotFound, JobStateError: it is not there, or has already finished.
        """
        state = await self.state(job_id)
        if state == "unknown":
            raise JobNotFound(f"no job {job_id} on queue {self._keys.queue}")
        if state in (State.COMPLETED, State.FAILED):
            raise JobStateError(f"job {job_id} has already {state}")
        if state != State.ACTIVE and await self.remove(job_id):
            return "removed"
        await self._link.call(b"ZADD", self._keys.cancels, wall_ms(), job_id)
        await self._link.call(b"PEXPIRE", self._keys.cancels, CANCEL_KEPT_MS)
        await self._link.call(b"PUBLISH", self._keys.control, f"cancel {job_id}")
        return "stopping"

    async def remove(self, job_id: str) -> bool:
        """Remove a job that is not running, with its children. False: it runs right now."""
        code: int = await self._link.run(
            script("removeJob"), self._keys.job(job_id), self._keys.repeat, job_id, 1, self._keys.base
        )
        if code == -8:
            raise JobStateError(f"job {job_id} belongs to a job scheduler; remove the scheduler instead")
        return code == 1

    async def drain(self, *, limit: int, delayed: bool = False) -> tuple[int, int]:
        """Remove jobs that wait, with all the queue knows of them. Next runs of job schedulers stay.

        BullMQ's own script removes all in one call, which holds up everybody else on a long queue; this does not.

        Parameters:
            limit: how many at most.
            delayed: those that wait for their time, too.

        Returns:
            How many were removed, and how many wait still.
        """
        states = [State.PRIORITIZED, State.WAIT, *([State.DELAYED] if delayed else [])]
        page = await self.pages.page(states, limit=limit)
        ids = [job["id"] for job in page.jobs if job["scheduler"] is None]
        removed = 0
        for start in range(0, len(ids), AT_ONCE):
            batch = (self.remove(job_id) for job_id in ids[start : start + AT_ONCE])
            removed += sum(await asyncio.gather(*batch))
        counts = await self.counts()
        return removed, sum(counts[state] for state in states)

    async def promote(self, job_id: str) -> None:
        """Run a delayed job now. Raises JobStateError where it is not delayed."""
        k = self._keys
        code = await self._link.run(
            script("promote"),
            k.delayed,
            k.wait,
            k.paused,
            k.meta,
            k.prioritized,
            k.active,
            k.pc,
            k.events,
            k.marker,
            k.base,
            job_id,
        )
        if code != 0:
            raise JobStateError(f"job {job_id} is not delayed")

    async def promote_begun(self) -> list[str]:
        """Run the delayed jobs now that were begun before; their ids.

        They wait between two tries. Those that never ran wait because their producer or their schedule wants it.
        """
        found, place = [], None
        while True:
            page = await self.pages.page(
                [State.DELAYED], limit=AT_ONCE, after=place, keep=lambda job: job["processed_on"] is not None
            )
            found += [job["id"] for job in page.jobs]
            if (place := page.next) is None:
                break
        promoted = []
        for start in range(0, len(found), AT_ONCE):
            batch = found[start : start + AT_ONCE]
            ends = await asyncio.gather(*map(self.promote, batch), return_exceptions=True)
            for job_id, end in zip(batch, ends, strict=True):
                if end is None:
                    promoted.append(job_id)
                elif not isinstance(end, JobStateError):  # one whose time came meanwhile needs nothing
                    raise end
        return promoted

    async def close_gate(self, reason: str) -> None:
        """Stop all Oxherd workers of this queue from taking jobs. Touches no BullMQ key, unlike BullMQ's pause."""
        await self._link.call(b"SET", self._keys.gate, reason)
        await self._link.call(b"PUBLISH", self._keys.control, f"gate closed {reason}")

    async def open_gate(self) -> None:
        """Let them take jobs again."""
        await self._link.call(b"DEL", self._keys.gate)
        await self._link.call(b"PUBLISH", self._keys.control, "gate open")

    async def gate(self) -> str | None:
        """Why the gate is closed, or None while it is open."""
        reason = await self._link.call(b"GET", self._keys.gate)
        return None if reason is None else reason.decode()

    async def newest_event(self) -> str:
        """The id of the stream's newest event: given to `events`, nothing that happens from now on is missed."""
        newest = await self._link.call(b"XREVRANGE", self._keys.events, b"+", b"-", b"COUNT", 1)
        return newest[0][0].decode() if newest else "0"

    async def newest_events(self, limit: int) -> list[dict[str, str]]:
        """The newest events of the queue's stream, the oldest of them first: `id`, `event` and what each brings.

        Payloads and results that come with them are left out.
        """
        found = await self._link.call(b"XREVRANGE", self._keys.events, b"+", b"-", b"COUNT", limit)
        events = []
        for entry_id, flat in reversed(found):
            words = [word.decode("utf-8", "replace") for word in flat]
            fields = dict(zip(words[::2], words[1::2], strict=True))
            shown = {name: value[:200] for name, value in fields.items() if name not in {"data", "returnvalue"}}
            events.append({"id": entry_id.decode(), **shown})
        return events

    async def events(self, since: str = "$") -> AsyncIterator[tuple[str, dict[str, str]]]:
        """The queue's event stream from `since` on (`$`: from now). Blocks its link; give it one of its own."""
        position = await self.newest_event() if since == "$" else since
        while True:
            reply = await self._link.call(
                b"XREAD", b"COUNT", 500, b"BLOCK", 5000, b"STREAMS", self._keys.events, position
            )
            for entry_id, flat in reply[0][1] if reply else ():
                position = entry_id.decode()
                words = [word.decode("utf-8", "replace") for word in flat]
                yield position, dict(zip(words[::2], words[1::2], strict=True))


def _view(job_id: str, state: str, fields: list[bytes]) -> dict[str, Any]:
    raw = dict(zip(fields[::2], fields[1::2], strict=True))
    job: Job = parse(job_id, fields, "")
    return {
        **summary(job_id, state, fields),
        "data": _json(job.raw),
        "opts": job.opts,
        "attempts_started": int(raw.get(b"ats") or 0),
        "progress": _json(raw.get(b"progress")),
        "returnvalue": _json(raw.get(b"returnvalue")),
        "stacktrace": job.stacktrace,
    }


def _json(raw: bytes | None) -> Any:
    if raw is None:
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode("utf-8", "replace")
