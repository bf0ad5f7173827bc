"""A server of tools, as a program: over stdio, or over streamable HTTP.

Its argument is the loopback port, 0 for any; it prints which. Variables: SHOP_TOKEN, which it repeats and, over HTTP,
asks for; SHOP_STATE, a folder where `buy` leaves its marks.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image

shop = MCPServer("shop", log_level="CRITICAL")
TOKEN = os.environ.get("SHOP_TOKEN", "")


@shop.tool()
async def find_order(email: str) -> str:
    """Find an order."""
    return f"A-17 of {email}"


@shop.tool()
async def prices(names: list[str]) -> dict[str, int]:
    """Look prices up."""
    return {name: len(name) for name in names}


@shop.tool()
async def picture(size: int) -> Image:
    """Show the shop."""
    return Image(data=b"x" * size, format="png")


@shop.tool()
async def report(length: int) -> str:
    """Write a long report."""
    return "x" * length


@shop.tool()
async def whoami() -> str:
    """Tell the token, which nobody should."""
    return f"token {TOKEN}, home {os.environ.get('HOME')}, other {os.environ.get('REDIS_URL')}"


@shop.tool()
async def fail() -> str:
    """Fail."""
    from mcp.server.mcpserver.exceptions import ToolError

    raise ToolError(f"no such order, says {TOKEN}")


@shop.tool()
async def wait() -> str:
    """Take for ever."""
    await asyncio.Event().wait()
    return "never"


@shop.tool()
async def die() -> str:
    """End the server."""
    print(f"out of stock, {TOKEN}", file=sys.stderr, flush=True)
    os._exit(1)


@shop.tool()
async def buy(thing: str) -> str:
    """Leave a mark for each call."""
    marks = Path(os.environ["SHOP_STATE"])
    (marks / f"{thing}-{len(list(marks.iterdir()))}").touch()
    return f"bought {thing}"


@shop.tool()
async def grow(ctx: Context) -> str:
    """Learn a new tool."""

    async def extra() -> str:
        """Be new."""
        return "new"

    shop.add_tool(extra)
    await ctx.session.send_tool_list_changed()
    await ctx.notify_tools_changed()
    return "grown"


def guarded(app):
    async def guard(scope, receive, send):
        if scope["type"] == "http" and TOKEN and dict(scope["headers"]).get(b"authorization") != TOKEN.encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return guard


if __name__ == "__main__":
    if len(sys.argv) == 1:
        shop.run()
    else:
        import uvicorn

        listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(guarded(shop.streamable_http_app()), log_level="critical", lifespan="on")
        uvicorn.Server(config).run(sockets=[listening])
