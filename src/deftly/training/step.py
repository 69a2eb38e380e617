"""The arithmetic of one step that is not the objective's: whole-batch counts, the gradient's norm, and whether a batch will do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deftly.training import distributed
from deftly.types import Batch, Objective, UsageError


def total_counts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The counts of a whole step: summed over its micro-batches and over ranks, in one message."""
    names = list(parts[0])
    if not names:
        return {}
    sums = torch.stack([torch.stack([part[name] for name in names]) for part in parts]).sum(0) if len(parts) > 1 else None
    if sums is None and not distributed.active():
        return parts[0]
    sums = distributed.sum_over_ranks(sums if sums is not None else torch.stack([parts[0][name] for name in names]))
    return dict(zip(names, sums.unbind(), strict=True))


def clip(parameters: list[torch.nn.Parameter], most: float | None, combine: Callable[[Tensor], Tensor] = lambda norm: norm) -> Tensor:
    """The norm of the whole gradient, which is scaled down to `most` where it is longer. Never waits for the device.

    `combine` makes it from the norm of what these parameters have of it.
    """
    norm = combine(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def check_batch(objective: Objective, batch: Batch, accumulation: int) -> None:
    """What the objective reads must be there (`labels.grasp` is the label `grasp`), and the batch must divide. Raises `UsageError`."""
    kind = type(objective).__name__
    for name in objective.reads:
        field, _, key = name.partition(".")
        value = getattr(batch, field, None)
        if value is None or (isinstance(value, dict) and (key not in value if key else not value)):
            there = ", ".join(sorted(value)) if key and value else "nothing"
            raise UsageError(
                f"{kind} reads {name!r}, which the data does not give" + (f" (there is {there})" if key else "") + "; see data"
            )
    if len(batch) % accumulation:
        raise UsageError(f"a batch of {len(batch)} samples does not divide into training.accumulation {accumulation}; change one of them")
