from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shlex
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd import __version__
from oxherd.cli.printing import Json, print_json, print_table, shortened
from oxherd.errors import OxherdError

if TYPE_CHECKING:
    from oxherd.cli.demo_jobs import Ended
    from oxherd.cli.progress import Progress
    from oxherd.embedded.engine import Engine
    from oxherd.ops.child import WorkerProcess
    from oxherd.settings import Settings

EXAMPLES = """\b
Examples:
  oxherd demo
  oxherd demo --keep          leaves everything running until Ctrl-C, to look around
  oxherd demo --json | jq '.jobs[] | {name, state, tokens}'"""

APP = "oxherd.cli.demo_app:herd"
CACHE = ".cache/oxherd"  # below the home directory
JOBS_TIMEOUT = 90.0  # seconds for all jobs, which take about ten


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Run real agent jobs here and now, everything included.

    Starts Valkey, Postgres, a tiny language model and a worker, puts jobs on the queue with BullMQ, prints what comes
    of them and how they are recorded, and leaves nothing running. Needs no key and no account, and uses none that
    is set.
    """
    from oxherd.cli.progress import Progress

    begun = time.monotonic()
    tidy_up_on_any_signal()
    progress = Progress(quiet=as_json)
    progress.say(
        f"Oxherd {__version__}: real jobs through a real queue, database and language model, all on this machine.\n"
    )
    with ExitStack() as stack:
        scene = Scene(progress, stack)
        ended = scene.play()
        seconds = round(time.monotonic() - begun, 1)
        if as_json:
            print_json({"seconds": seconds, **scene.summary(ended, keep=keep)})
        progress.say(f"\nDone in {seconds} s.")
        scene.point_onwards(keep=keep)
        if keep:
            scene.wait_for_ctrl_c()
    if not all(each.as_expected for each in ended):
        raise OxherdError("a job did not end as it should have")


def tidy_up_on_any_signal() -> None:
    """Let a closed terminal or a stopped CI job end this as Ctrl-C does, with everything stopped in order."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's doing
            signal.signal(number, signal.default_int_handler)


class Scene:
    """The demo's engines, worker and producer.

    Parameters:
        progress: where to tell about them.
        stack: stops what was started.
    """

    def __init__(self, progress: Progress, stack: ExitStack) -> None:
        from oxherd.embedded.model import Model
        from oxherd.embedded.postgres import Postgres
        from oxherd.embedded.valkey import Valkey

        self._progress = progress
        self._stack = stack
        self._valkey = Valkey(tcp=True)
        self._postgres = Postgres(config={"fsync": "off"})  # nobody will miss the demo's data
        self._model = Model()
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oxherd-demo-")))
        self._producer = "bullmq for Python"
        self._variables: dict[str, str] = {}

    def play(self) -> list[Ended]:
        """Start everything, run the jobs, show what came of them."""
        with ThreadPoolExecutor(1) as pool:
            node = pool.submit(self._prepare_node)
            self._start_engines()
            worker = self._start_worker()
            node_modules = self._await_node(node)
        ended = self._run_jobs(worker, node_modules)
        self._show_runs(ended)
        return ended

    # -- what it takes

    def _start_engines(self) -> None:
        from oxherd.app import run_loop
        from oxherd.embedded.together import started
        from oxherd.store.migrate import migrate

        with self._progress.working("starting Valkey, Postgres and the model"):
            self._stack.enter_context(started((self._valkey, self._postgres, self._model), self._tell_engine))
            begun = time.monotonic()
            applied = run_loop(migrate(self._postgres.url))
        self._progress.done("Tables", f"{len(applied)} migrations applied", seconds=time.monotonic() - begun)

    def _tell_engine(self, engine: Engine, seconds: float) -> None:
        self._progress.done(engine.title, about(engine), seconds=seconds)

    def _start_worker(self) -> WorkerProcess:
        from oxherd.embedded.engine import free_port
        from oxherd.ops.child import WorkerProcess

        self._variables = {
            "REDIS_URL": self._valkey.url,
            "DATABASE_URL": self._postgres.url,
            "OPENROUTER_BASE_URL": self._model.base_url,
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
        }
        write_env(self._folder / "env", self._variables)
        # Without this machine's own variables: the demo must not spend a real key or write to a real database.
        worker = WorkerProcess(self._variables, app=APP, log=self._folder / "worker.log", inherit=False)
        self._stack.callback(worker.stop, grace=1)
        begun = time.monotonic()
        worker.start()
        with self._progress.working("starting the worker"):
            worker.wait_until_healthy()
        self._progress.done("Worker", f"oxherd worker --app {APP}", seconds=time.monotonic() - begun)
        return worker

    @staticmethod
    def _prepare_node() -> Path:
        from oxherd.cli.demo_producer import prepare

        return prepare(Path.home() / CACHE)

    def _await_node(self, node: Future[Path]) -> Path | None:
        from oxherd.cli.demo_producer import BULLMQ, NoNode

        begun = time.monotonic()
        try:
            with self._progress.working("installing BullMQ for Node, once"):
                folder = node.result()
        except NoNode as reason:
            self._progress.done(
                "Producer", f"the `bullmq` package for Python, since {reason}", seconds=time.monotonic() - begun
            )
            return None
        self._producer = f"BullMQ {BULLMQ} for Node"
        self._progress.done("Producer", self._producer, seconds=time.monotonic() - begun)
        return folder

    # -- the jobs

    def _run_jobs(self, worker: WorkerProcess, node_modules: Path | None) -> list[Ended]:
        from oxherd import settings as variables
        from oxherd.app import run_loop

        settings = variables.load(self._variables)
        ended: list[Ended] = run_loop(self._enqueue_and_follow(settings, worker, node_modules))
        return ended

    async def _enqueue_and_follow(
        self, settings: Settings, worker: WorkerProcess, node_modules: Path | None
    ) -> list[Ended]:
        from oxherd.app import queue_client
        from oxherd.cli.demo_jobs import JOBS, follow, unless
        from oxherd.store.postgres import PostgresStore

        def worker_ended() -> str | None:
            return None if worker.exit_code is None else f"the worker ended with exit code {worker.exit_code}"

        async with queue_client(settings) as (_, admin), queue_client(settings) as (_, watcher):
            store = PostgresStore(self._postgres.url)
            await store.start()

            async def run_of(view: dict[str, Any]) -> dict[str, Any] | None:
                return await store.run(f"{settings.job_queue_name}/{view['id']}@{view['timestamp']}")

            try:
                ids = await self._add(settings, node_modules)
                self._progress.say(
                    f"\n{len(JOBS)} jobs, put on the queue {settings.job_queue_name} by {self._producer}:\n"
                )
                with self._progress.working("the worker runs them"):
                    async with asyncio.timeout(JOBS_TIMEOUT):
                        done: list[Ended] = await unless(
                            worker_ended, follow(admin, watcher, run_of, ids, self._tell_job)
                        )
                        return done
            except TimeoutError:
                raise OxherdError(f"the jobs have not ended within {JOBS_TIMEOUT:g} s") from None
            finally:
                await store.stop()

    async def _add(self, settings: Settings, node_modules: Path | None) -> list[str]:
        from oxherd.cli.demo_jobs import JOBS
        from oxherd.cli.demo_producer import NoNode, add_with_node, add_with_python

        jobs, queue = [job.wire for job in JOBS], settings.job_queue_name
        if node_modules is not None:
            try:
                return await asyncio.to_thread(add_with_node, node_modules, self._valkey.url, queue, jobs)
            except NoNode as reason:
                self._producer = f"the `bullmq` package for Python, since {reason}"
        return await add_with_python(self._valkey.url, queue, jobs)

    def _tell_job(self, ended: Ended) -> None:
        view = ended.view
        attempts = f"{view['attempts_made']} of {ended.job.opts['attempts']} attempts"
        facts = f"{view['state']} · {attempts} · {ended.tokens} tokens"
        self._progress.done(
            f"{ended.job.name} #{view['id']}", facts, seconds=ended.seconds, good=view["state"] == "completed"
        )
        self._progress.say(f"      {ended.job.shows}", style="dim")
        self._progress.say(f"      {answer(view)}\n")

    # -- what is left to see

    def _show_runs(self, ended: Sequence[Ended]) -> None:
        self._progress.say("The same runs as Postgres has them (table oxherd.runs):\n")
        if not self._progress.quiet:
            print_table(RUN_COLUMNS, [run_row(each.run) for each in ended if each.run])

    def summary(self, ended: Sequence[Ended], *, keep: bool) -> dict[str, Any]:
        """For `--json`."""
        return {
            "env": str(self._folder / "env") if keep else None,
            "producer": self._producer,
            "jobs": [each.summary() for each in ended],
            "runs": [each.run for each in ended],
        }

    def point_onwards(self, *, keep: bool) -> None:
        """Say where to look next."""
        lines = KEPT if keep else NEXT
        where = {
            "folder": self._folder,
            "health": f"http://127.0.0.1:{self._variables['PORT']}",
            "app": Path(__file__).with_name("demo_app.py"),
        }
        self._progress.say(lines.format(**where))

    @staticmethod
    def wait_for_ctrl_c() -> None:
        """Keep everything running meanwhile."""
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


RUN_COLUMNS = ("job", "name", "status", "attempt", "calls", "tokens in", "out", "error")
NEXT = """
Where to look next:
  oxherd demo --keep             the same, left running: its dashboard, its database, its dead letter to replay
  oxherd dev --app myapp:herd    these engines, kept, with your own handlers and agents, reloading on change
  {app}
                                 the demo's own handlers and agents, to start yours from"""
KEPT = """
Everything keeps running until Ctrl-C. The dashboard: {health}

In another terminal:
  . {folder}/env                 sets REDIS_URL, DATABASE_URL and the rest for these commands:
  oxherd jobs list
  oxherd jobs dead
  oxherd enqueue stock.ask '{{"item": "cart"}}' --wait
  curl {health}/health
  curl {health}/metrics
  tail -f {folder}/worker.log"""


def about(engine: Engine) -> str:
    """Where an engine answers, without its password."""
    scheme, _, rest = engine.url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def answer(view: dict[str, Any]) -> str:
    """A job's result on one line, or why it failed."""
    if view["state"] != "completed":
        return shortened(view["failed_reason"] or "", 160)
    value = view["returnvalue"]
    import orjson

    found = value.get("output", value) if isinstance(value, dict) else value
    return shortened(found if isinstance(found, str) else orjson.dumps(found).decode(), 160)


def run_row(run: dict[str, Any]) -> tuple[object, ...]:
    """A row of the runs, for RUN_COLUMNS."""
    error = shortened(run["error"], 50) if run["error"] else None
    tokens = run["input_tokens"], run["output_tokens"]
    return run["job_id"], run["name"], run["status"], run["attempt"], run["model_calls"], *tokens, error


def write_env(path: Path, variables: dict[str, str]) -> None:
    """Write a file for the shell's `.` command, readable for its owner alone: it holds the database's password."""
    path.touch(mode=0o600)
    path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
