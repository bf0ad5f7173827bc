from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from oxherd import __version__, cli, errors
from oxherd.cli import EXIT_CODES, ErrorsAsText, app
from oxherd.settings import TABLE

run = CliRunner().invoke


def app_that(body) -> typer.Typer:
    one = typer.Typer(cls=ErrorsAsText)

    @one.callback()
    def options(debug: bool = False) -> None:
        pass

    one.command("go")(body)
    return one


def every_error() -> list[type[errors.OxherdError]]:
    found, waiting = [], [errors.OxherdError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()
    return found


def test_an_error_is_a_sentence_a_hint_and_an_exit_code():
    def body():
        raise errors.RedisUnreachable("can't reach Redis", hint="is it running?")

    done = run(app_that(body), ["go"])
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr == "Error: can't reach Redis\nHint: is it running?\n"


def test_debug_shows_the_traceback_as_well():
    def body():
        raise errors.JobNotFound("no job 42")

    done = run(app_that(body), ["--debug", "go"])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("Error: no job 42\n")


def test_every_error_has_an_exit_code_of_the_table():
    assert {error.exit_code for error in every_error()} <= EXIT_CODES.keys()


# They set up all they need by themselves, or open a browser.
AT_WORK = {("demo",), ("dev",), ("drill", "run"), ("env", "open")}


def every_command(group, words=()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each command's words, with something for what it can't do without."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*words, name))
        elif (*words, name) not in AT_WORK:
            needed = [each for each in command.params if each.required]
            given = [word for each in needed for word in (*each.opts[:1] * (each.param_type_name == "option"), "1")]
            yield (*words, name), given


def test_where_nothing_is_configured_no_command_ends_with_a_fault_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = {variable.name: None for variable in TABLE}
    ends = {
        words: run(app, [*words, *given], env=nothing, input="") for words, given in every_command(get_command(app))
    }
    assert len(ends) > 70
    odd = {
        words: repr(end.exception) for words, end in ends.items() if not isinstance(end.exception, SystemExit | None)
    }
    assert odd == {}
    assert {end.exit_code for end in ends.values()} <= {0, 1, 2, 3}


def test_ctrl_c_is_130():
    def body():
        raise KeyboardInterrupt

    assert run(app_that(body), ["go"]).exit_code == 130


def test_the_help_lists_the_exit_codes_and_every_command():
    done = run(app, ["--help"])
    assert done.exit_code == 0
    for code, meaning in EXIT_CODES.items():
        assert f"{code:<5}{meaning}" in done.stdout
    for command in ("demo", "dev", "worker", "enqueue", "jobs", "gate", "db"):
        assert f"\n  {command}" in done.stdout


@pytest.mark.parametrize("command", [["demo"], ["dev"], ["worker"], ["enqueue"], ["jobs", "replay"], ["gate", "close"]])
def test_the_help_of_a_command_shows_examples(command):
    shown = run(app, [*command, "--help"]).stdout
    assert "Example" in shown
    assert f"oxherd {' '.join(command)}" in shown


def test_wrong_use_is_2():
    assert run(app, ["jobs", "show"]).exit_code == 2
    assert run(app, ["no-such-command"]).exit_code == 2
    assert run(app, ["jobs", "list", "--state", "asleep"]).exit_code == 2


def test_the_version():
    assert run(app, ["--version"]).stdout == f"oxherd {__version__}\n"


def test_shell_completion_knows_the_commands_and_the_states():
    def complete(words: str) -> str:
        environ = {
            **os.environ,
            "_OXHERD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        script = "import sys; sys.argv = ['oxherd']; from oxherd.cli import app; app(prog_name='oxherd')"
        return subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
        ).stdout

    assert {"enqueue", "worker", "jobs"} <= set(complete("oxherd ").split())
    assert "delayed" in complete("oxherd jobs list --state del")


def test_a_fault_of_ours_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def broken() -> None:
        raise TypeError("unexpected")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(sys, "argv", ["oxherd", "jobs", "list"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: TypeError: unexpected\n")
    assert "--debug" in shown


@pytest.mark.parametrize("argv", [["oxherd", "--debug", "jobs", "list"], ["oxherd", "worker"]])
def test_a_fault_of_ours_keeps_its_stack_in_a_workers_log_and_with_debug(monkeypatch, argv):
    def broken() -> None:
        raise TypeError("unexpected")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(TypeError):
        cli.main()


def test_the_command_line_imports_nothing_heavy():
    heavy = (
        "aiohttp",
        "asyncpg",
        "hiredis",
        "orjson",
        "prometheus_client",
        "pydantic",
        "rich",
        "starlette",
        "uvicorn",
        "uvloop",
    )
    script = f"import sys, oxherd.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
