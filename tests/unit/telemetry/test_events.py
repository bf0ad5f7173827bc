import ast
import gc
import re
from pathlib import Path

import pytest

from oxherd.telemetry import events
from oxherd.telemetry.events import JobStalled, RedisBack, attach, catalogue, emit

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


def emitted_in(path):
    """Names of the events that a file makes to hand them to `emit`, directly or as an argument beside it."""
    names = {kind.__name__ for kind in catalogue()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and any(word(part) == "emit" for part in (node.func, *node.args)):
            yield from (word(made.func) for made in ast.walk(node) if isinstance(made, ast.Call))
    return names


def word(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_every_declared_event_is_emitted_somewhere():
    emitted = {name for path in SOURCE.rglob("*.py") for name in emitted_in(path)}
    assert not {kind.__name__ for kind in catalogue()} - emitted
