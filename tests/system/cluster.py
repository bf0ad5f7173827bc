"""A real Redis Cluster on loopback: three primaries that share the slots, and one replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from oxherd.embedded.engine import free_port
from oxherd.embedded.valkey import Valkey

SLOTS = 16_384
THIRDS = ((0, 5460), (5461, 10922), (10923, SLOTS - 1))
SETTINGS = {"cluster-enabled": "yes", "cluster-node-timeout": "600", "repl-diskless-sync-delay": "0"}


class Cluster:
    """Four Valkeys from the wheel. The replica follows the primary that has the keys of `tag`.

    Parameters:
        tag: a key, such as `{bull}`.
    """

    def __init__(self, tag: str) -> None:
        self.nodes = [Valkey(tcp=True, config=SETTINGS | {"cluster-port": str(free_port())}) for _ in range(4)]
        self._tag = tag

    def __enter__(self) -> Self:
        for node in self.nodes:
            node.start()
        first = self.ask(self.nodes[0])
        for node, (low, high) in zip(self.nodes, THIRDS, strict=False):
            self.ask(node).execute_command("CLUSTER ADDSLOTSRANGE", low, high)
        for node in self.nodes[1:]:
            first.execute_command("CLUSTER MEET", "127.0.0.1", port_of(node), node._config["cluster-port"])
        until(lambda: all(_knows_all(self.ask(node)) for node in self.nodes), "the nodes know each other")
        self.ask(self.nodes[3]).execute_command("CLUSTER REPLICATE", _id(self.ask(self.home)))
        until(lambda: self.ask(self.nodes[3]).info("replication")["master_link_status"] == "up", "the replica follows")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.stop()

    @property
    def home(self) -> Valkey:
        """The primary that got the slot of `tag`."""
        slot = self.ask(self.nodes[0]).execute_command("CLUSTER KEYSLOT", self._tag)
        return next(node for node, (low, high) in zip(self.nodes, THIRDS, strict=False) if low <= slot <= high)

    @property
    def elsewhere(self) -> Valkey:
        """A primary that did not."""
        return next(node for node in self.nodes if node is not self.home)

    @property
    def replica(self) -> Valkey:
        """The one that follows `home`, until it takes its place."""
        return self.nodes[3]

    @staticmethod
    def ask(node: Valkey) -> Any:
        return Redis.from_url(node.url, decode_responses=True)

    def keys(self) -> dict[Valkey, set[str]]:
        """What each primary has."""
        return {node: set(self.ask(node).keys("*")) for node in self.nodes[:3] if node.running}

    def move(self, *, to: Valkey) -> None:
        """Give the slot of `tag` to another primary while it is in use, by whichever node has it now."""
        first = self.ask(to)
        slot = first.execute_command("CLUSTER KEYSLOT", self._tag)
        target = _id(first)
        owner = next(node for node in self.nodes if node is not to and node.running and _has(self.ask(node), slot))
        self.ask(owner).execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target)


def port_of(node: Valkey) -> int:
    return int(node.url.rpartition(":")[2].partition("/")[0])


def until(look: Callable[[], bool], what: str, within: float = 15.0) -> None:
    """No event tells of these."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if look():
                return
        except (RedisError, KeyError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


def _id(client: Any) -> str:
    return str(client.execute_command("CLUSTER MYID"))


def _has(client: Any, slot: int) -> bool:
    spans = client.execute_command("CLUSTER SLOTS")
    return any(low <= slot <= high and nodes[0][2] == _id(client) for low, high, *nodes in spans)


def _knows_all(client: Any) -> bool:
    told = client.execute_command("CLUSTER INFO")
    info = told if isinstance(told, dict) else dict(line.split(":", 1) for line in told.split())
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "4"
