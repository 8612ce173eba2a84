"""Numbers read as people write them, and text that could do harm is made harmless."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.planning.expansion import Interval
from operators.report.figures import bars, count, duration, files, money, percent, plus_minus, printable, size
from operators.work.fragment import LENGTH_EDGES


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (47167, "47,167"), (999_999, "999,999"), (1e6, "1.00 M"), (12_345_678, "12.3 M"), (999.7e6, "1.00 B")],
)
def test_count_is_whole_up_to_a_million(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(812, "812 B"), (999.7, "1.00 kB"), (73.4e6, "73.4 MB"), (4.1e12, "4.10 TB")]
)
def test_size_has_three_digits(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.7, "1 min"),
        (750, "12 min 30 s"),
        (11_100, "3 h 5 min"),
        (370_800, "4 d 7 h"),
        (86_400, "1 d"),
    ],
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e12))
def test_duration_of_anything_is_short(seconds: float) -> None:
    assert len(duration(seconds)) < 20


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.0004, "0.040 %"), (0.0251, "2.5 %"), (1, "100 %")])
def test_percent_has_two_digits(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("usd", "text"), [(0.0421, "$0.042"), (3.1, "$3.10"), (1033.4, "$1,033")])
def test_money_has_cents_where_they_matter(usd: float, text: str) -> None:
    assert money(usd) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval.exactly(5.0), "exact"),
        (Interval(100.0, 97.0, 103.0), "± 3.0 %"),
        (Interval(10.0, 2.5, 40.0), "x/÷ 4.0"),
        (Interval(10.0, 0.0, 40.0), "wide"),
        (Interval(0.0, 0.0, 9.0), "none seen"),
    ],
)
def test_plus_minus_of_an_interval(interval: Interval, text: str) -> None:
    assert plus_minus(interval) == text


def test_bars_show_the_bins_in_use() -> None:
    histogram = [0] * (len(LENGTH_EDGES) + 1)
    histogram[1:5] = [1, 0, 50, 100]
    assert bars(tuple(histogram)) == "9 ▁ ▅█ 64"
    histogram[-1] = 1
    assert bars(tuple(histogram)).endswith("and more")
    assert bars(()) == ""


@given(st.text())
def test_printable_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    assert all(c.isprintable() for c in printable(text))
    printable(text).encode()


def test_printable_text_keeps_letters_of_all_scripts() -> None:
    assert printable("Zürich 東京 😀 \x1b[2J\u202e\ud800") == "Zürich 東京 😀 �[2J��"


def test_one_file_is_no_files() -> None:
    assert (files(1), files(4096)) == ("1 file", "4,096 files")


def test_size_of_infinity_is_no_error() -> None:
    assert "inf" in size(math.inf)
