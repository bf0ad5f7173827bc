"""What the measured workers run."""

import asyncio
from typing import Any

from oxherd import Context, Herd

herd = Herd()


@herd.job("waits")
async def waits(ctx: Context, payload: dict[str, Any]) -> None:  # noqa: ARG001 - the handler's shape
    await asyncio.sleep(payload["seconds"])
