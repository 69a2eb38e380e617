"""The learning rate as a pure function of the step: resume has nothing to remember, and no scheduler can be one step off.

Every schedule begins with the same warm-up. With w = round(warmup_fraction * steps), step s < w has the factor (s + 1) / (w + 1), so that
the first is above zero and step w is the peak. What follows is a shape over the progress p = (s - w) / (steps - 1 - w), clamped to 1 past
the end, from the peak (1) down to a floor that the last step reaches.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import pydantic

from deftly.config import Config


class _Schedule(Config, ABC):
    warmup_fraction: float = pydantic.Field(default=0.05, ge=0, lt=1)
    """Share of all steps that the warm-up takes."""

    def factor(self, step: int, total: int) -> float:
        """What the peak learning rate is multiplied with at `step` (0-based) of `total`."""
        warmup = round(self.warmup_fraction * total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.shape(step - warmup, total - warmup)

    def check(self, total: int) -> None:
        """Raises ValueError where `total` steps are too few for it."""

    @abstractmethod
    def shape(self, step: int, total: int) -> float:
        """The factor at a step of those after the warm-up."""


class WarmupCosineConfig(_Schedule):
    """Half a cosine down to the floor: floor + (1 - floor) * (1 + cos(pi * p)) / 2."""

    kind: Literal["warmup_cosine"] = "warmup_cosine"
    floor_fraction: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""

    def shape(self, step: int, total: int) -> float:
        return _cosine(step / max(1, total - 1), self.floor_fraction)


class ConstantConfig(_Schedule):
    """The peak until the end: for a run whose length is not decided yet."""

    kind: Literal["constant"] = "constant"

    def shape(self, step: int, total: int) -> float:
        return 1.0


class WSDConfig(_Schedule):
    """Warm-up, stable, decay: the peak, and over the last steps down to the floor as 1 - sqrt(q), where q is the progress of the decay.

    One long run with a constant rate can be finished at any length by a short decay (Hu et al., "MiniCPM", 2024); the square root is the
    best of the shapes compared by Haegele et al. ("Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024).
    """

    kind: Literal["wsd"] = "wsd"
    decay_fraction: float = pydantic.Field(default=0.2, gt=0, le=1)
    """Share of all steps after the warm-up that the decay takes."""
    floor_fraction: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""

    def shape(self, step: int, total: int) -> float:
        decay = max(1, min(round(self.decay_fraction * total), total - 1))  # the first of these steps is the peak, even if it is the last
        progress = min(1.0, max(0, step - max(0, total - 1 - decay)) / decay)
        return self.floor_fraction + (1 - self.floor_fraction) * (1 - math.sqrt(progress))


class WarmRestartsConfig(_Schedule):
    """Half a cosine down to the floor, several times over, each from the peak (Loshchilov & Hutter, "SGDR", 2017)."""

    kind: Literal["warm_restarts"] = "warm_restarts"
    cycles: int = pydantic.Field(default=4, ge=1, le=100)
    """How many times it falls; the last fall ends with the last step."""
    growth: float = pydantic.Field(default=1.0, ge=1, le=10)
    """How much longer each cycle is than the one before."""
    floor_fraction: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Learning rate before each restart and of the last step, as a share of the peak."""

    def ends(self, total: int) -> list[int]:
        """The step after the last one of each cycle."""
        until = list(itertools.accumulate(self.growth**cycle for cycle in range(self.cycles)))
        return [round(total * end / until[-1]) for end in until]

    def check(self, total: int) -> None:
        ends = self.ends(total - round(self.warmup_fraction * total))
        shortest = min(end - begin for begin, end in itertools.pairwise([0, *ends]))
        if shortest < 2:  # guard: training.schedule.cycles
            raise ValueError(
                f"{self.cycles} cycles in {total} steps: the shortest has {shortest}, and from the peak to the floor it takes 2; lower "
                "schedule.cycles or schedule.growth"
            )

    def shape(self, step: int, total: int) -> float:
        ends = self.ends(total)
        begin = max([0, *(end for end in ends if end <= min(step, total - 1))])
        end = min((end for end in ends if end > step), default=total)
        return _cosine((step - begin) / max(1, end - begin - 1), self.floor_fraction)


ScheduleConfig = Annotated[WarmupCosineConfig | ConstantConfig | WSDConfig | WarmRestartsConfig, pydantic.Field(discriminator="kind")]


def _cosine(progress: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
