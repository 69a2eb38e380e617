"""Random batches of any shape for tests of models and objectives."""

from __future__ import annotations

import torch

from deftly.contract import Camera, Contract, Embodiment, Vector, Window
from deftly.models.policy import PolicyConfig, VLAPolicy
from deftly.types import Batch, Tokens

CAMERAS = ("head", "wrist")
VOCABULARY, TEXT_LENGTH, STATE, ACTION, SIZE = 20, 8, 5, 3, 32


def random_batch(size: int = 4, window: Window = Window(frames=2, chunk=6, past_actions=True), seed: int = 0) -> Batch:
    """Everything valid, nothing padded; tests switch masks on."""
    draw = torch.Generator().manual_seed(seed)
    frames, chunk = window.frames, window.chunk
    return Batch(
        key=torch.randint(0, 2**62, (size,), generator=draw),
        images={name: torch.randint(0, 256, (size, frames, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8) for name in CAMERAS},
        camera_is_missing={name: torch.zeros(size, dtype=torch.bool) for name in CAMERAS},
        state=torch.randn(size, frames, STATE, generator=draw),
        state_dim_is_pad=torch.zeros(size, STATE, dtype=torch.bool),
        past_actions=torch.randn(size, frames, ACTION, generator=draw),
        past_action_is_pad=torch.zeros(size, frames, dtype=torch.bool),
        observation_is_pad=torch.zeros(size, frames, dtype=torch.bool),
        text=Tokens(ids=torch.randint(0, VOCABULARY, (size, TEXT_LENGTH), generator=draw), is_pad=torch.zeros(size, TEXT_LENGTH).bool()),
        actions=torch.randn(size, chunk, ACTION, generator=draw),
        action_dim_is_pad=torch.zeros(size, ACTION, dtype=torch.bool),
        action_is_pad=torch.zeros(size, chunk, dtype=torch.bool),
        **{name: torch.zeros(size, dtype=torch.int64) for name in ("embodiment", "task", "episode", "frame", "domain")},
        weight=torch.ones(size),
    )


def contract_of(window: Window, cameras: tuple[str, ...] = CAMERAS, state_dim: int = STATE) -> Contract:
    """The robot that `random_batch` shows."""
    return Contract(
        embodiment=Embodiment(
            name="test",
            rate_hz=10,
            cameras=tuple(Camera(name=name, height=SIZE, width=SIZE, role="wrist" if name == "wrist" else "scene") for name in cameras),
            state=Vector(names=tuple(f"s{i}" for i in range(state_dim)), units=("m",) * state_dim),
            action=Vector(names=tuple(f"a{i}" for i in range(ACTION)), units=("m",) * ACTION),
        ),
        cameras=cameras,
        image_size=SIZE,
        window=window,
        executed_steps=1,
        normalization="quantile",
        statistics_hash="",
        tokenizer_hash="",
        text_length=TEXT_LENGTH,
        dataset_hash="",
    )


def build_policy(config: PolicyConfig, window: Window = Window(frames=2, chunk=6, past_actions=True), seed: int = 0) -> VLAPolicy:
    torch.manual_seed(seed)
    return config.build(contract_of(window), VOCABULARY)
