"""Short leases, so that a dead worker's jobs come back within a test's patience."""

from __future__ import annotations

import os
from dataclasses import replace

import oxherd.app

LOCK_MS = int(os.environ["LOCK_MS"])
of_settings = oxherd.app.limits_of


def limits_of(settings):
    return replace(of_settings(settings), lock_ms=LOCK_MS, stalled_interval=0.5)


oxherd.app.limits_of = limits_of
