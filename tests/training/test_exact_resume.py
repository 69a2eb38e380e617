"""N steps and the rest equal one run, for every N, on the real loader and a real policy; and nothing that only looks changes a weight.

The epochs end inside of batches and of micro-batches: 19 windows, batches of 4, cut in two.
"""

from __future__ import annotations

import collections
import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.language.augment import LanguageConfig
from deftly.data.loader import Loader
from deftly.data.windows import Selection, Windows
from deftly.models.heads import FlowMatchingConfig
from deftly.models.language import TextConfig
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.training.checkpoint import Snapshot, read
from deftly.training.trainer import Trainer
from deftly.types import Batch, Objective, Stream
from small_data import TASKS, FakeDataset, build_windows
from training.toys import log_lines, make_trainer, small_config

LENGTHS = (6, 8, 0, 5)
SAMPLES, BATCH, STEPS = sum(LENGTHS), 4, 31


class Enough(Exception):
    """The process ends here."""


class Ledger(Stream):
    """A loader that notes what it gave: (position in the stream, episode, frame)."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.given: list[tuple[int, int, int]] = []
        self.until = STEPS

    def next(self) -> Batch:
        at = self.loader.state()["consumed"]
        if at == self.until * BATCH:
            raise Enough
        batch = self.loader.next()
        self.given += zip(range(at, at + len(batch)), batch.episode.tolist(), batch.frame.tolist(), strict=True)
        return batch

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.loader.load_state(state)


def build(cache: Path, workers: int) -> tuple[Ledger, Objective]:
    """Two frames, past actions, other words, moved and coloured pictures; a flow policy with dropout."""
    dataset = FakeDataset(lengths=LENGTHS, cameras=("head",))
    plain = build_windows(dataset, cache, Window(frames=2, chunk=4, past_actions=True), stored=20)
    words = LanguageConfig(probability=0.5, typos=0).build(dataset.tasks, 8)
    windows = Windows(plain.columns, plain.frames, plain.encoder, TASKS, words)
    selection = Selection(plain.frames.episode_start, np.arange(len(LENGTHS)))
    augmentation = AugmentConfig(noise=0.01, crop_scale=(0.7, 1.0), rotation_degrees=5)
    loader = Loader(windows, selection, seed=5, batch_size=BATCH, workers=workers, augmentation=augmentation)
    policy = PolicyConfig(
        vision=CNNConfig(stem_stride=4, widths=(8,), keypoints=2),
        text=TextConfig(dim=8, heads=1),
        width=16,
        depth=1,
        dropout=0.2,
        head=FlowMatchingConfig(width=16, blocks=1, draws=1),
    )
    torch.manual_seed(1)
    return Ledger(loader), ImitationConfig().build(policy.build(plain.encoder.contract, 64))


def make(cache: Path, directory: Path, *, workers: int = 0, **config: Any) -> Trainer:
    """A trainer with a loader and a policy of its own; further arguments are the config's."""
    stream, objective = build(cache, workers)
    settings = small_config(**{"steps": STEPS, "accumulation": 2, "checkpoint_every": 1, "keep_last": STEPS, "log_every": 3, **config})
    given = {"objective": objective, "stream": stream, "config": settings, "validation": stream.loader.batches}
    return make_trainer(directory, run_json={"name": "exact"}, **given)


@dataclass
class Whole:
    """One run, with a checkpoint of each of its steps."""

    cache: Path
    directory: Path
    trainer: Trainer
    given: list[tuple[int, int, int]]

    def again(self, directory: Path, **changes: Any) -> Trainer:
        return make(self.cache, directory, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    cache, directory = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("whole")
    trainer = make(cache, directory)
    trainer.fit()
    return Whole(cache, directory, trainer, given(trainer))


def given(trainer: Trainer) -> list[tuple[int, int, int]]:
    """What the run's stream gave in this process; which ends its workers."""
    assert isinstance(trainer.stream, Ledger)
    trainer.stream.loader.close()
    return trainer.stream.given


def test_each_sample_once_per_epoch(whole: Whole) -> None:
    assert [at for at, _, _ in whole.given] == list(range(STEPS * BATCH))
    windows = {(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)}
    for epoch in range(STEPS * BATCH // SAMPLES):
        shown = [place for _, *place in whole.given[epoch * SAMPLES : (epoch + 1) * SAMPLES]]
        assert collections.Counter(map(tuple, shown)) == collections.Counter(windows)


def train(trainer: Trainer, until: int, *, resume: bool = False) -> Snapshot:
    """What a checkpoint after `until` steps holds; the process ends there."""
    assert isinstance(trainer.stream, Ledger)
    trainer.stream.until = until
    with contextlib.suppress(Enough):
        trainer.fit(resume=resume)
    return trainer.snapshot()


def tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Weights, averages and moments."""
    assert snapshot.raw is not None
    return {**snapshot.objective, **{f"raw.{name}": tensor for name, tensor in snapshot.raw.items()}, **snapshot.optimizer}


def different(found: Snapshot, expected: Snapshot) -> list[str]:
    """Names of tensors that are not the same bits."""
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def resume_equals(whole: Whole, home: Path, first: int, until: int) -> None:
    """The process that took the first steps is gone: its checkpoint is left, and a log that was further."""
    name = f"step-{first:08d}"
    shutil.copytree(whole.directory / "checkpoints" / name, home / "checkpoints" / name)
    shutil.copy(whole.directory / "metrics.jsonl", home)
    trainer = whole.again(home, checkpoint_every=None)
    found, expected = train(trainer, until, resume=True), read(whole.directory / "checkpoints" / f"step-{until:08d}")
    assert given(trainer) == whole.given[first * BATCH : until * BATCH], "each sample exactly once, by one of the two"
    assert different(found, expected) == []
    state, theirs = ({**snapshot.trainer, "seconds": None, "best": None} for snapshot in (found, expected))
    assert state == theirs
    assert log_lines(home) == [line for line in log_lines(whole.directory) if line["step"] <= until]


@pytest.mark.parametrize("first", range(1, STEPS))
def test_b2_b5_n_steps_and_the_next_equal_one_run(first: int, whole: Whole, tmp_path: Path) -> None:
    """Three steps, or to the end: they reach the state from which another of these tests goes on, so together they reach the end."""
    resume_equals(whole, tmp_path, first, min(first + 3, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, STEPS))
def test_b2_b5_n_steps_and_all_others_equal_one_run(first: int, whole: Whole, tmp_path: Path) -> None:
    resume_equals(whole, tmp_path, first, STEPS)


CHANGES: list[dict[str, Any]] = [
    {"checkpoint_every": 7},
    {"checkpoint_every": None, "validate_every": None, "log_every": 100},
    {"checkpoint_every": 1, "keep_last": 2},
    {"validate_every": 1, "checkpoint_every": None},
    {"log_every": 1, "validate_every": 4, "checkpoint_every": 3, "keep_last": 5},
    {"workers": 1},
    {"workers": 2, "checkpoint_every": 7},
]


def looks_change_nothing(whole: Whole, home: Path, until: int, **changes: Any) -> None:
    trainer = whole.again(home, **{"checkpoint_every": None, **changes})
    assert different(train(trainer, until), read(whole.directory / "checkpoints" / f"step-{until:08d}")) == []
    assert given(trainer) == whole.given[: until * BATCH]


@pytest.mark.parametrize("until", [9, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()))
def test_b3_what_only_looks_changes_no_weight(changes: dict[str, Any], until: int, whole: Whole, tmp_path: Path) -> None:
    looks_change_nothing(whole, tmp_path, until, **changes)


@pytest.mark.parametrize("ahead", [True, False])
def test_b3_a_batch_made_ahead_is_the_same_batch(ahead: bool, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deftly.data.loader.is_core_free", lambda device: ahead)
    looks_change_nothing(whole, tmp_path, 9)


def test_t18_a_clock_that_jumps_a_day_back_changes_nothing(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the clock that never should. Something looks at one of them several times a step."""
    calls: collections.Counter[str] = collections.Counter()

    def jumping(name: str, real: Callable[[], float]) -> Callable[[], float]:
        def now() -> float:
            calls[name] += 1
            return real() - (86400 if calls[name] > 10 else 0)

        return now

    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, jumping(name, getattr(time, name)))
    looks_change_nothing(whole, tmp_path, 9, checkpoint_every=4, log_every=1)
    assert min(calls["monotonic"], calls["perf_counter"]) > 10, "it has jumped"
    assert [line["step"] for line in log_lines(tmp_path) if line["kind"] == "train"] == list(range(1, 10))
