"""The model steps, driven by benchmarks/training.py: our ACT and lerobot's in one process of lerobot's environment, so on one torch."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from act_names import gradients_by_our_names, load_peer, loss_as_the_peer_counts, noise_of
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.optim.optimizers import AdamWConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTDecoderLayer, ACTEncoderLayer, ACTPolicy
from process import serve
from steps import PEER_ACT, Shapes, Step, build, compile_layers, precision

import deftly.models.act
from deftly.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from deftly.training.flops import peak_flops, seconds_of
from deftly.types import Batch

CPU = torch.device("cpu")


def peer_policy(shapes: Shapes, dropout: float) -> ACTPolicy:
    image, vector = PolicyFeature(FeatureType.VISUAL, (3, shapes.size, shapes.size)), (shapes.dims,)
    config = ACTConfig(
        input_features={
            **{f"observation.images.{name}": image for name in shapes.names},
            "observation.state": PolicyFeature(FeatureType.STATE, vector),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, vector)},
        chunk_size=shapes.chunk,
        n_action_steps=shapes.chunk,
        pretrained_backbone_weights=None,
        dropout=dropout,
        device="cpu",
    )
    torch.manual_seed(0)
    policy = ACTPolicy(config).train()
    for name, buffer in policy.named_buffers():  # frozen norms that do something, as pretrained ones do
        if "backbone" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5 if name.endswith(("weight", "var")) else torch.randn_like(buffer) * 0.1)
    return policy


def peer_batch(batch: Batch) -> dict[str, Tensor]:
    """The same samples as its preprocessor gives them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert batch.actions is not None
    assert batch.action_is_pad is not None
    images = {f"observation.images.{name}": (image[:, 0] / 255 - mean) / std for name, image in batch.images.items()}
    return {**images, "observation.state": batch.state[:, 0], "action": batch.actions, "action_is_pad": batch.action_is_pad}


class PeerStep:
    """Forward, backward and update of lerobot's policy with its own optimizer, as its training script does them."""

    def __init__(self, policy: ACTPolicy, batch: Batch, variant: str) -> None:
        self.policy, self.batch, self.variant = policy, peer_batch(batch), variant
        if variant == "channels_last":
            policy.to(memory_format=torch.channels_last)
            self.batch = {
                name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
                for name, value in self.batch.items()
            }
        preset = policy.config.get_optimizer_preset()
        assert isinstance(preset, AdamWConfig)
        self.optimizer = preset.build(policy.get_optim_params())

    def compile(self) -> None:
        if "layers" in self.variant:
            compile_layers(self.policy, (ACTEncoderLayer, ACTDecoderLayer))

    def __call__(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self) -> Tensor:
        with precision(self.variant, CPU):
            return self.policy(self.batch)[0]


class Sides:
    def setup(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: version(name) for name in ("lerobot", "torch", "torchvision")}

    def start(self, variant: str, shapes: dict[str, int]) -> dict[str, Any]:
        """Both sides with the same weights and without dropout, and how far their losses and gradients are apart before the first step."""
        self.shapes = Shapes(**shapes)
        batch = self.shapes.random_batch()
        policy, ours = peer_policy(self.shapes, dropout=0.0), build(PEER_ACT.replace(dropout=0.0), self.shapes)
        load_peer(ours, policy.model.state_dict())
        self.ours, self.peer = Step(ours, batch, variant, CPU), PeerStep(policy, batch, variant)
        found = {**self.compare(), "parameters": sum(p.numel() for p in ours.parameters())}
        self.ours.compile()
        self.peer.compile()
        return found

    def compare(self) -> dict[str, float]:
        """Relative differences; of gradients to the largest element of all."""
        step, model = self.ours, self.peer.policy.model
        with precision(step.variant, CPU):
            loss = loss_as_the_peer_counts(step.objective, step.batch, step.clock)
        loss.backward()
        with noise_of(step.batch, step.clock.step):
            expected = self.peer.loss()
        expected.backward()
        policy = step.objective.policy
        assert isinstance(policy, deftly.models.act.ACTPolicy)
        own = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
        theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        gradients = gradients_by_our_names(policy, theirs)
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        apart = max(float((own[name] - gradient).abs().max()) for name, gradient in gradients.items()) / scale
        step.optimizer.zero_grad(set_to_none=True)
        self.peer.optimizer.zero_grad()
        return {"loss_difference": abs(float(loss - expected)) / abs(float(expected)), "gradient_difference": apart}

    def flops(self) -> dict[str, float]:
        """Of a step of ours, and what this machine reaches in a product of matrices on the same threads."""
        return {"step": self.ours.flops(), "peak_per_s": peak_flops(CPU, torch.float32)}

    def step(self, side: str, count: int) -> dict[str, float]:
        work = self.ours if side == "ours" else self.peer
        return {"seconds": seconds_of(work, count, CPU), "samples": count * self.shapes.batch}


if __name__ == "__main__":
    serve(Sides())
