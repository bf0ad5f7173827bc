from __future__ import annotations

from oxherd.job import Job
from oxherd.queue.keys import Keys
from oxherd.queue.turns import TurnOptions, Turns

PLAIN = Job("1", "work", b'{"a": 1}', {}, "token")
TENANTS = Job("1", "work", b'{"tenant": "a"}', {}, "token")


def test_without_rules_nothing_is_said_about_turns():
    options = TurnOptions(Keys("q"), None)
    assert not options.learn(TENANTS)
    assert options(ended="1") == {}
    assert not options.limited


def test_turns_cost_nothing_until_a_tenant_is_met():
    options = TurnOptions(Keys("q"), Turns())
    assert not options.learn(PLAIN)
    before = options(ended="1")["turns"]
    assert (before["tenants"], "ended" in before, before["turns"]) == (False, False, "oxherd:bull:q:turns")
    assert options.learn(TENANTS)
    assert not options.learn(TENANTS), "what was packed is outdated only once"
    after = options(ended="1")["turns"]
    assert (after["tenants"], after["ended"]) == (True, "1")


def test_a_limit_counts_from_the_first_job_on():
    options = TurnOptions(Keys("q"), Turns(3))
    assert options.limited
    assert options(look=True)["turns"].items() >= {"tenants": True, "limit": 3, "look": True}.items()
