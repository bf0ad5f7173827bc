"""Redis Cluster: which node has a queue.

A queue's scripts touch many keys, so all of them must be on one node: the prefix has a hash tag, such as `{bull}`, and
Redis places keys by that alone. Then a worker needs that one node, and to notice when another has become it.
Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from oxherd.errors import RedisRefused, SettingsError
from oxherd.settings import RedisTarget

_TAG = re.compile(r"[^{]*\{[^}]+\}")  # as Redis finds it: the first brace that opens, up to the first that closes


def owner_of(probe: Any, asked: RedisTarget) -> RedisTarget | None:
    """The node that `asked` says has the queue, or None where it is that one itself, or no cluster.

    Parameters:
        probe: what it answered to a command on a key of the queue.
        asked: the node that was asked.

    Raises:
        RedisRefused: the cluster is down.
    """
    if not isinstance(probe, RedisRefused):
        return None
    if probe.code == "CLUSTERDOWN":
        raise probe
    if probe.code != "MOVED":
        return None
    host, _, port = probe.message.rpartition(" ")[2].rpartition(":")  # Redis refused: MOVED 3999 127.0.0.1:6381
    return replace(asked, host=host or asked.host, port=int(port))


def nodes_of(slots: Any, asked: RedisTarget) -> list[RedisTarget]:
    """All nodes of the cluster, replicas too, which may be primaries by the time they are asked.

    Parameters:
        slots: what CLUSTER SLOTS answered; an error where Redis is no cluster.
        asked: the node that was asked.

    Raises:
        SettingsError: it is a cluster, and the prefix has no hash tag.
    """
    if not isinstance(slots, list):
        return []
    if not _TAG.match(asked.prefix):
        fault = (
            "JOB_QUEUE_PREFIX must hold a hash tag, such as {bull}, and so must the producers' `prefix`: "
            f"{asked.shown} is a Redis Cluster, which has the keys of a queue on one node only by that"
        )
        raise SettingsError([fault])
    found = ((node[0] or b"", node[1]) for _, _, *nodes in slots for node in nodes)
    places = {(host.decode() or asked.host, int(port)) for host, port in found}
    return [replace(asked, host=host, port=port) for host, port in sorted(places)]
