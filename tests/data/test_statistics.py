"""Statistics are those of all the rows together."""

import tracemalloc

import numpy as np
import pytest

from deftly.data import statistics as stats
from deftly.types import DataError
from guards import guards

DRAW = np.random.default_rng(0)


def test_columns_have_their_true_statistics():
    column = DRAW.normal(3.0, 5.0, size=(501, 2)).astype(np.float32)
    found = stats.statistics({"x": column})["x"]
    values = column.astype(np.float64)
    for name, expected in {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}.items():
        assert np.allclose(found[name], expected, rtol=1e-14)
    assert np.array_equal(found["q10"], np.quantile(values, 0.1, axis=0))
    assert found["count"].tolist() == [501]
    assert tuple(found) == stats.NAMES


def test_quantiles_are_global_not_an_envelope_of_episodes():
    low, high = np.zeros((100, 1), np.float32), np.ones((1, 1), np.float32)
    found = stats.statistics({"x": np.concatenate([low, high])})["x"]
    assert found["q90"][0] == 0.0


def test_a_selection_by_mask_rows_or_ranges_is_the_same():
    column = DRAW.normal(size=(30, 3)).astype(np.float32)
    mask = np.zeros(30, bool)
    mask[5:9] = mask[20:30] = True
    expected = stats.statistics({"x": column[mask]})["x"]
    for found in (
        stats.statistics({"x": column}, rows=mask),
        stats.statistics({"x": column}, rows=np.flatnonzero(mask)),
        stats.statistics({"x": column}, ranges=[(5, 9), (20, 30)]),
    ):
        assert all(np.array_equal(found["x"][name], expected[name]) for name in stats.NAMES)


def test_whole_numbers_are_summed_exactly():
    column = np.array([2**53, 2**53 + 2], dtype=np.int64)
    assert stats.statistics({"x": column})["x"]["mean"][0] == 2**53 + 1


@guards("data.statistics.unsigned")
def test_unsigned_numbers_that_do_not_fit_are_refused():
    fits = np.array([0, 2**63 - 1], np.uint64)
    assert stats.statistics({"a": fits})["a"]["max"] == 2.0**63
    with pytest.raises(DataError, match="a: 9223372036854775808 is more than"):
        stats.statistics({"a": fits + np.uint64(1)})


def test_many_half_precision_numbers_have_statistics():
    values = np.random.default_rng(0).normal(size=(stats.CHUNK + 5, 1)).astype(np.float16)
    found = stats.statistics({"a": values})["a"]
    assert np.allclose(found["q99"], np.quantile(values.astype(np.float64), 0.99), rtol=1e-6)
    assert np.allclose(found["std"], values.astype(np.float64).std(), rtol=1e-6)


def test_a_value_that_is_not_finite_is_named():
    column = np.zeros((4, 2), np.float32)
    column[2, 1] = np.nan
    with pytest.raises(DataError, match=r"action\[1\] is nan in row 2"):
        stats.statistics({"action": column})
    with pytest.raises(DataError, match="empty"):
        stats.statistics({"action": column}, ranges=[])
    with pytest.raises(ValueError, match="not both"):
        stats.statistics({"action": column}, rows=np.arange(2), ranges=[(0, 1)])


def test_sampled_frames_are_spread_over_the_episode():
    assert stats.sample_indices(1).tolist() == [0]
    assert stats.sample_indices(3).tolist() == [0, 1, 2]
    assert stats.sample_indices(1000)[[0, -1]].tolist() == [0, 999]
    assert len(stats.sample_indices(1000)) == stats.IMAGE_SAMPLE


def test_image_statistics_are_those_of_the_pixels():
    frames = DRAW.integers(0, 256, size=(3, 8, 6, 3)).astype(np.uint8)
    frames[..., 2] = 7
    found = stats.image_statistics(stats.image_histogram(frames), 3)
    pixels = frames.reshape(-1, 3) / 255.0
    assert all(found[name].shape == (3, 1, 1) for name in stats.NAMES if name != "count")
    assert found["count"].tolist() == [3]
    for name, expected in {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}.items():
        assert np.allclose(found[name].ravel(), expected, atol=1e-12)
    assert np.allclose(found["q50"].ravel(), np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"))
    with pytest.raises(DataError, match="at least one"):
        stats.image_statistics(np.zeros((3, 256), np.int64), 0)


def test_histograms_of_parts_add_up():
    frames = DRAW.integers(0, 256, size=(4, 5, 5, 3)).astype(np.uint8)
    parts = stats.image_histogram(frames[:1]) + stats.image_histogram(frames[1:])
    assert np.array_equal(parts, stats.image_histogram(frames))


def test_statistics_become_plain_lists():
    values = stats.to_json(stats.statistics({"x": np.zeros((2, 1))}))
    assert values["x"]["mean"] == [0.0]
    assert values["x"]["count"] == [2]


def shards_of(column: np.ndarray, cuts: list[int]) -> dict[str, np.ndarray]:
    """Statistics as many processes would make them."""
    parts = np.split(column, cuts)
    total = stats.Accumulator("x")
    workers = [stats.Accumulator("x") for _ in parts]
    while True:
        for worker, part in zip(workers, parts, strict=True):
            for chunk in np.array_split(part, 3):
                worker.add(chunk)
            total.merge(worker)
        if not total.advance():
            return total.result()
        workers = [total.empty() for _ in parts]


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float64])
@pytest.mark.parametrize("memory", [100, 10_000])
def test_sharding_chunks_and_memory_change_no_bit(monkeypatch, memory, dtype):
    column = (DRAW.normal(3.0, 500.0, size=(1201, 2)) * 10.0 ** DRAW.integers(-3, 4, size=(1201, 2))).astype(dtype)
    whole = stats.statistics({"x": column})["x"]
    monkeypatch.setattr(stats, "CHUNK", memory)
    for found in (stats.statistics({"x": column})["x"], shards_of(column, [40, 41, 700]), shards_of(column[::-1], [1100])):
        assert all(np.array_equal(found[name], whole[name]) for name in stats.NAMES)
    for name, share in stats.QUANTILES.items():
        assert np.array_equal(whole[name], np.quantile(column.astype(np.float64), share, axis=0)), name
    assert np.allclose(whole["std"], column.astype(np.float64).std(0), rtol=1e-12)


def test_rows_out_of_order_and_columns_of_one_dimension(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 8)
    column = DRAW.normal(size=50).astype(np.float32)
    rows = DRAW.permutation(50)[:30]
    found = stats.statistics({"x": column}, rows=rows)["x"]
    assert found["q50"][0] == np.quantile(column[rows].astype(np.float64), 0.5)
    assert found["count"].tolist() == [30]


def test_a_broken_value_far_down_is_named_by_its_row(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 8)
    column = np.zeros((40, 3), np.float32)
    column[33, 2] = np.inf
    with pytest.raises(DataError, match=r"action\[2\] is inf in row 33"):
        stats.statistics({"action": column})
    with pytest.raises(DataError, match=r"x\[0\] is 1e\+70 in row 0"):
        stats.statistics({"x": np.full(3, 1e70)})


def test_memory_does_not_grow_with_the_rows(tmp_path):
    DRAW.normal(size=(900_000, 2)).astype(np.float32).tofile(tmp_path / "x.bin")
    column = np.memmap(tmp_path / "x.bin", np.float32, mode="r", shape=(900_000, 2))
    peaks = []
    for rows in (300_000, 900_000):
        tracemalloc.start()
        stats.statistics({"x": column[:rows]})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 60 << 20
