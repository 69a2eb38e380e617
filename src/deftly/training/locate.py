"""Where a step stopped being finite: in the batch, in a module's output, or in a parameter's gradient.

The step is replayed with its own micro-batches and seeds under hooks. That costs one more step, and only when one has gone wrong: the
healthy path has no hook and no check of its own. Of several ranks each looks at its own share, before gradients are summed, and all are
told what any has found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from deftly.training import distributed
from deftly.training.state import local
from deftly.types import Batch, Tokens

MOST_SAMPLES = 16  # keys and episodes that a report lists


@dataclass(kw_only=True)
class Origin:
    """Where it began, as far as a replay shows."""

    inputs: list[str]
    """Fields of the batch that hold a number which is not finite."""
    module: str | None = None
    """The first module, in the order of execution, whose output is not finite."""
    parameter: str | None = None
    """The parameter, first in the order of the backward pass, whose gradient is not finite."""
    keys: list[int] = field(default_factory=list)
    """Of the samples that are to blame, where that can be told."""
    episodes: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    """In whose share of the batch it happened; none where there is one process."""

    def __str__(self) -> str:
        parts = [f"{', '.join(self.inputs)} of the batch not finite"] if self.inputs else []
        parts += [f"first in the output of {self.module}"] if self.module else []
        parts += [f"gradient of {self.parameter}"] if self.parameter and not self.module else []
        parts += [f"samples of episodes {', '.join(map(str, self.episodes))}"] if self.episodes else []
        parts += [f"in the share of rank {', '.join(map(str, self.ranks))}"] if self.ranks else []
        return "; ".join(parts) or "a replay of the step was finite"

    def to_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


class Watch:
    """What hooks saw during a replay."""

    def __init__(self, part_size: int) -> None:
        self.part_size = part_size
        self.part = -1
        self.order: list[str] = []
        self.module: str | None = None
        self.place = 0  # of the module in the order of execution
        self.rows: list[int] = []
        self.is_steep = False  # was a gradient not finite?
        self.steep_rows: list[int] = []
        self.handles: list[RemovableHandle] = []
        self.hooked: set[nn.Parameter] = set()

    def begins(self, *_: object) -> None:
        self.part += 1

    def finished(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            self.order.append(name)
            found = list(tensors(output))
            if self.module is None and (broken := next((t for t in found if bool(is_bad(t).any())), None)) is not None:
                self.module, self.place, self.rows = (
                    name,
                    len(self.order),
                    self.samples(bad_rows(broken), len(broken) if broken.ndim else 0),
                )
            if not torch.compiler.is_compiling():
                self.handles += [tensor.register_hook(self.flows) for tensor in found if tensor.requires_grad]
                self.learn(module.parameters(recurse=False))

        return hook

    def learn(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look at the gradients of these, before they are summed over ranks. Those of sharded ones are of other tensors, which are only
        there while their module computes."""
        for parameter in parameters:
            if parameter.requires_grad and not isinstance(parameter, DTensor) and parameter not in self.hooked:
                self.hooked.add(parameter)
                self.handles.append(parameter.register_hook(self.arrives))

    def arrives(self, gradient: Tensor) -> None:
        self.is_steep = self.is_steep or not bool(torch.isfinite(gradient).all())

    def flows(self, gradient: Tensor) -> None:
        if not self.steep_rows and gradient.ndim and not bool(torch.isfinite(gradient).all()):
            self.is_steep = True
            self.steep_rows = self.samples(rows_where(~torch.isfinite(gradient)), len(gradient))

    def samples(self, rows: Iterable[int], length: int) -> list[int]:
        """Rows of the batch that rows of a tensor of `length` belong to; none where its first axis is not made of samples."""
        if not length or length % self.part_size:
            return []
        each = length // self.part_size
        return [self.part * self.part_size + row for row in sorted({row // each for row in rows})]


@contextmanager
def watching(objective: nn.Module, part_size: int) -> Iterator[Watch]:
    """Hooks on every module, and on what gradients flow through, while inside."""
    watch = Watch(part_size)
    watch.handles.append(objective.register_forward_pre_hook(watch.begins))
    watch.learn(objective.parameters())
    root = f"{type(objective).__name__}'s own arithmetic"
    watch.handles += [module.register_forward_hook(watch.finished(name or root)) for name, module in objective.named_modules()]
    try:
        yield watch
    finally:
        for handle in watch.handles:
            handle.remove()


def locate(objective: nn.Module, batch: Batch, parts: int, replay: Callable[[], object]) -> Origin:
    """Replay a step, whose `replay` leaves its gradients in the parameters, and say where it stops being finite. All ranks at once."""
    inputs = {name: rows for name, tensor in floating(batch) if (rows := bad_rows(tensor))}
    with watching(objective, len(batch) // parts) as watch:
        replay()
    at_fault = sorted({row for found in inputs.values() for row in found})
    order, rows = 3, []  # how early on the way it was seen
    if inputs:
        order, rows = 0, at_fault
    elif watch.module is not None:
        order, rows = 1, watch.rows
    elif watch.is_steep:
        order, rows = 2, watch.steep_rows
    told = distributed.told_by_all(
        {
            "order": order,
            "inputs": list(inputs),
            "module": watch.module,
            "place": watch.place,
            "keys": batch.key[rows[:MOST_SAMPLES]].tolist(),
            "episodes": batch.episode[rows].tolist(),
        }
    )
    first = min(found["order"] for found in told)
    blamed = [found for found in told if found["order"] == first and first < 3]
    modules = sorted((found["place"], found["module"]) for found in blamed if found["module"] is not None)
    return Origin(
        inputs=list(dict.fromkeys(name for found in blamed for name in found["inputs"])),
        module=modules[0][1] if modules else None,
        parameter=first_backward(objective, watch.order),
        keys=[key for found in blamed for key in found["keys"]][:MOST_SAMPLES],
        episodes=sorted({episode for found in blamed for episode in found["episodes"]})[:MOST_SAMPLES],
        ranks=[rank for rank, found in enumerate(told) if found in blamed] if len(told) > 1 else [],
    )


def first_backward(objective: nn.Module, order: list[str]) -> str | None:
    """The parameter with a gradient that is not finite, on any rank, whose module ran last: backward passes come to it first."""
    last = {name: position for position, name in enumerate(order)}
    named = list(objective.named_parameters())
    own = [parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all()) for _, parameter in named]
    is_bad_anywhere = distributed.highest_over_ranks(torch.tensor(own, dtype=torch.int64)).tolist()
    bad = [(last.get(name.rpartition(".")[0], -1), name) for (name, _), is_so in zip(named, is_bad_anywhere, strict=True) if is_so]
    return max(bad, key=lambda item: item[0])[1] if bad else None


def samples_of_all(batch: Batch) -> tuple[list[int], Tensor]:
    """(keys, episodes) of the samples of all ranks, in the order of the whole batch."""
    told = distributed.told_by_all([batch.key.tolist(), batch.episode.tolist()])
    return [key for keys, _ in told for key in keys], torch.tensor([episode for _, episodes in told for episode in episodes])


def is_bad(tensor: Tensor) -> Tensor:
    """Not a number, or infinite. Minus infinity is what masks are made of; where it does harm, something else comes out next."""
    return torch.isnan(tensor) | (tensor == torch.inf)


def bad_rows(tensor: Tensor) -> list[int]:
    return rows_where(is_bad(tensor))


def rows_where(mask: Tensor) -> list[int]:
    """The rows in which a mask is anywhere true; none of a mask without axes."""
    return torch.nonzero(mask.flatten(1).any(1) if mask.ndim > 1 else mask)[:, 0].tolist() if mask.ndim else []


def floating(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every floating tensor of a batch, by the name of its field."""
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, dict):
            yield from ((f"{item.name}.{name}", tensor) for name, tensor in value.items() if tensor.is_floating_point())
        elif value is not None and not isinstance(value, Tokens) and value.is_floating_point():
            yield item.name, value


def tensors(value: object) -> Iterator[Tensor]:
    """Floating tensors in what a module returns: a tensor, a container of such, or an object that holds them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:  # pyright: ignore[reportAttributeAccessIssue]
            yield from tensors(getattr(value, name))
