from __future__ import annotations

import time

from oxherd.clock import mono, wall_ms
from oxherd.testing import Clock

YEAR_2030 = 1_893_456_000


def test_it_runs_like_the_real_one_until_it_is_told_otherwise(oxherd_clock):
    assert abs(wall_ms() - time.time_ns() // 1_000_000) < 1000
    assert abs(mono() - time.monotonic()) < 1


def test_a_frozen_wall_clock_moves_only_when_told(oxherd_clock):
    oxherd_clock.freeze(YEAR_2030)
    assert wall_ms() == oxherd_clock.wall_ms == YEAR_2030 * 1000
    oxherd_clock.advance(60)
    oxherd_clock.jump(-10)
    assert wall_ms() == (YEAR_2030 + 50) * 1000


def test_measured_time_runs_on_and_is_moved_by_advancing_alone(oxherd_clock):
    oxherd_clock.freeze()
    begun = mono()
    oxherd_clock.jump(3600)
    assert mono() - begun < 1000
    oxherd_clock.advance(3600)
    assert mono() - begun >= 3600


def test_the_real_clocks_are_back_in_the_end():
    with Clock() as clock:
        clock.freeze(YEAR_2030)
        clock.advance(3600)
    assert abs(wall_ms() - time.time_ns() // 1_000_000) < 1000
    assert abs(mono() - time.monotonic()) < 1
