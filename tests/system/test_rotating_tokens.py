"""API_TOKEN on a real server: the new one is taken and the old one refused, after a restart with the new variables."""

from __future__ import annotations

import base64

import pytest
from process import WorkerProcess

from oxherd.embedded.engine import free_port
from oxherd.errors import RotationStopped
from oxherd.ops.rotate import Rotator, Scene
from oxherd.ops.rotate_state import Locks, Progress, StateFile
from oxherd.ops.rotate_token import ApiToken
from oxherd.settings import Secret, load

KEY = Secret(base64.b64encode(bytes(32)).decode())
OLD = "the-old-token-0123456789"


class Restarted:
    """`oxherd web` on one port, restarted with other variables."""

    def __init__(self, redis_url: str, queue: str) -> None:
        self.port = free_port()
        self.values = {"API_TOKEN": OLD}
        self.follows = True
        self._place = (redis_url, queue)
        self._web: WorkerProcess | None = None

    async def start(self) -> None:
        redis_url, queue = self._place
        variables = {**self.values, "PORT": str(self.port)}
        self._web = WorkerProcess(redis_url, queue, witness_url=redis_url, command="web", **variables)
        await self._web.launch()
        await self._web.said("web.started")

    async def close(self) -> None:
        if self._web is not None:
            await self._web.close()

    async def look(self, names: tuple[str, ...]) -> str:
        return "restart it"

    async def current(self, name: str) -> Secret | None:
        return Secret(self.values[name])

    def doubt(self, memo) -> None:
        memo.clear()

    async def give(self, values, memo, keep) -> None:
        if self.follows:
            self.values |= {name: value.reveal() for name, value in values.items()}
            await self.close()
            await self.start()


@pytest.fixture
async def web(redis_url, queue_name):
    one = Restarted(redis_url, queue_name)
    await one.start()
    yield one
    await one.close()


async def test_a_new_token_is_taken_and_the_old_one_is_dead(web, tmp_path, redis_url, queue_name):
    progress = Progress.begin("API_TOKEN")

    async def rotator() -> Rotator:
        file = StateFile(tmp_path, "API_TOKEN", Locks((KEY,)))
        settings = load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name})
        scene = Scene(progress, lambda: file.save(progress), web, None, settings, lambda _: None,
                      patience=0, test_job=False)  # fmt: skip
        return Rotator(ApiToken("API_TOKEN", scene, f"http://127.0.0.1:{web.port}"), file)

    web.follows = False  # somebody says that it runs with the new token, and it does not
    with pytest.raises(RotationStopped, match="does not take the new token"):
        await (await (await rotator()).plan()).run(lambda _: None)
    web.follows, done = True, []
    await (await (await rotator()).plan()).run(lambda step: done.append(step.action))
    assert done[-2:] == ["bury", "record"]
    assert web.values["API_TOKEN"] != OLD
