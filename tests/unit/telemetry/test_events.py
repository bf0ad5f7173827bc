import ast
import asyncio
import contextlib
import gc
import re
from pathlib import Path

import pytest

from oxherd.errors import LeaseLost, RetryLater
from oxherd.telemetry import events
from oxherd.telemetry.events import (
    JobEnded,
    JobStalled,
    RedisBack,
    StepEnded,
    StepStarted,
    attach,
    begin,
    catalogue,
    emit,
    logged_fields,
    spanning,
    trace,
)

SOURCE = Path(events.__file__).parents[1]


def test_the_catalogue_holds_each_event_once_before_and_after_a_collection():
    before = catalogue()
    gc.collect()
    assert before == catalogue()
    assert len({kind.name for kind in before}) == len(before)


def test_the_catalogue_holds_the_classes_that_the_module_exports():
    for kind in catalogue():
        assert getattr(events, kind.__name__) is kind


def test_the_catalogue_is_in_the_order_of_declaration():
    declared = re.findall(r"^class (\w+)\(Event\)", Path(events.__file__).read_text(), re.MULTILINE)
    assert [kind.__name__ for kind in catalogue()] == declared


@pytest.mark.parametrize("kind", catalogue(), ids=lambda kind: kind.name)
def test_every_event_is_named_levelled_and_documented(kind):
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", kind.name)
    assert kind.level in {"debug", "info", "warning", "error"}
    assert kind.__doc__
    assert kind.__doc__.endswith((".", ".\n    "))


def test_a_subscriber_hears_only_the_types_it_asked_for(sample):
    heard = []
    detach = attach(heard.append, JobStalled)
    emit(sample(JobStalled, id="1"))
    emit(sample(RedisBack))
    detach()
    emit(sample(JobStalled, id="2"))
    assert [event.id for event in heard] == ["1"]


def test_a_subscriber_without_types_hears_everything_once(sample):
    heard = []
    detach = attach(heard.append)
    for kind in catalogue():
        emit(sample(kind))
    detach()
    detach()  # twice is fine
    assert [type(event) for event in heard] == list(catalogue())


@pytest.fixture
def traced(sample):
    """What a tracer and a subscriber were told, in order."""
    told = []

    def tracer(event):
        told.append(("begins", event.id))
        return lambda ending: told.append(("ends", ending.id))

    stops = [trace(tracer, StepStarted), attach(lambda event: told.append((event.name, event.id)))]
    yield told
    for stop in stops:
        stop()


def test_what_begins_and_ends_is_joined_for_tracers_and_emitted(traced, sample):
    ended = begin(sample(StepStarted, id="1"))
    begin(sample(StepStarted, id="2"))
    ended(sample(StepEnded, id="1"))
    assert traced == [
        ("step.started", "1"),
        ("begins", "1"),
        ("step.started", "2"),
        ("begins", "2"),
        ("ends", "1"),
        ("step.ended", "1"),
    ]


def test_what_nobody_traces_costs_nothing_more(sample):
    assert begin(sample(StepStarted)) is emit


@pytest.mark.parametrize("faulty", [lambda _: 1 / 0, lambda _: lambda _: 1 / 0])
def test_a_tracer_s_fault_hurts_neither_the_work_nor_another_tracer(traced, sample, capsys, faulty):
    stop = trace(faulty, StepStarted)
    begin(sample(StepStarted, id="1"))(sample(StepEnded, id="1"))
    stop()
    assert traced[-2:] == [("ends", "1"), ("step.ended", "1")]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "outcome", "name"),
    [
        (None, "ok", ""),
        (ValueError("no"), "failed", "ValueError"),
        (RetryLater(1), "delayed", "RetryLater"),
        (LeaseLost("gone"), "cancelled", "LeaseLost"),
        (asyncio.CancelledError(), "cancelled", "CancelledError"),
    ],
)
def test_a_span_ends_with_how_its_block_ended(traced, sample, error, outcome, name):
    ways = []

    def ending(how):
        ways.append(how)
        return sample(StepEnded, id="1")

    with contextlib.suppress(Exception, asyncio.CancelledError), spanning(sample(StepStarted, id="1"), ending):
        if error is not None:
            raise error
    assert [(how.outcome, how.error) for how in ways] == [(outcome, name)]
    assert traced[-1] == ("step.ended", "1")


def test_fields_for_reporters_are_in_no_log_line():
    assert "work" not in logged_fields(JobEnded)
    assert "error" not in logged_fields(JobEnded)
    assert "reason" in logged_fields(JobEnded)


SAYS = {"emit", "begin", "say_ended", "spanning"}


def emitted_in(path):
    """Names of the events that a file makes to say them: in the call that does, as its argument, or to return it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        said = isinstance(node, ast.Call) and any(word(part) in SAYS for part in (node.func, *node.args))
        if said or (isinstance(node, ast.Return) and spans(tree)):
            yield from (word(made.func) for made in ast.walk(node) if isinstance(made, ast.Call))


def spans(tree):
    return any(isinstance(node, ast.Call) and word(node.func) == "spanning" for node in ast.walk(tree))


def word(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_every_declared_event_is_emitted_somewhere():
    emitted = {name for path in SOURCE.rglob("*.py") for name in emitted_in(path)}
    assert {kind.__name__ for kind in catalogue()} - emitted == set()
