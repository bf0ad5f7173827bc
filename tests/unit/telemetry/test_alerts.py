from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oxherd.telemetry.alerts import CALM, HOUR, KINDS, REPEAT, Alert, Finding, Silence, look

AGE = Finding("queue-age", "", "the next job has waited for 700 s")


class People:
    """Those who are told, and the alerts as they are kept from one look to the next."""

    def __init__(self, *silences: Silence) -> None:
        self.kept: list[Alert] = []
        self.heard: list[str] = []
        self.silences = silences
        self.deaf = False

    def look(self, now: float, *findings: Finding) -> None:
        looked = look(self.kept, findings, self.silences, now=now)
        for notice in list(looked.notices):
            if not self.deaf:
                looked.told(notice, now)
                self.heard.append(f"{notice.what} {notice.alert.key}")
        self.kept = [Alert.load(alert.dump()) for alert in looked.keep]


def test_an_alert_is_told_once_again_after_a_while_and_when_it_is_over():
    people = People()
    for minute in range(24 * 60 + 1):
        people.look(minute * 60.0, AGE)
    assert people.heard == ["fired queue-age", "again queue-age"]
    people.look(90_000.0)
    assert people.heard[2:] == ["resolved queue-age"]
    assert people.kept == []


def test_one_that_flaps_is_one_alert():
    people = People()
    for minute in range(60):
        people.look(minute * 60.0, *([AGE] if minute % 3 == 0 else []))
    assert people.heard == ["fired queue-age"]


def test_one_that_must_last_is_told_only_when_it_has():
    people = People()
    closed = Finding("gate-closed", "", "closed for a backup")
    people.look(0.0, closed)
    people.look(29 * 60.0, closed)
    assert people.heard == []
    people.look(30 * 60.0, closed)
    assert people.heard == ["fired gate-closed"]


def test_one_that_is_over_before_it_lasted_is_never_told():
    people = People()
    people.look(0.0, Finding("gate-closed", "", "x"))
    people.look(
        CALM,
    )
    assert (people.heard, people.kept) == ([], [])


def test_two_subjects_are_two_alerts():
    people = People()
    people.look(0.0, Finding("key-expiring", "a", "x"), Finding("key-expiring", "b", "x"))
    assert people.heard == ["fired key-expiring/a", "fired key-expiring/b"]


def test_one_that_gets_worse_is_told_at_once():
    people = People()
    people.look(0.0, AGE)
    people.look(60.0, Finding("queue-age", "", "x", severity="page"))
    assert people.heard == ["fired queue-age", "again queue-age"]


def test_what_is_silenced_is_told_when_the_silence_ends_if_it_still_goes_on():
    people = People(Silence("queue-*", until=HOUR))
    people.look(0.0, AGE)
    people.look(HOUR - 1, AGE)
    assert people.heard == []
    people.look(HOUR, AGE)
    assert people.heard == ["fired queue-age"]


def test_a_silence_covers_what_it_names_and_nothing_else():
    people = People(Silence("key-expiring/a", until=HOUR))
    people.look(0.0, Finding("key-expiring", "a", "x"), Finding("key-expiring", "b", "x"))
    assert people.heard == ["fired key-expiring/b"]


def test_what_nobody_could_be_told_is_told_at_the_next_look():
    people = People()
    people.deaf = True
    people.look(0.0, AGE)
    people.deaf = False
    people.look(60.0, AGE)
    assert people.heard == ["fired queue-age"]
    people.deaf = True
    people.look(60.0 + CALM)
    people.deaf = False
    people.look(120.0 + CALM)
    assert people.heard == ["fired queue-age", "resolved queue-age"]
    assert people.kept == []


@given(st.lists(st.tuples(st.integers(1, 4000), st.booleans(), st.booleans()), max_size=60))
def test_each_beginning_has_one_end_and_repeats_keep_their_distance(history):
    people, now, told = People(), 0.0, {}
    for pause, wrong, deaf in history:
        now += pause
        people.deaf = deaf
        before = len(people.heard)
        people.look(now, *([AGE] if wrong else []))
        for heard in people.heard[before:]:
            what = heard.split()[0]
            if what == "again":
                assert now - told["at"] >= REPEAT["ticket"]
            assert (what == "fired") == (told.get("open") is not True)
            told = {"open": what != "resolved", "at": now}


def test_every_kind_has_a_severity_with_a_time_to_repeat_it():
    assert all(kind.severity in REPEAT and kind.about.endswith(".") for kind in KINDS.values())
