"""A run's stream as server-sent events: its tokens and steps while it runs, from wherever a client stopped reading."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from oxherd.errors import JobNotFound, OxherdError, UsageError
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.feed import follow
from oxherd.queue.keys import Keys
from oxherd.web.answers import dump
from oxherd.web.problems import Problem

MOST_READERS = 50  # each has a connection of its own to Redis, which has only so many
KEEP_ALIVE = 15.0  # seconds without news after which a comment keeps proxies from closing the connection


class Following:
    """Reads streams for clients.

    Parameters:
        admin, keys: of the queue.
        link: makes a connection for one reader; reading blocks it.
        stopped: ends all reading.
    """

    def __init__(self, admin: Admin, keys: Keys, link: Callable[[], Link], stopped: asyncio.Event) -> None:
        self._admin = admin
        self._keys = keys
        self._link = link
        self._stopped = stopped
        self._readers = 0

    async def open(self, job_id: str, since: str | None) -> AsyncIterator[bytes]:
        """Begin to read; the events of the job's stream, the last one is its `end`.

        Parameters:
            job_id: the job's.
            since: the id of the last event that the client has seen.

        Raises:
            Problem: too many read.
            JobNotFound: there is no such job.
        """
        if self._readers >= MOST_READERS:
            raise Problem(503, f"{MOST_READERS} clients follow runs already", headers={"Retry-After": "10"})
        if since is None and await self._admin.state(job_id) == "unknown":
            raise JobNotFound(f"no job {job_id} on queue {self._keys.queue}")
        link = self._link()
        await link.start()
        return self._told(link, job_id, since or "0")

    async def _told(self, link: Link, job_id: str, since: str) -> AsyncIterator[bytes]:
        self._readers += 1
        entries = follow(link, self._keys, job_id, since=since)
        ended: asyncio.Future[Any] = asyncio.ensure_future(self._stopped.wait())
        following: asyncio.Future[Any] | None = None
        try:
            yield b"retry: 1000\n\n"
            while not ended.done():
                following = following or asyncio.ensure_future(anext(entries))
                done, _ = await asyncio.wait({following, ended}, timeout=KEEP_ALIVE, return_when="FIRST_COMPLETED")
                if following in done:
                    entry, following = following.result(), None
                    yield b"id: %b\nevent: %b\ndata: %b\n\n" % (
                        entry.id.encode(), entry.type.encode(), dump(entry.data)
                    )  # fmt: skip
                elif not done:
                    yield b": still here\n\n"
        except StopAsyncIteration:
            pass
        except (JobNotFound, UsageError) as error:
            yield b"event: gone\ndata: %b\n\n" % dump({"detail": error.message})
        except OxherdError:
            yield b"event: away\ndata: {}\n\n"
        finally:
            self._readers -= 1
            for task in (following, ended):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, OxherdError):
                        await task
            await link.stop()
