"""One queue on a real Valkey with workers inside the test's process, and what the queue itself says happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from oxherd.clock import mono
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.settings import parse_redis_url
from oxherd.store import Store
from oxherd.testing import Events, captured_events
from oxherd.worker.handlers import Handler, make_handler
from oxherd.worker.worker import Limits, Worker

QUICK = {"lock_ms": 1500, "stalled_interval": 0.5, "concurrency": 5, "timeout": 30.0}
T = TypeVar("T")


class Stream:
    """The queue's own event stream: which jobs finished, how, and how often. It is the witness of every ledger."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._link = Link(parse_redis_url(url), "ledger")
        self._keys = keys
        self._position = "0"
        self._task: asyncio.Task[None] | None = None
        self.by_job: dict[str, list[str]] = {}
        self.fields: dict[tuple[str, str], dict[str, str]] = {}
        self.news = Events()

    async def start(self) -> None:
        await self._link.start()
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._link.stop()

    def finishes(self, job_id: str) -> list[str]:
        """How a job finished; more than one entry is a broken promise."""
        return [event for event in self.by_job.get(job_id, ()) if event in ("completed", "failed")]

    async def _read(self) -> None:
        while True:
            try:
                reply = await self._link.call(
                    b"XREAD", b"COUNT", 500, b"BLOCK", 2000, b"STREAMS", self._keys.events, self._position
                )
            except (RedisUnreachable, RedisRefused):
                await asyncio.sleep(0.01)
                continue
            for entry_id, flat in reply[0][1] if reply else ():
                self._position = entry_id.decode()
                self._note([word.decode("utf-8", "replace") for word in flat])

    def _note(self, words: list[str]) -> None:
        fields = dict(zip(words[::2], words[1::2], strict=True))
        job_id = fields.get("jobId", "")
        self.by_job.setdefault(job_id, []).append(fields["event"])
        self.fields[job_id, fields["event"]] = fields
        self.news.add(fields)


class Stage:
    """A queue, its producer, its admin, its witness, and the workers a test starts on it.

    Parameters:
        url: where Valkey is, for the test itself: workers may be sent through a proxy.
        queue: the queue's name.
    """

    def __init__(self, url: str, queue: str) -> None:
        self.url = url
        self.keys = Keys(queue)
        self.link = Link(parse_redis_url(url), "test")
        self.producer = Producer(self.link, self.keys)
        self.admin = Admin(self.link, self.keys)
        self.workers: list[Worker] = []

    async def __aenter__(self) -> Self:
        self._capturing = captured_events()
        self.happened = self._capturing.__enter__()
        await self.link.start()
        self.stream = Stream(self.url, self.keys)
        await self.stream.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            await worker.stop(grace=0)
        await self.stream.stop()
        await self.link.stop()
        self._capturing.__exit__(None, None, None)

    async def worker(
        self,
        handlers: Mapping[str, Callable[..., Any] | Handler],
        *,
        url: str | None = None,
        store: Store | None = None,
        **limits: Any,
    ) -> Worker:
        """Start a worker in this process."""
        made = {name: one if isinstance(one, Handler) else make_handler(name, one) for name, one in handlers.items()}
        worker = Worker(
            parse_redis_url(url or self.url), self.keys, made,
            store=store, runner=no_agents, limits=Limits(**{**QUICK, **limits}),
        )  # fmt: skip
        self.workers.append(worker)
        await worker.start()
        return worker

    async def add(self, name: str, data: Any = None, **opts: Any) -> str:
        return await self.producer.add(name, data, **opts)

    async def finished(self, *job_ids: str, within: float = 10.0) -> list[str]:
        """Wait until each job has finished; returns how: `completed` or `failed`."""
        await self.stream.news.until(lambda: all(self.stream.finishes(one) for one in job_ids), within)
        return [self.stream.finishes(one)[0] for one in job_ids]

    async def on_stream(self, job_id: str, event: str, *, count: int = 1, within: float = 10.0) -> None:
        """Wait until the queue's stream has shown this event of a job so often."""
        await self.stream.news.until(lambda: self.stream.by_job.get(job_id, []).count(event) >= count, within)

    async def settle_ledger(
        self, *job_ids: str, completed: int | None = None, failed: int = 0, delayed: int = 0
    ) -> None:
        """Every job finished exactly once, none is anywhere else, and nothing is left behind."""
        completed = len(job_ids) - failed if completed is None else completed
        await self.finished(*job_ids, within=20.0)
        twice = {one: how for one in job_ids if len(how := self.stream.finishes(one)) != 1}
        assert not twice, f"finished more than once: {twice}"
        counts = await self.admin.counts()
        expected = {"completed": completed, "failed": failed, "delayed": delayed}
        assert +Counter(counts) == +Counter(expected)
        assert await self.link.call(b"KEYS", self.keys.base + b"*:lock") == []

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self.admin.job(job_id)


async def eventually(look: Callable[[], Awaitable[T]], *, within: float = 10.0) -> T:
    """Ask again and again for what no event announces, such as a key or another process's health."""
    deadline = mono() + within
    while not (found := await look()):
        assert mono() < deadline, f"did not happen within {within} s"
        await asyncio.sleep(0.01)
    return found


async def no_agents(*_: Any) -> None:
    raise AssertionError("no test of this folder runs an agent")
