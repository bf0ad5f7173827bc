"""How the dashboard writes numbers, times and money, and what its charts are made of."""

from __future__ import annotations

import pytest

from oxherd.web.dashboard_charts import HEIGHT, WIDTH, Line, bars, chart, nice
from oxherd.web.dashboard_words import NOTHING, ago, money, number, percent, pretty, size, span


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, NOTHING), (0, "0"), (0.4, "0.4 ms"), (840, "840 ms"), (2_400, "2.4 s"), (42_000, "42 s"),
        (185_000, "3 min 5 s"),
        (3_600_000, "1 h"), (9_000_000, "2 h 30 min"), (200_000_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(ms, words):
    assert span(ms) == words


def test_moments_are_told_from_now():
    now = 1_000_000_000
    assert [ago(now - away, now) for away in (500, 4_000, 300_000, 7_200_000, 3 * 86_400_000)] == [
        "now", "4 s ago", "5 min ago", "2 h ago", "3 d ago",
    ]  # fmt: skip
    assert ago(now + 300_000, now) == "in 5 min"
    assert ago(None, now) == NOTHING


def test_money_shows_cents_or_as_many_digits_as_it_takes():
    assert [money(each) for each in (0, "0.00000123", "0.0021", 0.5, "1234.5", None)] == [
        "$0", "$0.0000012", "$0.0021", "$0.50", "$1,234.50", NOTHING,
    ]  # fmt: skip


def test_what_is_not_quite_all_is_not_written_as_all():
    assert [percent(each) for each in (1.0, 0.99999, 0.995, 0.0, None)] == [
        "100 %",
        "99.99 %",
        "99.5 %",
        "0 %",
        NOTHING,
    ]


def test_large_numbers_are_short():
    assert [number(each) for each in (12, 1234, 250_000, 3_400_000, 2.5)] == ["12", "1,234", "250 k", "3.4 M", "2.50"]
    assert [size(each) for each in (12, 2048, 5 * 1024**2)] == ["12 B", "2.0 KiB", "5.0 MiB"]


def test_a_long_text_is_cut_and_says_so():
    assert pretty("x" * 20_005).endswith("… 5 more characters")
    assert pretty({"a": 1}) == '{\n  "a": 1\n}'


# -- charts


def test_a_line_goes_through_its_values_and_breaks_where_none_are_known():
    drawn = chart("T", [0, 60, 120, 180, 240], [Line("n", "good", [0, 10, None, None, 5], filled=True)], number)
    line = drawn.lines[0]
    assert line.path == f"M0.0 {HEIGHT}.0 L{WIDTH / 4} 4.0"
    assert line.dots == [(WIDTH, 77.0)]
    assert line.area.endswith(f"L{WIDTH / 4} {HEIGHT} Z")
    assert drawn.scale == ["10", "5", "0"]


def test_a_chart_says_what_it_shows_in_words_and_as_a_table():
    drawn = chart(
        "Throughput", [0, 60, 120], [Line("done", "good", [3, 9, 6]), Line("failed", "bad", [None] * 3)], number
    )
    assert drawn.summary == "Throughput. done: newest 6, most 9."
    assert drawn.rows == [["00:02", "6", NOTHING], ["00:01", "9", NOTHING], ["00:00", "3", NOTHING]]
    assert drawn.ticks == ["00:00", "00:01", "00:02"]


def test_a_chart_without_values_is_empty():
    assert chart("T", [0, 60], [Line("n", "good", [0, 0])], number).empty
    assert chart("T", [0, 60], [Line("n", "good", [None, None])], number).summary == "T. Nothing yet."


@pytest.mark.parametrize(("most", "end"), [(0, 1), (0.07, 0.08), (1, 1), (4.4, 5), (9.2, 10), (43, 50), (120, 200)])
def test_an_axis_ends_at_a_round_number_above_all_values(most, end):
    assert nice(most) == pytest.approx(end)


def test_the_longest_bar_fills_the_width():
    assert [(bar.name, bar.share) for bar in bars([4, 1], str, float)] == [("4", 100.0), ("1", 25.0)]
    assert bars([], str, float) == []
    assert bars([0], str, float)[0].share == 0.0
