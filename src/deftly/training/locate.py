"""Where a step stopped being finite: in the batch, in a module's output, or in a parameter's gradient.

The step is replayed with its own micro-batches and seeds under hooks. That costs one more step, and only when one has gone wrong: the
healthy path has no hook and no check of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

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

    def __str__(self) -> str:
        parts = [f"{', '.join(self.inputs)} of the batch not finite"] if self.inputs else []
        parts += [f"first in the output of {self.module}"] if self.module else []
        parts += [f"gradient of {self.parameter}"] if self.parameter and not self.module else []
        parts += [f"samples of episodes {', '.join(map(str, self.episodes))}"] if self.episodes else []
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
        self.rows: list[int] = []

    def begins(self, *_: object) -> None:
        self.part += 1

    def finished(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            self.order.append(name)
            if self.module is None and (broken := next((t for t in tensors(output) if bool(is_bad(t).any())), None)) is not None:
                self.module, self.rows = name, self.samples(broken)

        return hook

    def samples(self, output: Tensor) -> list[int]:
        """Rows of the batch that an output's bad rows belong to; none where its first axis is not made of samples."""
        if not output.ndim or not len(output) or len(output) % self.part_size:
            return []
        each = len(output) // self.part_size
        rows = sorted({row // each for row in bad_rows(output)})
        return [self.part * self.part_size + row for row in rows]


@contextmanager
def watching(objective: nn.Module, part_size: int) -> Iterator[Watch]:
    """Hooks on every module while inside."""
    watch = Watch(part_size)
    handles = [objective.register_forward_pre_hook(watch.begins)]
    root = f"{type(objective).__name__}'s own arithmetic"
    handles += [module.register_forward_hook(watch.finished(name or root)) for name, module in objective.named_modules()]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def locate(objective: nn.Module, batch: Batch, parts: int, replay: Callable[[], object]) -> Origin:
    """Replay a step, whose `replay` leaves its gradients in the parameters, and say where it stops being finite."""
    inputs = {name: rows for name, tensor in floating(batch) if (rows := bad_rows(tensor))}
    with watching(objective, len(batch) // parts) as watch:
        replay()
    rows = sorted({row for found in inputs.values() for row in found}) or watch.rows
    return Origin(
        inputs=list(inputs),
        module=watch.module,
        parameter=first_backward(objective, watch.order),
        keys=batch.key[rows[:MOST_SAMPLES]].tolist(),
        episodes=sorted(set(batch.episode[rows].tolist()))[:MOST_SAMPLES],
    )


def first_backward(objective: nn.Module, order: list[str]) -> str | None:
    """The parameter with a gradient that is not finite whose module ran last: backward passes come to it first."""
    last = {name: position for position, name in enumerate(order)}
    bad = [
        (last.get(name.rpartition(".")[0], -1), name)
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None and distributed.any_rank(not bool(torch.isfinite(local(parameter.grad)).all()))
    ]
    return max(bad, key=lambda item: item[0])[1] if bad else None


def is_bad(tensor: Tensor) -> Tensor:
    """Not a number, or infinite. Minus infinity is what masks are made of; where it does harm, something else comes out next."""
    return torch.isnan(tensor) | (tensor == torch.inf)


def bad_rows(tensor: Tensor) -> list[int]:
    bad = is_bad(tensor)
    return torch.nonzero(bad.flatten(1).any(1) if tensor.ndim > 1 else bad)[:, 0].tolist()


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
