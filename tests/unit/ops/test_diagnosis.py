from __future__ import annotations

from pathlib import Path

import pytest

from oxherd.ops.diagnosis import EXIT_CODES, Cause, diagnose

FAILURES = sorted((Path(__file__).parent / "failures").glob("*.txt"))


def diagnosis_of(case: Path):
    head, _, rest = case.read_text().partition("--- build\n")
    build, _, rest = rest.partition("--- process\n")
    process, _, expected = rest.partition("--- diagnosis\n")
    about = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in head.splitlines())
    found = diagnose(
        about["status"].strip(),
        failed_step=about["step"].strip(),
        build=build.splitlines(),
        started=process.splitlines(),
        instances=about["instances"].split(),
    )
    return found, expected


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case.stem)
def test_a_failure_is_explained(case):
    found, expected = diagnosis_of(case)
    assert found.text + "\n" == expected


def test_every_cause_that_logs_can_tell_is_among_the_failures():
    assert {diagnosis_of(case)[0].cause for case in FAILURES} == set(Cause) - {Cause.VERIFICATION}


def test_every_cause_has_an_exit_code_and_only_the_two_stores_share_one():
    assert EXIT_CODES.keys() == set(Cause)
    assert len(set(EXIT_CODES.values())) == len(Cause) - 1


def test_colours_and_lines_in_one_message_do_not_hide_the_cause():
    found = diagnose(
        "CRASHED", build=["ok"], started=["\x1b[31mTraceback …\n\nModuleNotFoundError: No module named 'a'\x1b[0m"]
    )
    assert (found.cause, found.lines) == (Cause.IMPORT, ("Traceback …", "ModuleNotFoundError: No module named 'a'"))


def test_what_an_earlier_start_said_is_not_blamed_for_the_last_one():
    said = ["Starting Container", "ModuleNotFoundError: No module named 'a'", "Starting Container", "Killed"]
    assert diagnose("CRASHED", build=["ok"], started=said).cause is Cause.MEMORY
