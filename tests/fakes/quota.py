"""A provider with a fixed quota: so many requests per window, told in each answer as OpenAI does, or in refusals alone
as OpenRouter does. Run as a process, so that it keeps time while the workers are busy.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from aiohttp import web


class Provider:
    """Counts in windows that begin with the first request."""

    def __init__(self, quota: int, window: float, *, tells: str, latency: float) -> None:
        self.quota = quota
        self.window = window
        self.tells = tells
        self.latency = latency
        self.taken: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.began = 0.0

    async def complete(self, request: web.Request) -> web.Response:
        await request.read()
        now = time.monotonic()
        self.began = self.began or now
        number, into = divmod(now - self.began, self.window)
        ok = self.taken[int(number)] < self.quota
        if ok:
            self.taken[int(number)] += 1
        else:
            self.refused[int(number)] += 1
        headers = self.headers(self.quota - self.taken[int(number)], self.window - into, ok=ok)
        if not ok:
            return web.json_response({"error": {"code": 429, "message": "slow down"}}, status=429, headers=headers)
        await asyncio.sleep(self.latency)
        message = {"role": "assistant", "content": "ok"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.0001}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        return web.json_response({"id": "gen", "model": "m", **body}, headers=headers)

    def headers(self, left: int, seconds: float, *, ok: bool) -> dict[str, str]:
        match self.tells:
            case "always":
                told = {"limit": str(self.quota), "remaining": str(left), "reset": f"{seconds * 1000:.0f}ms"}
                return {f"x-ratelimit-{name}-requests": value for name, value in told.items()}
            case "refusals" if not ok:
                reset = f"{(time.time() + seconds) * 1000:.0f}"
                return {"X-RateLimit-Limit": str(self.quota), "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
            case _:
                return {}

    async def count(self, _: web.Request) -> web.Response:
        windows = range(max((*self.taken, *self.refused), default=-1) + 1)
        told = {"windows": [self.taken[one] for one in windows], "refused": [self.refused[one] for one in windows]}
        return web.json_response(told)


def main() -> None:
    quota, window, tells, latency = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    provider = Provider(quota, window, tells=tells, latency=latency)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.complete)
    app.router.add_get("/count", provider.count)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
