"""What really happened, counted outside of the worker and its queue: one key per effect, queue and job."""

from __future__ import annotations

import os

from redis import Redis

QUEUE = os.environ["JOB_QUEUE_NAME"]
redis = Redis.from_url(os.environ["WITNESS_URL"])


def saw(what: str, ctx) -> int:
    """Count an effect of a job."""
    return int(redis.incr(f"saw:{what}:{QUEUE}:{ctx.job.id}"))
