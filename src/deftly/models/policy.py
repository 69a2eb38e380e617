"""The policy: cameras, state, past actions and a sentence to a chunk of actions.

```
text ──> TextEncoder ──┬────────────────┐
                       FiLM             │
images ─> one FiLMCNN per camera ───────┼──> MLP trunk ──> Features ──> head ──> [b k a]
state, past actions, robot ─────────────┘
```
Letters: b batch, t observation frames, c cameras, d width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pydantic
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deftly.config import Config
from deftly.contract import CameraRole, Contract
from deftly.models.dropout import Dropout
from deftly.models.heads import HeadConfig, RegressionConfig
from deftly.models.language import TextConfig
from deftly.models.vision import CNNConfig
from deftly.types import Batch, Clock, Features, Policy, UsageError


class PolicyConfig(Config):
    kind: Literal["film"] = "film"
    vision: CNNConfig = CNNConfig()
    wrist: CNNConfig | None = None
    """The encoder of wrist cameras: they look from near, so a coarser and cheaper one can do; null: the same as `vision`."""
    text: TextConfig = TextConfig()
    width: int = pydantic.Field(default=256, ge=8)
    depth: int = pydantic.Field(default=2, ge=1)
    """Layers of the MLP trunk."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    residual: bool = False
    """Predict the change from the last commanded action (from 0 where none is known), so that what has learnt little holds still. Needs
    `window.past_actions`."""
    robot_dim: int = pydantic.Field(default=16, ge=1)
    """Width of what is learnt about each robot, for a policy of several."""
    head: HeadConfig = RegressionConfig()

    def build(self, contract: Contract, vocabulary: int) -> VLAPolicy:
        """Everything that data and contract know comes from them: no size is configured twice."""
        return VLAPolicy(self, contract, vocabulary)

    def encoder_of(self, role: CameraRole) -> CNNConfig:
        return self.wrist if self.wrist is not None and role == "wrist" else self.vision


class VLAPolicy(Policy):
    word_tables = ("text.embedding.weight",)

    def __init__(self, config: PolicyConfig, contract: Contract, vocabulary: int) -> None:
        super().__init__()
        window, size = contract.window, contract.image_size
        self.cameras, self.chunk, self.action_dim = contract.cameras, window.chunk, contract.action_dim
        self.sees_past_actions, self.residual = window.past_actions, config.residual
        if self.residual and not self.sees_past_actions:
            raise UsageError("a residual policy counts from the last action: set data.window.past_actions, or policy.residual to false")
        if self.residual and contract.actions is not None:
            raise UsageError(
                "relative actions count from the state already: set policy.residual to false, or data.actions.kind to recorded"
            )
        self.text = config.text.build(vocabulary=vocabulary, text_length=contract.text_length)
        encoders = {name: config.encoder_of(contract.role_of(name)).build(image_size=size, text_dim=self.text.dim) for name in self.cameras}
        self.vision = nn.ModuleDict(encoders)
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(encoder.out_dim)) for name, encoder in encoders.items()})
        seen = sum(encoder.out_dim for encoder in encoders.values())
        felt = contract.state_dim + (self.action_dim if self.sees_past_actions else 0)
        layers: list[nn.Module] = []
        inputs = window.frames * (seen + felt) + self.text.dim
        self.robots = nn.Embedding(contract.num_robots, config.robot_dim) if contract.num_robots > 1 else None
        inputs += config.robot_dim if self.robots is not None else 0
        for _ in range(config.depth):
            layers += [nn.Linear(inputs, config.width), nn.LayerNorm(config.width), nn.GELU(), Dropout(config.dropout)]
            inputs = config.width
        self.trunk = nn.Sequential(*layers)
        self.head = config.head.build(features=config.width, chunk=self.chunk, action_dim=self.action_dim)

    def encode(self, batch: Batch) -> Features:
        text = self.text(batch.text)
        frames = batch.state.shape[1]
        per_frame = text.repeat_interleave(frames, dim=0)
        parts = []
        for name in self.cameras:
            seen = self.vision[name](batch.images[name].flatten(0, 1), per_frame).unflatten(0, (-1, frames))
            parts.append(torch.where(batch.camera_is_missing[name][:, None, None], self.missing[name].to(seen.dtype), seen))
        parts.append(batch.state * ~batch.state_dim_is_pad[:, None, :])
        if self.sees_past_actions:
            is_pad = batch.past_action_is_pad[:, :, None] | batch.action_dim_is_pad[:, None, :]
            parts.append(batch.past_actions * ~is_pad)
        # what stands before the first frame is a copy of it: it adds nothing, and must not look like a robot at rest
        known = torch.cat([part.to(text.dtype) for part in parts], dim=2) * ~batch.observation_is_pad[:, :, None]
        who = [] if self.robots is None else [self.robots(batch.embodiment).to(text.dtype)]
        pooled = self.trunk(torch.cat([known.flatten(1), text, *who], dim=1))
        is_pad = torch.zeros(len(pooled), 1, dtype=torch.bool, device=pooled.device)
        start = parts[-1][:, -1] if self.residual else None
        return Features(tokens=pooled[:, None], is_pad=is_pad, pooled=pooled, start=start)

    def loss(self, features: Features, batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        if features.start is not None:
            assert batch.actions is not None, "a loss needs a batch with actions"
            batch = replace(batch, actions=batch.actions - features.start[:, None])
        return self.head.loss(features.pooled, batch, clock)

    def sample(self, features: Features, key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]:
        change = self.head.sample(features.pooled, key)
        return change if features.start is None else features.start[:, None] + change
