from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from oxherd.errors import OxherdError
from oxherd.queue.scripts import _bullmq_commands, _file, script

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
        shipped = hashlib.sha1(_file(name).read_bytes()).hexdigest()
        assert (shipped, int(script(name).numkeys)) == (facts["sha1"], facts["numkeys"]), name


@pytest.mark.parametrize("name", sorted({path.stem.rpartition("-")[0] for path in _bullmq_commands().glob("*.lua")}))
def test_whatever_puts_a_job_into_the_wait_list_parks_it_while_the_queue_is_paused(name):
    body = script(name).body
    pushes = re.findall(rb'rcall\((?:pushCmd|"[LR]PUSH"), ([^,]+),', body)
    known_others = {b"activeKey", b"dataPointsList", b"KEYS[2]", b"KEYS[4]"}  # KEYS[4]: moveJobsToWait, not used by us
    assert set(pushes) - known_others <= {b"parked(targetKey)"}


@pytest.mark.parametrize("name", sorted({path.stem.rpartition("-")[0] for path in _bullmq_commands().glob("*.lua")}))
def test_whatever_takes_a_job_asks_whose_turn_it_is(name):
    takes = {"moveToActive", "moveToFinished", "moveToDelayed"}
    body = script(name).body
    # A job is taken where it is pushed to `active`; moveToActive has a second place, for marks of BullMQ 4.
    assert (b", activeKey" in body and b"RPOPLPUSH" in body) == (name in takes)
    assert body.count(b"if not nextInTurn(waitKey, activeKey, opts)") == (name in takes)
