"""The exponential moving average of an objective's weights: what is validated and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deftly.training.state import Buffers, check_fit, local, saved_tensors
from deftly.types import DataError


class Ema:
    """Averages of every saved parameter and floating buffer, in float32 or wider; other buffers are copied.

    A buffer that holds a non-finite number at the start is a constant (an attention mask with -inf) and is copied too: averaging
    would turn inf - inf into NaN.
    """

    def __init__(self, module: nn.Module, decay: float, not_saved: tuple[str, ...] = ()) -> None:
        self.module, self.decay, self.not_saved = module, decay, not_saved
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self.copied: set[str] = set()
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, tensor in saved_tensors(module, not_saved).items():
            wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
            self.average[name] = tensor.detach().to(wide, copy=True)
            if not tensor.is_floating_point() or (name not in parameters and not bool(torch.isfinite(tensor).all())):
                self.copied.add(name)
        self.buffers = Buffers(module, not_saved)
        self.targets = [average for name, average in self.average.items() if name in parameters]
        self.sources: list[Tensor] = [local(parameters[name]) for name in self.average if name in parameters]

    def decay_now(self) -> float:
        """min(decay, (1 + n) / (10 + n)) after n updates: the first weights are forgotten quickly."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the module's present weights."""
        weight = 1.0 - self.decay_now()
        self.updates += 1
        lerp(self.targets, self.sources, weight)
        targets, sources = [], []
        for name, buffer in zip(self.buffers.names, self.buffers.current(), strict=True):
            if name in self.copied:
                self.average[name].copy_(buffer)
            else:
                targets.append(self.average[name])
                sources.append(buffer)
        lerp(targets, sources, weight)

    def load(self, tensors: dict[str, Tensor], updates: int, where: str) -> None:
        """Restore averages that `average` gave; `DataError` when a name, a shape or a type is another, or a weight is not finite."""
        check_fit(self.average, tensors, where)
        for name, tensor in tensors.items():
            if name not in self.buffers.names and not bool(torch.isfinite(tensor).all()):  # guard: training.ema.finite
                raise DataError(f"{where}: the average {name!r} holds a non-finite number; use an earlier checkpoint")
        for name, tensor in tensors.items():
            self.average[name].copy_(tensor)
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside the `with`, and exactly its own again afterwards."""
        with torch.no_grad():
            current = saved_tensors(self.module, self.not_saved)
            own = {name: tensor.detach().clone() for name, tensor in current.items()}
            for name, tensor in current.items():
                tensor.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in current.items():
                    tensor.copy_(own[name])


def lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    """targets += weight * (sources - targets), in the targets' dtypes, in a few kernels for all of them."""
    if any(source.dtype != target.dtype for source, target in zip(sources, targets, strict=True)):
        sources = [source.to(target.dtype) for source, target in zip(sources, targets, strict=True)]
    if targets:
        torch._foreach_lerp_(targets, sources, weight)  # pyright: ignore
