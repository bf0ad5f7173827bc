"""Installs what is measured: one virtual environment per peer, one npm folder, one for the engines."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from contestants import CONTESTANTS, ENGINES, NODE_HOME, NODE_PACKAGES, PEERS, ROOT, Contestant


def uv_command() -> str:
    """A uv from the path, the Makefile's, or one of our own."""
    of_make = ROOT / ".venv-tools" / "bin" / "uv"
    if found := shutil.which("uv") or (str(of_make) if of_make.exists() else None):
        return found
    home = PEERS / "uv"
    if not (home / "bin" / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
    return str(home / "bin" / "uv")


def ready(folder: Path, wanted: list[str]) -> bool:
    stamp = folder / "installed.json"
    return stamp.exists() and json.loads(stamp.read_text()) == wanted


def install_python(folder: Path, packages: tuple[str, ...]) -> None:
    wanted = [sys.version, *packages]
    if ready(folder, wanted):
        return
    print(f"installing {', '.join(packages)}", flush=True)
    uv = uv_command()
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    (folder / "installed.json").write_text(json.dumps(wanted))


def install_node() -> None:
    wanted = list(NODE_PACKAGES)
    if ready(NODE_HOME, wanted):
        return
    print(f"installing {', '.join(wanted)}", flush=True)
    NODE_HOME.mkdir(parents=True, exist_ok=True)
    (NODE_HOME / "package.json").write_text('{"private": true}\n')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted], cwd=NODE_HOME, check=True)
    (NODE_HOME / "installed.json").write_text(json.dumps(wanted))


def install_engines() -> None:
    install_python(PEERS / "engines", ENGINES)


def install(contestant: Contestant) -> None:
    """Install one peer.

    Raises:
        FileNotFoundError: Node's command line is missing; the caller leaves that peer out.
        subprocess.CalledProcessError: A registry could not be reached or refused.
    """
    if contestant.name == "bullmq-node":
        install_node()
    elif contestant.requires:
        install_python(contestant.venv, contestant.requires)


def install_all(chosen: list[Contestant]) -> list[Contestant]:
    """Install the engines and every peer that can be had here; returns those."""
    PEERS.mkdir(exist_ok=True)
    install_engines()
    install_python(paced_producer().venv, paced_producer().requires)
    usable = []
    for contestant in chosen:
        try:
            install(contestant)
        except FileNotFoundError as error:
            print(f"left out {contestant.label}: {error.filename} is not installed", flush=True)
            continue
        usable.append(contestant)
    return usable


def paced_producer() -> Contestant:
    """BullMQ for Python enqueues for every worker that speaks its protocol."""
    return next(contestant for contestant in CONTESTANTS if contestant.name == "bullmq-python")
