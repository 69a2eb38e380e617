"""Intervals and tests against scipy and against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deftly.evaluation.statistics import Proportion, clopper_pearson, mcnemar, wilson

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_equal_scipys(pair: tuple[int, int], confidence: float) -> None:
    k, n = pair
    reference = stats.binomtest(k, n)
    for mine, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = reference.proportion_ci(confidence, method)
        np.testing.assert_allclose(mine(k, n, confidence), (expected.low, expected.high), atol=1e-9)


@given(counts)
def test_an_interval_holds_its_rate_and_wilson_is_within_the_unit_interval(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(
    ("k", "n", "score", "exact"),
    [(10, 10, (72.2, 100), (69.2, 100)), (18, 20, (69.9, 97.2), (68.3, 98.8)), (47, 50, (83.8, 97.9), (83.5, 98.7))],
)
def test_known_intervals(k: int, n: int, score: tuple[float, float], exact: tuple[float, float]) -> None:
    assert np.round(100 * np.array(wilson(k, n)), 1).tolist() == list(score)
    assert np.round(100 * np.array(clopper_pearson(k, n)), 1).tolist() == list(exact)


def test_wilson_covers_where_the_textbook_interval_does_not() -> None:
    p, n = 0.95, 20
    chance = stats.binom.pmf(range(n + 1), n, p)
    covered = [low <= p <= high for low, high in (wilson(k, n) for k in range(n + 1))]
    assert sum(chance[covered]) > 0.92  # the interval of one standard error and a bit covers 64 % here


def test_no_episodes_say_nothing() -> None:
    assert wilson(0, 0) == (0, 1)
    assert Proportion(0, 0).rate is None
    assert str(Proportion(0, 0)) == "0/0 [0, 100]"


def test_a_proportion_has_one_text() -> None:
    proportion = Proportion(87, 100)
    assert str(proportion) == f"{proportion}" == "87/100 [79, 92]"
    with pytest.raises(TypeError):
        format(proportion, ".0%")
    assert proportion.to_dict() == {
        "successes": 87,
        "episodes": 100,
        "success_rate": 0.87,
        "wilson_low": proportion.interval.low,
        "wilson_high": proportion.interval.high,
    }
    assert Proportion.of([True, False, True]) == Proportion(2, 3)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2)])
def test_impossible_counts_are_errors(k: int, n: int) -> None:
    for function in (wilson, clopper_pearson, Proportion):
        with pytest.raises(ValueError, match="cannot be"):
            function(k, n)


def test_mcnemar_looks_at_discordant_pairs_alone() -> None:
    first = [True] * 12 + [False] * 3 + [True] * 50
    second = [False] * 12 + [True] * 3 + [True] * 50
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (12, 3)
    assert found.p_value == pytest.approx(stats.binomtest(12, 15).pvalue)
    assert mcnemar(first[:15], second[:15]) == found
    assert mcnemar([True, False], [True, False]).p_value == 1
    with pytest.raises(ValueError, match="2 and 1"):
        mcnemar([True, False], [True])


def test_mcnemar_between_equal_arms_is_seldom_surprised() -> None:
    draws = np.random.default_rng(0).random((2, 400, 60)) < 0.8
    surprises = np.mean([mcnemar(a.tolist(), b.tolist()).p_value < 0.05 for a, b in zip(*draws, strict=True)])
    assert surprises < 0.05
