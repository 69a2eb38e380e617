"""The repeated blocks of a model: what is sharded, recomputed or compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


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
