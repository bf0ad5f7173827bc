"""Oxherd's own HTTP API, as a client of a worker that runs elsewhere: see docs/api.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import orjson

from oxherd.errors import NotFound, ServiceRefused, ServiceUnreachable
from oxherd.settings import Secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

PATIENCE = 10.0  # seconds for one answer
MOST_SHOWN = 300  # characters of an answer


class WorkerApi:
    """One server, a worker's or that of `oxherd web`.

    Parameters:
        url: where it is, such as `https://worker.up.railway.app`.
        token: its API_TOKEN; None where only what needs none is asked.

    All methods raise ServiceUnreachable where it does not answer, ServiceRefused with its words where it refuses.
    """

    def __init__(self, url: str, token: Secret | None) -> None:
        self._root = url.rstrip("/")
        self._token = token
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def health(self) -> tuple[int, dict[str, Any]]:
        """The status of `/health` and what it says; an empty object where that is not Oxherd's."""
        status, text = await self._send("GET", "/health")
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError:
            said = {}
        return status, said if isinstance(said, dict) else {}

    async def metrics(self) -> str:
        """`/metrics`, in Prometheus's text format."""
        status, text = await self._send("GET", "/metrics")
        if status != 200:
            raise ServiceRefused(f"GET /metrics: HTTP {status}")
        return text.decode("utf-8", "replace")

    async def add_jobs(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Put jobs on the queue, each with its `name`, `data` and `options`; their ids."""
        return list((await self._call("POST", "/job-batches", {"jobs": jobs}))["ids"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """All that the queue knows of a job. Raises NotFound."""
        return await self._call("GET", f"/jobs/{quote(job_id, safe='')}")

    async def cancel_job(self, job_id: str) -> None:
        """Stop a job that runs, remove one that waits. Raises NotFound."""
        await self._call("POST", f"/jobs/{quote(job_id, safe='')}/cancel")

    async def remove_job(self, job_id: str) -> None:
        """Remove a job that does not run. Raises NotFound."""
        await self._call("DELETE", f"/jobs/{quote(job_id, safe='')}")

    async def jobs(self, states: Sequence[str], *, limit: int, since: int | None = None) -> list[dict[str, Any]]:
        """The first jobs of some states; of those that ended, only those that did so from `since` on, wall ms."""
        found: list[dict[str, Any]] = []
        for state in states:
            asked = {"state": state, "limit": limit, **({} if since is None else {"since": since})}
            found += (await self._call("GET", f"/jobs?{urlencode(asked)}"))["jobs"]
        return found

    async def counts(self, queue: str) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict((await self._call("GET", f"/queues/{quote(queue, safe='')}"))["counts"])

    async def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        status, text = await self._send(method, f"/api/v1{path}", body)
        try:
            answer = orjson.loads(text) if text else {}
        except orjson.JSONDecodeError:
            answer = {"detail": text.decode("utf-8", "replace")[:MOST_SHOWN]}
        if status < 300:
            return answer if isinstance(answer, dict) else {}
        words = answer.get("detail") if isinstance(answer, dict) else None
        if status == 404:
            raise NotFound(f"{method} {path}: {words or 'not found'}")
        hint = "is API_TOKEN the one that the worker has?" if status in {401, 403} else ""
        raise ServiceRefused(f"{method} {path}: HTTP {status}: {words or 'no reason given'}", hint=hint)

    async def _send(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        import aiohttp

        assert self._session is not None
        headers = {"user-agent": "oxherd"}
        if self._token is not None and path.startswith("/api/"):
            headers["authorization"] = f"Bearer {self._token.reveal()}"
        data = None
        if body is not None:
            data, headers["content-type"] = orjson.dumps(body), "application/json"
        try:
            async with self._session.request(
                method, self._root + path, data=data, headers=headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ServiceUnreachable(
                f"{self._root} did not answer {method} {path}: {str(error) or type(error).__name__}"
            ) from None
