"""Sums and ranks do not depend on how the values are cut, sharded and merged; not in one bit."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deftly.data.exact import Ranks, Sums, exact_sum, from_keys, ordered_keys

DRAW = np.random.default_rng(0)
UNIT = Fraction(1, 1 << 700)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLES = st.floats(min_value=-1e60, max_value=1e60).filter(lambda x: x == 0 or abs(x) > 1e-60)


def summed(values: np.ndarray) -> Sums:
    sums = Sums()
    sums.add(values)
    return sums


@given(arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_sums_of_float32_are_those_of_fractions(values):
    sums, exact = summed(values), [Fraction(float(value)) for value in values]
    assert sums.total * UNIT == sum(exact)
    assert sums.squares * UNIT**2 == sum(value**2 for value in exact)
    assert sums.mean == float(sum(exact) / len(exact))
    assert (sums.low, sums.high) == (values.min(), values.max())


@given(arrays(np.float64, st.integers(1, 20), elements=DOUBLES))
def test_sums_of_float64_are_those_of_fractions(values):
    sums, exact = summed(values), [Fraction(float(value)) for value in values]
    assert sums.total * UNIT == sum(exact)
    assert sums.squares * UNIT**2 == sum(value**2 for value in exact)
    variance = sum(value**2 for value in exact) / len(exact) - (sum(exact) / len(exact)) ** 2
    assert sums.std == math.sqrt(variance)


def test_catastrophic_cancellation_leaves_what_is_there():
    values = np.array([1e30, 1.0, -1e30, 2.0**-149], np.float32)
    assert summed(values).total * UNIT == 1 + Fraction(1, 2**149)
    assert exact_sum(np.zeros(5), 0.0) == exact_sum(np.zeros(5), 3.0) == exact_sum(np.zeros(0), 1.0) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_merged_sums_do_not_depend_on_the_cut(dtype):
    values = (DRAW.normal(size=5000) * 10.0 ** DRAW.integers(-3, 9, size=5000)).astype(dtype)
    whole = summed(values)
    for cuts in ([1], [2500], [17, 18, 4999]):
        merged = Sums()
        for part in reversed(np.split(values, cuts)):
            merged.merge(summed(part))
        assert vars(merged) == vars(whole)


@given(arrays(np.float32, st.integers(1, 30), elements=FLOATS))
def test_keys_keep_the_order_and_come_back(values):
    keys = ordered_keys(values)
    assert np.array_equal(values[np.argsort(keys, kind="stable")], np.sort(values))
    assert np.array_equal(from_keys(keys, values.dtype), values)
    assert len(set(ordered_keys(np.array([0.0, -0.0], np.float32)).tolist())) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_ranks_are_those_of_the_sorted_values_however_sharded(dtype):
    values = (DRAW.normal(size=3000) * 10.0 ** DRAW.integers(-6, 9, size=3000)).astype(dtype)
    values[:500] = values[0]  # ties
    ranks = np.array([0, 1, 29, 1500, 1501, 2999])
    found, passes = Ranks(values.dtype), 0
    while not found.found:
        passes += 1
        parts = [found.empty() for _ in range(3)]
        for part, chunk in zip(parts, np.split(values, [10, 2000]), strict=True):
            for piece in np.array_split(chunk, 4):
                part.add(piece)
        for part in parts:
            found.merge(part)
        found.narrow(ranks)
    assert np.array_equal(found.values(), np.sort(values)[ranks])
    assert found.values().dtype == values.dtype
    assert passes == values.dtype.itemsize // 2
