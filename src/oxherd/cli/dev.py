from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from oxherd.cli.printing import note
from oxherd.cli.worker import App
from oxherd.errors import OxherdError

if TYPE_CHECKING:
    from oxherd.cli.progress import Progress
    from oxherd.embedded.engine import Engine
    from oxherd.ops.child import WorkerProcess
    from oxherd.settings import Settings

EXAMPLES = """\b
Examples:
  oxherd dev --app myapp.jobs:herd
  PORT=9000 OPENROUTER_API_KEY=… oxherd dev --app myapp.jobs:herd     a real model instead of the tiny one

Queue and database are kept in ./.oxherd, which git ignores; delete it to begin anew."""

HOME = Path(".oxherd")
LOOK = 500  # ms between looks at the worker while no file changes
READY = """
The dashboard: {url}

In another terminal, in this folder:
  . {home}/env                   sets REDIS_URL and DATABASE_URL (it holds a password: readable for you alone)
  oxherd enqueue oxherd.echo '{{"hello": "world"}}' --wait
  oxherd jobs tail
  curl {url}/health

{reload} Ctrl-C ends."""


def dev(app: App = None) -> None:
    """Run a worker for development, restarted when a file changes.

    It has a queue and a database of its own: starts Valkey and Postgres, and a tiny language model unless
    OPENROUTER_API_KEY or OPENROUTER_BASE_URL says where to find another.
    """
    from oxherd import settings as variables
    from oxherd.cli.demo import tidy_up_on_any_signal
    from oxherd.cli.progress import Progress

    settings = variables.load(needs=())
    tidy_up_on_any_signal()
    if settings.has_store:
        note("`dev` has a queue and a database of its own: the ones in your variables are not touched")
    with ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        _serve(settings, app, Progress(), stack)


def _serve(settings: Settings, app: str | None, progress: Progress, stack: ExitStack) -> None:
    from oxherd.ops.child import WorkerProcess

    variables = _start_engines(settings, progress, stack)
    worker = WorkerProcess(variables, app=app)
    stack.callback(worker.stop)
    _start(worker)
    progress.say(READY.format(home=HOME, url=worker.url, reload=_about_reload()))
    for changed in _changes():
        if changed:
            note(f"changed: {', '.join(changed)}; restarting the worker")
            worker.stop()
            _start(worker)
        elif worker.exit_code is not None:
            note(f"the worker ended with exit code {worker.exit_code}; it is started again when a file changes")
            worker.stop()


def _start(worker: WorkerProcess) -> None:
    worker.start()
    try:
        worker.wait_until_healthy()
    except OxherdError as error:
        note(f"{error.message}; it is started again when a file changes")
        worker.stop()


# -- the engines


def _start_engines(settings: Settings, progress: Progress, stack: ExitStack) -> dict[str, str]:
    """Start them on the kept data, and return the variables that point to them."""
    from oxherd.app import run_loop
    from oxherd.cli.demo import about, write_env
    from oxherd.embedded.model import Model
    from oxherd.embedded.postgres import Postgres
    from oxherd.embedded.together import started
    from oxherd.embedded.valkey import Valkey
    from oxherd.store.migrate import migrate

    _make_home()
    valkey, postgres = Valkey(HOME, tcp=True, append_only=True), Postgres(HOME)
    engines: list[Engine] = [valkey, postgres]
    model = None if _has_model(settings) else Model()
    if model is not None:
        engines.append(model)
    with progress.working("starting the engines"):
        stack.enter_context(
            started(engines, lambda engine, seconds: progress.done(engine.title, about(engine), seconds=seconds))
        )
        run_loop(migrate(postgres.url))
    variables = {
        "REDIS_URL": valkey.url,
        "DATABASE_URL": postgres.url,
        "ENCRYPTION_KEY": settings.encryption_key.reveal() if settings.encryption_key else _kept_key(),
    }
    if model is not None:
        variables["OPENROUTER_BASE_URL"] = model.base_url
    write_env(HOME / "env", variables)
    # A restart must not wait for long jobs: they are handed back and go on from their last finished step.
    return variables | {"HOST": "127.0.0.1", "PORT": str(settings.port), "SHUTDOWN_GRACE": "2s"}


def _has_model(settings: Settings) -> bool:
    from oxherd.settings import TABLE

    usual = next(variable.default for variable in TABLE if variable.name == "OPENROUTER_BASE_URL")
    return settings.openrouter_api_key is not None or settings.openrouter_base_url != usual


def _make_home() -> None:
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")


def _kept_key() -> str:
    """A key of this folder's own: what it encrypted must be readable tomorrow."""
    path = HOME / "encryption-key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


# -- reloading


def _about_reload() -> str:
    return (
        "The worker restarts when a Python file changes." if _can_watch() else "No reload: pip install 'oxherd[dev]'."
    )


def _can_watch() -> bool:
    from importlib.util import find_spec

    return find_spec("watchfiles") is not None


def _changes() -> Iterator[list[str]]:
    """The Python files that changed, each time some did; an empty list every now and then, to look at the worker."""
    if not _can_watch():
        import time

        while True:
            time.sleep(LOOK / 1000)
            yield []
    from watchfiles import PythonFilter, watch

    for changes in watch(
        ".", watch_filter=PythonFilter(), yield_on_timeout=True, rust_timeout=LOOK, raise_interrupt=True
    ):
        yield sorted({str(Path(path).relative_to(Path.cwd())) for _, path in changes})
