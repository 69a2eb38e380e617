"""Small real trainings, healthy ones and ones with a planted fault, for `diagnose` to judge. Each takes a second or two.

A policy is told one of three tasks, sees a state of six numbers, and answers with a chunk of four actions of four dimensions, each of which
depends on the state in a way of the task's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deftly import randomness
from deftly.objectives.imitation import Imitation
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig
from deftly.training.trainer import Trainer
from deftly.types import Batch, Clock, Features, Policy, Stream, Tokens
from training.toys import write_policy

STATE, ACTION, CHUNK, TASKS, WIDTH, LENGTH = 6, 4, 4, 3, 48, 16
SIZE = 32


class SmallPolicy(Policy):
    """Words and state to a trunk, a linear head; absolute error."""

    chunk, action_dim = CHUNK, ACTION

    def __init__(self, activation: Callable[[], nn.Module] = nn.GELU, dropout: float = 0.0, depth: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.text = nn.Embedding(TASKS, 16)
        self.see = nn.Linear(STATE, WIDTH)
        layers: list[nn.Module] = []
        inputs = WIDTH + 16
        for _ in range(depth):
            layers.append(nn.Sequential(nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH) if norm else nn.Identity(), activation()))
            inputs = WIDTH
        self.trunk = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CHUNK * ACTION)

    def encode(self, batch: Batch) -> Features:
        told = self.text(batch.text.ids[:, 0])
        pooled = self.dropout(self.trunk(torch.cat([self.see(batch.state[:, -1]), told], dim=1)))
        return Features(tokens=pooled[:, None], is_pad=torch.zeros(len(pooled), 1, dtype=torch.bool), pooled=pooled)

    def loss(self, features: Features, batch: Batch, clock: Clock) -> Tensor:
        return (self.sample(features, batch.key) - batch.actions).abs()

    def sample(self, features: Features, key: Tensor) -> Tensor:
        return self.head(features.pooled).unflatten(1, (CHUNK, ACTION))


@dataclass
class Episodes:
    """Windows of so many episodes; everything is a function of the seed and of where a window stands."""

    seed: int
    number: int
    first: int = 0
    change: Callable[[Batch], Batch] = lambda batch: batch
    hears: bool = True
    """Whether the action depends on the task."""

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.mixing = torch.randn(TASKS, STATE, ACTION, generator=draw)
        self.drift = 0.1 * torch.randn(CHUNK, ACTION, generator=draw)

    def batch(self, window: Tensor) -> Batch:
        episode, size = self.first + window // LENGTH, len(window)
        key = randomness.sample_keys(self.seed, episode, window % LENGTH)
        task = episode % TASKS
        state = randomness.normal(key, "state", (1, STATE))
        heard = task if self.hears else torch.zeros_like(task)
        action = torch.tanh(torch.einsum("bs,bsa->ba", state[:, 0], self.mixing[heard]))[:, None] + self.drift
        never = torch.zeros(size, 1, dtype=torch.bool)
        return self.change(
            Batch(
                key=key,
                images={},
                camera_is_missing={},
                state=state,
                state_dim_is_pad=never.expand(-1, STATE),
                past_actions=torch.zeros(size, 1, ACTION),
                past_action_is_pad=~never,
                observation_is_pad=never,
                text=Tokens(ids=task[:, None], is_pad=never),
                actions=action + 0.02 * randomness.normal(key, "noise", (CHUNK, ACTION)),
                action_dim_is_pad=never.expand(-1, ACTION),
                action_is_pad=never.expand(-1, CHUNK),
                embodiment=torch.zeros_like(task),
                task=task,
                episode=episode,
                frame=window % LENGTH,
                domain=torch.zeros_like(task),
                weight=torch.ones(size),
            )
        )

    def all(self) -> Iterator[Batch]:
        for part in torch.arange(self.number * LENGTH).reshape(LENGTH, -1).T.flatten().split(96):
            yield self.batch(part)


class EpisodeStream(Stream):
    """The same batches in every epoch, made beforehand: no training should wait for them, unless it `starves`: then it waits for each twice
    as long as it works with it, however slow the machine is.

    `blocks` shows one task for so many batches at a time.
    """

    def __init__(self, episodes: Episodes, starves: bool = False, blocks: int = 0, size: int = SIZE) -> None:
        order = torch.randperm(episodes.number * LENGTH, generator=torch.Generator().manual_seed(episodes.seed))
        if blocks:
            each = [order[order // LENGTH % TASKS == task].split(blocks * size) for task in range(TASKS)]
            order = torch.cat([part for parts in zip(*each, strict=True) for part in parts if len(part) == blocks * size])
        self.batches = [episodes.batch(part) for part in order.split(size) if len(part) == size]
        self.starves, self.position, self.given = starves, 0, time.perf_counter()

    def next(self) -> Batch:
        if self.starves:
            time.sleep(max(0.005, 2 * (time.perf_counter() - self.given)))
            self.given = time.perf_counter()
        self.position += 1
        return self.batches[(self.position - 1) % len(self.batches)]

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Blind(Imitation):
    reads = ("state", "text", "actions", "action_is_pad")

    def __init__(self, policy: Policy, unit: float = 1.0) -> None:
        super().__init__(policy)
        self.unit = unit

    def forward(self, batch: Batch, clock: Clock, counts: Any) -> Any:
        terms = super().forward(batch, clock, counts)
        return {name: replace(term, value=self.unit * term.value) for name, term in terms.items()} if self.unit != 1.0 else terms


@dataclass
class Plant:
    """A training; the defaults are healthy."""

    policy: Callable[[], Policy] = SmallPolicy
    training: dict[str, Any] = field(default_factory=dict)
    episodes: dict[str, Any] = field(default_factory=dict)
    """Of training alone."""
    number: int = 300
    held_out: int = 24
    stream: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Batch], Batch] = lambda batch: batch
    """Of every batch, held-out ones too."""
    hears: bool = True
    unit: float = 1.0
    """Of the loss."""
    prepare: Callable[[Trainer], None] = lambda trainer: None


def grow(plant: Plant, directory: Path, seed: int = 0) -> Trainer:
    """Carry it out in `directory`."""
    base = TrainingConfig(
        steps=300,
        precision="fp32",
        optimizer=AdamWConfig(learning_rate=3e-3),
        ema_decay=0.95,
        log_every=10,
        validate_every=25,
        checkpoint_every=None,
    )
    config = base.replace(**plant.training)
    randomness.seed_global("plant", seed)
    training = Episodes(seed, plant.number, **{"change": plant.change, "hears": plant.hears, **plant.episodes})
    held_out = Episodes(seed, plant.held_out, first=3000, change=plant.change, hears=plant.hears)
    trainer = Trainer(
        Blind(plant.policy(), plant.unit),
        EpisodeStream(training, **plant.stream),
        config,
        directory=directory,
        seed=seed,
        device="cpu",
        write_policy=write_policy,
        run_json={"name": "plant", "training": config.to_dict()},
        dataset_hash="plant",
        validation=held_out.all,
    )
    plant.prepare(trainer)
    trainer.fit()
    return trainer


# -- faults ------------------------------------------------------------------------------------------------------------------------------


class Detached(SmallPolicy):
    """Nothing reaches the encoder of the state."""

    def encode(self, batch: Batch) -> Features:
        with torch.no_grad():
            seen = self.see(batch.state[:, -1])
        pooled = self.trunk(torch.cat([seen, self.text(batch.text.ids[:, 0])], dim=1))
        return Features(tokens=pooled[:, None], is_pad=torch.zeros(len(pooled), 1, dtype=torch.bool), pooled=pooled)


class Coarse(SmallPolicy):
    """Weights, and with them updates and moments, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def encode(self, batch: Batch) -> Features:
        return super().encode(replace(batch, state=batch.state.bfloat16()))

    def sample(self, features: Features, key: Tensor) -> Tensor:
        return super().sample(features, key).float()


class Steeper(SmallPolicy):
    """The gradient of one sample in some hundreds is immense."""

    def sample(self, features: Features, key: Tensor) -> Tensor:
        pooled = features.pooled.float()
        steep = 1e6 * (key % 400 == 0)[:, None] * (pooled - pooled.detach())
        return super().sample(replace(features, pooled=features.pooled + steep), key)


class Deaf(SmallPolicy):
    """The words are lost on the way."""

    def encode(self, batch: Batch) -> Features:
        return super().encode(replace(batch, text=Tokens(ids=torch.zeros_like(batch.text.ids), is_pad=batch.text.is_pad)))


class Steep(nn.Module):
    """Bounded forward, steep backward."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.sin(20 * hidden)


def dying() -> Policy:
    policy = SmallPolicy(nn.ReLU, norm=False)
    with torch.no_grad():
        policy.trunk[1][0].bias.fill_(-30.0)  # pyright: ignore
    return policy


def exploding() -> Policy:
    return SmallPolicy(Steep, depth=8, norm=False)


def vanishing() -> Policy:
    return SmallPolicy(nn.Sigmoid, depth=9, norm=False)


def with_rate(trainer: Trainer, rate: Callable[[Clock], float]) -> None:
    trainer.update.learning_rates = lambda clock: [rate(clock) for _ in trainer.update.optimizer.param_groups]  # type: ignore[method-assign]


def stops_learning(trainer: Trainer) -> None:
    with_rate(trainer, lambda clock: 3e-3 if clock.step < 60 else 0.0)


def broken_episode(batch: Batch) -> Batch:
    batch.state[batch.episode == 17, 0, 2] = math.nan
    return batch


def far_targets(batch: Batch) -> Batch:
    assert batch.actions is not None
    if bool((batch.episode % 40 == 5).any()):
        batch.actions = torch.where((batch.episode % 40 == 5)[:, None, None], 800 * batch.actions, batch.actions)
    return batch


def random_dimension(batch: Batch) -> Batch:
    assert batch.actions is not None
    batch.actions[:, :, 1] = randomness.normal(batch.key, "random", (CHUNK,))
    return batch


def random_step(batch: Batch) -> Batch:
    assert batch.actions is not None
    batch.actions[:, 3] = randomness.normal(batch.key, "random", (ACTION,))
    return batch


def random_task(batch: Batch) -> Batch:
    assert batch.actions is not None
    noise = randomness.normal(batch.key, "random", (CHUNK, ACTION))
    batch.actions = torch.where((batch.task == 2)[:, None, None], noise, batch.actions)
    return batch


def very_noisy(batch: Batch) -> Batch:
    """What is demonstrated is right on average only, and some demonstrators are much worse than others."""
    assert batch.actions is not None
    tremor = 2 * torch.exp(randomness.normal(batch.key, "tremor", (1, 1)))
    batch.actions = 4 + batch.actions + tremor * randomness.normal(batch.key, "label noise", (CHUNK, ACTION))
    return batch


def random_everything(batch: Batch) -> Batch:
    batch.actions = randomness.normal(batch.key, "random", (CHUNK, ACTION))
    return batch


def overflowing_step(trainer: Trainer) -> None:
    """One module divides by what becomes zero."""

    def divide(module: nn.Module, given: object, output: Tensor) -> Tensor:
        return output / (0.0 if trainer.step % 50 == 20 and module.training else 1.0)

    trainer.objective.policy.see.register_forward_hook(divide)  # type: ignore[union-attr]


def untold(batch: Batch) -> Batch:
    """Three ways to act, and nobody says which."""
    assert batch.actions is not None
    way = torch.tensor([1.0, -1.0, 3.0])[batch.task]
    text = Tokens(ids=0 * batch.text.ids, is_pad=batch.text.is_pad)
    return replace(batch, task=0 * batch.task, text=text, actions=way[:, None, None] * batch.actions)


def noise_to_memorise(batch: Batch) -> Batch:
    assert batch.actions is not None
    batch.actions = batch.actions + randomness.normal(batch.key, "label noise", (CHUNK, ACTION))
    return batch


PLANTS: dict[str, tuple[str, Plant]] = {
    "frozen module": ("frozen-module", Plant(policy=Detached)),
    "exploding layers": ("exploding-gradients", Plant(policy=exploding)),
    "vanishing gradients": ("vanishing-gradients", Plant(policy=vanishing)),
    "dead units": ("dead-units", Plant(policy=dying)),
    "starved loader": ("data-bound", Plant(stream={"starves": True}, training={"steps": 80})),
    "rate too high": ("learning-rate-too-high", Plant(training={"optimizer": AdamWConfig(learning_rate=1.0)})),
    "rate too low": ("learning-rate-too-low", Plant(training={"optimizer": AdamWConfig(learning_rate=1e-6)})),
    "schedule at zero": ("schedule-at-zero", Plant(prepare=stops_learning)),
    "broken episode": ("non-finite", Plant(number=100, episodes={"change": broken_episode})),
    "module that divides by zero": ("non-finite", Plant(prepare=overflowing_step)),
    "loss spikes": ("spikes", Plant(number=2000, episodes={"change": far_targets})),
    "data in blocks": (
        "oscillation",
        Plant(change=untold, stream={"blocks": 20}, hears=False, training={"steps": 400, "optimizer": AdamWConfig(learning_rate=1e-2)}),
    ),
    "overfitting": ("overfitting", Plant(number=6, change=noise_to_memorise, training={"steps": 600})),
    "random dimension": ("unlearnt-dimension", Plant(change=random_dimension)),
    "random step": ("unlearnt-horizon", Plant(change=random_step)),
    "random task": ("unlearnt-task", Plant(change=random_task)),
    "deaf policy": ("language-ignored", Plant(policy=Deaf)),
    "two held-out episodes": ("validation-too-small", Plant(held_out=2)),
    "clipped to nothing": ("always-clipped", Plant(training={"clip_norm": 1e-3})),
    "labels of others": ("nothing-learnt", Plant(change=random_everything)),
    "weights in bfloat16": ("lost-updates", Plant(policy=Coarse, training={"optimizer": AdamWConfig(learning_rate=1e-4)})),
    "samples with immense gradients": ("loss-scale", Plant(policy=Steeper, training={"precision": "fp16"})),
    "loss in tiny units": ("gradient-underflow", Plant(training={"precision": "fp16"}, unit=1e-9)),
    "batch of four": (
        "gradient-noise",
        Plant(change=very_noisy, stream={"size": 4}, training={"accumulation": 4, "log_every": 1, "steps": 600}),
    ),
}
HEALTHY: dict[str, Plant] = {
    "plain": Plant(),
    "relu, dropout": Plant(policy=lambda: SmallPolicy(nn.ReLU, dropout=0.1)),
    "deep, no average": Plant(policy=lambda: SmallPolicy(depth=4), training={"ema_decay": None}),
    "large steps": Plant(training={"optimizer": AdamWConfig(learning_rate=1e-2), "steps": 400}),
    "bf16": Plant(policy=lambda: SmallPolicy(nn.ReLU), training={"precision": "bf16"}),
    "fp16": Plant(training={"precision": "fp16", "accumulation": 4}),
    "no clipping": Plant(policy=lambda: SmallPolicy(nn.SiLU), training={"clip_norm": None, "accumulation": 2}),
}
