"""The short form of `make soak`: a few seconds of every kind of job under random faults, and books that balance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_books_balance_after_a_short_soak():
    command = [sys.executable, "-m", "bench.soak.run", "--minutes", "0.15", "--seed", "7", "--pause", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "the books balance" in done.stdout
