from __future__ import annotations

import json
from pathlib import Path

import pytest

from oxherd.errors import OxherdError
from oxherd.queue.scripts import script

CONTRACT = Path(__file__).parents[4] / "shared" / "contracts" / "bullmq.scripts.json"


def test_our_scripts_load_beside_bullmqs():
    assert script("renewLeases").numkeys == b"2"
    assert script("moveToFinished").numkeys == b"14"


def test_an_unknown_script_is_named():
    with pytest.raises(OxherdError, match="noSuchScript"):
        script("noSuchScript")


def test_the_installed_scripts_are_the_ones_whose_keys_we_know():
    if not CONTRACT.exists():
        pytest.skip("the published list of BullMQ's scripts is not beside this checkout")
    known = json.loads(CONTRACT.read_text())["scripts"]
    for name, facts in known.items():
        loaded = script(name)
        assert (loaded.sha.decode(), int(loaded.numkeys)) == (facts["sha1"], facts["numkeys"]), name
