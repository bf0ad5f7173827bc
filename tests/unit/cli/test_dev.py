from __future__ import annotations

import subprocess

import pytest

from oxherd.cli import dev
from oxherd.cli.demo import about, write_env
from oxherd.settings import load


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "has"),
    [
        ({}, False),
        ({"OPENROUTER_API_KEY": "sk-or-v1-x"}, True),
        ({"OPENROUTER_BASE_URL": "http://localhost:11434/v1"}, True),
        ({"OPENROUTER_BASE_URL": "https://openrouter.ai/api/v1"}, False),
    ],
)
def test_the_tiny_model_is_for_those_who_have_no_other(environ, has):
    assert dev._has_model(load(environ, needs=())) is has


def test_the_data_folder_is_ignored_by_git(folder):
    subprocess.run(["git", "init", "-q", "."], check=True)
    dev._make_home()
    (dev.HOME / "postgres.password").write_text("x")
    shown = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert shown.stdout == ""


def test_the_key_is_kept_readable_for_its_owner_alone():
    dev._make_home()
    first = dev._kept_key()
    assert dev._kept_key() == first
    assert (dev.HOME / "encryption-key").stat().st_mode & 0o777 == 0o600
    assert load({"ENCRYPTION_KEY": first}, needs=()).encryption_key is not None


def test_the_env_file_survives_the_shell_and_is_readable_for_its_owner_alone(folder):
    write_env(folder / "env", {"DATABASE_URL": "postgresql://u:a'b$c d@h/x"})
    assert (folder / "env").stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        ["/bin/sh", "-c", '. ./env; printf %s "$DATABASE_URL"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "postgresql://u:a'b$c d@h/x"


def test_without_watchfiles_it_says_so_and_runs_all_the_same(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(dev, "LOOK", 1)
    assert "pip install 'oxherd[dev]'" in dev._about_reload()
    assert next(dev._changes()) == []


def test_an_engines_address_is_shown_without_its_password():
    class Engine:
        url = "postgresql://postgres:secret@127.0.0.1:5432/postgres"

    assert about(Engine()) == "postgresql://127.0.0.1:5432/postgres"
