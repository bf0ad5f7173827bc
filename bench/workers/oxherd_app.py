from typing import Any

from bench.workers import probe

from oxherd import Context, Herd

herd = Herd()


@herd.job("noop")
async def noop(ctx: Context, payload: dict[str, Any]) -> None:  # noqa: ARG001 - the handler's shape
    await probe.run(payload)
