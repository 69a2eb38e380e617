"""Throw-away objectives and a counted in-memory stream, small enough that a run of a hundred steps takes well under a second."""

from __future__ import annotations

import hashlib
import json
from concurrent import futures
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from deftly import randomness, storage
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig
from deftly.training.trainer import Trainer
from deftly.types import Batch, Objective, Stream, Term, Tokens

STATE, ACTION, CHUNK = 5, 3, 4


def make_batch(key: torch.Tensor, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch that is a function of its keys; targets are linear in the state, chunks are padded at random lengths."""
    size = len(key)
    state = randomness.normal(key, "state", (1, STATE)).to(dtype)
    mixing = torch.linspace(-1, 1, STATE * ACTION, dtype=dtype).reshape(STATE, ACTION)
    length = randomness.integers(key, "length", 1, CHUNK + 1)
    false = torch.zeros(size, 1, dtype=torch.bool)
    return Batch(
        key=key,
        images={},
        camera_is_missing={},
        state=state,
        state_dim_is_pad=false.expand(-1, STATE),
        past_actions=torch.zeros(size, 1, ACTION, dtype=dtype),
        past_action_is_pad=~false,
        observation_is_pad=false,
        text=Tokens(ids=torch.zeros(size, 1, dtype=torch.int64), is_pad=false),
        actions=(state @ mixing).expand(-1, CHUNK, -1),
        action_dim_is_pad=false.expand(-1, ACTION),
        action_is_pad=torch.arange(CHUNK)[None] >= length[:, None],
        embodiment=torch.zeros(size, dtype=torch.int64),
        task=torch.zeros(size, dtype=torch.int64),
        episode=key % 7,
        frame=torch.zeros(size, dtype=torch.int64),
        domain=torch.zeros(size, dtype=torch.int64),
        labels={"sign": (state.sum((1, 2)) > 0).to(dtype), "sign_is_valid": key % 3 == 0},
        weight=randomness.uniform(key, "weight").to(dtype) + 0.5,
    )


class ToyStream(Stream):
    """Batch n has the keys of (seed, n). With `curriculum` the state depends on what the trainer fed back.

    `poison` maps n to a factor of its states; `calls` maps n to what happens before it is given.
    """

    def __init__(
        self,
        size: int = 8,
        dtype: torch.dtype = torch.float32,
        curriculum: bool = False,
        poison: dict[int, float] | None = None,
        calls: dict[int, Callable[[], None]] | None = None,
    ) -> None:
        self.size, self.dtype, self.curriculum, self.poison, self.calls = size, dtype, curriculum, poison or {}, calls or {}
        self.position = 0
        self.difficulty = 0.0

    def next(self) -> Batch:
        self.calls.get(self.position, lambda: None)()
        epoch = torch.full((self.size,), self.position)
        batch = make_batch(randomness.sample_keys(0, epoch, torch.arange(self.size)), self.dtype)
        if self.curriculum:
            batch.state = batch.state * (1 + self.difficulty)
        if self.position in self.poison:
            batch.state = batch.state * self.poison[self.position]
        self.position += 1
        return batch

    def feedback(self, report):
        self.difficulty = 0.9 * self.difficulty + 0.1 * min(1.0, report["loss"])

    def state(self):
        return {"position": self.position, "difficulty": self.difficulty}

    def load_state(self, state):
        self.position, self.difficulty = state["position"], state["difficulty"]


class ToyPolicy(nn.Module):
    """A hidden layer with a norm, dropout and running statistics: one of each kind of state."""

    def __init__(self, dropout: float = 0.1, batch_norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(STATE, 16)
        self.norm = nn.LayerNorm(16)
        self.batch_norm = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.task = nn.Embedding(2, 16)
        self.last = nn.Linear(16, ACTION * CHUNK)

    def forward(self, batch: Batch) -> torch.Tensor:
        hidden = self.norm(torch.tanh(self.first(batch.state[:, -1]))) + self.task(batch.task)
        return self.last(self.dropout(self.batch_norm(hidden))).unflatten(1, (CHUNK, ACTION))


class ToyObjective(Objective):
    """Masked mean squared error."""

    reads = ("state", "actions", "action_is_pad")
    decomposes = True

    def __init__(self, policy: nn.Module | None = None) -> None:
        super().__init__()
        self.policy = policy or ToyPolicy()  # type: ignore[assignment]

    def counts(self, batch: Batch):
        return {"mse": batch.valid_actions().sum()}

    def forward(self, batch: Batch, clock, counts):
        error = (self.policy(batch) - batch.actions).square()
        return {"mse": Term((error * batch.valid_actions()).sum() / counts["mse"])}


class TwoTerms(ToyObjective):
    """Two trained terms with different masks and one that is only reported."""

    reads = ("state", "actions", "action_is_pad", "labels.sign", "labels.sign_is_valid")

    def __init__(self, policy: nn.Module | None = None) -> None:
        super().__init__(policy)
        self.sign = nn.Linear(STATE, 1)

    def counts(self, batch: Batch):
        return {**super().counts(batch), "sign": (batch.labels["sign_is_valid"] * batch.weight).sum()}

    def forward(self, batch: Batch, clock, counts):
        logit = self.sign(batch.state[:, -1])[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, batch.labels["sign"], reduction="none")
        valid = batch.labels["sign_is_valid"] * batch.weight
        correct = ((logit > 0) == (batch.labels["sign"] > 0)) * valid
        terms = {
            "sign": Term((loss * valid).sum() / counts["sign"], weight=0.3),
            "accuracy": Term(correct.sum() / counts["sign"], weight=0.0),
        }
        return {**super().forward(batch, clock, counts), **terms}


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round (Ganin & Lempitsky, 2015)."""

    @staticmethod
    def forward(ctx, values):  # type: ignore[override]
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        return -0.5 * gradient


class StackedPolicy(nn.Module):
    """Repeated blocks, a number that learns, and a part that a batch may leave alone."""

    def __init__(self, width: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(STATE, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) for _ in range(depth))
        self.scale = nn.Parameter(torch.ones(()))
        self.last = nn.Linear(width, ACTION * CHUNK)

    def features(self, batch: Batch) -> torch.Tensor:
        hidden = self.first(batch.state[:, -1])
        for block in self.blocks:
            hidden = hidden + block(hidden) * self.scale
        return hidden

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.last(self.features(batch)).unflatten(1, (CHUNK, ACTION))


class Adversarial(ToyObjective):
    """A discriminator guesses the sign from what the policy does, and the policy learns that it cannot. Every third step it rests."""

    reads = (*ToyObjective.reads, "labels.sign")

    def __init__(self, policy: nn.Module | None = None) -> None:
        super().__init__(policy or StackedPolicy())
        self.discriminator = nn.Sequential(nn.Linear(ACTION * CHUNK, 5), nn.ReLU(), nn.Linear(5, 1))

    def counts(self, batch: Batch):
        return {**super().counts(batch), "domain": batch.weight.sum()}

    def forward(self, batch: Batch, clock, counts):
        actions = self.policy(batch)
        terms = {"mse": Term(((actions - batch.actions).square() * batch.valid_actions()).sum() / counts["mse"])}
        if clock.step % 3:
            guess = self.discriminator(Reversed.apply(actions.flatten(1)))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(guess, batch.labels["sign"], reduction="none")
            terms["domain"] = Term((loss * batch.weight).sum() / counts["domain"], weight=0.2)
        return terms


class Distilled(ToyObjective):
    """Follows a frozen teacher, which is no part of a checkpoint, and the demonstrations."""

    not_saved = ("teacher",)

    def __init__(self, policy: nn.Module | None = None) -> None:
        super().__init__(policy or StackedPolicy())
        self.teacher = StackedPolicy(width=7, depth=1).requires_grad_(False)

    def counts(self, batch: Batch):
        return {**super().counts(batch), "teacher": batch.weight.sum()}

    def forward(self, batch: Batch, clock, counts):
        actions = self.policy(batch)
        with torch.no_grad():
            wanted = self.teacher(batch)
        near = ((actions - wanted).square().mean((1, 2)) * batch.weight).sum() / counts["teacher"]
        mse = ((actions - batch.actions).square() * batch.valid_actions()).sum() / counts["mse"]
        return {"mse": Term(mse), "teacher": Term(near, weight=0.5)}


def small_config(**changes) -> TrainingConfig:
    base = TrainingConfig(
        steps=30,
        precision="fp32",
        optimizer=AdamWConfig(learning_rate=1e-2),
        ema_decay=0.9,
        log_every=4,
        validate_every=10,
        checkpoint_every=7,
    )
    return base.replace(**changes)


def write_policy(directory: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, directory / "model.safetensors")
    storage.write_manifest(directory, {"kind": "policy"})


def held_out():
    for number in range(2):
        yield make_batch(randomness.sample_keys(1, torch.full((8,), number), torch.arange(8)))


def make_trainer(directory: Path, *, objective: Objective | None = None, stream: Stream | None = None, config=None, **changes) -> Trainer:
    torch.manual_seed(0)
    config = config or small_config()
    given = {
        "directory": directory,
        "seed": 0,
        "device": "cpu",
        "write_policy": write_policy,
        "run_json": {"name": "toy", "training": config.to_dict()},
        "dataset_hash": "data-1",
        "validation": held_out,
    }
    return Trainer(objective or ToyObjective(), stream or ToyStream(), config, **{**given, **changes})


def written(trainer: Trainer) -> None:
    """Wait until the checkpoint that is under way, if one is, is on the disk or has failed: a test that meddles with it races with it."""
    if trainer.saver._under_way is not None:
        futures.wait([trainer.saver._under_way[1]])


def fingerprint(trainer: Trainer) -> str:
    """A hash of everything that must come out the same: weights, averages, moments, stream, guard."""
    snapshot = trainer.snapshot()
    digest = hashlib.sha256()
    for part in (snapshot.objective, snapshot.raw or {}, snapshot.optimizer):
        for name, tensor in sorted(part.items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    state = {name: value for name, value in snapshot.trainer.items() if name != "seconds"}
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def log_lines(directory: Path) -> list[dict]:
    """The metrics of a run without their wall-clock fields."""
    return [{name: value for name, value in line.items() if name != "time"} for line in storage.read_lines(directory / "metrics.jsonl")]
