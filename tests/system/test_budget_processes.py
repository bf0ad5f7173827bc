"""Worker processes spend from one purse at once, and one of them is killed: no cap is passed, no money lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from decimal import Decimal
from pathlib import Path

from oxherd.agents.budget import NANO, Caps, Payer, Purse
from oxherd.errors import BudgetExceeded
from oxherd.queue.connection import Link
from oxherd.settings import parse_redis_url

HERE = Path(__file__).parent
CAPS = Caps(all=Decimal(3), tenant=Decimal("1.2"), agent=Decimal(2))
CHILD = "import asyncio, sys; from test_budget_processes import spend; asyncio.run(spend(*sys.argv[1:]))"
CALLS = 150


def call_of(call: str) -> tuple[Payer, Decimal, Decimal]:
    """Who makes a call, what it can cost at most, and what it costs."""
    chance = random.Random(call)
    ceiling = Decimal(chance.randrange(1, 80)) / 1000
    payer = Payer(
        f"run-{chance.randrange(5)}", f"agent-{chance.randrange(2)}", f"tenant-{chance.randrange(3)}", Decimal(1)
    )
    return payer, ceiling, ceiling * chance.randrange(0, 101) / 100


async def spend(redis_url: str, name: str) -> None:
    """A process's life: sixteen calls at once, each told before and after."""
    link = Link(parse_redis_url(redis_url), name)
    await link.start()
    purse, ids = Purse(link, b"money:", CAPS), iter(range(CALLS))

    async def worker() -> None:
        for number in ids:
            call = f"{name}-{number}"
            payer, ceiling, cost = call_of(call)
            print(json.dumps(["begins", call]), flush=True)
            try:
                await purse.reserve(call, payer, ceiling)
            except BudgetExceeded:
                print(json.dumps(["refused", call]), flush=True)
                continue
            await asyncio.sleep(random.random() / 100)
            await purse.settle(call, cost)
            print(json.dumps(["settled", call]), flush=True)

    await asyncio.gather(*(worker() for _ in range(16)))
    await link.stop()


async def test_processes_that_spend_at_once_pass_no_cap_and_a_kill_loses_no_money(redis_url):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, redis_url, f"worker-{number}", env=environ, stdout=asyncio.subprocess.PIPE
        )
        for number in range(3)
    ]
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    try:
        outputs = await asyncio.gather(told_until_killed(children[0]), *(child.stdout.read() for child in children[1:]))
        assert [await child.wait() for child in children] == [-9, 0, 0]
        lines = [json.loads(line) for output in outputs for line in output.splitlines() if line.endswith(b"]")]
        names = [key.decode() for key in await link.call(b"KEYS", b"money:*")]
        held = {name.partition("hold:")[2] for name in names if "hold:" in name}
        sums = {name: Decimal(int(await link.call(b"GET", name))) / NANO for name in names if "hold:" not in name}
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
        await link.stop()

    ends = {call: how for how, call in lines}
    known = {call: call_of(call) for call in ends}
    counted = {call: known[call][1] for call in held} | {
        call: known[call][2] for call, how in ends.items() if how == "settled"
    }
    doubtful = [
        call for call, how in ends.items() if how == "begins" and call not in held
    ]  # killed before it, or after it
    assert len(held) + len(doubtful) <= 16, "calls of the one that was killed"
    assert sum(how == "refused" for how in ends.values()) > 10, "the caps were met"

    def agrees(used: Decimal, cap: Decimal, mine) -> bool:
        least = sum((cost for call, cost in counted.items() if mine(known[call][0])), Decimal(0))
        most = least + sum((known[call][2] for call in doubtful if mine(known[call][0])), Decimal(0))
        rounding = len(counted) / NANO
        return least <= used <= min(most + rounding, cap)

    def used_by(scope: str) -> Decimal:  # of one day, or of two where it was midnight
        return sum((used for key, used in sums.items() if key.endswith(scope)), Decimal(0))

    assert agrees(used_by(":all"), CAPS.all, lambda _: True)
    for name in {payer.tenant for payer, *_ in known.values()}:
        assert agrees(used_by(f":tenant:{name}"), CAPS.tenant, lambda payer, name=name: payer.tenant == name)
    for name in {payer.agent for payer, *_ in known.values()}:
        assert agrees(used_by(f":agent:{name}"), CAPS.agent, lambda payer, name=name: payer.agent == name)
    for name in {payer.run for payer, *_ in known.values()}:
        assert agrees(used_by(f"run:{name}"), Decimal(1), lambda payer, name=name: payer.run == name)


async def told_until_killed(child: asyncio.subprocess.Process) -> bytes:
    """Kill it in the middle of its work; what it had said."""
    told = b"".join([await child.stdout.readline() for _ in range(CALLS)])
    child.kill()
    return told + await child.stdout.read()
