"""How an objective is spread over ranks. Whatever way is taken, gradients are SUMS over ranks: each rank's loss is its share of a sum that
was divided by the counts of all ranks already.

The objective itself stays what it was, with the names of its parameters; only its calls go through a wrapper.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deftly.training import distributed
from deftly.types import Batch, Clock, Objective, Term, UsageError


class Loss(nn.Module):
    """An objective as what is differentiated: the loss, which alone has a graph, and its terms."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, clock: Clock, counts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Term]]:
        terms = self.objective(batch, clock, counts)
        loss = torch.stack([term.value * term.weight for term in terms.values() if term.weight]).sum()
        return loss, {name: Term(term.value.detach(), term.weight) for name, term in terms.items()}


class Alone:
    """One process."""

    def __init__(self, objective: Objective) -> None:
        self.loss: nn.Module = Loss(objective)

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch: whether gradients are summed over ranks in it."""
        return nullcontext()


class Replicas(Alone):
    """Every rank has the whole objective; gradients are summed while the backward pass still computes (DDP).

    It looks for parameters without a gradient in every step, since a term may be off at some steps and a rank's data may lack what a
    parameter is for. It then also keeps its buckets as they were laid out at the start, so that a sum over more than two ranks has the
    same bits after a restart.
    """

    def __init__(self, objective: Objective) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name from torch 2.13 on
            self.loss = self.wrapped = DistributedDataParallel(
                Loss(objective), broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        self.wrapped.register_comm_hook(None, _sum)

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        return nullcontext() if now else self.wrapped.no_sync()


def _sum(_, bucket):  # without annotations: torch compares them with its own classes, and these would be text
    summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()  # pyright: ignore[reportOptionalMemberAccess]
    return summed.then(lambda done: done.value()[0])


def spread(objective: Objective) -> Alone:
    """The objective, on its device, over all ranks. Raises `UsageError` for one that does not come apart."""
    if not distributed.active():
        return Alone(objective)
    check_comes_apart(objective)
    return Replicas(objective)


def check_comes_apart(objective: Objective) -> None:
    """Raise `UsageError` where several ranks would train something else than one does."""
    kind, ranks = type(objective).__name__, distributed.world_size()
    if not objective.decomposes:  # guard: training.parallel.decomposes
        raise UsageError(
            f"{kind} does not decompose into a sum over samples, so {ranks} processes, each with its share of the batch, would train "
            "something else; start a single one"
        )
    for name, part in objective.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:  # guard: training.parallel.batch_norm
            raise UsageError(
                f"{kind}: {name} normalises by the statistics of its batch ({type(part).__name__}), which would be those of one process's "
                "share; use GroupNorm or a frozen one, or start a single process"
            )
