"""Statistics of numeric columns, exact and over the whole selection; of images, from a declared sample. Nothing is decoded here.

Quantiles are those of all selected rows together, not an envelope of per-episode ones. Columns are read in chunks, never as a whole, and
the result is the same to the last bit however they are cut, sharded and merged (`exact.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Num

from deftly.data.exact import CHUNK, LARGEST, Ranks, Sums
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
    if rows is not None and rows.dtype == bool:
        rows = np.flatnonzero(rows)
    return {name: describe(name, lambda column=column: chunks(column, rows, ranges)) for name, column in columns.items()}


def chunks(column: np.ndarray, rows: np.ndarray | None = None, ranges: Sequence[tuple[int, int]] | None = None) -> Iterator[np.ndarray]:
    """Some rows of a column (all, `rows`, or those in `ranges`), in order, at most CHUNK at a time."""
    if rows is not None:
        for start in range(0, len(rows), CHUNK):
            yield column[rows[start : start + CHUNK]]
        return
    waiting: list[np.ndarray] = []
    for begin, end in [(0, len(column))] if ranges is None else ranges:
        for start in range(begin, end, CHUNK):
            waiting.append(column[start : min(start + CHUNK, end)])
            if sum(map(len, waiting)) >= CHUNK:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def describe(feature: str, read: Callable[[], Iterable[np.ndarray]]) -> dict[str, np.ndarray]:
    """Statistics of what `read` yields, which is read once, and again for the quantiles where it does not fit into memory."""
    found = Accumulator(feature)
    while True:
        for values in read():
            found.add(values.astype(np.uint8) if values.dtype == bool else values)
        if not found.advance():
            return found.result()


class Accumulator:
    """What is known of one feature so far. `add` and `merge` in any order and any portions end in the same bits.

    ```
    one process     add, add, ... advance() -> True? add everything again, advance() -> False, result()
    many            each: add its part; then merge all into one; one.advance() -> True? each goes on with one.empty()
    ```
    The first CHUNK rows are kept as they are; only where there are more does `advance` ask for further passes (`exact.Ranks`).
    """

    def __init__(self, feature: str) -> None:
        self.feature = feature
        self._sums: list[Sums] = []
        self._dtype = np.dtype(np.float32)  # that of the first values
        self._kept: list[np.ndarray] | None = []
        self._ranks: list[Ranks] = []
        self._ordered: Float[np.ndarray, "m d"] | None = None

    @property
    def count(self) -> int:
        """Rows seen in the first pass."""
        return self._sums[0].count if self._sums else 0

    def add(self, values: Num[np.ndarray, "n *d"]) -> None:
        """More rows: [n d] or [n], floats or whole numbers; `DataError` for a value that is not finite, or beyond 64 bits with a sign."""
        if not len(values):
            return
        values = values.reshape(len(values), -1)
        if values.dtype == np.uint64 and int(values.max()) > np.iinfo(np.int64).max:  # guard: data.statistics.unsigned
            raise DataError(f"{self.feature}: {values.max()} is more than a whole number of 64 bits with a sign holds; store it as float64")
        values = values.astype(np.int64, copy=False) if values.dtype.kind in "iub" else values
        values = values.astype(np.float32) if values.dtype == np.float16 else values
        if not self._sums:
            self._sums = [Sums() for _ in range(values.shape[1])]
            self._dtype = values.dtype
        assert values.dtype == self._dtype, f"{self.feature}: {values.dtype} after {self._dtype}"
        if self._kept is not None or not self._ranks[0].known:
            self._check(values)
            for sums, column in zip(self._sums, values.T, strict=True):
                sums.add(np.ascontiguousarray(column))
        if self._kept is None:
            for ranks, column in zip(self._ranks, values.T, strict=True):
                ranks.add(np.ascontiguousarray(column))
            return
        self._kept.append(values.copy())
        if self.count > CHUNK:
            self._spill()

    def merge(self, other: Accumulator) -> None:
        """Take in what another one has seen; both must be in the same pass."""
        if not other._sums:
            return
        if not self._sums:
            self._sums, self._dtype = [Sums() for _ in other._sums], other._dtype
        for mine, theirs in zip(self._sums, other._sums, strict=True):
            mine.merge(theirs)
        if other._kept is None and self._kept is not None:
            self._ranks = [ranks.empty() for ranks in other._ranks]
            self._spill()
        for values in other._kept or ():
            if self._kept is not None:
                self._kept.append(values)
            else:
                for ranks, column in zip(self._ranks, values.T, strict=True):
                    ranks.add(np.ascontiguousarray(column))
        if other._kept is None:
            for mine, theirs in zip(self._ranks, other._ranks, strict=True):
                mine.merge(theirs)
        elif self._kept is not None and self.count > CHUNK:
            self._spill()

    def advance(self) -> bool:
        """After a pass over all values: must they be added once more?"""
        if not self.count:
            raise DataError(f"{self.feature}: no rows to take statistics of; the selection of episodes is empty")
        ranks = wanted_ranks(self.count)
        if self._kept is not None:
            columns = np.ascontiguousarray(np.concatenate(self._kept).T)  # each in one piece: a tenth faster
            columns.partition(np.unique(ranks), axis=1)
            self._ordered = columns.T[ranks].astype(np.float64) + 0.0
            return False
        for part in self._ranks:
            part.narrow(ranks)
        if not self._ranks[0].found:
            return True
        self._ordered = np.stack([part.values() for part in self._ranks], axis=1).astype(np.float64)
        return False

    def empty(self) -> Accumulator:
        """What another part starts the next pass with."""
        other = Accumulator(self.feature)
        other._dtype = self._dtype
        other._sums, other._kept, other._ranks = [Sums() for _ in self._sums], None, [ranks.empty() for ranks in self._ranks]
        return other

    def result(self) -> dict[str, np.ndarray]:
        """{min, max, mean, std, q01...q99: float64 [d]; count: int64 [1]}."""
        assert self._ordered is not None, "the result is there when advance() has returned False"
        result = {
            "min": np.array([sums.low for sums in self._sums]) + 0.0,  # no negative zero
            "max": np.array([sums.high for sums in self._sums]) + 0.0,
            "mean": np.array([sums.mean for sums in self._sums]),
            "std": np.array([sums.std for sums in self._sums]),
            "count": np.array([self.count], dtype=np.int64),
        }
        for i, (name, share) in enumerate(QUANTILES.items()):
            result[name] = between(self._ordered[2 * i], self._ordered[2 * i + 1], share * (self.count - 1) % 1.0)
        return result

    def _check(self, values: np.ndarray) -> None:
        if values.dtype.kind == "f" and not (fits := np.abs(values) < (LARGEST if values.dtype == np.float64 else np.inf)).all():
            row, dim = (int(i) for i in np.argwhere(~fits)[0])
            where = f"{self.feature}[{dim}] is {values[row, dim]} in row {self.count + row} of the selection"
            raise DataError(f"{where}; repair or leave out that episode")

    def _spill(self) -> None:
        assert self._kept is not None
        kept, self._kept = self._kept, None
        if not self._ranks:
            self._ranks = [Ranks(self._dtype) for _ in self._sums]
        for values in kept:
            for ranks, column in zip(self._ranks, values.T, strict=True):
                ranks.add(np.ascontiguousarray(column))


def wanted_ranks(count: int) -> Int64[np.ndarray, "m"]:
    """The ranks that each quantile of `count` values lies between: its lower, its upper, the next one's lower ..."""
    places = [share * (count - 1) for share in QUANTILES.values()]
    return np.array([rank for place in places for rank in (math.floor(place), min(math.floor(place) + 1, count - 1))], np.int64)


def between(low: Float[np.ndarray, "d"], high: Float[np.ndarray, "d"], share: float) -> Float[np.ndarray, "d"]:
    """Linear interpolation; from the nearer end, as numpy does, so that both ends are met exactly."""
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


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
