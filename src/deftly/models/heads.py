"""Action heads: features to a chunk of actions. Each knows its own loss and how to sample; all answer to the same three methods.

Letters: b batch, k chunk, a action dims, d feature width.

How to add one: a `Config` with `kind` and `build`, a `Head` beside it, its name in the `HeadConfig` union below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deftly import randomness
from deftly.config import Config
from deftly.own_code import OrOwn
from deftly.types import Batch, Clock


class Head(nn.Module, ABC):
    chunk: int
    action_dim: int

    @abstractmethod
    def loss(self, pooled: Float[Tensor, "b d"], batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        """Unreduced loss of every action element."""

    @abstractmethod
    def sample(self, pooled: Float[Tensor, "b d"], key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]: ...


class RegressionConfig(Config):
    """One forward pass; L1 by default: its optimum is the median, so a rare recovery does not pull the common action away."""

    kind: Literal["regression"] = "regression"
    loss: Literal["l1", "mse"] = "l1"
    zero_start: bool = False
    """Predict 0 before the first step: in a residual policy, the last action."""

    def build(self, *, features: int, chunk: int, action_dim: int) -> Head:
        return RegressionHead(self, features, chunk, action_dim)


class RegressionHead(Head):
    def __init__(self, config: RegressionConfig, features: int, chunk: int, action_dim: int) -> None:
        super().__init__()
        self.chunk, self.action_dim, self.kind = chunk, action_dim, config.loss
        self.to_actions = nn.Linear(features, chunk * action_dim)
        if config.zero_start:
            nn.init.zeros_(self.to_actions.weight)
            nn.init.zeros_(self.to_actions.bias)

    def loss(self, pooled: Float[Tensor, "b d"], batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        error = self.sample(pooled, batch.key) - wanted(batch)
        return error.abs() if self.kind == "l1" else error.square()

    def sample(self, pooled: Float[Tensor, "b d"], key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]:
        return self.to_actions(pooled).unflatten(1, (self.chunk, self.action_dim))


class FlowMatchingConfig(Config):
    """Rectified flow on the chunk (Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023; as an action head: pi0, 2024)."""

    kind: Literal["flow_matching"] = "flow_matching"
    width: int = pydantic.Field(default=256, ge=8)
    blocks: int = pydantic.Field(default=2, ge=1)
    euler_steps: int = pydantic.Field(default=10, ge=1)
    draws: int = pydantic.Field(default=4, ge=1)
    """(noise, time) pairs per sample and step: the features are computed once and the head is cheap, so more pairs are nearly free."""

    def build(self, *, features: int, chunk: int, action_dim: int) -> Head:
        return FlowMatchingHead(self, features, chunk, action_dim)


class FlowMatchingHead(Head):
    """x_t = (1 - t) noise + t action, velocity = action - noise. Time 0 is noise, time 1 the action: the reverse of pi0's code."""

    frequency: Tensor  # [16] of the time embedding

    def __init__(self, config: FlowMatchingConfig, features: int, chunk: int, action_dim: int) -> None:
        super().__init__()
        self.config, self.chunk, self.action_dim = config, chunk, action_dim
        frequency = torch.exp(torch.linspace(0, math.log(100.0), 16)) * math.pi
        self.register_buffer("frequency", frequency, persistent=False)
        self.condition = nn.Linear(features, config.width)
        self.time = nn.Sequential(nn.Linear(32, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.enter = nn.Linear(chunk * action_dim, config.width)
        self.blocks = nn.ModuleList(ModulatedBlock(config.width) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, chunk * action_dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def loss(self, pooled: Float[Tensor, "b d"], batch: Batch, clock: Clock) -> Float[Tensor, "b k a"]:
        action = wanted(batch)
        draws = self.config.draws
        shape = (draws, self.chunk, self.action_dim)
        noise = randomness.normal(batch.key, "flow.noise", shape, clock.step)
        # stratified: draw i of a sample falls into the i-th part of [0, 1), which lowers the variance of the mean over draws
        part = torch.arange(draws, device=noise.device) / draws
        time = part + randomness.uniform(batch.key, "flow.time", (draws,), clock.step) / draws
        target = action[:, None]
        mixed = noise + time[:, :, None, None] * (target - noise)
        velocity = self.velocity(mixed.flatten(0, 1), time.flatten(), pooled.repeat_interleave(draws, dim=0))
        return (velocity.unflatten(0, (len(action), draws)) - (target - noise)).square().mean(dim=1)

    def sample(self, pooled: Float[Tensor, "b d"], key: Int64[Tensor, "b"]) -> Float[Tensor, "b k a"]:
        steps = self.config.euler_steps
        chunk = randomness.normal(key, "flow.sample", (self.chunk, self.action_dim))
        for step in range(steps):
            time = torch.full((len(chunk),), step / steps, device=chunk.device)
            chunk = chunk + self.velocity(chunk, time, pooled) / steps
        return chunk

    def velocity(self, chunk: Float[Tensor, "n k a"], time: Float[Tensor, "n"], pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n k a"]:
        angle = time[:, None].to(pooled.dtype) * self.frequency
        condition = self.condition(pooled) + self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        hidden = self.enter(chunk.flatten(1).to(pooled.dtype))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.leave(hidden).unflatten(1, (self.chunk, self.action_dim))


class ModulatedBlock(nn.Module):
    """A residual MLP whose normalisation is scaled and shifted by the condition; starts as the identity of its branch's scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Float[Tensor, "n d"], condition: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        scale, shift = self.modulate(nn.functional.silu(condition)).chunk(2, dim=1)
        return hidden + self.mlp(self.norm(hidden) * (1 + scale) + shift)


HeadConfig = Annotated[RegressionConfig | FlowMatchingConfig, pydantic.Discriminator("kind"), OrOwn(("features", "chunk", "action_dim"))]


def wanted(batch: Batch) -> Float[Tensor, "b k a"]:
    """The actions to imitate, where a padded step repeats the last valid one and a padded dimension is 0.

    A denoiser reads the whole chunk, so whatever stood in the padding would otherwise leak into the loss of the valid elements.
    """
    assert batch.actions is not None, "a loss needs a batch with actions"
    assert batch.action_is_pad is not None, "actions come with their padding mask"
    steps = torch.arange(batch.actions.shape[1], device=batch.actions.device)
    last = torch.where(batch.action_is_pad, -1, steps).amax(dim=1, keepdim=True)
    source = torch.where(batch.action_is_pad, last.clamp(min=0), steps)
    filled = batch.actions.gather(1, source[:, :, None].expand_as(batch.actions))
    return filled.masked_fill(batch.action_dim_is_pad[:, None, :] | (last < 0)[:, :, None], 0.0)
