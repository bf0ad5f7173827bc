"""A real Prometheus scrapes a running worker, with our rules and the dashboard's queries."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from process import Start
from stage import Stage, eventually

from oxherd.embedded.engine import free_port
from oxherd.telemetry.grafana import dashboard
from oxherd.telemetry.rules import groups, page
from oxherd.telemetry.slo import DEFAULTS


class Prometheus:
    """One that scrapes a port of this machine.

    Parameters:
        program: where it is installed.
        folder: for its configuration and data.
        target: the port that it scrapes.
    """

    def __init__(self, program: str, folder: Path, target: int) -> None:
        self._program = program
        self._folder = folder
        self._url = f"http://127.0.0.1:{free_port()}"
        scrape = {"job_name": "worker", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        every = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
        config = {"global": every, "rule_files": ["rules.yml"], "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        (folder / "rules.yml").write_text(page(groups(DEFAULTS)))

    async def __aenter__(self) -> Self:
        options = [f"--config.file={self._folder / 'prometheus.yml'}", f"--storage.tsdb.path={self._folder / 'data'}"]
        options += [f"--web.listen-address={self._url.removeprefix('http://')}", "--log.level=error"]
        self._process = await asyncio.create_subprocess_exec(self._program, *options)
        self._session = aiohttp.ClientSession()
        await eventually(self._is_ready, within=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def _is_ready(self) -> bool:
        try:
            async with self._session.get(f"{self._url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def value(self, query: str) -> float | None:
        """The only value of a query, or None while there is none."""
        result = (await self.ask("query", query=query))["result"]
        return float(result[0]["value"][1]) if result else None

    async def becomes(self, query: str, value: float) -> None:
        """Wait until a query has this value."""

        async def look() -> bool:
            return await self.value(query) == value

        await eventually(look, within=20)


@pytest.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Callable[[int], Prometheus]]:
    """Makes one. A machine without it skips the test; CI installs it."""
    program = shutil.which("prometheus")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("prometheus is missing: apt-get install -y prometheus")
        pytest.skip("no prometheus here: apt-get install -y prometheus")
    return lambda port: Prometheus(program, tmp_path, port)


async def test_prometheus_scrapes_a_running_worker_and_takes_rules_and_queries(
    stage: Stage, start: Start, prometheus: Callable[[int], Prometheus], runs_url: str
):
    worker = await start(database_url=runs_url)
    async with prometheus(worker.port) as server:
        await server.becomes("up", 1)
        await stage.producer.add("ok")
        await stage.producer.add("paid")
        await worker.said("job.ended", count=2)
        await server.becomes('sum(oxherd_jobs_total{outcome="completed"})', 2)
        await server.becomes('oxherd_steps_total{kind="step", outcome="ok"}', 2)
        assert await server.value("oxherd_healthy") == 1
        assert await server.value("oxherd_store_batch_rows_count") >= 1

        async def evaluated() -> bool:
            loaded = [rule for group in (await server.ask("rules"))["groups"] for rule in group["rules"]]
            assert not [rule for rule in loaded if rule["health"] == "err"], loaded
            return all(rule["health"] == "ok" for rule in loaded)

        await eventually(evaluated)
        assert (await server.ask("alerts"))["alerts"] == []
        for panel in dashboard()["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")
                assert isinstance((await server.ask("query", query=query))["result"], list)
