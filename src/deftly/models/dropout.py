"""Dropout that costs little on a CPU, where torch draws its mask one element after the other on one core."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEVELS = 2**16  # of the random numbers: a share of dropped elements is rounded to 1 / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout`, with four elements of the mask out of each draw on a CPU (benchmarks/dropout.py).

    Draws from the default generator, as torch's does, so the same seed gives the same mask; but not the mask of torch's. Elsewhere, and
    where it is compiled, it is torch's own, which then is one fused kernel.
    """

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        dropped = round(self.p * LEVELS)
        if not self.training or not 0 < dropped < LEVELS or values.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(values)
        # `to=None` takes all 64 bits; plain `random_()` leaves out the sign, and every fourth number would come out positive
        words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        number = words.view(torch.int16)[: values.numel()].view(values.shape)
        kept = (number >= dropped - LEVELS // 2).to(values.dtype)
        return values * kept.mul_(LEVELS / (LEVELS - dropped))
