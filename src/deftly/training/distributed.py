"""What ranks tell each other. Every function is the identity when `torch.distributed` is not initialised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on each of them."""
    if active():
        dist.all_reduce(values)
    return values


def any_rank(is_so: bool) -> bool:
    """Whether it is so on any rank."""
    if not active():
        return is_so
    flag = torch.tensor(float(is_so), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    return bool(sum_over_ranks(flag))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients summed, not averaged: losses are already divided by the counts of all ranks. No gradient counts as zero."""
    if active():
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
