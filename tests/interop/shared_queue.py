"""One queue that a Node process and we share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from nodejs import Event, Node

from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.settings import RedisTarget
from oxherd.store import Store
from oxherd.worker.handlers import make_handler
from oxherd.worker.worker import Limits, Worker


class Queue:
    """One queue as a test sees it: our side, Node's side, and the raw keys below both."""

    def __init__(self, name: str, node: Node, target: RedisTarget) -> None:
        self.name = name
        self.node = node
        self.target = target
        self.keys = Keys(name)
        self.link = Link(target, "test")
        self.producer = Producer(self.link, self.keys)
        self.admin = Admin(self.link, self.keys)
        self._workers: list[Worker] = []

    # -- Node's side

    async def call(self, method: str, *args: Any) -> Any:
        """A method of Node's Queue."""
        return await self.node("queue", self.name, method, *args)

    async def add(self, name: str, data: Any = None, **opts: Any) -> str:
        """A job added by Node's Queue; its id."""
        job = await self.call("add", name, {} if data is None else data, opts)
        return job["id"]

    async def job(self, job_id: str) -> dict[str, Any] | None:
        """A job as Node's `getJob` gives it."""
        return await self.node("get", self.name, job_id)

    async def on_job(self, job_id: str, method: str, *args: Any) -> Any:
        """A method of Node's Job."""
        return await self.node("job", self.name, job_id, method, *args)

    async def counts(self, *states: str) -> dict[str, int]:
        """Node's `getJobCounts` without the zeros."""
        return {state: count for state, count in (await self.call("getJobCounts", *states)).items() if count}

    async def finish(self, job_id: str) -> dict[str, Any]:
        """Node's `waitUntilFinished`: `{"value": …}` or `{"error": …}`."""
        return await self.node("wait", self.name, job_id)

    def seen(self, event: str, **args: Any) -> list[Event]:
        """The events of this queue that Node has reported."""
        return [
            one
            for one in self.node.events
            if one.queue == self.name and one.name == event and args.items() <= one.args.items()
        ]

    async def event(self, event: str, *, times: int = 1, **args: Any) -> list[Event]:
        """Wait until Node's QueueEvents have reported it so many times."""
        await self.node("listen", self.name)

        def enough() -> list[Event]:
            found = self.seen(event, **args)
            return found if len(found) >= times else []

        return await self.node.until(enough, what=f"{times} times {event} {args}")

    # -- our side

    async def work(
        self, *, limits: Limits | None = None, store: Store | None = None, **handlers: Callable[..., Any]
    ) -> Worker:
        """A worker of ours with these handlers, by job name."""
        made = {name: make_handler(name, function) for name, function in handlers.items()}
        worker = Worker(
            self.target, self.keys, made, store=store, runner=_no_agents, limits=limits or Limits(concurrency=5)
        )
        await worker.start()
        self._workers.append(worker)
        return worker

    async def rest(self) -> None:
        """Stop our workers. Twice is fine."""
        while self._workers:
            await self._workers.pop().stop(grace=0)

    # -- the keys

    async def raw(self, *command: str | bytes | int) -> Any:
        """A Redis command."""
        return await self.link.call(*command)

    async def hash(self, job_id: str) -> dict[str, str]:
        """A job's hash as it is stored."""
        flat = await self.raw("HGETALL", self.keys.job(job_id))
        words = [word.decode() for word in flat]
        return dict(zip(words[::2], words[1::2], strict=True))

    async def __aenter__(self) -> Self:
        await self.link.start()
        await self.node("open", self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rest()
        await self.node("close", self.name)
        await self.link.stop()


async def _no_agents(*_: object) -> None:
    raise NotImplementedError
