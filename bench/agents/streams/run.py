"""One reply as a worker runs it, steps included, told to nobody or to those who follow: `FOLLOWED` says which.

`off`, `on`, or `secrets`: on, for a job that knows five credentials.
"""

import os
import secrets
from itertools import count

from oxherd.agents import LLM, Agent
from oxherd.agents.loop import run_agent, told_of
from oxherd.context import Context
from oxherd.job import Done, Job
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.settings import Secret, parse_redis_url
from oxherd.telemetry.logs import Redactor
from oxherd.worker.broadcast import Broadcast

MODE = os.environ["FOLLOWED"]


class Forgets:
    """A journal that keeps nothing: what it costs is measured elsewhere."""

    def find(self, _):
        return None

    at = find

    def within(self, _):
        return ()

    async def save(self, step):
        pass


async def connect(url):
    llm, agent, keys, numbers = LLM(url, Secret("none"), openrouter=True), Agent("support", "m"), Keys("bench"), count()
    link = Link(parse_redis_url(os.environ["REDIS_URL"]), "bench", preload=("publish",))
    known = Redactor(Secret(secrets.token_hex(24)) for _ in range(5)) if MODE == "secrets" else None
    await link.start()
    await llm.session()

    async def ask():
        job = Job(id=str(next(numbers)), name="chat", raw=b"{}", opts={}, token="t")
        feed = None
        if MODE != "off":
            feed = Broadcast(link, keys, job, told=told_of, secrets=lambda: known, late=False)
        ctx = Context(job, journal=Forgets(), wire=None, runner=None, feed=feed)
        run = await run_agent(ctx, agent, "hello", llm)
        if feed is not None:
            feed.leave(Done(b"1"), "completed")
            feed.end(Done(b"1"), "completed")
        return run.output

    return ask
