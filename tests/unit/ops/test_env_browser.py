"""The dashboard's way in a real Chromium, on a page that behaves like a raw editor of variables."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from oxherd.errors import ServiceRefused, ServiceUnreachable, UsageError
from oxherd.ops import env_browser
from oxherd.ops.env import parse, render
from oxherd.ops.env_browser import Recipe
from oxherd.settings import Secret

CHROMIUM = shutil.which("chromium") or ""
PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Variables</title>
<form id="login"><button>Log in</button></form>
<main hidden><h1>Variables</h1><button id="raw">Raw Editor</button><div role="alert"></div>
<section></section></main>
<script>
const find = (selector) => document.querySelector(selector);
const enter = () => { find("#login").remove(); find("main").hidden = false; };
find("#login").onsubmit = (event) => { event.preventDefault(); enter(); };
// A person: it takes them a moment.
if (LOGS_IN) setTimeout(() => find("#login button").click(), 300);
find("#raw").onclick = async () => {
  const text = await (await fetch("/raw")).text();
  find("section").innerHTML = '<textarea></textarea><button id="save">Update Variables</button>';
  find("textarea").value = text;
  find("#save").onclick = async () => {
    const answer = await fetch("/raw", {method: "PUT", body: find("textarea").value});
    if (answer.ok) find("section").innerHTML = ""; else find("[role=alert]").textContent = await answer.text();
  };
};
</script>"""


class Dashboard:
    """Keeps variables; sealed ones are in no editor, and an edit does not remove them."""

    def __init__(self) -> None:
        self.open = {"JOB_CONCURRENCY": Secret("5"), "MOTTO": Secret("a b # c")}
        self.sealed = {"API_TOKEN": Secret("sealed-and-kept-0123456789")}
        self.saves = 0
        self.logs_in = True
        self.url = ""

    async def page(self, _request: web.Request) -> web.Response:
        return web.Response(text=PAGE.replace("LOGS_IN", str(self.logs_in).lower()), content_type="text/html")

    async def read(self, _request: web.Request) -> web.Response:
        return web.Response(text=render(self.open))

    async def write(self, request: web.Request) -> web.Response:
        values, _ = parse(await request.text(), "the editor")
        if "LOG_LEVEL" in values and values["LOG_LEVEL"] == Secret("warning"):
            return web.Response(status=400, text="Could not save LOG_LEVEL=warning")
        self.open = values
        self.saves += 1
        return web.Response()


@pytest.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    pytest.importorskip("playwright")
    made = Dashboard()
    server = web.Application()
    server.add_routes([web.get("/variables", made.page), web.get("/raw", made.read), web.put("/raw", made.write)])
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/variables?environmentId={{environment}}"
    yield made
    await runner.cleanup()


async def push(dashboard: Dashboard, *, agreed: bool = True, patience: float = 10.0, **values: str):
    recipe = replace(Recipe.read(None), url=dashboard.url)
    ids = {"project": "p", "environment": "e", "service": "s"}
    return await env_browser.push(
        {name: Secret(value) for name, value in values.items()}, recipe, ids,
        agreed=lambda _: agreed, told=lambda _: None, patience=patience, headless=True, browser=CHROMIUM,
    )  # fmt: skip


async def test_the_plan_is_saved_through_the_editor_and_all_else_stays(dashboard: Dashboard) -> None:
    looked = await push(dashboard, JOB_CONCURRENCY="9", agreed=False)
    assert [each.action for each in looked.changes] == ["update"]
    assert dashboard.saves == 0

    made = await push(dashboard, JOB_CONCURRENCY="9", LOG_LEVEL="debug", MOTTO="a b # c")
    assert {each.name: each.action for each in made.changes} == {
        "JOB_CONCURRENCY": "update", "LOG_LEVEL": "create", "MOTTO": "keep",
    }  # fmt: skip
    assert {name: value.reveal() for name, value in dashboard.open.items()} == {
        "JOB_CONCURRENCY": "9", "LOG_LEVEL": "debug", "MOTTO": "a b # c",
    }  # fmt: skip
    assert dashboard.sealed["API_TOKEN"] == Secret("sealed-and-kept-0123456789")
    assert dashboard.saves == 1


async def test_an_error_on_the_page_is_told_without_the_value(dashboard: Dashboard) -> None:
    with pytest.raises(ServiceRefused, match=r"the page refused: Could not save LOG_LEVEL=\*\*\*"):
        await push(dashboard, LOG_LEVEL="warning")
    assert dashboard.saves == 0


async def test_who_does_not_log_in_is_not_waited_for_for_ever(dashboard: Dashboard) -> None:
    dashboard.logs_in = False
    with pytest.raises(ServiceUnreachable, match="'text=Raw Editor' did not appear within 0 s") as caught:
        await push(dashboard, LOG_LEVEL="debug", patience=0.3)
    assert "correct `ready` in a copy of the recipe" in caught.value.hint


def test_a_recipe_with_a_line_too_few_is_refused_by_name(tmp_path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('url = "https://x"\n')
    with pytest.raises(UsageError, match="editor must be there"):
        Recipe.read(recipe)
