"""How an objective is spread over ranks. Whatever way is taken, gradients are SUMS over ranks: each rank's loss is its share of a sum that
was divided by the counts of all ranks already.

The objective itself stays what it was, with the names of its parameters; only its calls go through a wrapper.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deftly.training import distributed
from deftly.training.blocks import blocks, compile_blocks
from deftly.training.state import local
from deftly.types import Batch, Clock, Objective, Term, UsageError

Way = Literal["auto", "ddp", "fsdp"]


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

    is_sharded = False

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.loss: nn.Module = Loss(objective)

    def renew(self) -> None:
        """Other parameters learn from here on."""

    def compile(self) -> None:
        """From now on what is trained is compiled; what is validated is not."""
        self.loss.compile()

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch: whether gradients are summed over ranks in it."""
        return nullcontext()

    def held(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """What of these parameters this rank keeps and updates, in the same order."""
        return list(parameters)

    def collect(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """What this rank `held` of these, once gradients have been exchanged: with its gradients."""
        return list(parameters)

    def combine(self, norm: Tensor) -> Tensor:
        """The norm of the whole gradient, from that of what this rank holds."""
        return norm

    def piece(self, name: str) -> slice | None:
        """Which rows this rank holds of the parameter `name`, or of its moment (`exp_avg.NAME`); None: all."""
        return None

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every part of the objective may be called by itself; for validation, without gradients."""
        return nullcontext()

    def watch(self, now: bool) -> None:
        """Whether to look at the gradient that this rank adds, in the step that comes."""

    def watched(self) -> Tensor | None:
        """The squared norm of that, in double precision; None where nobody looked, or where ranks never have whole gradients."""
        return None


class Replicas(Alone):
    """Every rank has the whole objective; gradients are summed while the backward pass still computes (DDP).

    It looks for parameters without a gradient in every step, since a term may be off at some steps and a rank's data may lack what a
    parameter is for. It then also keeps its buckets as they were laid out at the start, so that a sum over more than two ranks has the
    same bits after a restart.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.inner = self.loss
        self._squares: list[Tensor] | None = None

    def compile(self) -> None:
        self.inner.compile()

    def renew(self) -> None:
        """DDP counts on the parameters that learn when it is made."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name from torch 2.13 on
            self.loss = self.wrapped = DistributedDataParallel(
                self.inner, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        self.wrapped.register_comm_hook(self, _sum)

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        return nullcontext() if now else self.wrapped.no_sync()

    def watch(self, now: bool) -> None:
        self._squares = [] if now else None

    def see(self, gradients: Tensor) -> None:
        """A bucket of them, before it is summed over ranks."""
        if self._squares is not None:
            self._squares.append(torch.linalg.vector_norm(gradients).double().square())

    def watched(self) -> Tensor | None:
        return torch.stack(self._squares).sum() if self._squares else None


def _sum(replicas, bucket):  # without annotations: torch compares them with its own classes, and these would be text
    replicas.see(bucket.buffer())
    summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()  # pyright: ignore[reportOptionalMemberAccess]
    return summed.then(lambda done: done.value()[0])


class Shards(Alone):
    """Every rank has some rows of every parameter (FSDP2); a block is put together when it computes, and its gradients are summed to
    where their rows are.

    A number has no rows: parameters without an axis stay whole on every rank. What the optimizer, the average and the checkpoint work on
    are this rank's rows as plain tensors, which share their memory with the sharded ones.
    """

    is_sharded = True

    def __init__(self, objective: Objective, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(objective)
        self.scalars = {parameter for parameter in objective.parameters() if not parameter.ndim}
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for _, block in blocks(objective):
            if not set(block.parameters()) <= self.scalars:
                fully_shard(block, mesh=mesh, ignored_params=self.scalars)
        fully_shard(self.loss, mesh=mesh, ignored_params=self.scalars)
        for part in self._parts():
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        objective.to(device)  # what is not sharded
        distributed.open_aside()
        self._held: dict[nn.Parameter, nn.Parameter] = {}
        self._pieces = {name: _piece(value) for name, value in objective.named_parameters(remove_duplicate=False)}

    def compile(self) -> None:
        compile_blocks(self.objective)

    def _parts(self) -> list[FSDPModule]:
        return [part for part in self.loss.modules() if isinstance(part, FSDPModule)]

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        self._parts()[0].set_requires_gradient_sync(now)
        return nullcontext()

    def held(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        for parameter in parameters:
            if parameter not in self._held:
                self._held[parameter] = parameter if parameter in self.scalars else nn.Parameter(local(parameter))
        return [self._held[parameter] for parameter in parameters]

    def collect(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        scalars = [parameter for parameter in parameters if parameter in self.scalars]
        if scalars:
            # Whether one has a gradient depends on the step, and so is the same on all ranks.
            there = [parameter.grad for parameter in scalars if parameter.grad is not None]
            if there:
                for gradient, summed in zip(there, distributed.sum_over_ranks(torch.stack(there)), strict=True):
                    gradient.copy_(summed)
        held = self.held(parameters)
        for parameter, mine in zip(parameters, held, strict=True):
            if mine is not parameter:
                mine.grad = None if parameter.grad is None else local(parameter.grad)
        self._whole = [mine for parameter, mine in zip(parameters, held, strict=True) if mine is parameter]
        return held

    def combine(self, norm: Tensor) -> Tensor:
        square = norm.double() ** 2
        if distributed.rank() > 0:  # every rank has the whole gradient of a scalar
            for parameter in self._whole:
                square = square if parameter.grad is None else square - parameter.grad.double() ** 2
        return distributed.sum_over_ranks(square.clamp(min=0)).sqrt().to(norm.dtype)

    def piece(self, name: str) -> slice | None:
        return self._pieces.get(name, self._pieces.get(name.partition(".")[2]))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Blocks are put together when they are called, everything else here."""
        root = self._parts()[0]
        root.unshard()
        try:
            yield
        finally:
            for part in self._parts():
                part.reshard()  # the next step must not find the weights of now


def _piece(parameter: nn.Parameter) -> slice | None:
    """The rows of a sharded parameter that are here: rows are dealt out in equal stretches, and the last ranks may have fewer or none."""
    if not isinstance(parameter, DTensor):
        return None
    size, ranks, rank = parameter.shape[0], distributed.world_size(), distributed.rank()
    each = -(-size // ranks)
    rows = slice(min(rank * each, size), min((rank + 1) * each, size))
    assert rows.stop - rows.start == len(local(parameter)), "rows are dealt out as torch.chunk does"
    return rows


def place(objective: Objective, device: torch.device, way: Way, channels_last: bool) -> Alone:
    """The objective on its device, over all ranks; call `renew` when it is known which parameters learn."""
    if distributed.active() and way == "fsdp":
        if channels_last:  # guard: training.parallel.channels_last
            raise UsageError("training.parallel fsdp cuts parameters into rows, which channels_last does not have: leave one of them out")
        return Shards(objective, device)
    objective.to(device)
    if channels_last:
        objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stub lacks this overload)
    return Replicas(objective) if distributed.active() else Alone(objective)


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
