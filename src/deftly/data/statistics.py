"""Statistics of numeric columns, exact and over the whole selection; of images, from a declared sample. Nothing is decoded here.

Quantiles are those of all selected rows together, not an envelope of per-episode ones. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deftly.types import DataError

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
IMAGE_SAMPLE = 8  # frames per episode from which image statistics come, evenly spaced, every pixel of each

Statistics = dict[str, dict[str, np.ndarray]]


def statistics(
    columns: Mapping[str, np.ndarray], rows: np.ndarray | None = None, ranges: Sequence[tuple[int, int]] | None = None
) -> Statistics:
    """Statistics of each column [N d] or [N]: name -> {min, max, mean, std, q01...q99: float64 [d]; count: int64 [1]}.

    `rows` is a mask [N] or row numbers, `ranges` are half-open row ranges (episodes); all rows without either. Quantiles interpolate
    linearly. Raises `DataError` for an empty selection and for values that are not finite, naming column and row.
    """
    if rows is not None and ranges is not None:
        raise ValueError("give rows or ranges, not both")
    return {name: _describe(name, column, rows, ranges) for name, column in columns.items()}


def _describe(name: str, column: np.ndarray, rows: np.ndarray | None, ranges: Sequence[tuple[int, int]] | None) -> dict[str, np.ndarray]:
    if ranges is not None:
        values = np.concatenate([column[start:end] for start, end in ranges]) if ranges else column[:0]
    else:
        values = column if rows is None else column[rows]
    if not len(values):
        raise DataError(f"{name}: no rows to take statistics of; the selection of episodes is empty")
    values = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(values).all():
        row, dim = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{name}[{dim}] is {values[row, dim]} in row {row} of the selection; repair or leave out that episode")
    result = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    result["count"] = np.array([len(values)], dtype=np.int64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return result | dict(zip(QUANTILES, quantiles, strict=True))


def sample_indices(length: int) -> np.ndarray:
    """Which frames of an episode stand for it in the image statistics: int64, evenly spaced, first and last included."""
    return np.unique(np.linspace(0, length - 1, min(IMAGE_SAMPLE, length)).round().astype(np.int64))


def image_histogram(frames: np.ndarray) -> np.ndarray:
    """How often each of the 256 values occurs in each channel of uint8 [n h w 3]: int64 [3, 256]."""
    return np.stack([np.bincount(frames[..., channel].reshape(-1), minlength=256) for channel in range(3)]).astype(np.int64)


def image_statistics(histogram: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
    """Statistics on [0, 1] of the pixels that a histogram [3, 256] counts, shaped [3 1 1]; `count` is the number of sampled frames.

    Exact for the sample: mean and spread from the counts; a quantile is the smallest value that this share of the pixels does not exceed.
    """
    counts = histogram.astype(np.float64)
    total = counts.sum(1)
    if not total.all():
        raise DataError("image statistics need at least one frame")
    levels = np.arange(256) / 255.0
    mean = counts @ levels / total
    variance = np.array([counts[c] @ (levels - mean[c]) ** 2 / total[c] for c in range(3)])
    below = np.cumsum(histogram, axis=1)
    values = {
        "min": np.array([levels[np.flatnonzero(row)[0]] for row in histogram]),
        "max": np.array([levels[np.flatnonzero(row)[-1]] for row in histogram]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([num_frames], dtype=np.int64),
    }
    for name, share in QUANTILES.items():
        values[name] = levels[np.array([np.searchsorted(row, share * row[-1], side="left") for row in below])]
    return {name: value if name == "count" else value.reshape(3, 1, 1) for name, value in values.items()}


def to_json(values: Statistics) -> dict[str, dict[str, Any]]:
    """Nested lists, as meta/stats.json holds them."""
    return {name: {key: array.tolist() for key, array in item.items()} for name, item in values.items()}
