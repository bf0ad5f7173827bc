"""Variables by way of a dashboard's raw editor, for accounts without an API: a person logs in, the rest is done."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Self

from oxherd.clock import mono
from oxherd.errors import ServiceRefused, ServiceUnreachable, UsageError
from oxherd.ops.env import parse, render
from oxherd.ops.env_push import Push, plan
from oxherd.settings import Secret

STEP = 15.0  # seconds for what the page does by itself
LOOK = 0.1  # seconds between looks
FLAGS = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where things are on the page: Playwright's selectors.

    Attributes:
        url: the page; `{project}`, `{environment}` and `{service}` are replaced by ids.
        ready: is there once a person has logged in.
        open: shows the editor.
        editor: holds lines of NAME=value.
        save: writes them.
        saved: is there when that worked.
        error: is there when it did not.
    """

    url: str
    ready: str
    open: str
    editor: str
    save: str
    saved: str
    error: str

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The recipe in a file; Railway's when left out. Raises UsageError naming what is wrong with it."""
        try:
            text = (
                resources.files("oxherd.ops").joinpath("railway_dashboard.toml").read_text(encoding="utf-8")
                if path is None else path.read_text(encoding="utf-8")
            )  # fmt: skip
            found = tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"can't read the recipe {path}: {error}") from None
        wanted = {field.name for field in fields(cls)}
        wrong = sorted(wanted ^ found.keys()) or sorted(name for name in wanted if not isinstance(found[name], str))
        if wrong:
            raise UsageError(f"the recipe {path}: {wrong[0]} must be there, as text, and nothing else")
        return cls(**found)


async def push(
    wanted: Mapping[str, Secret],
    recipe: Recipe,
    ids: Mapping[str, str],
    *,
    agreed: Callable[[Push], bool],
    told: Callable[[str], None],
    patience: float,
    headless: bool = False,
    browser: str | None = None,
) -> Push:
    """Plan against what the editor shows, ask, write, save.

    Parameters:
        wanted: names and values.
        recipe: where things are.
        ids: for the recipe's address.
        agreed: is shown the plan and says whether to go on.
        told: hears what happens.
        patience: seconds that a person has to log in.
        headless: without a window, for tests.
        browser: the program; the one that Playwright brings when left out.

    Raises:
        UsageError: the extra `browser` is not installed.
        ServiceUnreachable: something did not appear; the message names the line of the recipe.
        ServiceRefused: the page showed an error.
    """
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        raise UsageError("--via browser needs the extra: pip install 'oxherd[browser]'") from None
    async with async_playwright() as playwright:
        window = await playwright.chromium.launch(
            headless=headless, executable_path=browser, args=[*FLAGS, *(["--no-sandbox"] if headless else [])]
        )
        try:
            page = await window.new_page()
            await page.goto(recipe.url.format(**ids))
            told(f"log in in the window that opened; it waits for {patience:.0f} s")
            await _there(page, recipe.ready, "ready", patience)
            await page.locator(recipe.open).first.click()
            await _there(page, recipe.editor, "editor", STEP)
            return await _fill(page, recipe, wanted, agreed)
        finally:
            await window.close()


async def _fill(page: Any, recipe: Recipe, wanted: Mapping[str, Secret], agreed: Callable[[Push], bool]) -> Push:
    editor = page.locator(recipe.editor).first
    there, _ = parse(await editor.input_value(), "the page's editor")
    made = plan(wanted, there)
    if made.is_empty or not agreed(made):
        return made
    await editor.fill(render({**there, **made.values}))
    await page.locator(recipe.save).first.click()
    await _saved(page, recipe, made)
    await _there(page, recipe.saved, "saved", STEP)
    return made


async def _saved(page: Any, recipe: Recipe, made: Push) -> None:
    """Look until the editor is gone, or an error is there: selectors of both kinds can't be waited for as one."""
    editor, error = page.locator(recipe.editor).first, page.locator(recipe.error).first
    until = mono() + STEP
    while mono() < until:
        if await error.is_visible() and (words := (await error.inner_text()).strip()):
            raise ServiceRefused(f"the page refused: {_without(words[:200], made.values)}", hint="nothing was saved")
        if not await editor.is_visible():
            return
        await asyncio.sleep(LOOK)
    raise ServiceUnreachable("the page did not say whether it saved", hint="look at it before you try again")


async def _there(page: Any, selector: str, line: str, seconds: float) -> None:
    from playwright.async_api import TimeoutError as Late

    try:
        await page.locator(selector).first.wait_for(state="visible", timeout=seconds * 1000)
    except Late:
        raise ServiceUnreachable(
            f"{selector!r} did not appear within {seconds:.0f} s",
            hint=f"correct `{line}` in a copy of the recipe (--recipe)",
        ) from None


def _without(text: str, values: Mapping[str, Secret]) -> str:
    for value in values.values():
        text = text.replace(value.reveal(), "***")
    return text
