"""A server with something of everything to look at, and a browser to look with."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import random
import secrets
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from playwright.sync_api import Page
from stage import eventually

from oxherd import settings
from oxherd.agents import tool
from oxherd.app import Service, WebService, build_store
from oxherd.clock import wall_ms
from oxherd.errors import Fatal, RetryLater
from oxherd.herd import Herd
from oxherd.queue.indicators import Indicators, bucket_of
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.store import Operation, SpendRow
from oxherd.telemetry.events import InternalFault, attach
from oxherd.testing.model import Asked, Reply, ScriptedModel, calls, says

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run",
]  # fmt: skip
AXE = Path(__file__).parents[1] / "interop/node/node_modules/axe-core/axe.min.js"
PASSWORD = "hunter2-of-the-shop"  # in a payload, to be hidden
DAY = 86_400_000


def chromium() -> str:
    """Where Chromium is; skips the test without it, and fails it in CI."""
    found = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    if found is None:
        _without("no Chromium: apt-get install -y chromium")
    return str(found)


def axe() -> str:
    """The source of axe-core."""
    if not AXE.exists():
        _without("no axe-core: make node")
    return AXE.read_text()


def violations(page: Page, **rules: Any) -> list[Any]:
    """What axe-core has against a page, where it is serious: rules, and where they are broken."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(f"() => {{ {axe()} }}")
    return page.evaluate(_VIOLATIONS, {**rules, "resultTypes": ["violations"]})


_VIOLATIONS = """(options) => axe.run(options).then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => [each.id, each.nodes.slice(0, 3).map((node) => node.html + " " + node.failureSummary)]))"""


def _without(why: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


def _answered(asked: Asked) -> Reply | str:
    if asked.model == "demo/slow":
        return says("Counting the herd: one ox, two oxen, three oxen, and one that is late.", pause=0.12)
    if len(asked.messages) < 4 and asked.tools:
        return calls(("find_order", {"email": "ada@example.com"}), text="Let me look that up.")
    return says("Your order 4711 left our barn this morning and will be with you on Tuesday.", cost=0.0021)


def _herd(may_end: asyncio.Event) -> Herd:  # noqa: C901  a handler for each thing to see
    herd = Herd()

    @tool
    async def find_order(email: str) -> dict[str, Any]:
        """Find a customer's newest order."""
        await asyncio.sleep(0.04)
        return {"order": 4711, "status": "shipped", "customer": email, "api_key": "sk-live-0123456789abcdefghij"}

    support = herd.agent(
        "support", model="openai/gpt-5-mini", tools=[find_order],
        instructions="Answer customers of a small ox-cart shop in two sentences. Look their order up first.",
    )  # fmt: skip
    counter = herd.agent("counter", model="demo/slow", instructions="Count aloud.")
    failed_once: set[str] = set()

    @herd.job("support.reply", retries=3)
    async def reply(ctx, ticket):
        history = await ctx.step("history", lambda: {"earlier": 2, "password": PASSWORD})
        run = await ctx.run(support, f"{ticket['text']} ({history['earlier']} earlier)")
        if ticket.get("flaky") and ctx.job.id not in failed_once:
            failed_once.add(ctx.job.id)
            raise ConnectionError("the mail server closed the connection")
        return {"answer": run.output}

    @herd.job("herd.count", stream=True)
    async def count(ctx, _payload):
        return (await ctx.run(counter, "How many oxen are there?")).output

    @herd.job("report.write")
    async def report(ctx, payload):
        await ctx.log("opening the ledger")
        await ctx.step("load", lambda: {"pages": 3})
        return {"pages": payload.get("pages", 3)}

    @herd.job("invoice.send")
    async def send(_ctx, invoice):
        if invoice.get("mended"):
            return "sent"
        raise Fatal(f"the mail server refused invoice {invoice['number']}: mailbox full")

    @herd.job("label.print")
    async def label(_ctx, parcel):
        raise Fatal(f"no paper in tray {parcel['tray']}")

    @herd.job("refund.pay")
    async def refund(ctx, payload):
        return (await ctx.wait_for("refund", about={"order": payload["order"], "amount": "€ 48.00"})).approved

    @herd.job("long.haul")
    async def long(_ctx, _payload):
        await may_end.wait()

    @herd.job("wait.a.bit")
    async def wait(_ctx, _payload):
        raise RetryLater(3600)

    return herd


@dataclass
class Place:
    """A worker with its dashboard, in a thread of its own, so that a browser's own loop is in nobody's way."""

    redis_url: str
    database_url: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    read_token: str = field(default_factory=lambda: secrets.token_hex(16))
    jobs: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    service: Service = field(init=False)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._model = ScriptedModel(answer=_answered).__enter__()
        self.do(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self._stop())
        self._model.__exit__(None, None, None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def do(self, what: Coroutine[Any, Any, Any], within: float = 30.0) -> Any:
        """Run something where the server runs."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(what, self._loop)
        return future.result(within)

    def call(self, what: Callable[[], Any]) -> None:
        """Call something there."""
        self._loop.call_soon_threadsafe(what)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.service.port}{path}"

    async def add(self, name: str, data: Any = None, **options: Any) -> str:
        return await self.service.desk.producer.add(name, data or {}, **options)

    async def until(self, job_id: str, *states: str) -> None:
        async def look() -> bool:
            return await self.service.desk.admin.state(job_id) in states

        await eventually(look)

    def state(self, job_id: str) -> str:
        return self.do(self.service.desk.admin.state(job_id))

    def eventually(self, look: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self.do(eventually(look))

    def variables(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url, "DATABASE_URL": self.database_url, "JOB_QUEUE_NAME": "agent-jobs",
            "HOST": "127.0.0.1", "PORT": "0", "API_TOKEN": self.token, "API_READ_TOKEN": self.read_token,
            "OPENROUTER_BASE_URL": self._model.base_url, "OPENROUTER_API_KEY": "sk-or-made-up-0123456789abcdef",
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(), "JOB_CONCURRENCY": "8",
            "SHUTDOWN_GRACE": "1s",
        }  # fmt: skip

    async def _start(self) -> None:
        self.may_end = asyncio.Event()
        known = settings.load(self.variables())
        attach(lambda fault: self.faults.append(fault.stack), InternalFault)
        self.service = Service(known, _herd(self.may_end), store=build_store(known))
        await self.service.start()
        await self._seed()

    async def _stop(self) -> None:
        self.may_end.set()
        await self.service.close()

    @contextmanager
    def alone(self, redis_url: str) -> Iterator[str]:
        """The API alone, with no database and no token: its address."""
        left_out = {"DATABASE_URL", "API_TOKEN", "API_READ_TOKEN"}
        bare = {name: text for name, text in self.variables().items() if name not in left_out}

        async def start() -> WebService:
            web = WebService(settings.load({**bare, "REDIS_URL": redis_url}), Herd(), store=None)
            await web.start()
            return web

        web = self.do(start())
        try:
            yield f"http://127.0.0.1:{web.port}"
        finally:
            self.do(web.close())

    async def _seed(self) -> None:
        desk, jobs = self.service.desk, self.jobs
        ticket = {"text": "Where is my order?", "tenant": "acme", "password": PASSWORD}
        jobs["reply"] = await self.add("support.reply", ticket, attempts=3)
        jobs["flaky"] = await self.add(
            "support.reply", {"text": "Is it late?", "tenant": "globex", "flaky": True}, attempts=3,
            backoff={"type": "fixed", "delay": 10},
        )  # fmt: skip
        for number in range(12):
            await self.add("invoice.send", {"number": 1000 + number, "tenant": "acme"})
        for tray in range(4):
            jobs["label"] = await self.add("label.print", {"tray": tray, "tenant": "globex"})
        for pages in range(30):
            jobs["report"] = await self.add("report.write", {"pages": pages, "tenant": ("acme", "globex")[pages % 2]})
        jobs["question"] = await self.add("refund.pay", {"order": 4711, "tenant": "acme"})
        jobs["long"] = await self.add("long.haul", {"tenant": "acme"})
        jobs["later"] = await self.add("report.write", {"pages": 9, "tenant": "acme"}, delay=3_600_000)
        await desk.timetable.put("nightly", Repeat(None, "0 3 * * *", "Europe/Berlin"), NewJob("report.write", {}, {}))
        await desk.timetable.put("heartbeat", Repeat(900_000, None), NewJob("oxherd.echo", {"beat": 1}, {}))
        await asyncio.gather(
            *(self.until(jobs[each], "completed", "failed") for each in ("reply", "flaky", "report", "label"))
        )
        await asyncio.gather(self.until(jobs["question"], "delayed"), self.until(jobs["long"], "active"))
        await self._seed_history()
        await self._seed_store()

    async def _seed_history(self) -> None:
        chance, now, desk = random.Random(7), wall_ms() // 60_000, self.service.desk
        indicators = Indicators(desk.link, desk.keys)
        await desk.link.call(b"DEL", desk.keys.indicators + b"since")
        for back in range(75, 0, -1):
            wave = 26 + 14 * math.sin(back / 9) + chance.gauss(0, 2)
            done, counted = max(round(wave), 1), {}
            bad = chance.choices((0, 1, 2, 5), (70, 20, 8, 2))[0]
            for _ in range(done + bad):
                wait = f"support.reply|w{bucket_of(chance.lognormvariate(3.2, 0.8))}"
                run = f"support.reply|r{bucket_of(chance.lognormvariate(7.4, 0.6))}"
                counted[wait] = counted.get(wait, 0) + 1
                counted[run] = counted.get(run, 0) + 1
            counted |= {
                "support.reply|a": done + bad,
                "support.reply|e": bad,
                "support.reply|c": done,
                "support.reply|f": bad // 2,
            }
            await indicators.write(counted, {now - back}, minute=now - back)

    async def _seed_store(self) -> None:
        store, chance, now = self.service.desk.stored, random.Random(3), wall_ms()
        rows, tenants = [], ("acme", "globex", "initech")
        for day in range(7):
            for number in range(40):
                agent, model, each = chance.choice((
                    ("support", "openai/gpt-5-mini", 0.011), ("counter", "demo/slow", 0.002),
                    ("triage", "anthropic/claude-haiku-4.5", 0.006),
                ))  # fmt: skip
                rows.append(SpendRow(
                    f"seed-{day}-{number}", f"run-{day}", "model-1", 1, chance.choice(tenants), agent,
                    model, "settled", now - day * DAY - number * 1000, input_tokens=chance.randint(400, 6000),
                    output_tokens=chance.randint(40, 900), cost_usd=Decimal(f"{each * chance.uniform(0.5, 4):.5f}"),
                ))  # fmt: skip
        await store.write_spend(rows)
        for operation in (
            Operation("backup", "2026-11-26T0300-full", "ok", 41.0, {"bytes": 18_400_000, "tables": 11}),
            Operation("backup", "2026-11-27T0300-full", "failed", 3.2, {"reason": "bucket refused the upload"}),
            Operation("backup", "2026-11-28T0300-full", "ok", 42.7, {"bytes": 18_900_000, "tables": 11}),
            Operation("verify", "2026-11-28T0300-full", "ok", 12.1, {"rows": 51_233}),
            Operation("drill", "lose-redis", "ok", 64.0, {"lost_jobs": 0, "back_in_s": 4.2}),
            Operation("deploy", "worker 3f2a9c1", "ok", 88.0, {"from": "81be02d"}),
        ):
            await store.write_operation(operation)
