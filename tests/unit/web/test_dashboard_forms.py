"""What the dashboard's forms bring, before it is an action."""

from __future__ import annotations

import pytest

from oxherd.web.api import ENDPOINTS
from oxherd.web.dashboard_forms import ACTIONS, BY_NAME, _good, _local, _model
from oxherd.web.problems import Problem


@pytest.mark.parametrize(
    "place",
    ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/\t/evil.example", "/act/logOut"],
)
def test_after_an_action_nobody_is_led_to_another_site(place):
    assert _local(place) == "/"


def test_after_an_action_the_page_is_the_one_it_was_asked_on():
    assert _local("/jobs?state=failed&name=a%2Fb") == "/jobs?state=failed&name=a%2Fb"


def test_a_field_with_dots_is_one_of_an_object_inside_and_empty_ones_are_left_out():
    fields = {"pattern": "0 3 * * *", "tz": "", "job.name": "report", "job.data": '{"pages": 2}'}
    body = _model(BY_NAME["putSchedule"], fields)
    assert body.model_dump(exclude_unset=True) == {
        "pattern": "0 3 * * *", "job": {"name": "report", "data": {"pages": 2}},
    }  # fmt: skip


def test_a_form_is_checked_as_the_api_checks_its_bodies():
    with pytest.raises(Problem) as caught:
        _model(BY_NAME["putSchedule"], {"job.name": "report"})
    assert caught.value.status == 422
    with pytest.raises(Problem, match="no JSON"):
        _model(BY_NAME["putSchedule"], {"job.data": "{"})


def test_what_only_reads_is_no_action():
    assert {each.name for each in ENDPOINTS if each.name in ACTIONS and each.method == "GET"} == set()
    assert {"cancelJob", "retryJob", "replayRun", "replayDeadLetters", "answerApproval"} <= ACTIONS.keys()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"ids": ["1", "2"], "gone": ["3"], "next": "x"}, "2 done, 1 were gone; there are more, do it again."),
        ({"removed": 7, "left": 0}, "7 jobs removed, 0 left."),
        ({"id": "42", "done": "waiting"}, "42: waiting."),
        ({"id": "nightly", "pattern": "0 3 * * *", "paused": True}, "nightly: done."),
        ({"pattern": "queue-age", "until": 1, "by": "", "reason": ""}, "Silenced: queue-age."),
        ({}, "It is: done."),
    ],
)
def test_what_came_of_an_action_is_told_in_words(told, words):
    assert _good(told) == words
