"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022) through peft, on the policy of any objective.

```
objective.safetensors   policy.trunk.0.base_layer.weight, policy.trunk.0.lora_A.default.weight, ...   what a run goes on from
policy/                 trunk.0.weight = base + alpha / rank * B A                                     what acts: no adapter, no peft
```
Adapters are added before the optimizer is built; from then on they are parameters as any other, for groups, averages and checkpoints.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import pydantic
import torch
from torch import Tensor, nn

from deftly.config import Config
from deftly.randomness import seed_global
from deftly.training.names import check_pattern, matching
from deftly.types import Objective, UsageError

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
# Their fused kernels read the weights of the layers in them, and would pass adapters by.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
BASE, ADAPTER = ".base_layer.", ".lora_"


class LoraConfig(Config):
    """Low-rank adapters beside frozen weights. Needs the extra `pretrained`."""

    modules: str
    """A regular expression of whole module names (`policy\\.trunk\\..*`); linear, convolution and embedding layers are adapted."""
    rank: int = pydantic.Field(default=8, ge=1)
    alpha: int = pydantic.Field(default=16, ge=1)
    """An adapter's output is multiplied with alpha / rank."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Of what an adapter is given."""
    full: str | None = None
    """A regular expression of whole parameter names of the policy that learn as they are, beside the adapters: a new head, say."""

    @pydantic.model_validator(mode="after")
    def check_fields(self) -> LoraConfig:
        check_pattern(self.modules)
        if self.full is not None:
            check_pattern(self.full)
        return self


def add_adapters(objective: Objective, config: LoraConfig, seed: int) -> list[str]:
    """Adapt the objective's policy, freeze the rest of it but for `config.full`, and return the names of the adapted modules.

    The adapters' first weights are a function of `seed`, and change nothing of what the policy computes. Raises `UsageError` for patterns
    that match nothing, and where peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UsageError("training.lora: peft is not installed; pip install 'deftly[pretrained]', or leave training.lora out") from None
    names = targets(objective, config.modules)
    full = []
    if config.full is not None:
        learning = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad and _is_policys(name)}
        full = [learning[name] for name in matching(config.full, learning, "training.lora.full", "trainable parameter of the policy")]
    seed_global("adapters", seed)
    exact = "|".join(re.escape(name.removeprefix("policy.")) for name in names)
    given = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=exact)
    peft.inject_adapter_in_model(given, objective.policy)
    for parameter in full:
        parameter.requires_grad_(True)
    return names


def targets(objective: Objective, pattern: str) -> list[str]:
    """The modules of the policy that match and can be adapted; `UsageError` when there are none."""
    modules = {name: module for name, module in objective.named_modules() if _is_policys(name)}
    opaque = tuple(f"{name}." for name, module in modules.items() if isinstance(module, OPAQUE))
    matched = matching(pattern, modules, "training.lora.modules", "module of the policy")
    found = [name for name in matched if isinstance(modules[name], ADAPTABLE) and not name.startswith(opaque)]
    if not found:  # guard: training.lora.targets
        raise UsageError(
            f"training.lora.modules: {pattern!r} matches {matched[0]!r}, which cannot be adapted; name linear, convolution or embedding "
            "layers (those inside of torch's own attention and transformer layers cannot be)"
        )
    return found


def merged(policy: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an adapted policy as that of one that never had adapters: names without them, their products added to the weights.

    `tensors` has the policy's own names, and may be an average; `policy` is not changed.
    """
    from peft.tuners.lora import LoraLayer

    state = dict(tensors)
    for name, module in policy.named_modules():
        if isinstance(module, LoraLayer):
            assert isinstance(module, nn.Module)
            own = copy.deepcopy(module).to("cpu")
            own.load_state_dict({key: state.pop(f"{name}.{key}") for key in module.state_dict()})
            with torch.no_grad():
                own.merge()  # type: ignore[operator]
            state.update({f"{name}.{key}": tensor.contiguous() for key, tensor in own.get_base_layer().state_dict().items()})  # type: ignore[operator]
    return state


def without_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Base weights under the names that they have where there are no adapters; adapters are left out. Other tensors as they are."""
    return {name.replace(BASE, "."): tensor for name, tensor in tensors.items() if ADAPTER not in name}


def _is_policys(name: str) -> bool:
    return name.startswith("policy.")
