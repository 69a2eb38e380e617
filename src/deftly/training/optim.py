"""What turns gradients into updates: AdamW, with one parameter group for each rate and weight decay (`groups.py` says which)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from deftly.config import Config
from deftly.types import DataError, UsageError

Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that share a learning rate and a weight decay: a parameter group of torch's."""

    parameters: dict[str, nn.Parameter]
    decayed: bool
    """Whether the weight decay applies."""
    group: int = 0
    """Its group in `training.groups`."""
    rate_factor: float = 1.0
    """Of its layer, beside the group's own."""


class AdamWConfig(Config):
    """AdamW (Loshchilov & Hutter, 2019) with weight decay on matrices and kernels only."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    """The peak; the schedule scales it."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    epsilon: float = pydantic.Field(default=1e-8, gt=0)

    def build(self, parts: Sequence[Part]) -> torch.optim.AdamW:
        """The optimizer of all parts, one parameter group for each, in order."""
        groups = [{"params": list(part.parameters.values()), "weight_decay": self.weight_decay if part.decayed else 0.0} for part in parts]
        fused = all(parameter.device.type in ("cpu", "cuda") for part in parts for parameter in part.parameters.values())
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=fused)


def parameter_groups(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trainable parameters by name: (with weight decay, without). Without: norms, embeddings, and everything that is a vector.

    A bare parameter with several axes counts as an embedding when its own name says so (`position_embedding`).
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UsageError(f"{type(module).__name__} has no trainable parameter: everything is frozen; unfreeze what should learn")
    exempt = {id(p) for part in module.modules() if isinstance(part, (*NORMS, nn.Embedding)) for p in part.parameters(recurse=False)}
    decayed, plain = {}, {}
    for name, parameter in trainable.items():
        is_vector = parameter.numel() == max((1, *parameter.shape))
        is_plain = is_vector or id(parameter) in exempt or "embed" in name.rpartition(".")[2]
        (plain if is_plain else decayed)[name] = parameter
    covered = [id(parameter) for parameter in (*decayed.values(), *plain.values())]
    assert sorted(covered) == sorted({id(p) for p in module.parameters() if p.requires_grad}), "a parameter is in no group, or in two"
    return decayed, plain


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """One rate for each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def optimizer_names(parts: Sequence[Part]) -> list[str]:
    """Parameter names in the order in which the optimizer of `AdamWConfig.build` numbers them."""
    return [name for part in parts for name in part.parameters]


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's moments as flat tensors: `exp_avg.<parameter name>` and so on."""
    state = optimizer.state_dict()["state"]
    return {f"{key}.{names[index]}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor], frozen: Collection[str] = ()) -> None:
    """The inverse of `flatten_optimizer`; raises `DataError` when a tensor belongs to no parameter or has another shape.

    Moments of `frozen` parameters, which learnt when the checkpoint was written, are of no more use and dropped.
    """
    index = {name: number for number, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        if name in frozen:
            continue
        if name not in index:  # guard: training.optim.names
            raise DataError(f"optimizer state {full[:200]!r} belongs to no trainable parameter; the checkpoint is of another model")
        parameter = parameters[index[name]]
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):  # guard: training.optim.finite
            raise DataError(f"optimizer state {full!r} is {tensor.dtype} or not finite; use an earlier checkpoint")
        if tensor.ndim and tensor.shape != parameter.shape:  # guard: training.optim.shapes
            raise DataError(f"optimizer state {full!r} has shape {tuple(tensor.shape)}, the parameter has {tuple(parameter.shape)}")
        # A moment has the memory layout of its parameter (channels_last, say): fused kernels walk both in memory order.
        state.setdefault(index[name], {})[key] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if tensor.ndim else tensor
    kinds = {kind for entry in state.values() for kind in entry}
    for number, entry in state.items():
        if lacking := kinds - entry.keys():  # guard: training.optim.whole
            raise DataError(f"optimizer state {min(lacking) + '.' + names[number]!r} is missing; the parameter would begin anew")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
