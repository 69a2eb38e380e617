"""D13 to D17 where they would do harm: in what training is given. What the check says about them is in test_data_faults.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deftly import storage
from deftly.agent import load, save_policy
from deftly.contract import Window, fingerprint
from deftly.data.actions import ActionsConfig
from deftly.data.augment import OFF
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.models.policy import PolicyConfig
from deftly.types import DataError
from guards import guards
from small_data import FakeDataset, write_dataset

LENGTHS = (30, 30, 40, 30, 35, 35)


def damaged(root: Path, column: np.ndarray, dim: int) -> Path:
    """A dataset whose action `dim` is `column`."""
    fake = FakeDataset(lengths=LENGTHS)
    fake.action[:, dim] = column
    with DatasetWriter(root, fake.embodiment) as writer:
        for episode in range(fake.num_episodes):
            rows = slice(*fake.episode_start[[episode, episode + 1]])
            images = {camera: fake.frames(episode, camera) for camera in fake.cameras}
            task = fake.tasks[int(fake.task_of_frame[rows][0])]
            writer.add(EpisodeData(images=images, state=fake.state[rows], action=fake.action[rows], task=task))
        writer.finish()
    return root


def build(root: Path, **changes) -> TrainingData:
    config = DataConfig(
        path=root, image_size=16, batch_size=8, validation_fraction=0, window=Window(chunk=2), augmentation=OFF, text_length=8
    )
    return config.replace(**changes).build(seed=0, device="cpu", executed_steps=1)


def normalised(data: TrainingData) -> np.ndarray:
    return np.concatenate([batch.actions[:, 0].numpy() for batch in data.train.batches()])


@pytest.fixture
def moving() -> np.ndarray:
    return FakeDataset(lengths=LENGTHS).action[:, 1].copy()


def test_d13_an_outlier_leaves_the_others_as_they_are(tmp_path, moving):
    clean = normalised(build(damaged(tmp_path / "clean", moving, 1)))
    rows = np.arange(len(moving)) != int(moving.argmax())
    moving[~rows] = 1e30  # what was the largest anyway: no order statistic below it moves
    data = build(damaged(tmp_path / "outlier", moving, 1))
    found = normalised(data)
    assert np.isfinite(found).all()
    assert abs(found - clean)[rows].max() < 0.05, "the last of 200 values weighs 1 % in the 99 % quantile's neighbour"
    assert any("target_1: reaches" in line for line in data.summary()["adjusted_dimensions"])


@guards("data.normalize.outlier")
@pytest.mark.parametrize("mode", ["mean_std", "min_max"])
def test_d13_an_outlier_is_refused_where_it_would_decide(tmp_path, moving, mode):
    moving[7] = 1e30
    with pytest.raises(DataError, match="use quantile, or repair it"):
        build(damaged(tmp_path / "data", moving, 1), normalization=mode)


@pytest.mark.parametrize("mode", ["quantile", "mean_std", "min_max"])
def test_d14_a_constant_is_not_scaled_and_listed(tmp_path, mode):
    data = build(damaged(tmp_path / "data", np.full(sum(LENGTHS), 0.7, np.float32), 2), normalization=mode)
    assert abs(normalised(data)[:, 2]).max() <= 5
    assert "action target_2: constant at 0.7, not scaled" in data.summary()["adjusted_dimensions"]


@pytest.mark.parametrize("mode", ["quantile", "mean_std", "min_max"])
@pytest.mark.parametrize("spikes", [False, True])
def test_d15_what_hardly_moves_is_not_blown_up(tmp_path, mode, spikes):
    column = 0.2 + 1e-3 * np.random.default_rng(0).uniform(-0.5, 0.5, sum(LENGTHS)).astype(np.float32)
    if spikes:
        column[[5, 60]] = 1.5
    data = build(damaged(tmp_path / "data", column.astype(np.float32), 3), normalization=mode)
    assert abs(normalised(data)).max() <= 20
    listed = any("target_3" in line for line in data.summary()["adjusted_dimensions"])
    assert listed == (not spikes or mode == "quantile"), "with the spikes, deviation and range are wide enough"


@guards("data.normalize.missing")
def test_d16_a_missing_statistic_is_refused(tmp_path):
    data = build(write_dataset(tmp_path / "data"))
    config = PolicyConfig(width=8, depth=1)
    weights = config.build(data.contract, data.tokenizer.size).state_dict()
    for missing in ("q99", "q01", "q50"):
        statistics = {name: {key: value for key, value in values.items() if key != missing} for name, values in data.statistics.items()}
        folder = tmp_path / missing
        folder.mkdir()
        save_policy(folder, data.contract.replace(statistics_hash=fingerprint(statistics)), statistics, data.tokenizer, config, weights, {})
        with pytest.raises(DataError, match=f"'{missing}' is missing"):
            load(folder)


@guards("data.encoding.action_statistics")
def test_d17_statistics_of_another_action_mode_are_refused(tmp_path):
    root = write_dataset(tmp_path / "data")
    relative = build(root, actions=ActionsConfig(kind="relative", state_of={"target_0": "joint_0"}))
    absolute = build(root)
    config = PolicyConfig(width=8, depth=1)
    weights = config.build(absolute.contract, absolute.tokenizer.size).state_dict()
    for number, (contract, statistics) in enumerate(((absolute.contract, relative.statistics), (relative.contract, absolute.statistics))):
        folder = tmp_path / str(number)
        folder.mkdir()
        contract = contract.replace(statistics_hash=fingerprint(statistics))
        save_policy(folder, contract, statistics, absolute.tokenizer, config, weights, {})
        with pytest.raises(DataError, match="another kind of actions"):
            load(folder)
        values = json.loads((folder / "contract.json").read_text())
        assert values["statistics_hash"] == fingerprint(storage.read_json(folder / "stats.json"))
