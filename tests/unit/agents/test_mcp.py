"""Servers of tools, real ones: a process on stdio, and streamable HTTP on loopback."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import mcp as sdk
import pytest
from mcp import types

import fakes.mcp_shop
from fakes.journal import attempt_of
from fakes.openrouter import Refuses, calls, says
from fakes.waits import MemoryWaits
from oxherd.agents import MCP, Agent, Agents, mcp
from oxherd.agents.loop import run_agent
from oxherd.agents.mcp import RESULT_CHARS, Servers, bounded, text_of
from oxherd.agents.tools import ArgumentsInvalid, ToolFailed
from oxherd.errors import AgentError, PayloadInvalid, RetryLater, UsageError, Waiting
from oxherd.settings import Secret
from oxherd.telemetry.events import McpConnected, McpLost, WorkerWarned, attach

SHOP = fakes.mcp_shop.__file__


class HttpShop:
    """The shop as a process of its own, which can die and come back under its address."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, SHOP, str(self.port)]
        env = {**os.environ, "SHOP_TOKEN": self.token}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def source(self, **options) -> MCP:
        return MCP.http(f"http://127.0.0.1:{self.port}/mcp", name="shop", **options)


@pytest.fixture(scope="module")
def http_shop():
    shop = HttpShop()
    yield shop
    shop.kill()


@pytest.fixture
async def servers():
    servers = Servers()
    yield servers
    await servers.close()


@pytest.fixture
def events():
    seen = []
    detach = attach(seen.append, McpConnected, McpLost, WorkerWarned)
    yield seen
    detach()


def stdio_shop(**options) -> MCP:
    return MCP.stdio(sys.executable, SHOP, name="shop", **options)


@pytest.fixture(params=["stdio", "http"])
def shop(request) -> MCP:
    return stdio_shop() if request.param == "stdio" else request.getfixturevalue("http_shop").source()


async def test_an_agent_uses_the_tools_of_a_server(ctx, fake, llm, servers, shop, events):
    fake.script(
        calls(("find_order", {"email": "a@b.c"}), ("prices", {"names": ["tea"]})),
        calls(("fail", {}), ("prices", {"names": 5}), ("nothing", {}), ("find_order", "[]")),
        says("ok"),
    )
    run = await run_agent(ctx, Agent("a", "m", tools=[shop]), "?", llm, servers=servers)
    told = [message["content"] for message in run.messages if message["role"] == "tool"]
    assert told[0] == "A-17 of a@b.c"
    assert told[1].split() == ["{", '"tea":', "3", "}"]
    assert told[2] == "Error: Error executing tool fail: no such order, says "
    assert told[3].startswith("Error: Error executing tool prices: 1 validation error")
    assert told[4].startswith("Error: there is no tool 'nothing'; the tools are: buy, die, fail, find_order, grow,")
    assert told[5].startswith("Error: the arguments do not fit: must be a JSON object")
    offered = {tool["function"]["name"]: tool["function"] for tool in fake.requests[0]["tools"]}
    assert list(offered) == sorted(offered)
    assert offered["find_order"]["description"] == "Find an order."
    assert offered["find_order"]["parameters"]["required"] == ["email"]
    assert [event.server for event in events if isinstance(event, McpConnected)] == ["shop"]


async def test_a_replay_needs_no_server_until_something_is_new(attempt, fake, llm, servers):
    source = stdio_shop()
    fake.script(calls(("find_order", {"email": "a"}), ("nothing", {})), *[Refuses(503)] * 4)
    with pytest.raises(RetryLater):
        await run_agent(attempt(), Agent("a", "m", tools=[source]), "?", llm, servers=servers)
    gone = MCP.stdio("/no/such/server", name="shop")
    untouched = Servers()
    with pytest.raises(AgentError, match=r"MCP server 'shop' can't be had: it can't be started: .*/no/such/server"):
        await run_agent(attempt(), Agent("a", "m", tools=[gone]), "?", llm, servers=untouched)
    fake.script(says("ok"))
    first = await run_agent(attempt(), Agent("a", "m", tools=[source]), "?", llm, servers=servers)
    assert await run_agent(attempt(), Agent("a", "m", tools=[gone]), "?", llm, servers=untouched) == first
    assert [message["content"][:9] for message in first.messages if message["role"] == "tool"] == [
        "A-17 of a",
        "Error: th",
    ]


async def test_one_connection_serves_all_runs_and_is_ended_with_them(journal, fake, llm, events):
    agents = Agents(llm, known={})
    agent = Agent("a", "m", tools=[stdio_shop()])
    fake.script(*[says("ok")] * 5)
    ctx = attempt_of(journal, agents.run)
    await asyncio.gather(*(ctx.run(agent, str(number)) for number in range(5)))
    await agents.close()
    await agents.close()
    assert [type(event) for event in events] == [McpConnected]


async def test_filter_and_prefix_decide_what_is_offered_under_which_name(servers, http_shop, events):
    source = http_shop.source(tools=["find_order", "sell"], prefix="acme", timeout="5s", approve=True)
    tools = await servers.tools([source], {})
    assert list(tools) == ["acme_find_order"]
    assert (tools["acme_find_order"].timeout, tools["acme_find_order"].approve) == (5.0, True)
    assert "MCP server 'shop' has no tool 'sell'" in [
        event.message for event in events if isinstance(event, WorkerWarned)
    ]
    with pytest.raises(AgentError, match="two tools are called 'acme_find_order', one of them from MCP server 'shop'"):
        await servers.tools([source], tools)


async def test_a_server_that_died_is_told_of_and_started_again(ctx, servers, events):
    token = Secret(secrets.token_hex())
    source = stdio_shop(env={"SHOP_TOKEN": token})
    tools = await servers.tools([source], {})
    with pytest.raises(
        ToolFailed, match="'shop', can't be had: its connection ended during the call, which may have had"
    ):
        await tools["die"].run(ctx, "{}")
    assert await tools["find_order"].run(ctx, '{"email": "a"}') == "A-17 of a"
    lost = [event for event in events if isinstance(event, McpLost)]
    assert [event.error for event in lost] == ["its connection ended\nout of stock, ***"]


async def test_a_server_that_died_unnoticed_is_started_again_before_it_is_called(ctx, servers, events, tmp_path):
    source = stdio_shop(env={"SHOP_STATE": str(tmp_path)})
    tools = await servers.tools([source], {})
    over = servers._of(source)._connection.wire.over
    (pid,) = children_of(os.getpid(), SHOP)
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(over.wait(), 20)
    assert await tools["buy"].run(ctx, '{"thing": "tea"}') == "bought tea"
    assert [path.name for path in tmp_path.iterdir()] == ["tea-0"]


async def test_an_http_server_that_was_away_is_used_again(ctx, servers, events):
    shop = HttpShop()
    tools = await servers.tools([shop.source()], {})
    shop.kill()
    with pytest.raises(ToolFailed, match="can't be had"):
        await tools["find_order"].run(ctx, '{"email": "a"}')
    with pytest.raises(ToolFailed, match="can't be had: ConnectError: "):
        await tools["find_order"].run(ctx, '{"email": "a"}')
    assert events[-1].server == "shop"
    shop.start()
    assert await tools["find_order"].run(ctx, '{"email": "a"}') == "A-17 of a"
    shop.kill()


async def test_a_session_that_the_server_forgot_is_begun_again_and_the_call_repeated(ctx, servers, monkeypatch):
    monkeypatch.setattr(sdk, "Client", functools.partial(sdk.Client, mode="legacy"))
    shop = HttpShop()
    tools = await servers.tools([shop.source()], {})
    shop.kill()
    shop.start()
    assert await tools["find_order"].run(ctx, '{"email": "a"}') == "A-17 of a"
    shop.kill()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_that_a_server_learns_are_offered_and_the_list_is_asked_for_no_more_than_that(
    ctx, servers, monkeypatch, mode
):
    monkeypatch.setattr(sdk, "Client", functools.partial(sdk.Client, mode=mode))
    source = stdio_shop()
    asked, pages, changed = [], mcp._pages, asyncio.Event()
    monkeypatch.setattr(mcp, "_pages", lambda client: asked.append(1) or pages(client))
    tools = await servers.tools([source], {})
    assert (await servers.tools([source], {})).keys() == tools.keys()
    assert asked == [1]
    wire = servers._of(source)._connection.wire
    monkeypatch.setattr(wire, "changed", lambda: (servers._of(source)._changed(), changed.set()))
    await tools["grow"].run(ctx, "{}")
    await asyncio.wait_for(changed.wait(), 20)
    tools = await servers.tools([source], {})
    assert await tools["extra"].run(ctx, "{}") == "new"


async def test_a_call_that_takes_too_long_is_given_up_and_the_connection_stays(ctx, servers, http_shop, events):
    tools = await servers.tools([http_shop.source(timeout=0.3)], {})
    with pytest.raises(ToolFailed, match=r"had not returned after 0\.3 s"):
        await tools["wait"].run(ctx, "{}")
    assert await tools["find_order"].run(ctx, '{"email": "a"}') == "A-17 of a"
    assert [type(event) for event in events] == [McpConnected]


async def test_long_results_are_cut_and_what_is_no_text_is_named(ctx, servers, http_shop):
    tools = await servers.tools([http_shop.source()], {})
    report = await tools["report"].run(ctx, '{"length": 50000}')
    assert report == "x" * RESULT_CHARS + "\n[10000 more characters were cut off]"
    assert await tools["picture"].run(ctx, '{"size": 3000}') == "[image: image/png, 3000 bytes]"


async def test_no_secret_of_a_server_is_in_results_errors_or_reprs(ctx, servers):
    token = Secret(secrets.token_hex())
    source = stdio_shop(env={"SHOP_TOKEN": token})
    assert token.reveal() not in repr(source)
    tools = await servers.tools([source], {})
    told = await tools["whoami"].run(ctx, "{}")
    assert told == f"token ***, home {os.environ.get('HOME')}, other None"
    with pytest.raises(ToolFailed, match=r"no such order, says \*\*\*"):
        await tools["fail"].run(ctx, "{}")


async def test_headers_are_sent_and_a_wrong_one_is_named_as_the_fault(ctx, servers):
    token = Secret(secrets.token_hex())
    shop = HttpShop(token.reveal())
    tools = await servers.tools([shop.source(headers={"Authorization": token})], {})
    assert await tools["find_order"].run(ctx, '{"email": "a"}') == "A-17 of a"
    with pytest.raises(AgentError, match="MCP server 'shop' can't be had: it answered 401; check its headers"):
        await servers.tools([shop.source(headers={"Authorization": "wrong"})], {})
    shop.kill()


async def test_a_server_that_can_not_be_reached_delays_the_job_for_longer_each_time(ctx, fake, llm, servers, events):
    agent = Agent("a", "m", tools=[MCP.http("http://127.0.0.1:1/mcp", name="shop")])
    ctx.job.attempts_started = 6
    with pytest.raises(RetryLater, match="MCP server 'shop' can't be had: ConnectError") as caught:
        await run_agent(ctx, agent, "?", llm, servers=servers)
    assert caught.value.seconds >= 30 * 2**5
    assert [type(event) for event in events] == [McpLost]


async def test_a_server_that_is_away_later_keeps_its_tools_on_offer(servers, events):
    shop = HttpShop()
    source = shop.source()
    tools = await servers.tools([source], {})
    shop.kill()
    servers._of(source)._changed()
    for _ in range(3):
        assert await servers.tools([source], {}) == tools
    assert len([event for event in events if isinstance(event, McpLost)]) <= 2, "it is not asked each time"


async def test_a_server_that_never_answers_is_given_up(servers, monkeypatch):
    monkeypatch.setattr(mcp, "CONNECT", 0.3)
    with pytest.raises(RetryLater, match=r"it did not answer within 0\.3 s"):
        await servers.tools([MCP.stdio("sleep", "60", name="shop")], {})


async def test_a_server_s_calls_can_wait_for_approval(attempt, fake, llm, servers, tmp_path):
    source = stdio_shop(env={"SHOP_STATE": str(tmp_path)}, prefix="shop", approve=True)
    agent, waits = Agent("a", "m", tools=[source]), MemoryWaits()
    fake.script(calls(("shop_buy", {"thing": "tea"})), says("Done."))
    with pytest.raises(Waiting):
        await run_agent(attempt(waits=waits), agent, "?", llm, servers=servers)
    assert list(tmp_path.iterdir()) == []
    assert waits.asked["a/approve-1-shop_buy"][1]["arguments"] == {"thing": "tea"}
    waits.answer("a/approve-1-shop_buy")
    run = await run_agent(attempt(waits=waits), agent, "?", llm, servers=servers)
    assert (run.output, [path.name for path in tmp_path.iterdir()]) == ("Done.", ["tea-0"])


@pytest.mark.parametrize(
    ("options", "name", "may"),
    [
        ({}, "find_order", True),
        ({"prefix": "shop"}, "shop_find_order", True),
        ({"prefix": "shop"}, "find_order", False),
        ({"tools": ["find_order"]}, "find_order", True),
        ({"tools": ["find_order"], "prefix": "shop"}, "shop_buy", False),
    ],
)
def test_whether_a_call_is_meant_for_a_server_is_told_without_asking_it(options, name, may):
    assert MCP.http("https://x", **options).may_offer(name) is may


async def test_definitions_name_servers_of_the_product_and_bring_none(llm, journal, fake, http_shop):
    agents = Agents(llm, known={"a": Agent("a", "m", tools=[http_shop.source(tools=["find_order"])])})
    ctx = attempt_of(journal, agents.run)
    fake.script(calls(("find_order", {"email": "a"})), says("ok"))
    run = await ctx.run({"model": "m", "mcp": ["shop"]}, "?")
    assert run.messages[-2]["content"] == "A-17 of a"
    for given, why in [
        ("https://evil.example/mcp", "agent.mcp: no MCP server 'https://evil.example/mcp'; this worker has: shop"),
        ({"command": "sh"}, "agent.mcp.0: Input should be a valid string"),
    ]:
        with pytest.raises(PayloadInvalid, match=why):
            await ctx.run({"model": "m", "mcp": [given]}, "?")
    await agents.close()


async def test_without_the_package_the_error_says_how_to_get_it(servers, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(AgentError, match=r"pip install 'oxherd\[mcp\]'"):
        await servers.tools([stdio_shop()], {})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: MCP.http("ftp://x"), "the url must begin with https://"),
        (lambda: MCP.http("https://x", tools="find_order"), "mcp.tools: must be a list of names"),
        (lambda: MCP.http("https://x", prefix="a b"), "mcp.prefix: must be at most 30 letters"),
        (lambda: MCP.stdio("x", timeout="never"), "mcp.timeout: must be a duration"),
    ],
)
def test_what_makes_no_sense_is_refused(make, why):
    with pytest.raises(UsageError, match=why):
        make()


def test_servers_are_named_after_their_program_or_host():
    assert MCP.stdio("/usr/bin/npx", "-y", "x").name == "npx"
    assert MCP.http("https://mcp.example.com/mcp").name == "mcp.example.com"


async def test_an_agent_with_servers_is_not_run_without_them(ctx, llm):
    with pytest.raises(UsageError, match="needs servers="):
        await run_agent(ctx, Agent("a", "m", tools=[stdio_shop()]), "?", llm)


TEXT = types.TextContent(type="text", text="3 orders")


@pytest.mark.parametrize(
    ("content", "structured", "text"),
    [
        ([TEXT], None, "3 orders"),
        ([TEXT], {"orders": 3}, '3 orders\n{"orders":3}'),
        ([TEXT], {"result": "3 orders"}, "3 orders"),
        ([], {"orders": 3}, '{"orders":3}'),
        ([types.TextContent(type="text", text=str(n)) for n in range(2)], {"result": [0, 1]}, "0\n1"),
        ([types.AudioContent(type="audio", data="AAAA", mime_type="audio/wav")], None, "[audio: audio/wav, 3 bytes]"),
        ([types.ResourceLink(type="resource_link", name="bill", uri="file:///b")], None, "[resource: bill, file:///b]"),
        (
            [
                types.EmbeddedResource(
                    type="resource", resource=types.TextResourceContents(uri="file:///b", text="Due: 5")
                )
            ],
            None,
            "Due: 5",
        ),
        (
            [
                types.EmbeddedResource(
                    type="resource", resource=types.BlobResourceContents(uri="file:///b", blob="AAAA")
                )
            ],
            None,
            "[resource: file:///b, unknown type, 3 bytes]",
        ),
    ],
)
def test_results_of_every_kind_become_text(content, structured, text):
    result = types.CallToolResult(content=content, structured_content=structured)
    assert text_of(result) == text
    assert bounded(text) == text


def test_arguments_that_are_no_object_are_refused():
    for given in ('{"a"', "[]", "5"):
        with pytest.raises(ArgumentsInvalid):
            mcp.read_object(given)


def children_of(parent: int, program: str) -> list[int]:
    """The processes that this one started to run a program without arguments."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in listed if Path(f"/proc/{pid}/cmdline").read_text().endswith(f"{program}\0")]
