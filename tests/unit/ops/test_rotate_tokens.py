"""Tokens that a person makes, and what an audit's report comes to."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from pathlib import Path

import pytest
import typer.main

from fakes import railway as railways
from fakes.railway import FakeRailway
from fakes.rotating import Rotating, Says
from oxherd.cli import app
from oxherd.errors import RotationStopped, UsageError
from oxherd.ops.rotate_by_hand import BY_HAND
from oxherd.ops.rotate_known import NAMES, how_to_replace
from oxherd.ops.rotate_leaked import TIERS, Replaced, due, read_report
from oxherd.settings import TABLE, load

KEY = base64.b64encode(bytes(32)).decode()


@pytest.fixture
async def railway():
    async with FakeRailway() as fake:
        fake.deploy()
        await fake.sleep(60)
        yield fake


@pytest.mark.skipif(not railways.CONTRACT.exists(), reason=railways.ABSENT)
async def test_a_railway_token_is_made_and_revoked_by_a_person_and_proved_here(railway, tmp_path):
    name, old, new = "RAILWAY_TOKEN", railway.token, secrets.token_hex(16)
    rig = Rotating(tmp_path, {**railway.environ, "ENCRYPTION_KEY": KEY}, asyncio.sleep)
    rig.person.values = ["mistyped", new, new]
    with pytest.raises(RotationStopped, match="the new RAILWAY_TOKEN does not work: Railway refused"):
        await rig.run(name)
    rig.person.yes = False
    railway.token = new
    with pytest.raises(RotationStopped, match="waits for you to set it"):
        await rig.run(name, resume=True)
    rig.person.yes = True
    assert await rig.run(name, resume=True) == ["switch", "retire", "bury", "record"]
    assert railway.writes == []
    for value in (old, new):
        assert value not in str(rig.told)


@pytest.mark.skipif(not railways.CONTRACT.exists(), reason=railways.ABSENT)
async def test_a_token_that_somebody_forgot_to_revoke_is_found_alive(railway, tmp_path):
    rig = Rotating(tmp_path, {**railway.environ, "ENCRYPTION_KEY": KEY}, asyncio.sleep, patience=0)
    rig.person = Says(values=["another"])
    taken = railway._scope
    railway._scope = lambda request: (
        "project" if request.headers.get("Project-Access-Token") == "another" else taken(request)
    )
    with pytest.raises(RotationStopped, match="the old RAILWAY_TOKEN is still taken"):
        await rig.run("RAILWAY_TOKEN")


async def test_what_can_t_be_rotated_is_named_with_what_can(tmp_path):
    rig = Rotating(tmp_path, {"ENCRYPTION_KEY": KEY}, asyncio.sleep)
    with pytest.raises(UsageError, match=r"'PORT' is no secret that can be rotated; these are: API_READ_TOKEN, "):
        await rig.run("PORT")
    with pytest.raises(UsageError, match="no command replaces SENTRY_DSN") as refused:
        await rig.run("SENTRY_DSN")
    assert refused.value.hint.startswith("by hand: make a second client key")
    for name, needed in (("OPENROUTER_API_KEY", "OPENROUTER_MANAGEMENT_KEY"), ("DATABASE_URL", "DATABASE_URL"),
                         ("REDIS_URL", "REDIS_URL"), ("API_TOKEN", "where is the HTTP server")):  # fmt: skip
        with pytest.raises(UsageError, match=needed):
            await rig.run(name)


def test_every_secret_is_rotated_by_a_command_or_its_replacement_by_hand_is_described():
    assert {variable.name for variable in TABLE if variable.secret} == {*NAMES, *BY_HAND}
    for words in BY_HAND.values():
        for command in re.findall(r"`oxherd ([^`]+)`", words):
            assert not oxherd_has(command), command


def oxherd_has(command: str) -> str:
    """What the command line does not know of a command."""
    found, words = typer.main.get_command(app), command.split()
    while hasattr(found, "commands") and words:
        if words[0] not in found.commands:
            return words[0]
        found = found.commands[words.pop(0)]
    known = {name for each in found.params for name in each.opts}
    return next((word for word in words if word.startswith("--") and word not in known), "")


def finding(variable, *, live=None, fails=True, in_head=False, what="a secret"):
    return {
        "variable": variable, "live": live, "fails": fails, "in_head": in_head, "what": what, "fingerprint": "abc",
        "rotation": "make a new one", "first": {"path": "notes.md", "line": 3},
    }  # fmt: skip


def test_what_hands_out_others_is_rotated_first_and_what_it_hands_out_with_it():
    settings = load({"REDIS_URL": "redis://x", "ENCRYPTION_KEY": KEY, "API_TOKEN": "t" * 16, "RAILWAY_TOKEN": "r"})
    found = [
        finding("ENCRYPTION_KEY"), finding("OPENROUTER_API_KEY"), finding("DATABASE_URL", live=True),
        finding("RAILWAY_TOKEN"), finding(None, what="AWS key"), finding("SENTRY_DSN"),
        finding("SUPABASE_SERVICE_ROLE_KEY", live=False), finding("UPSTASH_API_KEY", fails=False),
    ]  # fmt: skip
    made = due(found, settings)
    assert [each.variable for each in made] == [
        "RAILWAY_TOKEN", "DATABASE_URL", "REDIS_URL", "API_TOKEN", "OPENROUTER_API_KEY", "ENCRYPTION_KEY", "",
        "SENTRY_DSN",
    ]  # fmt: skip
    by_name = {each.variable: each for each in made}
    assert by_name["REDIS_URL"].why == "RAILWAY_TOKEN hands it out"
    assert by_name["DATABASE_URL"].why == "seen in notes.md:3; it is live"
    assert by_name["DATABASE_URL"].todo == "oxherd rotate DATABASE_URL"
    assert (by_name[""].can_rotate, by_name[""].todo) == (False, "by hand: make a new one")
    assert by_name["SENTRY_DSN"].todo == how_to_replace("SENTRY_DSN")


def test_the_incident_s_page_has_the_order_in_which_a_report_s_secrets_are_replaced():
    page = (Path(__file__).parents[3] / "docs" / "incident" / "leaked-secret.md").read_text()
    rows = re.findall(r"^\| \d \| (.+?) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert named[:-1] == [name for tier in TIERS for name in tier]


def test_which_secrets_of_a_report_are_replaced_already_is_known_until_all_are(tmp_path):
    report = tmp_path / "report.json"
    report.write_text("{}")
    with pytest.raises(RotationStopped, match="is under way"):
        Replaced(tmp_path, report, resume=True)
    begun = Replaced(tmp_path, report, resume=False)
    begun.add("REDIS_URL")
    assert Replaced(tmp_path, report, resume=True).names == ["REDIS_URL"]
    assert Replaced(tmp_path, report, resume=False).names == []
    begun.remove()
    with pytest.raises(RotationStopped, match="is under way"):
        Replaced(tmp_path, report, resume=True)


def test_a_report_is_read_and_what_is_none_is_refused(tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"root": ".", "findings": [finding("API_TOKEN")]}))
    assert [each["variable"] for each in read_report(file)] == ["API_TOKEN"]
    for text in ("[]", "{}", "not json", '{"findings": [{"variable": "API_TOKEN"}]}', '{"findings": ["API_TOKEN"]}'):
        file.write_text(text)
        with pytest.raises(UsageError, match="is no report of an audit"):
            read_report(file)
    with pytest.raises(UsageError, match="can't be read"):
        read_report(tmp_path / "none")
