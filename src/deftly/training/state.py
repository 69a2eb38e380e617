"""Which tensors of an objective are saved, and how they are put back: by name, strictly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deftly.types import DataError, Objective, UsageError


def saved_tensors(module: nn.Module, not_saved: tuple[str, ...]) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, themselves and not copies, without the sub-modules named in `not_saved`.

    Of a parameter that is sharded over ranks it is this rank's rows, in the same memory.
    """
    prefixes = tuple(f"{name}." for name in not_saved)
    return {name: local(tensor) for name, tensor in module.state_dict(keep_vars=True).items() if not name.startswith(prefixes)}


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, in the same memory; any other tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


class Buffers:
    """The saved buffers of a module, looked up where they live each time: a module may replace one where it never replaces a parameter."""

    def __init__(self, module: nn.Module, not_saved: tuple[str, ...]) -> None:
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.names = [name for name in saved_tensors(module, not_saved) if name not in parameters]
        self.places = [(module.get_submodule(owner), local) for owner, _, local in (name.rpartition(".") for name in self.names)]

    def current(self) -> list[Tensor]:
        return [getattr(owner, local) for owner, local in self.places]


def check_not_saved(objective: Objective) -> None:
    """`not_saved` must name sub-modules, and what is not saved must not learn: it could not be resumed. Raises `UsageError`."""
    kind = type(objective).__name__
    for name in objective.not_saved:
        try:
            part = objective.get_submodule(name)
        except AttributeError:
            raise UsageError(f"{kind}.not_saved names {name!r}, which is no sub-module of it") from None
        learning = [parameter for parameter, value in part.named_parameters() if value.requires_grad]
        if learning:  # guard: training.state.not_saved_learns
            raise UsageError(f"{kind}.not_saved names {name!r}, but {name}.{learning[0]} is trainable; freeze it or save it")


@torch.no_grad()
def load_strictly(module: nn.Module, not_saved: tuple[str, ...], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy every tensor into the module; `DataError` names the first one that is missing, unknown, of another shape or not finite."""
    current = saved_tensors(module, not_saved)
    check_fit(current, tensors, where)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if name in parameters and not bool(torch.isfinite(tensor).all()):  # guard: training.state.finite
            raise DataError(f"{where}: tensor {name!r} holds a non-finite number; use an earlier checkpoint")
    for name, tensor in tensors.items():
        current[name].copy_(tensor)


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Same names, shapes and types, or a one-line `DataError`."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:  # guard: training.state.names
        parts = [
            f"{label} {names[0][:200]!r}" + (f" (+{len(names) - 1})" if len(names) > 1 else "")
            for label, names in (("lacks", missing), ("has an unknown", unknown))
            if names
        ]
        raise DataError(f"{where}: {' and '.join(parts)}; the weights are of another model")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:  # guard: training.state.shapes
            raise DataError(f"{where}: tensor {name!r} has shape {tuple(found[name].shape)}, the model has {tuple(tensor.shape)}")
        if tensor.dtype != found[name].dtype:  # guard: training.state.types
            raise DataError(f"{where}: tensor {name!r} is {found[name].dtype}, the model's is {tensor.dtype}")


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, no two sharing memory: they stay as they are while training goes on, and safetensors can write them."""
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in tensors.items()}


def policy_state(objective: Objective, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the objective's tensors that is its policy, with the policy's own names and dtypes."""
    own = objective.policy.state_dict()
    found = {name.removeprefix("policy."): tensor for name, tensor in tensors.items() if name.startswith("policy.")}
    return {name: tensor.to(own[name].dtype) for name, tensor in found.items()}
