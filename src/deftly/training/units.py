"""Dead units: outputs of rectifying activations (ReLU, GELU and their kin) that say the same whatever the input is.

Watched by hooks while a validation runs. An activation that is called as a function is not a module, and is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deftly.training import distributed

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
)  # fmt: skip
STILL = 1e-3  # of the widest range in the layer: the tail of a GELU is never exactly 0
LEAST_RANGE = 1e-6  # where a whole layer is dead there is nothing to compare with


class Units:
    """The lowest and the highest output of every unit of every activation module."""

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def saw(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim > 1 and output.numel():
                axis = 1 if output.ndim == 4 else output.ndim - 1  # channels of pictures, features of everything else
                others = [i for i in range(output.ndim) if i != axis]
                low, high = output.detach().amin(others), output.detach().amax(others)
                if name in self.ranges and self.ranges[name][0].shape == low.shape:
                    low, high = torch.minimum(low, self.ranges[name][0]), torch.maximum(high, self.ranges[name][1])
                self.ranges[name] = low, high

        return hook

    def combine(self) -> None:
        """The ranges over what all ranks have seen."""
        if not distributed.active():
            return
        sizes: dict[str, int] = {}
        for told in distributed.told_by_all({name: low.numel() for name, (low, _) in self.ranges.items()}):
            sizes.update(told)
        if not sizes:
            return
        own = {name: torch.stack([-low, high]).double().cpu() for name, (low, high) in self.ranges.items()}
        nothing = -torch.inf
        edges = [own.get(name, torch.full((2, size), nothing, dtype=torch.float64)) for name, size in sorted(sizes.items())]
        highest = distributed.highest_over_ranks(torch.cat(edges, dim=1)).split([sizes[name] for name in sorted(sizes)], dim=1)
        for name, (low, high) in zip(sorted(sizes), highest, strict=True):
            kind = self.ranges[name][0].dtype if name in self.ranges else torch.float32
            self.ranges[name] = -low.to(kind), high.to(kind)

    def dead(self) -> dict[str, float]:
        """Module -> share of its units that do not vary; modules without any are left out."""
        shares = {}
        for name, (low, high) in self.ranges.items():
            width = (high - low).float()
            share = float((width <= max(LEAST_RANGE, STILL * float(width.max()))).float().mean())
            if share:
                shares[name] = share
        return shares


@contextmanager
def watching_units(module: nn.Module) -> Iterator[Units]:
    """Hooks on every activation module while inside."""
    units = Units()
    handles = [part.register_forward_hook(units.saw(name)) for name, part in module.named_modules() if isinstance(part, ACTIVATIONS)]
    try:
        yield units
    finally:
        for handle in handles:
            handle.remove()
