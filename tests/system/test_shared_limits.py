"""Four workers find a provider's quota and share it: `bench/limits` with windows of a few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("tells", "window", "latency", "most"),
    [
        ("always", 1.5, 0.03, 0.01),
        # It takes a refusal to hear of the limit, and those on their way meanwhile are refused, too.
        ("refusals", 2.5, 0.15, 0.04),
    ],
)
def test_four_workers_use_nearly_all_of_a_quota_and_hardly_anything_is_refused(tells, window, latency, most):
    given = {"quota": 40, "window": window, "latency": latency, "tells": tells, "most": most}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.limits.run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
