"""What may be said about k successes in n episodes. Pure functions of counts; nothing here reads a file.

A rate is never printed alone: `Proportion` knows how many episodes stand behind it and how far it can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from scipy import special  # not scipy.stats: it takes longer to import than to evaluate an episode


class Interval(NamedTuple):
    """Bounds of a probability, as fractions."""

    low: float
    high: float


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """The score interval (Wilson, 1927): close to its nominal coverage even for small n and for rates near 0 and 1."""
    _check(successes, episodes)
    if episodes == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    # At 0 and n the bound is 0 and 1 exactly; the formula misses it by a rounding error.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return Interval(low, high)


def clopper_pearson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """The exact interval (Clopper and Pearson, 1934): never below its nominal coverage; for claims of the kind "at least x"."""
    _check(successes, episodes)
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(successes, episodes - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, episodes - successes, 1 - tail)) if successes < episodes else 1.0
    return Interval(low, high)


class Paired(NamedTuple):
    """Two arms on the same initial states: in how many episodes only one of them succeeded, and how surprising that split is."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact two-sided test: are two arms, paired by episode, equally good? Raises ValueError when they do not pair up."""
    if len(first) != len(second):
        raise ValueError(f"paired arms need the same episodes: {len(first)} and {len(second)}")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    # Twice the smaller tail of a fair coin, in whole numbers until the end.
    tail = sum(math.comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**discordant))


@dataclass(frozen=True, slots=True)
class Proportion:
    """Successes of episodes. Its text is `87/100 [79, 92]`: counts, then the Wilson 95 % interval in percent. It has no other text."""

    successes: int
    episodes: int

    def __post_init__(self) -> None:
        _check(self.successes, self.episodes)

    @property
    def interval(self) -> Interval:
        return wilson(self.successes, self.episodes)

    @property
    def rate(self) -> float | None:
        """None without episodes."""
        return self.successes / self.episodes if self.episodes else None

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.episodes} [{100 * low:.0f}, {100 * high:.0f}]"

    def to_dict(self) -> dict[str, Any]:
        """As summaries hold it; rates and bounds are fractions."""
        low, high = self.interval
        return {
            "successes": self.successes,
            "episodes": self.episodes,
            "success_rate": self.rate,
            "wilson_low": low,
            "wilson_high": high,
        }

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Proportion:
        return cls(sum(outcomes), len(outcomes))


def _check(successes: int, episodes: int) -> None:
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes cannot be")
