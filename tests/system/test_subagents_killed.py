"""A worker is killed while an agent inside an agent's tool waits for its model; another one goes on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import fakes.mcp_shop
from oxherd.store.postgres import PostgresStore
from oxherd.testing import ScriptedModel, calls, hangs, says
from oxherd.testing.model import COST

SHOP = fakes.mcp_shop.__file__
PATIENCE = 40.0  # seconds


async def test_what_an_agent_inside_a_tool_has_done_is_done_and_paid_once(start, stage, runs_url, queue_name, tmp_path):
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def cut_short(_):
        loop.call_soon_threadsafe(asked.set)
        return hangs()

    script = (calls(("buyer", {"input": "Buy tea"})), calls(("shop_buy", {"thing": "tea"})), cut_short)
    with ScriptedModel(*script, says("Bought."), says("There is tea.")) as model:
        workers = {
            "database_url": runs_url, "app": "desk:herd", "OPENROUTER_BASE_URL": model.base_url,
            "SHOP": SHOP, "SHOP_PYTHON": sys.executable, "SHOP_STATE": str(tmp_path),
        }  # fmt: skip
        first = await start(**workers)
        job_id = await stage.producer.add("agent.run", {"agent": "desk", "input": "Get some tea"})
        await asyncio.wait_for(asked.wait(), PATIENCE)
        (shop,) = shops(tmp_path)
        first.kill()
        await first.exited()

        second = await start(**workers)
        ended = await second.said("job.ended", id=job_id, within=PATIENCE)
        assert ended["outcome"] == "completed", ended
        assert ended["cost_usd"] == 4 * COST, "of both agents, and of both workers"
        assert [each.model for each in model.asked] == ["large", "small", "small", "small", "large"]
        assert model.asked[-1].text == "Bought."
        assert [path.name for path in tmp_path.iterdir()] == ["tea-0"], "the tool was called once"
        assert shops(tmp_path) - {shop}, "the second worker has started a server of its own"
        second.terminate()
        assert await second.exited() == 0
        async with asyncio.timeout(PATIENCE):
            while shops(tmp_path):  # noqa: ASYNC110  other processes, which end when nobody is there for them
                await asyncio.sleep(0.02)

    inner = "desk/tool-1-buyer/buyer"
    assert await steps_of(runs_url, queue_name, job_id) == {
        "desk/model-1": "model", f"{inner}/model-1": "model", f"{inner}/tool-1-shop_buy": "tool",
        f"{inner}/model-2": "model", "desk/tool-1-buyer": "tool", "desk/model-2": "model",
    }  # fmt: skip


async def steps_of(url: str, queue: str, job_id: str) -> dict[str, str]:
    """The kinds of a job's steps by their keys."""
    store = PostgresStore(url)
    await store.start()
    run_id = await store.find_run(queue, job_id)
    steps = {row["key"]: row["kind"] for row in await store.steps(run_id)}
    await store.stop()
    return steps


def shops(state: Path) -> set[int]:
    """The processes of shops that leave their marks there."""
    found = set()
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if f"SHOP_STATE={state}\0" in (each / "environ").read_text() and SHOP in (each / "cmdline").read_text():
                found.add(int(each.name))
        except OSError:
            pass  # it is gone, or not ours
    return found
