"""Sums and order statistics of numbers that come in chunks: exact, so that neither chunk size nor order nor merging changes a bit.

Sums are Python integers in a fixed unit. Order statistics are found digit by digit: one pass counts the leading 16 bits of every value (as
a whole number of the same order), the next pass the following 16 bits of those that start as a wanted value does. float32 takes two
passes, 64-bit types four; memory does not grow with the number of values. What the numbers mean does not belong here.

Letters: n values, m wanted ranks.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int64, UInt

CHUNK = 1 << 17  # values summed at once
_BITS = 53 - 17 - 1  # of a part of each value: CHUNK parts of so many bits add up in float64 without rounding
_UNIT = 700  # sums are whole multiples of 2^-700, squares of 2^-1400: finer than any of these
SMALLEST, LARGEST = 2.0**-200, 2.0**200  # of float64: so that neither squares nor scaling under- or overflow
_DIGIT = 16
_DIGITS = 1 << _DIGIT


def exact_sum(values: Float[np.ndarray, "n"], bound: float) -> int:
    """The sum of at most CHUNK float64 values, none beyond +-`bound`, in units of 2^-_UNIT; `values` is scratch space afterwards.

    Each round takes the leading bits of what is left, as whole numbers so small that float64 adds them exactly, and keeps the rest.
    """
    total, shift, left = 0, _UNIT, len(values) if bound else 0
    whole = np.empty_like(values)
    while left:
        if 2 * left < len(values):
            values = values[values != 0]
            whole = whole[: len(values)]
        exponent = math.frexp(bound)[1]
        values *= math.ldexp(1.0, _BITS - exponent)
        shift += exponent - _BITS
        np.rint(values, out=whole)
        total += int(whole.sum()) << shift
        values -= whole
        left, bound = np.count_nonzero(values), 0.5
    return total


def exact_sum_of_squares(values: Float[np.ndarray, "n"], bound: float, is_short: bool) -> int:
    """The sum of the squares of at most CHUNK float64 values, in units of 2^(-2 _UNIT). `is_short`: they have no more bits than float32,
    so that a square is exact; otherwise each is cut into two halves (Veltkamp) whose products are."""
    if is_short:
        return exact_sum(values * values, bound * bound) << _UNIT
    scaled = values * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - values)
    low = values - high
    products = (high * high, 2 * high * low, low * low)
    return sum(exact_sum(part, max(float(part.max()), -float(part.min()))) for part in products) << _UNIT


class Sums:
    """Count, sum, sum of squares and range of one dimension."""

    def __init__(self) -> None:
        self.count = self.total = self.squares = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Any number of values, of any numeric type; they must be finite. float64 below 1e-60 counts as 0, whole numbers beyond 2^53 are
        rounded: value by value, so that nothing depends on the chunks."""
        is_short = values.dtype == np.float32
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK].astype(np.float64)
            low, high = float(part.min()), float(part.max())
            if not is_short:
                part[np.abs(part) < SMALLEST] = 0
            self.low, self.high = min(self.low, low), max(self.high, high)
            bound = max(high, -low)
            self.squares += exact_sum_of_squares(part, bound, is_short)
            self.total += exact_sum(part, bound)
            self.count += len(values[start : start + CHUNK])

    def merge(self, other: Sums) -> None:
        self.count, self.total, self.squares = self.count + other.count, self.total + other.total, self.squares + other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        """Rounded once, from the exact sum."""
        return float(Fraction(self.total, self.count << _UNIT))

    @property
    def std(self) -> float:
        """Of the population (divided by the count); rounded once before the root."""
        return math.sqrt(Fraction(self.count * self.squares - self.total**2, self.count**2 << 2 * _UNIT))


def ordered_keys(values: np.ndarray) -> UInt[np.ndarray, "n"]:
    """Unsigned whole numbers in the order of the values: 32 bits for float32, 64 for float64 and int64. -0 is 0."""
    if values.dtype.kind == "f":
        bits = (values + values.dtype.type(0)).view(np.int32 if values.itemsize == 4 else np.int64)
        bits = bits ^ ((bits >> (8 * values.itemsize - 1)) & np.iinfo(bits.dtype).max)
    else:
        bits = values.astype(np.int64)
    kind = np.uint32 if bits.itemsize == 4 else np.uint64
    return bits.view(kind) ^ kind(1 << (8 * bits.itemsize - 1))


def from_keys(keys: UInt[np.ndarray, "n"], dtype: np.dtype) -> np.ndarray:
    """The inverse of `ordered_keys`."""
    bits = (keys ^ keys.dtype.type(1 << (8 * keys.itemsize - 1))).view(np.int32 if keys.itemsize == 4 else np.int64)
    if dtype.kind != "f":
        return bits
    return (bits ^ ((bits >> (8 * keys.itemsize - 1)) & np.iinfo(bits.dtype).max)).view(dtype)


class Ranks:
    """The values at wanted ranks of one dimension: passes of `add` (and `merge`), `narrow` after each, until `found`."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.bits = 32 if dtype == np.float32 else 64
        self.known = 0  # leading bits of the wanted keys that are known
        self.prefixes = np.zeros(1, np.uint64)  # sorted
        self.counts = np.zeros((1, _DIGITS), np.int64)
        self._first = np.ones(_DIGITS, bool)  # leading digits that a wanted key can have
        self._rank, self._of_rank = np.zeros(0, np.int64), np.zeros(0, np.int64)

    @property
    def found(self) -> bool:
        return self.known == self.bits

    def add(self, values: np.ndarray) -> None:
        keys = ordered_keys(values)
        shift = keys.dtype.type(self.bits - self.known - _DIGIT)
        if not self.known:
            self.counts[0] += np.bincount((keys >> shift).astype(np.int64), minlength=_DIGITS)
            return
        keys = keys[self._first[keys >> keys.dtype.type(self.bits - _DIGIT)]]
        seen = (keys >> shift).astype(np.uint64)
        slot = np.searchsorted(self.prefixes, seen >> np.uint64(_DIGIT))
        wanted = self.prefixes[np.minimum(slot, len(self.prefixes) - 1)] == seen >> np.uint64(_DIGIT)
        digit = (seen[wanted] & np.uint64(_DIGITS - 1)).astype(np.int64)
        self.counts += np.bincount(slot[wanted] * _DIGITS + digit, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: Ranks) -> None:
        """Add the counts of another part of the values, which must be in the same pass."""
        assert self.known == other.known, "parts that are merged must be in the same pass"
        assert np.array_equal(self.prefixes, other.prefixes), "parts that are merged must look for the same ranks"
        self.counts += other.counts

    def empty(self) -> Ranks:
        """What another part starts this pass with."""
        other = Ranks(self.dtype)
        other.known, other.prefixes, other._first = self.known, self.prefixes, self._first
        other.counts = np.zeros_like(self.counts)
        return other

    def narrow(self, ranks: Int64[np.ndarray, "m"]) -> None:
        """After a pass over all values: the next digit of the value at each rank (0 is the smallest)."""
        if not self.known:
            self._rank, self._of_rank = ranks.astype(np.int64), np.zeros(len(ranks), np.int64)
        below = np.cumsum(self.counts, axis=1)
        keys = np.zeros(len(ranks), np.uint64)
        for i, slot in enumerate(self._of_rank):
            digit = int(np.searchsorted(below[slot], self._rank[i], side="right"))
            self._rank[i] -= below[slot, digit - 1] if digit else 0
            keys[i] = (self.prefixes[slot] << np.uint64(_DIGIT)) | np.uint64(digit)
        self.known += _DIGIT
        self.prefixes, self._of_rank = np.unique(keys, return_inverse=True)
        self._first = np.zeros(_DIGITS, bool)
        self._first[self.prefixes >> np.uint64(self.known - _DIGIT)] = True
        self.counts = np.zeros((0 if self.found else len(self.prefixes), _DIGITS), np.int64)

    def values(self) -> np.ndarray:
        """The value at each of the ranks, of the values' own type."""
        assert self.found, "the values are known after the last pass"
        keys = self.prefixes[self._of_rank]
        return from_keys(keys.astype(np.uint32) if self.bits == 32 else keys, self.dtype)
