"""The herd: a product's job handlers and agents, collected by decorators in its own module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from oxherd.agents import Agent, Budget
from oxherd.context import Context, Notify
from oxherd.errors import UsageError
from oxherd.settings import parse_duration
from oxherd.worker.handlers import Handler, make_handler

F = TypeVar("F", bound=Callable[..., Any])
BUILT_IN = frozenset({"agent.run", "oxherd.backup", "oxherd.backup-verify", "oxherd.echo"})


class Herd:
    """Collects handlers and agents; the worker is pointed at it with `--app module:herd`."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.agents: dict[str, Agent] = {}
        self.notify: Notify | None = None

    def job(
        self,
        name: str,
        *,
        timeout: str | float | None = None,
        idle_timeout: str | float | None = None,
        retries: int = 0,
        stream: bool = False,
    ) -> Callable[[F], F]:
        """Register a handler `(ctx, payload)` for jobs of this name.

        Parameters:
            name: the job's name, as the producer writes it.
            timeout: total limit of one attempt, such as "10m" or seconds; 0 for none; JOB_TIMEOUT when left out.
            idle_timeout: limit without a step, progress or log line; JOB_IDLE_TIMEOUT when left out.
            retries: extra attempts, with exponential backoff, for jobs whose producer set no `attempts`.
            stream: publish what its jobs say while they run; when left out, only where the payload says
                `"stream": true` or somebody follows the job.

        Raises:
            UsageError: the name is taken, or the function does not take `(ctx, payload)`.
        """
        if name in self.handlers or name in BUILT_IN:
            raise UsageError(f"there is a handler for {name!r} already")

        def register(function: F) -> F:
            self.handlers[name] = make_handler(
                name,
                function,
                timeout=_seconds(timeout),
                idle_timeout=_seconds(idle_timeout),
                retries=retries,
                stream=stream,
            )
            return function

        return register

    def on_approval(self, notify: F) -> F:
        """Register `notify(ctx, ask)`, which tells a person of a question that a job asks.

        It is called, as a step of the job, for tools with `approve=True` and for each `ctx.wait_for` without a
        `notify` of its own. `ask` is an `oxherd.context.Ask`.

        Raises:
            UsageError: there is one already.
        """
        if self.notify is not None:
            raise UsageError("there is an on_approval already")
        self.notify = notify
        return notify

    def agent(self, name: str, **definition: Any) -> Agent:
        """Define an agent, see `Agent` for the parameters; jobs can then call it by name.

        Raises:
            UsageError: the name is taken.
        """
        if name in self.agents:
            raise UsageError(f"there is an agent {name!r} already")
        agent = self.agents[name] = Agent(name=name, **definition)
        return agent


def echo_of(whoami: Callable[[], dict[str, Any]]) -> Callable[[Context, dict[str, Any]], Awaitable[dict[str, Any]]]:
    """The built-in job `oxherd.echo`: returns its payload, for checks.

    Where that says `"whoami": true`, the answer says there which worker ran it.

    Parameters:
        whoami: what the worker says of itself: its id, version and commit.
    """

    async def echo(_ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "whoami": whoami()} if payload.get("whoami") is True else payload

    return echo


def _seconds(limit: str | float | None) -> float | None:
    return parse_duration(limit) if isinstance(limit, str) else limit


__all__ = ["BUILT_IN", "Budget", "Herd", "echo_of"]
