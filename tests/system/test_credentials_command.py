"""`oxherd credentials` as an operator uses it: in a process of its own, on a real Postgres."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable

import asyncpg
import pytest

from oxherd.settings import Secret
from oxherd.store.migrate import migrate
from oxherd.vault.crypto import Key

NOW, OLD = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))
VALUE = "sk-live-0123456789"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def url(database_url: str) -> str:
    asyncio.run(migrate(database_url))
    return database_url


@pytest.fixture
def run(url: str) -> Run:
    def call(*words: str, value: str | None = None, key: str = NOW, **variables: str):
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "ENCRYPTION_KEY": key, **variables}
        command = [sys.executable, "-m", "oxherd", "credentials", *words]
        done = subprocess.run(command, env=environ, input=value or "", capture_output=True, text=True, timeout=30)
        assert VALUE not in done.stdout + done.stderr
        return done

    return call


def read_until(terminal: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        assert select.select([terminal], [], [], 20)[0], f"it only said {said!r}"
        said += os.read(terminal, 1000)
    return said


def rows(url: str) -> list[asyncpg.Record]:
    async def ask():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch("select * from oxherd.credentials order by tenant, name")
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_a_value_from_stdin_is_kept_sealed_and_never_shown(run: Run, url: str):
    assert run("put", "stripe", "--tenant", "acme", value=f"{VALUE}\n").stdout == "kept stripe of acme\n"
    assert run("put", "stripe", "--tenant", "acme", value=VALUE).stdout == "replaced stripe of acme\n"
    (row,) = rows(url)
    assert (row["tenant"], row["name"], row["key_id"]) == ("acme", "stripe", Key.of(Secret(NOW)).id)
    assert VALUE not in str(row)
    listed = run("list").stdout.splitlines()
    assert [line.split()[:3] for line in listed] == [["TENANT", "NAME", "KEY"], ["acme", "stripe", row["key_id"]]]
    shown = json.loads(run("list", "--json").stdout)
    assert [sorted(each) for each in shown] == [["created_at", "key", "name", "tenant", "updated_at"]]


def test_a_value_may_come_from_a_file(run: Run, url: str, tmp_path):
    file = tmp_path / "key.pem"
    file.write_text(f"{VALUE}\nsecond line\n")
    assert (
        run("put", "tls", "--from-file", str(file), "--json").stdout == '{"name":"tls","tenant":null,"created":true}\n'
    )
    assert len(rows(url)) == 1
    missing = run("put", "tls", "--from-file", str(tmp_path / "none"))
    assert (missing.returncode, "No such file" in missing.stderr) == (2, True)
    file.write_bytes(b"\xff\xfe")
    assert "no UTF-8" in run("put", "tls", "--from-file", str(file)).stderr


def test_a_value_on_the_command_line_is_refused_and_not_repeated(run: Run, url: str):
    done = run("put", "stripe", VALUE, value="other")
    assert (done.returncode, rows(url)) == (2, [])
    assert "does not belong on the command line" in done.stderr


def test_on_a_terminal_the_value_is_asked_for_and_not_echoed(url: str):
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "ENCRYPTION_KEY": NOW}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "oxherd", "credentials", "put", "stripe"]
    with subprocess.Popen(
        command, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as it:
        os.close(theirs)
        said = read_until(ours, b"Value: ")  # with the blank: it is written once the echo is off
        os.write(ours, f"{VALUE}\n".encode())
        said += read_until(ours, b"kept stripe")
        assert it.wait(10) == 0
    os.close(ours)
    assert VALUE.encode() not in said
    assert len(rows(url)) == 1


@pytest.mark.parametrize("value", ["", "\n"])
def test_an_empty_value_is_refused(run: Run, url: str, value: str):
    done = run("put", "stripe", value=value)
    assert (done.returncode, "1 to 65,536 bytes" in done.stderr, rows(url)) == (2, True, [])


def test_a_removed_credential_is_gone_and_removing_it_again_is_a_problem(run: Run, url: str):
    run("put", "stripe", "--tenant", "acme", value=VALUE)
    assert run("remove", "stripe").returncode == 1
    assert run("remove", "stripe", "--tenant", "acme").stdout == "removed stripe of acme\n"
    again = run("remove", "stripe", "--tenant", "acme", "--json")
    assert (again.returncode, json.loads(again.stdout)["removed"], rows(url)) == (1, False, [])


def test_a_rewrap_moves_all_to_the_new_key_and_says_how_many(run: Run, url: str):
    for number in range(3):
        run("put", f"n{number}", "--tenant", "acme", value=VALUE, key=OLD)
    left = run("rewrap")
    assert (left.returncode, left.stdout) == (1, "0 rewrapped; 3 left that another key seals\n")
    assert Key.of(Secret(OLD)).id in left.stderr
    done = run("rewrap", ENCRYPTION_KEYS_PREVIOUS=OLD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 rewrapped\n", "3 of 3\n")
    assert {row["key_id"] for row in rows(url)} == {Key.of(Secret(NOW)).id}
    assert run("rewrap").stdout == "nothing to do: ENCRYPTION_KEY seals everything\n"


def test_what_is_missing_is_named(run: Run):
    for variable in ("ENCRYPTION_KEY", "DATABASE_URL"):
        done = run("list", **{variable: ""})
        assert (done.returncode, variable in done.stderr) == (2, True)
