"""`oxherd worker` as a child process that does not outlive this one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from oxherd import settings
from oxherd.embedded.engine import GUARD, is_healthy
from oxherd.errors import OxherdError

START_TIMEOUT = 20.0  # seconds until /health must be 200
STOP_TIMEOUT = 10.0  # seconds after the grace period


class WorkerProcess:
    """A worker on this machine, started with given variables.

    Parameters:
        variables: of the settings table; PORT must be one of them, SHUTDOWN_GRACE is 25 s when left out.
        app: its `--app`, or None.
        log: file for what it writes; this process's own output when None.
        inherit: whether variables that are not given are this process's own.
    """

    def __init__(
        self, variables: Mapping[str, str], *, app: str | None, log: Path | None = None, inherit: bool = True
    ) -> None:
        self._environ = settings.child_environ(variables, inherit=inherit)
        self._grace = settings.parse_duration(self._environ.get("SHUTDOWN_GRACE") or "25s")
        self._port = int(variables["PORT"])
        self._app = app
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves /health and /metrics."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        command = [sys.executable, "-m", "oxherd", "worker", *(["--app", self._app] if self._app else [])]
        # In a session of its own: Ctrl-C is for us, who stop it in good order.
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self._log.open("ab")) if self._log else None
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environ,
                start_new_session=True,
            )  # fmt: skip
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "oxherd-guard", "TERM", ""], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
        )  # fmt: skip
        self._tell_guard(str(self._process.pid))

    def wait_until_healthy(self) -> None:
        """Return when /health answers 200.

        Raises:
            OxherdError: it ended, or is not healthy within 20 s; with the last lines it wrote.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not is_healthy(self._port, timeout=2):
            if self.exit_code is not None:
                raise OxherdError(f"the worker ended with exit code {self.exit_code}{self._last_words()}")
            if time.monotonic() > deadline:
                raise OxherdError(f"the worker is not healthy after {START_TIMEOUT:g} s{self._last_words()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would; `stop` tidies up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, *, grace: float | None = None) -> None:
        """Stop it in good order, or kill it where it does not stop. Twice, or before `start`, is fine.

        Parameters:
            grace: seconds that running jobs may go on; SHUTDOWN_GRACE when left out.
        """
        if self._process is not None and self._process.poll() is None:
            patience = self._grace if grace is None else grace
            self._process.send_signal(signal.SIGTERM)
            if not self._ended_within(patience + (STOP_TIMEOUT if grace is None else 0)):
                self._process.send_signal(signal.SIGTERM)  # the second one: hand back at once
                if not self._ended_within(STOP_TIMEOUT):
                    self._process.kill()
            self._process.wait()
        self._process = None
        if self._guard is not None:
            self._tell_guard("done")
            self._guard.wait()
            self._guard = None

    def _ended_within(self, seconds: float) -> bool:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def _tell_guard(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write(f"{line}\n".encode())
            self._guard.stdin.flush()

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(errors="replace").strip().splitlines()[-15:]
        return ":\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
