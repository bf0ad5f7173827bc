"""Caps on money: set aside before a call, settled after it, in Redis, so that all workers share them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

from oxherd.clock import wall_ms
from oxherd.errors import BudgetExceeded, DailyCapReached
from oxherd.queue.connection import Link
from oxherd.queue.scripts import read_script
from oxherd.telemetry.events import BudgetReached, emit

LUA = Path(__file__).parent / "lua"
NANO = Decimal(10) ** 9  # Redis counts whole nano-dollars; its scripts are exact up to nine million dollars
KEPT_MS = 7 * 86_400_000  # a day's sums outlive the day, so that late bills find them; a run's sum outlives its delays
SCOPES = ("run", "tenant", "agent", "global")


@dataclass(frozen=True, slots=True)
class Caps:
    """What may be spent in a day (UTC), in US dollars; None for no cap.

    Attributes:
        all: by everything together.
        tenant: for each tenant; what is run for no tenant has no such cap.
        agent: by each agent.
    """

    all: Decimal | None = None
    tenant: Decimal | None = None
    agent: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Payer:
    """Who spends.

    Attributes:
        run: the run of an agent, unique among all jobs.
        agent: its name.
        tenant: whom it is for, or None.
        cap: what the run may spend, in US dollars, or None.
        around: the runs that this one is inside of and that have caps, with their agents and caps.
    """

    run: str
    agent: str
    tenant: str | None = None
    cap: Decimal | None = None
    around: tuple[Payer, ...] = ()


class Purse:
    """Sets money aside and settles it.

    Parameters:
        link: to the Redis that all workers share.
        prefix: what its keys begin with.
        caps: of the day.
    """

    def __init__(self, link: Link, prefix: bytes, caps: Caps) -> None:
        self._link = link
        self._prefix = prefix
        self.caps = caps
        self._reserve = read_script(LUA / "reserveSpend-5.lua")
        self._settle = read_script(LUA / "settleSpend-1.lua")

    def limits(self, payer: Payer) -> bool:
        """Whether any cap applies. Where none does, nothing is counted."""
        return bool(payer.around) or any(cap is not None for cap in self._caps(payer))

    async def reserve(self, id: str, payer: Payer, amount: Decimal) -> None:  # noqa: A002  the hold's
        """Set aside the most that a call can cost, in each scope. Waits while Redis is away.

        Parameters:
            id: of the call, for `settle`.
            payer: who spends.
            amount: in US dollars.

        Raises:
            BudgetExceeded: a cap is in the way; nothing was set aside.
            DailyCapReached: the cap of everything together is.
        """
        caps = (*self._caps(payer), *(each.cap for each in payer.around))
        sums = (*self._sums(payer), *(self._key(f"run:{each.run}") for each in payer.around))
        script = replace(self._reserve, numkeys=b"%d" % (1 + len(sums)))
        place, used = await self._link.insist(
            script, self._hold(id), *sums, nanos(amount), KEPT_MS,
            *("" if cap is None else int(cap * NANO) for cap in caps),
        )  # fmt: skip
        if place:
            cap = caps[place - 1]
            assert cap is not None
            scope, whose = (SCOPES[place - 1], payer) if place <= len(SCOPES) else ("run", payer.around[place - 5])
            raise _refusal(scope, whose, cap, Decimal(int(used)) / NANO, amount)

    async def settle(self, id: str, cost: Decimal) -> bool:  # noqa: A002  the hold's
        """Count what a call cost instead of what was set aside; whether this was the first to do so.

        Raises:
            RedisRefused: for good.
        """
        return bool(await self._link.insist(self._settle, self._hold(id), nanos(cost)))

    async def used(self, payer: Payer) -> dict[str, Decimal]:
        """What each scope has used, in US dollars: settled, or set aside and not settled yet."""
        sums = await self._link.call(b"MGET", *self._sums(payer))
        return {scope: Decimal(int(used or 0)) / NANO for scope, used in zip(SCOPES, sums, strict=True)}

    def _caps(self, payer: Payer) -> tuple[Decimal | None, ...]:
        return (payer.cap, None if payer.tenant is None else self.caps.tenant, self.caps.agent, self.caps.all)

    def _hold(self, id: str) -> bytes:  # noqa: A002  the hold's
        return self._key(f"hold:{id}")

    def _sums(self, payer: Payer) -> tuple[bytes, ...]:
        day = datetime.fromtimestamp(wall_ms() / 1000, UTC).date()
        names = (f"run:{payer.run}", f"{day}:tenant:{payer.tenant or ''}", f"{day}:agent:{payer.agent}", f"{day}:all")
        return tuple(map(self._key, names))

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode("utf-8", "surrogateescape")


def nanos(amount: Decimal) -> int:
    """Whole nano-dollars, rounded up."""
    return int((amount * NANO).to_integral_value(ROUND_CEILING))


def _refusal(scope: str, payer: Payer, cap: Decimal, used: Decimal, amount: Decimal) -> BudgetExceeded:
    whose, hint = {
        "run": (f"this run of agent {payer.agent!r}", "raise budget.usd, or lower max_output_tokens"),
        "tenant": (f"tenant {payer.tenant!r} today", "raise BUDGET_TENANT_DAILY_USD, or wait until 00:00 UTC"),
        "agent": (f"agent {payer.agent!r} today", "raise BUDGET_AGENT_DAILY_USD, or wait until 00:00 UTC"),
        "global": ("everything together today", "raise BUDGET_DAILY_USD, or wait until 00:00 UTC"),
    }[scope]
    tenant = payer.tenant or ""
    emit(BudgetReached(scope=scope, agent=payer.agent, tenant=tenant, cap_usd=float(cap), used_usd=float(used)))
    kind = DailyCapReached if scope == "global" else BudgetExceeded
    return kind(
        f"the budget of {whose} is ${cap:f}: ${used.normalize():f} is spent or set aside, and the next call of the "
        f"model may cost up to ${amount.normalize():f}",
        hint=hint,
    )
