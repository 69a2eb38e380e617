"""The repeated blocks of a model: what is sharded, recomputed or compiled one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deftly.types import Objective, UsageError


def blocks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, block) of every item of an `nn.ModuleList` that is made of several modules and has parameters; the outermost of them."""
    inside: tuple[str, ...] = ()
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList) or name.startswith(inside):
            continue
        for number, item in enumerate(part):
            is_composite = any(True for _ in item.children()) and any(True for _ in item.parameters())
            if is_composite and not isinstance(item, nn.ModuleList | nn.ModuleDict):
                inside = (*inside, f"{name}.{number}.")
                yield f"{name}.{number}".lstrip("."), item


def recompute(objective: Objective) -> None:
    """Let every block that is trained forget what it computed, and compute it once more in the backward pass: a block's memory instead of
    all blocks', for a third more arithmetic. Gradients have the same bits, dropout included.

    Raises `UsageError` where there is no block, or where computing twice would leave a trace.
    """
    found = list(blocks(objective))
    kind = type(objective).__name__
    if not found:  # guard: training.blocks.none
        raise UsageError(
            f"training.activation_checkpointing: {kind} has no repeated blocks (items of an nn.ModuleList that are made of several "
            "modules); leave it out"
        )
    for name, block in found:
        for inner, part in block.named_modules():
            is_counting = isinstance(part, nn.modules.batchnorm._NormBase) and part.training and part.track_running_stats
            if is_counting:  # guard: training.blocks.twice
                raise UsageError(
                    f"training.activation_checkpointing: {name}.{inner} ({type(part).__name__}) would count every batch twice; freeze it, "
                    "or leave activation_checkpointing out"
                )
        # On the object, not around it: a wrapper would change the names of parameters. Bound late, so that a deep copy calls itself.
        block.forward = functools.partial(_recomputed, type(block).forward, block)


def _recomputed(forward: Callable[..., Any], block: nn.Module, *words: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *words, **named)
    # Whose generator is kept for the second pass, torch sees by the tensors in words, not by those that are named or inside of objects.
    device = next(block.parameters()).new_empty(0)

    def compute(_device: torch.Tensor, *words: Any) -> Any:
        return forward(block, *words, **named)

    return checkpoint(compute, device, *words, use_reentrant=False)


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile does not work here, in one line; None where it does. Compiles a small function to find out."""
    try:
        torch.compile(_small)(torch.ones(4, device=device))
    except Exception as error:  # whatever is missing: a C++ compiler, its headers, Triton
        return " ".join(str(error).split())[:160] or type(error).__name__
    return None


def _small(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + values.square()


def compile_blocks(objective: Objective) -> None:
    """Let torch.compile have every block, where it stands: names do not change."""
    for _, block in blocks(objective):
        block.compile()
