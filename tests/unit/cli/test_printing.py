from __future__ import annotations

import io
import json
import time

import pytest

from oxherd.cli import printing
from oxherd.cli.printing import clock, duration, note, one_line, print_json, print_table, shortened


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch) -> Terminal:
    """Stdout from now on. No fixture: pytest's own capturing would come back after it."""
    one = Terminal()
    monkeypatch.setattr("sys.stdout", one)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return one


def test_a_piped_table_is_plain_aligned_columns(capsys):
    print_table(("id", "name"), [("1", "agent.run"), ("12345", None)])
    assert capsys.readouterr().out == "ID     NAME\n1      agent.run\n12345\n"


def test_a_piped_table_keeps_each_row_on_its_line(capsys):
    print_table(("reason",), [("two\nlines\tand a tab",)])
    assert capsys.readouterr().out.splitlines()[1] == "two lines and a tab"


def test_a_table_on_a_terminal_has_colours_and_takes_square_brackets_as_they_are(monkeypatch):
    screen = terminal(monkeypatch)
    print_table(("state", "reason"), [("failed", "[red]not markup[/red]")])
    shown = screen.getvalue()
    assert "\x1b[31m" in shown
    assert "[red]not markup[/red]" in shown


def test_json_is_one_line_for_programs_and_indented_for_people(monkeypatch):
    screen = terminal(monkeypatch)
    print_json({"a": [1]})
    assert screen.getvalue() == '{\n  "a": [\n    1\n  ]\n}\n'
    piped = io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)
    print_json({"a": [1]})
    assert piped.getvalue() == '{"a":[1]}\n'


def test_json_on_one_line_stays_there_on_a_terminal(monkeypatch):
    screen = terminal(monkeypatch)
    print_json({"a": [1]}, on_one_line=True)
    assert screen.getvalue() == '{"a":[1]}\n'


def test_json_of_what_a_database_returns(capsys):
    from decimal import Decimal

    print_json({"cost": Decimal("0.10"), "text": "ünï"})
    assert json.loads(capsys.readouterr().out) == {"cost": "0.10", "text": "ünï"}


def test_notes_go_to_stderr(capsys):
    note("for people")
    assert capsys.readouterr() == ("", "for people\n")


def test_long_text_is_cut_with_an_ellipsis():
    assert shortened("a" * 100, 10) == "aaaaaaaaa…"
    assert shortened(" a\n b ", 10) == "a b"
    assert one_line("a\r\n  b") == "a b"


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.0421, "42 ms"), (3.21, "3.2 s"), (310, "5 m 10 s")])
def test_a_duration_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_moment_of_today_is_a_time_and_another_days_has_its_date(monkeypatch):
    now = time.time()
    assert clock(int(now * 1000)) == time.strftime("%H:%M:%S", time.localtime(now))
    assert clock(86_400_000).startswith("1970-01-0")
    assert clock(None) == ""


def test_a_broken_pipe_is_left_to_the_command(monkeypatch):
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Broken())
    with pytest.raises(BrokenPipeError):
        printing.console().print("text")
