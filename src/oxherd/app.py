"""The only place that builds things: settings and a herd in, running services out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from oxherd import __version__
from oxherd.clock import mono
from oxherd.cloud.certificates import Server
from oxherd.errors import AppImportError, DailyCapReached, OutOfCredit, RedisRefused, RedisUnreachable, UsageError
from oxherd.herd import Herd, echo_of
from oxherd.queue.admin import REOPEN, Admin
from oxherd.queue.alertbook import AlertBook
from oxherd.queue.answers import Answers
from oxherd.queue.connection import Link
from oxherd.queue.feed import Entry, follow
from oxherd.queue.indicators import Indicators
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.queue.timetable import Timetable
from oxherd.queue.turns import Turns
from oxherd.settings import Settings, variables_set
from oxherd.store import Store
from oxherd.telemetry import logs
from oxherd.telemetry.channels import channels_of
from oxherd.telemetry.events import WebStarted, WorkerStarted, WorkerWarned, emit
from oxherd.telemetry.metrics import Metrics
from oxherd.telemetry.slo import Promises, load_promises
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Links
from oxherd.vault.vault import Vault
from oxherd.worker.approvals import Approvals, Asking
from oxherd.worker.counting import Counting
from oxherd.worker.handlers import Handler, make_handler
from oxherd.worker.health import Facts, Health
from oxherd.worker.probes import backup_probe, certificate_probe, expiry_probe, spend_probe, store_probe
from oxherd.worker.watchdogs import Watchdogs
from oxherd.worker.worker import Limits, Worker

if TYPE_CHECKING:
    from oxherd.agents.ledger import Ledger
    from oxherd.web.desk import Desk

OLDEST_REDIS = (6, 2)
LAST_TELEMETRY = 3.0  # seconds for what has still to be sent when the process ends
LONGEST_BACKUP = 43_200.0  # seconds for a scheduled backup, or proving one
PATIENCE = 30.0  # seconds without an answer after which the connections for money and the API are made again
AWAY = 10.0  # seconds that Redis may be away before a server without a worker counts as unhealthy
NO_STORE = "--no-store: runs are NOT recorded; a crash repeats paid steps and results live in Redis only"


def load_herd(path: str | None) -> Herd:
    """Import the product's herd.

    Parameters:
        path: `module:attribute`, such as `myapp.jobs:herd`; None is an empty herd (the built-in jobs only).

    Raises:
        AppImportError: with the real cause and where was searched.
    """
    if path is None:
        return Herd()
    module_name, _, attribute = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    herd = getattr(_import(module_name, path), attribute or "herd", None)
    if not isinstance(herd, Herd):
        found = "nothing" if herd is None else f"a {type(herd).__name__}"
        raise AppImportError(
            f"--app {path}: {attribute or 'herd'} must be a Herd, it is {found}", hint=f"herd = Herd() in {module_name}"
        )
    return herd


def _import(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            searched = "\n".join(f"  {entry}" for entry in sys.path if entry)
            raise AppImportError(
                f"--app {path}: no module {error.name!r}. Searched:\n{searched}",
                hint="run it from your project's folder",
            ) from None
        raise AppImportError(
            f"--app {path}: {module_name} imports {error.name!r}, which is not installed", hint=f"install {error.name}"
        ) from error
    except Exception as error:  # the user's module failed while it was imported: show them their own stack
        stack = "".join(traceback.format_exception(error)[-4:])
        raise AppImportError(f"--app {path}: importing {module_name} failed:\n{stack}") from error


def keys_of(settings: Settings) -> Keys:
    """The key names of the configured queue."""
    return Keys(settings.job_queue_name, settings.job_queue_prefix)


@contextlib.asynccontextmanager
async def queue_client(settings: Settings) -> AsyncIterator[tuple[Producer, Admin]]:
    """A producer and an admin of the configured queue, for commands. Raises RedisUnreachable, RedisRefused."""
    link, keys = Link(settings.redis_url, "cli"), keys_of(settings)
    stop_tracing = start_tracing(settings)
    try:
        await link.start()
        yield Producer(link, keys), Admin(link, keys)
    finally:
        await link.stop()
        await in_time(stop_tracing)


@contextlib.asynccontextmanager
async def _linked(settings: Settings, purpose: str) -> AsyncIterator[Link]:
    link = Link(settings.redis_url, purpose)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


@contextlib.asynccontextmanager
async def watch_client(settings: Settings) -> AsyncIterator[tuple[AlertBook, Indicators]]:
    """Alerts and indicators of the configured queue, for commands. Raises RedisUnreachable, RedisRefused."""
    keys = keys_of(settings)
    async with _linked(settings, "cli") as link:
        yield AlertBook(link, keys), Indicators(link, keys)


@contextlib.asynccontextmanager
async def feed_client(settings: Settings) -> AsyncIterator[Callable[..., AsyncIterator[Entry]]]:
    """`queue.feed.follow` for jobs of the configured queue, over a link of its own."""
    async with _linked(settings, "feed") as link:
        yield functools.partial(follow, link, keys_of(settings))


def start_tracing(settings: Settings) -> Callable[[], None] | None:
    """Send OpenTelemetry traces from now on, where that is configured. Returns what sends the rest and stops it."""
    base = settings.otel_exporter_otlp_endpoint
    endpoint = settings.otel_exporter_otlp_traces_endpoint or (f"{base}/v1/traces" if base else None)
    if endpoint is None or settings.otel_sdk_disabled == "true":
        return None
    try:
        from oxherd.telemetry import tracing
    except ImportError:
        emit(WorkerWarned(message="OTEL_EXPORTER_OTLP_ENDPOINT is set, but not the extra: pip install 'oxherd[otel]'"))
        return None
    content = settings.otel_instrumentation_genai_capture_message_content == "true"
    service = tracing.Service(settings.job_queue_name, __version__, uuid4().hex)
    return tracing.start(endpoint, service, content=content, hide=logs.cleaner(settings.secrets))


def start_sentry(settings: Settings) -> Callable[[], None] | None:
    """Report to Sentry from now on, where that is configured. Returns what sends the rest and stops it."""
    if settings.sentry_dsn is None:
        return None
    try:
        from oxherd.telemetry import sentry
    except ImportError:
        emit(WorkerWarned(message="SENTRY_DSN is set, but not the extra: pip install 'oxherd[sentry]'"))
        return None
    return sentry.start(
        settings.sentry_dsn,
        settings.job_queue_name,
        release=settings.sentry_release or settings.railway_git_commit_sha or f"oxherd@{__version__}",
        environment=settings.sentry_environment or settings.railway_environment_name or "production",
        traces=settings.sentry_traces_sample_rate,
        content=settings.otel_instrumentation_genai_capture_message_content == "true",
        hide=logs.cleaner(settings.secrets),
    )


async def in_time(stop: Callable[[], None] | None) -> None:
    """Call what sends the last traces; what takes longer than some seconds is left to end with the process."""
    if stop is None:
        return
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        stop()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="oxherd-telemetry", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), LAST_TELEMETRY)


def build_store(settings: Settings) -> Store | None:
    """The configured store, Postgres preferred, not started; None where none is configured."""
    if settings.database_url is not None:
        from oxherd.store.postgres import PostgresStore

        return PostgresStore(settings.database_url.reveal())
    if settings.supabase_url is not None and settings.supabase_service_role_key is not None:
        from oxherd.store.supabase import SupabaseStore

        return SupabaseStore(settings.supabase_url, settings.supabase_service_role_key)
    return None


def build_vault(settings: Settings, store: Store | None) -> Vault:
    """Credentials and sealed fields; without ENCRYPTION_KEY, whoever asks for one is told so."""
    return Vault(KeyRing.of(settings.encryption_key, settings.encryption_keys_previous), store)


def built_in_handlers(
    run_agent: Callable[..., Awaitable[Any]], whoami: Callable[[], dict[str, Any]] = dict
) -> dict[str, Handler]:
    """The handlers that every worker has.

    Parameters:
        run_agent: what `agent.run` does.
        whoami: what `oxherd.echo` says of the worker.
    """
    made = {"agent.run": run_agent, "oxherd.echo": echo_of(whoami)}
    return {name: make_handler(name, function) for name, function in made.items()}


def servers_of(settings: Settings) -> dict[str, Server]:
    """The servers that a worker speaks TLS with, by the variables that name them."""
    redis, found = settings.redis_url, {}
    if redis.tls:
        found["REDIS_URL"] = Server(redis.host, redis.port)
    if settings.database_url is not None:
        from oxherd.store.address import parse

        first = parse(settings.database_url).shown.partition("/")[0].partition(",")[0]
        place = urlsplit(f"//{first}")
        if place.hostname:
            found["DATABASE_URL"] = Server(place.hostname, place.port or 5432, postgres=True)
    for name, url in (("SUPABASE_URL", settings.supabase_url), ("OPENROUTER_BASE_URL", settings.openrouter_base_url)):
        parts = urlsplit(url or "")
        if parts.scheme == "https" and parts.hostname:
            found[name] = Server(parts.hostname, parts.port or 443)
    return found


def backup_handlers(settings: Settings, store: Store | None) -> dict[str, Handler]:
    """The handlers of scheduled backups; what they need is imported by the first such job."""

    async def take(ctx: Any, _payload: object) -> dict[str, Any]:
        from oxherd.backup import jobs

        return await jobs.take(settings, store, again=ctx.job.attempts_started > 1)

    async def prove(_ctx: object, _payload: object) -> dict[str, Any]:
        from oxherd.backup import jobs

        return await jobs.prove(settings, store)

    return {
        name: make_handler(name, function, timeout=LONGEST_BACKUP, retries=2)
        for name, function in (("oxherd.backup", take), ("oxherd.backup-verify", prove))
    }


def build_links(settings: Settings) -> Links:
    """Links that answer questions; none are made without ENCRYPTION_KEY and an address."""
    ring = KeyRing.of(settings.encryption_key, settings.encryption_keys_previous)
    return Links(ring, settings.reached_at)


def build_approvals(settings: Settings, store: Store, link: Link) -> Approvals:
    """Questions to people, and answering them."""
    keys = keys_of(settings)
    return Approvals(store, Answers(link, keys), queue=keys.queue, links=build_links(settings))


class Service:
    """A whole worker process: store, agents, worker, HTTP; started in this order, stopped in reverse.

    Parameters:
        settings: the parsed variables.
        herd: the product's handlers and agents.
        store: where runs are recorded, or None with --no-store.
        limits: the worker's numbers; from the settings when left out.
    """

    def __init__(self, settings: Settings, herd: Herd, *, store: Store | None, limits: Limits | None = None) -> None:
        from oxherd.agents import Agents
        from oxherd.agents.loop import told_of

        self._settings = settings
        self._began = mono()
        self._store = store
        self._agents = Agents.build(
            settings.openrouter_base_url,
            settings.openrouter_api_key,
            known=herd.agents,
            lookup=store.agent if store else None,
        )
        built_in = built_in_handlers(self._gated(self._agents.handle), self._whoami)
        handlers = {**herd.handlers, **built_in, **backup_handlers(settings, store)}
        self.metrics = Metrics(handlers)
        self.worker = Worker(
            settings.redis_url, keys_of(settings), handlers,
            store=store, runner=self._gated(self._agents.run), vault=build_vault(settings, store),
            asking=Asking(settings.approval_timeout, herd.notify, build_links(settings)),
            limits=limits or limits_of(settings), hide=logs.Redactor(settings.secrets).text, told=told_of,
        )  # fmt: skip
        facts = Facts(__version__, settings.railway_git_commit_sha[:12], self._began)
        self.worker.version, self.worker.commit = facts.version, facts.commit
        self.health = Health(self.worker, store, facts)
        self._money = Link(settings.redis_url, "money", patience=PATIENCE)  # outlives the worker's: late bills
        self._agents.ledger = self._ledger()
        self.counting = Counting(Indicators(self._money, self.worker.keys))
        promises = load_promises(Path(settings.oxherd_config))
        self.watchdogs = self._watchdogs(promises)
        self.desk = build_desk(settings, herd, store, promises)
        self._stops: list[Callable[[], Awaitable[Any]]] = []
        self.port = 0

    def _whoami(self) -> dict[str, Any]:
        return {"id": self.worker.id, "version": self.worker.version, "commit": self.worker.commit}

    def _ledger(self) -> Ledger:
        from oxherd.agents.budget import Caps, Purse
        from oxherd.agents.ledger import Ledger
        from oxherd.agents.ratelimit import Limiter

        known, keys = self._settings, self.worker.keys
        caps = Caps(known.budget_daily_usd, known.budget_tenant_daily_usd, known.budget_agent_daily_usd)
        purse = Purse(self._money, keys.money, caps)
        key = known.openrouter_api_key
        account = f"{known.openrouter_base_url} {key.reveal() if key else ''}"
        limiter = Limiter(self._money, keys.calls, account)
        return Ledger(self._agents.llm, queue=keys.queue, purse=purse, store=self._store, limiter=limiter)

    def _watchdogs(self, promises: Promises) -> Watchdogs:
        stalled, store, keys = self.worker.stalled, self._store, self.worker.keys
        timetable = Timetable(self._money, keys)
        return Watchdogs(
            self._money, keys, promises=promises, channels=channels_of(self._settings),
            runbooks=self._settings.runbooks_url, watching=lambda: stalled.watching, busy_at=lambda: stalled.busy_at,
            probes=[
                expiry_probe({"SUPABASE_SERVICE_ROLE_KEY": self._settings.supabase_service_role_key}),
                certificate_probe(servers_of(self._settings)),
                *([] if store is None else [
                    store_probe(store), spend_probe(store), backup_probe(store, timetable, promises.backup_age),
                ]),
            ],
        )  # fmt: skip

    def _gated(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`run`, but when the money is gone, jobs wait in the queue instead of failing in turn."""

        @functools.wraps(run)
        async def gated(*args: Any) -> Any:
            try:
                return await run(*args)
            except OutOfCredit as error:
                await self._close_gate(f"no credit for model calls: {error}; {REOPEN}")
                raise
            except DailyCapReached as error:
                await self._close_gate(f"{error}; {error.hint}, {REOPEN}")
                raise

        return gated

    async def _close_gate(self, reason: str) -> None:
        if self.worker.gate is None:
            with contextlib.suppress(RedisUnreachable, RedisRefused):  # the next job to meet this tries again
                await Admin(self.worker.consumer.link, self.worker.keys).close_gate(reason)

    async def start(self) -> None:
        """Start everything; a failure stops what was started and is raised.

        Raises:
            Unreachable, RedisRefused, UsageError: naming what is missing and the fix.
        """
        self._listen()
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        from oxherd.web.app import Server, build

        if self._store is not None:
            await self._store.start()
            self._stops.append(self._store.stop)
        await self._money.start()
        self._stops += [self._money.stop, self._agents.close]
        await self.worker.start()
        await self._agents.start()
        await self.counting.start(self.worker.executor.handlers, lambda: self.health.report()[0])
        await self.watchdogs.start()
        self._stops += [self.counting.stop, self.watchdogs.stop]
        version = await self._look_around(self.worker.consumer.link)
        await self.desk.link.start()
        self._stops.append(self.desk.link.stop)
        server = Server(
            self._settings.host, self._settings.port, build(self.health.report, self._metrics_page, self.desk)
        )
        await server.start()
        self._stops += [server.stop, self.desk.stop]
        self.port = server.port
        self._announce(version)

    async def close(self) -> None:
        """Stop the rest after the worker has stopped: HTTP, agents, store. Twice is fine."""
        await self.worker.stop(grace=0)
        while self._stops:
            await self._stops.pop()()

    def _listen(self) -> None:
        detach = self.metrics.attach()
        leases, store = self.worker.leases, self._store
        self.metrics.watch(
            in_flight=lambda: len(self.worker.running),
            loop_lag=lambda: leases.loop_lag,
            lease_lag=lambda: leases.lag,
            store_waiting=None if store is None else (lambda: store.waiting),
            healthy=lambda: self.health.report()[0],
        )

        stop_sentry, stop_tracing = start_sentry(self._settings), start_tracing(self._settings)

        async def quiet() -> None:
            detach()
            await asyncio.gather(in_time(stop_sentry), in_time(stop_tracing))

        self._stops.append(quiet)

    async def _metrics_page(self) -> bytes:
        if self.worker.consumer.link.is_up:
            with contextlib.suppress(RedisUnreachable, RedisRefused):
                self.metrics.set_depths(await Admin(self.worker.consumer.link, self.worker.keys).counts())
        return self.metrics.render()

    async def _look_around(self, link: Link) -> str:
        """Warn about surroundings in which BullMQ loses jobs; returns Redis's version."""
        version = "unknown"
        with contextlib.suppress(RedisRefused):  # hosted Redis may refuse INFO and CONFIG
            info = _info(await link.call(b"INFO", b"server"))
            version = info.get("valkey_version") or info.get("redis_version") or version
            _warn_of_version(info.get("redis_version", ""))
        with contextlib.suppress(RedisRefused):
            reply = await link.call(b"CONFIG", b"GET", b"maxmemory-policy")
            _warn_of_policy(reply[1].decode() if reply else "noeviction")
        with contextlib.suppress(RedisRefused):
            await _warn_of_other_prefixes(link, self.worker.keys)
        return version

    def _announce(self, redis_version: str) -> None:
        emit(
            WorkerStarted(
                queue=self._settings.job_queue_name,
                concurrency=self.worker.limits.concurrency,
                version=__version__,
                commit=self._settings.railway_git_commit_sha[:12],
                redis=self._settings.redis_url.shown,
                redis_version=redis_version,
                store=self._store.kind if self._store else "none",
                handlers=tuple(sorted(self.worker.executor.handlers)),
                seconds=round(mono() - self._began, 3),
            )
        )
        if self._store is None:
            emit(WorkerWarned(message=NO_STORE))
        _warn_of_no_token(self._settings)


def build_desk(settings: Settings, herd: Herd, store: Store | None, promises: Promises) -> Desk:
    """What the HTTP API answers with; its link is not started."""
    from oxherd.web.auth import Gatekeeper
    from oxherd.web.desk import Desk, Process
    from oxherd.web.levels import Levels

    keys, link = keys_of(settings), Link(settings.redis_url, "api", patience=PATIENCE)
    return Desk(
        link,
        lambda: Link(settings.redis_url, "reader"),
        keys,
        store=store,
        levels=Levels(link, keys, promises=promises, runbooks=settings.runbooks_url, store=store),
        gatekeeper=Gatekeeper(settings.api_token, settings.api_read_token),
        approvals=None if store is None else build_approvals(settings, store, link),
        process=Process(
            lambda: [{"name": each.name, "definition": each.described()} for each in herd.agents.values()],
            logs.cleaner(settings.secrets),
            variables_set(settings),
        ),
    )


class WebService:
    """The HTTP API in a process of its own, without a worker.

    Parameters:
        settings: the parsed variables.
        herd: the product's agents, to be listed.
        store: where runs are, or None.
    """

    def __init__(self, settings: Settings, herd: Herd, *, store: Store | None) -> None:
        self._settings = settings
        self._store = store
        self._began = mono()
        self._metrics = Metrics()
        self.desk = build_desk(settings, herd, store, load_promises(Path(settings.oxherd_config)))
        self._stops: list[Callable[[], Awaitable[Any]]] = []
        self.port = 0

    async def start(self) -> None:
        """Start everything; a failure stops what was started and is raised. Raises as `Service.start`."""
        from oxherd.web.app import Server, build

        try:
            if self._store is not None:
                await self._store.start()
                self._stops.append(self._store.stop)
            await self.desk.link.start()
            self._stops.append(self.desk.link.stop)
            server = Server(self._settings.host, self._settings.port, build(self.report, self._metrics_page, self.desk))
            await server.start()
            self._stops += [server.stop, self.desk.stop]
        except BaseException:
            await self.close()
            raise
        self.port = server.port
        emit(WebStarted(queue=self._settings.job_queue_name, host=self._settings.host, port=self.port))
        _warn_of_no_token(self._settings)

    async def close(self) -> None:
        """Stop everything. Twice is fine."""
        while self._stops:
            await self._stops.pop()()

    def report(self) -> tuple[bool, dict[str, Any]]:
        """What `/health` says."""
        link = self.desk.link
        away = mono() - link.down_since if link.down_since is not None else 0.0
        ok = away < AWAY
        return ok, {
            "status": "ok" if ok else "unhealthy",
            "checks": {"redis": {"ok": ok, "up": link.is_up, "away_s": round(away, 1), "reconnects": link.reconnects}},
            "queue": self._settings.job_queue_name,
            "version": __version__,
            "commit": self._settings.railway_git_commit_sha[:12],
            "uptime_s": round(mono() - self._began, 1),
        }

    async def _metrics_page(self) -> bytes:
        if self.desk.link.is_up:
            with contextlib.suppress(RedisUnreachable, RedisRefused):
                self._metrics.set_depths(await self.desk.admin.counts())
        return self._metrics.render()


def limits_of(settings: Settings) -> Limits:
    """The worker's numbers from the settings."""
    return Limits(
        concurrency=settings.job_concurrency,
        timeout=settings.job_timeout,
        idle_timeout=settings.job_idle_timeout,
        crash_limit=settings.job_crash_limit,
        turns=Turns(settings.job_tenant_concurrency) if settings.job_tenant_turns == "on" else None,
    )


def listen_to_logs(settings: Settings) -> Callable[[], None]:
    """Write log lines from now on, with all secrets of the settings masked. Returns a function that stops it."""
    return logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)


async def serve(settings: Settings, herd: Herd, *, no_store: bool = False) -> None:
    """Run a worker until a signal stops it.

    Raises:
        UsageError: no store is configured and `no_store` was not asked for.
    """
    from oxherd.worker.shutdown import Shutdown, handlers_ended, run_steps_in_known_threads

    store = None if no_store else build_store(settings)
    if store is None and not no_store:
        raise UsageError("no store is configured", hint="set DATABASE_URL, or start with --no-store")
    executor = run_steps_in_known_threads()
    service = Service(settings, herd, store=store)
    shutdown = Shutdown(service.worker, grace=settings.shutdown_grace)
    stop_notifying = _notify_systemd(settings, service)
    shutdown.install()  # before the first job is taken: from then on a signal must not just end the process
    try:
        if await shutdown.started(service.start()):
            gc.freeze()  # what the start has loaded stays; walking through it again and again costs 5 us of a no-op job
            await shutdown.wait()
    finally:
        await service.close()
        stop_notifying()
    if not await handlers_ended(executor):
        emit(WorkerWarned(message="a handler ignores its cancellation: leaving without it"))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # Python would wait for it, and the platform would kill us for that


def _notify_systemd(settings: Settings, service: Service) -> Callable[[], None]:
    if not settings.notify_socket:
        return lambda: None
    from oxherd.telemetry.systemd import Notifier

    watchdog = settings.watchdog_usec / 1_000_000 or None
    return Notifier(settings.notify_socket, watchdog, lambda: service.health.report()[0]).start()


async def serve_web(settings: Settings, herd: Herd) -> None:
    """Serve the HTTP API alone until a signal stops it."""
    service = WebService(settings, herd, store=build_store(settings))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await service.start()
        await stopped.wait()
    finally:
        await service.close()


def run_loop(main: Awaitable[Any]) -> Any:
    """Run a coroutine on uvloop, to its end."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)  # type: ignore[arg-type]


def _warn_of_no_token(settings: Settings) -> None:
    if settings.api_token is None and settings.host not in {"127.0.0.1", "::1", "localhost"}:
        emit(WorkerWarned(message="API_TOKEN is not set: the HTTP API answers this machine itself only"))


def _info(raw: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in raw.decode("utf-8", "replace").splitlines())
    return {name: value for name, mark, value in lines if mark}


def _warn_of_version(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST_REDIS:
        emit(
            WorkerWarned(
                message=f"Redis {version} is older than 6.2, which BullMQ's scripts are tested on: upgrade Redis"
            )
        )


def _warn_of_policy(policy: str) -> None:
    if policy != "noeviction":
        emit(
            WorkerWarned(
                message=f"Redis's maxmemory-policy is {policy}: jobs are deleted when memory runs out; set noeviction"
            )
        )


async def _warn_of_other_prefixes(link: Link, keys: Keys) -> None:
    """A queue of this name under another prefix: the usual reason for "my jobs are not picked up"."""
    _, found = await link.call(b"SCAN", 0, b"MATCH", f"*:{keys.queue}:meta", b"COUNT", 10_000)
    others = sorted({key.decode() for key in found} - {keys.meta.decode()})
    if others:
        prefixes = ", ".join(key.removesuffix(f":{keys.queue}:meta") for key in others)
        emit(
            WorkerWarned(
                message=f"queue {keys.queue} also exists under the prefix {prefixes}, which is not served here: "
                "set JOB_QUEUE_PREFIX to what the producers use"
            )
        )
