"""lerobot's ACT beside ours: its tensors (weights or gradients) by our names, our loss as it counts, its noise as we draw it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from deftly import randomness
from deftly.models.act import ACTPolicy
from deftly.objectives.imitation import Imitation
from deftly.types import Batch, Clock

WHOLE = {
    "vae_encoder_cls_embed.weight": "vae_embedding",
    "encoder_1d_feature_pos_embed.weight": "token_embedding",
    "decoder_pos_embed.weight": "query_embedding",
}
MODULES = {
    "vae_encoder_robot_state_input_proj": "vae_from_state",
    "vae_encoder_action_input_proj": "vae_from_actions",
    "vae_encoder_latent_output_proj": "to_posterior",
    "encoder_robot_state_input_proj": "from_state",
    "encoder_latent_input_proj": "from_latent",
    "encoder_img_feat_input_proj": "from_maps",
    "action_head": "to_actions",
    "decoder.norm": "decoder_norm",
}
STACKS = {"vae_encoder.layers": "vae", "encoder.layers": "encoder", "decoder.layers": "decoder"}
ENCODER_LAYER = {"linear1": "mlp.enter", "linear2": "mlp.leave", "norm1": "attention_norm", "norm2": "mlp_norm"}
DECODER_LAYER = {**ENCODER_LAYER, "norm2": "cross_norm", "norm3": "mlp_norm"}
ATTENTIONS = {"self_attn": "attention", "multihead_attn": "cross"}
OWN = {
    "camera_embedding",
    "missing_embedding",
}  # of ours alone: the first is 0 at the start, the second is not used where nothing is missing


def renamed(peer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything but the backbone, from names as in `ACTPolicy.model` of lerobot; packed projections are taken apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in peer.items():
        owner, _, leaf = name.rpartition(".")
        stack = next((stack for stack in STACKS if name.startswith(f"{stack}.")), None)
        if name in WHOLE:
            found[WHOLE[name]] = tensor
        elif owner in MODULES:
            found[f"{MODULES[owner]}.{leaf}"] = tensor.flatten(1) if tensor.ndim == 4 else tensor
        elif stack is not None:
            number, part = name.removeprefix(f"{stack}.").split(".")[:2]
            layer = f"{STACKS[stack]}.{number}"
            if part not in ATTENTIONS:
                found[f"{layer}.{(DECODER_LAYER if stack.startswith('decoder') else ENCODER_LAYER)[part]}.{leaf}"] = tensor
            elif leaf.startswith("in_proj_"):
                for target, third in zip(("to_query", "to_key", "to_value"), tensor.chunk(3), strict=True):
                    found[f"{layer}.{ATTENTIONS[part]}.{target}.{leaf.removeprefix('in_proj_')}"] = third
            else:
                found[f"{layer}.{ATTENTIONS[part]}.to_out.{leaf}"] = tensor
    return found


def backbone(peer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of its ResNet, by torchvision's names."""
    return {name.removeprefix("backbone."): tensor for name, tensor in peer.items() if name.startswith("backbone.")}


@torch.no_grad()
def load_peer(policy: ACTPolicy, peer: Mapping[str, Tensor]) -> None:
    """The peer's weights into our policy, each of which must find its place."""
    parameters, given = dict(policy.named_parameters()), renamed(peer)
    wanted = {name for name in parameters if not name.startswith("vision.")} - OWN
    assert wanted == set(given), sorted(wanted ^ set(given))
    for name, tensor in given.items():
        parameters[name].copy_(tensor)
    policy.vision.load_torchvision(backbone(peer), "lerobot")


@contextmanager
def noise_of(batch: Batch, step: int) -> Iterator[None]:
    """lerobot draws its latent from the global generator: here it gets the noise that ours draws from the samples' keys."""
    own = torch.randn_like
    torch.randn_like = lambda mean: randomness.normal(batch.key, "act.latent", tuple(mean.shape[1:]), step)
    try:
        yield
    finally:
        torch.randn_like = own


def gradients_by_our_names(policy: ACTPolicy, peer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The peer's gradients, those of convolutions included."""
    found, convolutions = renamed(peer), backbone(peer)
    names = {id(module): name for name, module in policy.vision.named_modules()}
    for convolution, conv, _ in policy.vision.names():
        found[f"vision.{names[id(convolution)]}.weight"] = convolutions[f"{conv}.weight"]
    return found


def loss_as_the_peer_counts(objective: Imitation, batch: Batch, clock: Clock) -> Tensor:
    """Ours divides by the valid elements of a chunk, lerobot by all of them."""
    assert batch.actions is not None
    counts = {**objective.counts(batch), "action": torch.tensor(float(batch.actions.numel()))}
    return torch.stack([term.value * term.weight for term in objective(batch, clock, counts).values()]).sum()
