"""The short form of `make kills`: workers die in the middle of agents' calls, and the bill is the ledger."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_bill_is_the_ledger_after_kills_at_random_moments():
    command = [
        sys.executable,
        "-m",
        "bench.kills.run",
        "--kills",
        "15",
        "--seed",
        "11",
        "--workers",
        "2",
        "--pause",
        "0.3",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "the books balance" in done.stdout
