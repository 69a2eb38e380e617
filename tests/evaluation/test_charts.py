"""Positions on the report's charts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.evaluation.charts import Series, areas, curves, dot, log_ticks, number, shares, thin, ticks, twin
from deftly.evaluation.statistics import Proportion

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def test_two_series_in_different_units_have_an_axis_each():
    left, right = Series("a", [0, 10], [0.0, 1.0]), Series("b", [0, 10], [0.0, 400.0], "second")
    found = twin(left, right, 20)
    assert [line.points for line in found.lines] == ["0.00,100.00 50.00,0.00", "0.00,100.00 50.00,0.00"]
    assert (found.y_ticks[-1].label, found.right_ticks[-1].label) == ("1", "400")
    assert [line.label for line in twin(left, Series("b", [], []), 20).lines] == ["a"]
    assert [line.label for line in twin(Series("a", [1], [None]), right, 20).lines] == ["b"]
    assert twin(Series("a", [], []), Series("b", [], []), 20) is None


def test_areas_fill_the_box_in_shares_of_each_stretch():
    first, second = areas([10, 20], [[1.0, 3.0], [2.0, 2.0]])
    assert first == "0.00,75.00 50.00,75.00 50.00,50.00 100.00,50.00 100.00,100.00 50.00,100.00 50.00,100.00 0.00,100.00"
    assert second.startswith("0.00,0.00 50.00,0.00")
    assert areas([10], [[0.0, 0.0]]) == []
    assert areas([1, 2], [[0.0], [4.0]]) == ["50.00,0.00 100.00,0.00 100.00,100.00 50.00,100.00"]
    thinned = areas(range(1, 1001), [[1.0, 1.0]] * 1000, count=10)
    assert len(thinned[0].split()) == 40


def test_a_dot_stands_in_its_interval() -> None:
    found = dot("policy", Proportion(87, 100), "note", "kind")
    assert (found.at, found.text) == (87, "87/100 [79, 92]")
    assert found.low < found.at < found.low + found.width
    assert dot("none", Proportion(0, 0)).width == 100


@given(st.lists(st.tuples(st.floats(0, 1e6), numbers), min_size=1, max_size=12), st.booleans())
@settings(max_examples=60)
def test_curves_stay_in_their_box(points: list[tuple[float, float]], marked: bool) -> None:
    points = sorted(points)
    found = curves([Series("loss", [x for x, _ in points], [y for _, y in points], marked=marked)])
    assert found is not None
    places = [tuple(map(float, pair.split(","))) for pair in found.lines[0].points.split()]
    assert all(-0.01 <= x <= 100.01 and -0.01 <= y <= 100.01 for x, y in places)
    assert len(found.lines[0].marks) == (len(places) if marked else 0)
    assert found.y_ticks[0].at == pytest.approx(100)
    assert found.y_ticks[-1].at == pytest.approx(0)


def test_higher_values_stand_higher_and_the_axis_is_logarithmic_when_it_must() -> None:
    flat = curves([Series("a", [0, 1, 2], [1.0, 2.0, 3.0])])
    steep = curves([Series("a", [0, 1, 2], [0.001, 0.1, 10.0])])
    forced = curves([Series("a", [0, 1, 2], [0.001, 0.1, 10.0])], may_be_log=False)
    assert flat is not None
    assert steep is not None
    assert forced is not None
    assert (flat.is_log, steep.is_log, forced.is_log) == (False, True, False)
    for found in (flat, steep):
        heights = [float(pair.split(",")[1]) for pair in found.lines[0].points.split()]
        assert heights == sorted(heights, reverse=True)
    assert float(steep.lines[0].points.split()[1].split(",")[1]) == pytest.approx(50, abs=0.1)  # 0.1 is in the middle of 0.001 and 10


def test_what_is_no_number_is_left_out() -> None:
    assert curves([]) is None
    assert curves([Series("a", [1, 2], [None, math.nan])]) is None
    found = curves([Series("a", [1, 2, 3], [1.0, None, 2.0]), Series("b", [1], [None])])
    assert found is not None
    assert len(found.lines) == 1
    assert len(found.lines[0].points.split()) == 2


@given(numbers, numbers)
def test_ticks_reach_around_and_are_even(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    room = 1e-6 * max(abs(low), abs(high), 1)
    assert found[0] <= low + room
    assert found[-1] >= high - room


def test_logarithmic_ticks() -> None:
    assert log_ticks(0.02, 3) == pytest.approx([0.01, 0.1, 1, 10])
    assert log_ticks(1, 1) == pytest.approx([1, 10])


def test_thinning_averages() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    found = thin(points, 100)
    assert len(found) == 100
    assert {y for _, y in found} == {0.5}
    assert thin(points[:7], 100) == points[:7]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1500, "1 500"), (0.05, "0.05"), (0.0005, "0.0005"), (2.1e-5, "2.1e-5"), (1e-5, "1e-5"), (12.0, "12"), (3e7, "3e7")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_fill_the_bar() -> None:
    found = shares({"data": 1.0, "nothing": 0.0, "step": 3.0})
    assert [(item.label, item.left, item.width) for item in found] == [("data", 0, 25), ("step", 25, 75)]
    assert shares({"data": 0.0}) == []
