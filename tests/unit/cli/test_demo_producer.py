from __future__ import annotations

from pathlib import Path

import pytest

from oxherd.cli import demo_producer
from oxherd.cli.demo_producer import BULLMQ, NoNode, add_with_node, prepare


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_without_node_it_says_so(programs, tmp_path):
    with pytest.raises(NoNode, match="there is no node here"):
        prepare(tmp_path / "cache")


def test_without_npm_it_says_so(programs, tmp_path):
    install(programs, "node", "exit 0")
    with pytest.raises(NoNode, match="there is no npm here"):
        prepare(tmp_path / "cache")


def test_what_is_installed_is_used_again(programs, tmp_path):
    install(programs, "node", "exit 0")
    install(programs, "npm", 'echo "$@" > installed')
    folder = prepare(tmp_path / "cache")
    assert folder == tmp_path / "cache" / f"bullmq-{BULLMQ}"
    assert f"bullmq@{BULLMQ}" in (folder / "installed").read_text()
    install(programs, "npm", "exit 1")
    assert prepare(tmp_path / "cache") == folder


def test_a_failed_install_leaves_nothing_and_gives_npms_reason(programs, tmp_path):
    install(programs, "node", "exit 0")
    install(programs, "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(NoNode, match="npm install bullmq failed: npm error code ENOTFOUND"):
        prepare(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_npm_that_hangs_is_given_up(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_producer, "INSTALL_TIMEOUT", 0.1)
    install(programs, "node", "exit 0")
    install(programs, "npm", "exec /bin/sleep 30")
    with pytest.raises(NoNode, match=r"npm took longer than 0\.1 s"):
        prepare(tmp_path / "cache")


def test_a_cache_that_cant_be_written_is_named(programs, tmp_path):
    install(programs, "node", "exit 0")
    (tmp_path / "file").write_text("")
    with pytest.raises(NoNode, match="file/cache can't be written"):
        prepare(tmp_path / "file" / "cache")


def test_nodes_own_error_is_passed_on(programs, tmp_path):
    install(programs, "node", "cat > /dev/null; echo stack >&2; echo 'connect ECONNREFUSED' >&2; exit 1")
    (programs / "cat").symlink_to("/bin/cat")
    with pytest.raises(NoNode, match="Node failed: connect ECONNREFUSED"):
        add_with_node(tmp_path, "redis://127.0.0.1:1", "queue", [])
