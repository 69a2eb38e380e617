"""How much of a gradient is chance: which samples happened to be in the batch. Measured at logged steps, where a step shows it anyway.

McCandlish et al., "An Empirical Model of Large-Batch Training", 2018 (arXiv:1812.06162), appendix A.1. The gradient of B samples is the
gradient G of all there are, plus noise of the covariance Σ / B. So two gradients of one step, that of the batch and that of a part of it
(b samples), tell both, each without bias:

    squared norm   |G|² = (B |g_B|² - b |g_b|²) / (B - b)
    variance       tr Σ = (|g_b|² - |g_B|²) / (1 / b - 1 / B)

The part costs one norm: it is the first micro-batch where a batch is cut into several, and a rank's share where ranks exchange whole
gradients (DDP). A single process that takes its batch at once, and ranks with some rows each (FSDP2), see one gradient and measure none.
One estimate says little, |G|² may even come out negative: `diagnosis/noise.py` averages both over a run before it divides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor, nn

from deftly.training import distributed
from deftly.training.parallel import Alone


class Noise(TypedDict):
    """Of the gradient at one step."""

    squared_norm: float
    """An estimate of |G|², which may be negative."""
    variance: float
    """An estimate of tr Σ, that of the gradient of a single sample."""
    samples: int
    """In the batch, over all ranks."""


class GradientNoise:
    """`begin` a step, `see` its first micro-batch, `measure` when the norm of the whole gradient is known."""

    def __init__(self, parallel: Alone) -> None:
        self.parallel = parallel
        self._part: Tensor | None = None  # squared norm of the part's share of the gradient
        self._times = 1  # how often the part goes into the batch
        self._is_on = False

    def begin(self, is_measured: bool) -> None:
        self._is_on = is_measured and not self.parallel.is_sharded
        self._part = None
        self.parallel.watch(self._is_on)

    @torch.no_grad()
    def see(self, parameters: Iterable[nn.Parameter], parts: int) -> None:
        """After the backward pass of the first of so many micro-batches. Never waits for the device."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None] if self._is_on and parts > 1 else []
        if gradients and not distributed.active():
            self._part, self._times = torch.nn.utils.get_total_norm(gradients).double().square(), parts

    def measure(self, norm: float, samples: int, scale: float = 1.0) -> Noise | None:
        """With the `norm` of the gradient of all `samples`; `scale` is what the loss was multiplied by. None where nothing is known."""
        exchanged = self.parallel.watched()
        if exchanged is not None:
            self._times = distributed.world_size()
            self._part = distributed.sum_over_ranks(exchanged) / self._times
        if self._part is None or not self._is_on:
            return None
        self._is_on = False
        return estimate(norm**2, float(self._part) * (self._times / scale) ** 2, samples, self._times)


def estimate(whole: float, part: float, samples: int, times: int) -> Noise:
    """From the squared norms of the mean gradients of all `samples` and of one of `times` equal parts of them."""
    small = samples / times
    return Noise(
        squared_norm=(samples * whole - small * part) / (samples - small),
        variance=(part - whole) / (1 / small - 1 / samples),
        samples=samples,
    )
