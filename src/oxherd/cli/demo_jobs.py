"""The demo's jobs, and following them to their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oxherd.embedded.model import Model
from oxherd.errors import OxherdError
from oxherd.queue.admin import Admin

ENDS = ("completed", "failed")

RunOf = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class DemoJob:
    """A job of the demo.

    Attributes:
        shows: what it is there for.
        name, data, opts: as BullMQ's `add` takes them.
        must: the state it has to end in.
    """

    shows: str
    name: str
    data: dict[str, Any]
    opts: dict[str, Any]
    must: str = "completed"

    @property
    def wire(self) -> dict[str, Any]:
        """As BullMQ's `addBulk` takes it."""
        return {"name": self.name, "data": self.data, "opts": self.opts}


JOBS = (
    DemoJob(
        "free text, by an agent that is defined in the payload",
        "agent.run",
        {
            "agent": {
                "model": Model.name,
                "instructions": "You are a farmer.",
                "max_output_tokens": 60,
                "temperature": 0.0,
            },
            "input": "What is an ox good for? Answer in one sentence.",
        },
        {"attempts": 3},
    ),
    DemoJob(
        "JSON-schema output, by the herd's agent `triage`",
        "agent.run",
        {"agent": "triage", "input": "My parcel has not arrived for three weeks and I need it tomorrow!"},
        {"attempts": 3, "priority": 1},
    ),
    DemoJob(
        "a tool call through the loop; the agent is made to call the tool, a model this small would choose badly",
        "stock.ask",
        {"item": "plough"},
        {"attempts": 3},
    ),
    DemoJob(
        "fails on purpose, twice, and so ends among the dead letters",
        "invoice.send",
        {"number": 1017, "to": "ann@shop.example"},
        {"attempts": 2, "backoff": {"type": "exponential", "delay": 200, "jitter": 0.5}},
        must="failed",
    ),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A job of the demo that has ended.

    Attributes:
        job: which.
        view: what the queue says of it.
        run: its row in Postgres, or None.
    """

    job: DemoJob
    view: dict[str, Any]
    run: dict[str, Any] | None

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it had to, with a row in Postgres that says the same."""
        return self.view["state"] == self.job.must and self.run is not None and self.run["status"] == self.job.must

    @property
    def seconds(self) -> float:
        """From being added to its end."""
        return float(self.view["finished_on"] - self.view["timestamp"]) / 1000

    @property
    def tokens(self) -> int:
        """What the model read and wrote for it."""
        return (self.run["input_tokens"] + self.run["output_tokens"]) if self.run else 0

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.view["id"],
            "name": self.job.name,
            "shows": self.job.shows,
            "state": self.view["state"],
            "as_expected": self.as_expected,
            "seconds": self.seconds,
            "attempts": self.view["attempts_made"],
            "tokens": self.tokens,
            "result": self.view["returnvalue"],
            "reason": self.view["failed_reason"],
        }


async def follow(
    admin: Admin, watcher: Admin, run_of: RunOf, ids: Sequence[str], tell: Callable[[Ended], None]
) -> list[Ended]:
    """Wait until every job has ended.

    Parameters:
        admin: to look at jobs.
        watcher: to follow the events of a queue that was empty before.
        run_of: a job's row in the store.
        ids: of JOBS, in that order.
        tell: called with each as it ends.
    """
    expected, ended = dict(zip(ids, JOBS, strict=True)), {}
    async for _, event in watcher.events("0"):
        job_id = event.get("jobId", "")
        if event["event"] in ENDS and job_id in expected and job_id not in ended:
            view = await admin.job(job_id)
            ended[job_id] = Ended(expected[job_id], view, await run_of(view))
            tell(ended[job_id])
        if len(ended) == len(expected):
            break
    return [ended[job_id] for job_id in ids]


async def unless(ended: Callable[[], str | None], work: Any) -> Any:
    """Do the work, unless `ended` gives a reason why it can't succeed any more.

    Raises:
        OxherdError: with that reason.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=0.25)
        if not task.done() and (reason := ended()) is not None:
            task.cancel()
            raise OxherdError(reason)
    return task.result()
