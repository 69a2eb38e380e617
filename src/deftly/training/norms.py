"""How large gradients, weights and updates are, module by module: measured at logged steps, from what the step holds anyway.

Nothing is changed. The weights are copied before the optimizer's step and compared after it; the numbers reach the host in one transfer.
"""

from __future__ import annotations

import math
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MOST_GROUPS = 32  # what a person still reads
SMALLEST = torch.finfo(torch.float16).tiny  # below it float16 has fewer and fewer digits, and from 6e-8 on none
WIDE = 4  # bytes: a format this wide tells an update of a ten-millionth of the weight from none


class ModuleNorms(TypedDict):
    """Of one group of parameters. `None` stands for what is not there, or is not finite."""

    gradient: float | None
    """Norm before clipping; None where no parameter has a gradient."""
    weight: float
    """Norm before the update."""
    update: float | None
    """Norm of what the optimizer added; None where everything is frozen."""
    ratio: float | None
    """update / weight; None where the weight is 0."""
    size: int
    """Parameters, frozen ones included."""
    lost: NotRequired[float]
    """Share of the weights with a gradient that the update left as they were; of formats of 16 bits, whose steps are coarse."""
    vanished: NotRequired[float]
    """Share of the gradient, of what of it is not 0, that is too small for float16 to hold as it is; with a loss scale."""


class Norms:
    """`remember` between backward and clipping, `measure` after the optimizer's step."""

    def __init__(self, objective: nn.Module, not_saved: tuple[str, ...] = ()) -> None:
        self.groups = group(objective, not_saved)
        self.parameters = [parameter for members in self.groups.values() for parameter in members]
        self._gradients: list[Tensor] = []
        self._before: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._vanished: Counts = {}

    @torch.no_grad()
    def remember(self, scale: float | None = None) -> None:
        """Gradients as they are before clipping, weights as they are before the update. Never waits for the device.

        `scale` is what the loss was multiplied by, where the backward pass was in float16.
        """
        there = [parameter for parameter in self.parameters if parameter.grad is not None]
        self._gradients = norms([parameter.grad for parameter in there if parameter.grad is not None])
        self._before = norms([parameter.detach() for parameter in self.parameters])
        self._weights = [parameter.detach().clone() for parameter in self.parameters if parameter.requires_grad]
        self._vanished = {one: counted(one.grad, one.grad.abs() < SMALLEST / scale) for one in there if scale and one.grad is not None}

    @torch.no_grad()
    def measure(self) -> dict[str, ModuleNorms]:
        """The norms of this step; forgets what was remembered."""
        learning = [parameter for parameter in self.parameters if parameter.requires_grad]
        if learning:  # in place: what is still needed of the copies is how far the weights are from them
            torch._foreach_sub_(self._weights, learning)  # pyright: ignore
        moved = zip(learning, self._weights, strict=True)
        lost = {one: counted(one.grad, move == 0) for one, move in moved if one.dtype.itemsize < WIDE and one.grad is not None}
        has_gradient = [parameter.grad is not None for parameter in self.parameters]
        values = iter(torch.stack([value.double() for value in (*self._gradients, *self._before, *norms(self._weights))]).tolist())
        gradient = [next(values) if there else None for there in has_gradient]
        weight = [next(values) for _ in self.parameters]
        update = [next(values) if parameter.requires_grad else None for parameter in self.parameters]
        found, start = {}, 0
        for name, members in self.groups.items():
            part = slice(start, start := start + len(members))
            found[name] = of_group(gradient[part], weight[part], update[part], sum(parameter.numel() for parameter in members))
            if (share := share_of(lost, members)) is not None:
                found[name]["lost"] = share
            if (share := share_of(self._vanished, members)) is not None:
                found[name]["vanished"] = share
        self._gradients, self._before, self._weights, self._vanished = [], [], [], {}
        return found


Counts = dict[nn.Parameter, Tensor]
"""[2] of each: how many elements are what is looked for, of how many."""


def counted(gradient: Tensor, is_so: Tensor) -> Tensor:
    """(elements with a gradient of which it is so, elements with a gradient), of a sharded tensor over all ranks. Does not wait."""
    there = gradient != 0
    counts = [(there & is_so).sum(), there.sum()]
    return torch.stack([count.full_tensor() if isinstance(count, DTensor) else count for count in counts])


def share_of(counts: Counts, members: list[nn.Parameter]) -> float | None:
    """Over several parameters; None where nothing was counted."""
    known = [counts[one] for one in members if one in counts]
    some, all_of_them = torch.stack(known).sum(0).tolist() if known else (0, 0)
    return some / all_of_them if all_of_them else None


def of_group(gradient: list[float | None], weight: list[float], update: list[float | None], size: int) -> ModuleNorms:
    """The norms of several tensors taken as one."""
    whole, change = together(weight), together(update)
    ratio = change / whole if change is not None and whole else None
    return ModuleNorms(gradient=together(gradient), weight=whole or 0.0, update=change, ratio=ratio, size=size)


def together(values: list[float | None] | list[float]) -> float | None:
    """The norm of tensors with these norms; None for none, and for what is not finite."""
    known = [value for value in values if value is not None]
    norm = math.hypot(*known) if known else math.nan
    return norm if math.isfinite(norm) else None


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of each, in a few kernels for all of them; of a sharded tensor, that of the whole."""
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if sharded and len(sharded) < len(tensors):  # some are too small to be cut: no kernel takes both
        return [norms([tensor])[0] for tensor in tensors]
    found = torch._foreach_norm(tensors) if tensors else []  # pyright: ignore[reportPrivateImportUsage]
    return [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in found]


def group(module: nn.Module, not_saved: tuple[str, ...] = (), most: int = MOST_GROUPS) -> dict[str, list[nn.Parameter]]:
    """The parameters by module: cut at the greatest depth of names that gives at most `most` groups, in the order of the modules."""
    prefixes = tuple(f"{name}." for name in not_saved)
    owners = [(name.split(".")[:-1] or [name], value) for name, value in module.named_parameters() if not name.startswith(prefixes)]
    deepest = max((len(owner) for owner, _ in owners), default=1)
    for depth in range(deepest, 0, -1):
        groups: dict[str, list[nn.Parameter]] = {}
        for owner, parameter in owners:
            groups.setdefault(".".join(owner[:depth]), []).append(parameter)
        if len(groups) <= most or depth == 1:
            return groups
    return {}
