"""Random batches of any shape for tests of models and objectives."""

from __future__ import annotations

import torch

from deftly.contract import Camera, Contract, Embodiment, Vector, Window
from deftly.models.policy import PolicyConfig, VLAPolicy
from deftly.types import Batch, Tokens

CAMERAS = ("head", "wrist")
VOCABULARY, TEXT_LENGTH, STATE, ACTION, SIZE = 20, 8, 5, 3, 32
WINDOW = Window(frames=2, chunk=6, past_actions=True)


def random_batch(size: int = 4, window: Window = WINDOW, seed: int = 0) -> Batch:
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


def changed_where_masked(what: str) -> tuple[Batch, Batch]:
    """A batch with something masked, and the same with other values behind the mask."""
    batch = random_batch()
    changed = batch.map(torch.clone)
    assert changed.actions is not None
    if what == "observation":
        batch.observation_is_pad[:, 0] = changed.observation_is_pad[:, 0] = True
        changed.images["head"][:, 0] = 255
        changed.state[:, 0] = 9.0
        changed.past_actions[:, 0] = 9.0
    elif what == "past_action":
        batch.past_action_is_pad[:, 1] = changed.past_action_is_pad[:, 1] = True
        changed.past_actions[:, 1] = 9.0
    elif what == "state_dim":
        batch.state_dim_is_pad[:, 2] = changed.state_dim_is_pad[:, 2] = True
        changed.state[:, :, 2] = 9.0
    elif what == "camera":
        batch.camera_is_missing["wrist"][1] = changed.camera_is_missing["wrist"][1] = True
        changed.images["wrist"][1] = 200
    elif what == "text":
        batch.text.is_pad[:, 4:] = changed.text.is_pad[:, 4:] = True
        changed.text.ids[:, 4:] = 7
    elif what == "action":
        batch.action_is_pad[1:, 3:] = changed.action_is_pad[1:, 3:] = True
        changed.actions[1:, 3:] = 9.0
    else:
        assert what == "action_dim", what
        batch.action_dim_is_pad[:, 1] = changed.action_dim_is_pad[:, 1] = True
        changed.actions[:, :, 1] = 9.0
        changed.past_actions[:, :, 1] = 9.0
    return batch, changed


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
