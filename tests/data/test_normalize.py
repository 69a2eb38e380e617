import numpy as np
import pytest

from deftly.data.normalize import NEEDED, Normalizer
from deftly.data.statistics import statistics, to_json
from deftly.types import DataError


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
