"""How tenants take turns: what a worker tells `lua/turns.lua`, which decides whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oxherd.job import Job
from oxherd.queue.keys import Keys

OVER_LIMIT, LOOK_ON = 1, 2  # what the script may say about the jobs that it did not give
MARK = b'"tenant"'  # in every payload that may name a tenant


@dataclass(frozen=True, slots=True)
class Turns:
    """The rules.

    Attributes:
        limit: how many jobs of one tenant all workers together may run; 0 for any number.
    """

    limit: int = 0


class TurnOptions:
    """The options that go with every script that takes a job.

    Parameters:
        keys: the queue's.
        rules: the rules; None where jobs run in the order in which they came.
    """

    def __init__(self, keys: Keys, rules: Turns | None) -> None:
        self.limited = rules is not None and rules.limit > 0
        self._known: dict[str, Any] | None = None
        if rules is not None:
            names = {name: getattr(keys, name).decode() for name in ("turns", "running", "counts", "counted")}
            self._known = {"limit": rules.limit, "tenants": self.limited, **names}

    def __call__(self, *, ended: str | None = None, look: bool = False) -> dict[str, Any]:
        """As a part of BullMQ's options.

        Parameters:
            ended: the id of the job that leaves `active` in the same call.
            look: look on at what waits, take nothing.
        """
        if self._known is None:
            return {}
        more: dict[str, Any] = {"look": True} if look else {}
        if ended is not None and self._known["tenants"]:
            more["ended"] = ended
        return {"turns": self._known | more}

    def learn(self, job: Job) -> bool:
        """Notice that the queue has tenants, from which on turns cost something. True: what was packed is outdated."""
        if self._known is None or self._known["tenants"] or MARK not in job.raw:
            return False
        self._known["tenants"] = True
        return True
