"""Whether the worker works: live (the process answers) and ready (it takes jobs, or could)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oxherd.clock import mono
from oxherd.store import Store
from oxherd.worker.worker import Worker

STORE_AWAY = 30.0  # seconds of failing writes before the worker counts as unhealthy
REDIS_AWAY = 10.0  # seconds
LAG = 5.0  # seconds of event-loop lag


@dataclass(frozen=True, slots=True)
class Facts:
    """What `/health` says besides the checks: version, commit and when the process began (monotonic seconds)."""

    version: str
    commit: str
    began: float


class Health:
    """Answers `/health`. Says nothing secret: states, ages and numbers only."""

    def __init__(self, worker: Worker, store: Store | None, facts: Facts) -> None:
        self._worker = worker
        self._store = store
        self._facts = facts

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether all is well, and each check as JSON-able data."""
        checks = {
            "redis": self._redis(),
            "store": self._stored(),
            "consuming": self._consuming(),
            "loop": self._check(self._worker.leases.loop_lag, LAG),
            "leases": self._check(self._worker.leases.lag, self._worker.limits.lock_ms / 2000),
            "draining": {"ok": not self._worker.stopping},
        }
        ok = all(check["ok"] for check in checks.values())
        return ok, {
            "status": "ok" if ok else "unhealthy",
            "checks": checks,
            "queue": self._worker.keys.queue,
            "worker": self._worker.id,
            "in_flight": len(self._worker.running),
            "concurrency": self._worker.limits.concurrency,
            "finished": self._worker.finished,
            "version": self._facts.version,
            "commit": self._facts.commit,
            "uptime_s": round(mono() - self._facts.began, 1),
        }

    def _redis(self) -> dict[str, Any]:
        link = self._worker.consumer.link
        away = mono() - link.down_since if link.down_since is not None else 0.0
        return {"ok": away < REDIS_AWAY, "up": link.is_up, "away_s": round(away, 1), "reconnects": link.reconnects}

    def _stored(self) -> dict[str, Any]:
        if self._store is None:
            return {"ok": True, "kind": "none: runs are not recorded"}
        away = self._store.away_seconds
        return {
            "ok": away < STORE_AWAY,
            "kind": self._store.kind,
            "away_s": round(away, 1),
            "waiting": self._store.waiting,
        }

    def _consuming(self) -> dict[str, Any]:
        worker = self._worker
        age = mono() - worker.fetched_at
        full = len(worker.running) >= worker.limits.concurrency
        return {"ok": worker.consuming, "last_fetch_s": round(age, 1), "full": full, "gate": worker.gate}

    @staticmethod
    def _check(lag: float, limit: float) -> dict[str, Any]:
        return {"ok": lag < limit, "lag_s": round(lag, 3)}
