from __future__ import annotations

import pytest

from oxherd.errors import PayloadInvalid
from oxherd.queue.keys import Keys, check_job_id


def test_bullmqs_keys_are_under_its_prefix_and_ours_are_not():
    keys = Keys("agent-jobs")
    assert keys.wait == b"bull:agent-jobs:wait"
    assert keys.waiting_children == b"bull:agent-jobs:waiting-children"
    assert keys.lock("7") == b"bull:agent-jobs:7:lock"
    for ours in (keys.control, keys.cancels, keys.gate, keys.watch, keys.sweep):
        assert not ours.startswith(keys.base)


def test_a_sibling_queue_keeps_the_prefix():
    assert Keys("a", "other").sibling("b").base == b"other:b:"


@pytest.mark.parametrize("job_id", ["", "wait", "meta", "stalled-check", "a:b", "42"])
def test_job_ids_that_would_collide_are_refused(job_id):
    with pytest.raises(PayloadInvalid, match="jobId"):
        check_job_id(job_id)


def test_an_ordinary_job_id_is_taken():
    assert check_job_id("order-42") == "order-42"
