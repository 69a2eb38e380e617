import numpy as np
import pytest

from deftly.data.normalize import LIMIT, NEEDED, Normalizer
from deftly.data.statistics import statistics, to_json
from deftly.types import DataError
from guards import guards


def measured(values: np.ndarray) -> dict:
    return to_json(statistics({"x": values}))["x"]


def names(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


VALUES = (np.random.default_rng(0).normal(size=(2000, 3)) * [1, 5, 0.5] + [0, 3, -1]).astype(np.float32)


@pytest.mark.parametrize("mode", list(NEEDED))
def test_unnormalize_undoes_normalize(mode):
    normalizer = Normalizer(mode, measured(VALUES), names(3), "state")
    there = normalizer.normalize(VALUES)
    assert there.dtype == np.float32
    assert np.allclose(normalizer.unnormalize(there), VALUES, atol=1e-5)
    assert normalizer.adjusted == []


def test_quantiles_go_to_the_ends_and_outliers_pass_beyond():
    normalized = Normalizer("quantile", measured(VALUES), names(3), "state").normalize(VALUES)
    assert np.allclose(np.quantile(normalized, [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3], atol=1e-4)
    assert abs(normalized).max() > 1.1


def test_the_other_modes_do_what_their_names_say():
    normalized = Normalizer("min_max", measured(VALUES), names(3), "state").normalize(VALUES)
    assert np.allclose([normalized.min(0), normalized.max(0)], [[-1] * 3, [1] * 3], atol=1e-6)
    normalized = Normalizer("mean_std", measured(VALUES), names(3), "state").normalize(VALUES)
    assert np.allclose(normalized.mean(0), 0, atol=1e-4)
    assert np.allclose(normalized.std(0), 1, atol=1e-4)
    assert np.array_equal(Normalizer("identity", {}, names(3), "state").normalize(VALUES), VALUES)


@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_a_constant_keeps_its_unit_and_is_listed(mode):
    values = VALUES.copy()
    values[:, 1] = 7.3
    normalizer = Normalizer(mode, measured(values), names(3), "state")
    normalized = normalizer.normalize(values)
    assert abs(normalized[:, 1]).max() < 1e-5
    assert np.allclose(normalizer.normalize(values + 1)[:, 1], 1, atol=1e-5)
    assert len(normalizer.adjusted) == 1
    assert "d1: constant at 7.3" in normalizer.adjusted[0]


def test_noise_of_a_dimension_that_hardly_moves_is_not_blown_up():
    values = VALUES.copy()
    values[:, 2] = 1 + 1e-4 * VALUES[:, 0]
    normalizer = Normalizer("quantile", measured(values), names(3), "state")
    assert abs(normalizer.normalize(values)[:, 2]).max() < 0.05
    assert "d2: spread" in normalizer.adjusted[0]


def test_a_gripper_that_closes_once_is_scaled_by_its_range():
    values = VALUES.copy()
    values[:, 0] = 0
    values[:5, 0] = 1
    normalizer = Normalizer("quantile", measured(values), names(3), "action")
    assert set(normalizer.normalize(values)[:, 0].tolist()) == {-1.0, 1.0}
    assert "d0: rarely moves" in normalizer.adjusted[0]


@guards("data.normalize.missing", "data.normalize.statistic", "data.normalize.negative")
def test_missing_misshapen_or_broken_statistics_are_hard_errors():
    good = measured(VALUES)
    for damage, message in (
        ({"q99": None}, "not a list|finite"),
        ({"q99": [1.0, 2.0]}, "3 finite numbers"),
        ({"q99": [1.0, float("nan"), 2.0]}, "finite"),
        ({"q99": "many"}, "not a list of numbers"),
        ({"q99": [-100.0] * 3}, "'d0' has a negative spread"),
    ):
        with pytest.raises(DataError, match=message):
            Normalizer("quantile", {**good, **damage}, names(3), "state")
    with pytest.raises(DataError, match="'q01' is missing"):
        Normalizer("quantile", {name: value for name, value in good.items() if name != "q01"}, names(3), "state")


def test_a_robot_without_state_has_nothing_to_normalise():
    normalizer = Normalizer("quantile", {}, [], "observation.state")
    assert normalizer.normalize(np.zeros((4, 0), np.float32)).shape == (4, 0)
    assert normalizer.unnormalize(np.zeros((4, 0), np.float32)).shape == (4, 0)


@guards("data.normalize.outlier")
@pytest.mark.parametrize("value", [1e30, -1e30, 1e5])
@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_an_outlier_is_told_under_quantiles_and_refused_where_it_would_decide(mode, value):
    """D13."""
    values = np.random.default_rng(1).uniform(-1, 1, size=(1 << 17, 2)).astype(np.float32)
    before = measured(values)
    values[77, 1] = value
    after = measured(values)
    if mode != "quantile":
        with pytest.raises(DataError, match=r"'x': d1: reaches .* use quantile, or repair it") as caught:
            Normalizer(mode, after, names(2), "x")
        assert "\n" not in str(caught.value)
        return
    clean, found = Normalizer(mode, before, names(2), "x"), Normalizer(mode, after, names(2), "x")
    assert abs(clean.scale - found.scale).max() < 3e-5, "one value in 131 072 moves a quantile by one in 131 072"
    assert clean.adjusted == []
    assert "outliers are kept" in found.adjusted[0]
    assert len(found.adjusted) == 1


def test_one_outlier_in_two_million_moves_no_quantile_by_a_millionth():
    values = np.random.default_rng(2).uniform(0, 1, size=1 << 21).astype(np.float32)
    before = measured(values)
    values[5] = 1e30
    after = measured(values)
    assert max(abs(after[name][0] - before[name][0]) for name in ("q01", "q10", "q50", "q90", "q99")) < 1e-6


def test_denormal_numbers_are_no_outliers_and_divide_nothing():
    values = VALUES.copy()
    values[:, 1] = 0
    values[3, 1] = 1e-40
    for mode in NEEDED:
        normalized = Normalizer(mode, measured(values), names(3), "x").normalize(values)
        assert abs(normalized[:, 1]).max() < 1e-3


@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_a_dimension_that_hardly_moves_stays_within_the_limit(mode):
    """D15: noise of 1e-6 and one excursion, beside dimensions that move."""
    values = VALUES.copy()
    values[:, 1] = 1 + 1e-6 * VALUES[:, 0]
    values[9, 1] = 2.5
    normalizer = Normalizer(mode, measured(values), names(3), "x")
    assert abs(normalizer.normalize(values)[:, 1]).max() <= LIMIT * (1 + 1e-5)
    assert abs(normalizer.normalize(values)[10:, 1]).max() < 1.5


def test_an_outlier_in_a_constant_dimension_leaves_it_constant():
    values = VALUES.copy()
    values[:, 1] = 0.5
    values[3, 1] = 1e30
    normalizer = Normalizer("quantile", measured(values), names(3), "x")
    assert normalizer.scale[1] == 1
    assert abs(normalizer.normalize(values)[4:, 1]).max() == 0
    assert normalizer.scale[0] == Normalizer("quantile", measured(VALUES), names(3), "x").scale[0]
