"""The data faults of the matrix that show where data becomes batches: outliers, constants, short episodes, cameras, files that change.

D34 and D35 (a recorder that dies, a disk that is full) are in test_recorder.py, D16 and D17 of a policy's own files in test_agent.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from damage import EPISODES, LENGTH, META, change, data, edit, put, write_six
from deftly.cli.main import main as deftly
from deftly.contract import Window
from deftly.data import loader
from deftly.data.check.findings import CheckConfig
from deftly.data.dataset import Dataset
from deftly.data.source import DataConfig, TrainingData
from deftly.objectives.imitation import ImitationConfig
from deftly.recipes import RECIPES
from deftly.run import build_policy
from deftly.types import Clock, DataError, UsageError


def prepare(root: Path, **fields: object) -> TrainingData:
    values = {"path": root, "image_size": 16, "validation_fraction": 0.0, "batch_size": 8, **fields}
    return DataConfig.parse(values, "test").build(seed=0, device="cpu", executed_steps=1)


def spoil(root: Path, function: Callable[[list], list]) -> None:
    """Change every action row of every episode."""
    for episode in range(EPISODES):
        change(root, episode, "action", lambda rows: [function(row) for row in rows])


def steps(prepared: TrainingData, count: int) -> None:
    for _ in range(count):
        prepared.train.next()


@pytest.mark.parametrize("mode", ["mean_std", "min_max"])
def test_d13_an_outlier_is_refused_where_it_would_decide_the_scale(tmp_path: Path, mode: str):
    root = write_six(tmp_path / "data")
    change(root, 2, "action", put(7, [1e30, 0.0, 0.0, 0.0]))
    with pytest.raises(DataError, match="target_0") as caught:
        prepare(root, normalization=mode)
    assert "\n" not in str(caught.value)


def test_d13_under_quantiles_it_moves_nothing(tmp_path: Path):
    root = write_six(tmp_path / "data", (150,) * EPISODES)
    column = Dataset.open(root).action[:, 0]
    top = int(column.argmax())
    before = prepare(root).encoder.statistics["action"]
    rows = Dataset.open(root).action[top // 150 * 150 : top // 150 * 150 + 150]
    change(root, top // 150, "action", put(top % 150, [1e30, *rows[top % 150, 1:].tolist()]))
    after = prepare(root).encoder.statistics["action"]
    for name in ("q01", "q10", "q50", "q90", "q99"):
        assert np.abs(np.subtract(after[name], before[name])).max() < 1e-6


@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_d14_d15_dimensions_without_spread_stay_small(tmp_path: Path, mode: str):
    root = write_six(tmp_path / "data")
    spoil(root, lambda row: [row[0], 1e-3 * np.tanh(row[1]), 3.0, row[3]])
    prepared = prepare(root, normalization=mode)
    normalised = prepared.encoder.action.normalize(prepared.dataset.action)
    assert np.abs(normalised[:, 2]).max() <= 5
    assert np.abs(normalised).max() <= 20
    assert any("target_2" in line for line in prepared.encoder.adjusted)
    assert any("target_1" in line for line in prepared.encoder.adjusted)


def test_d26_episodes_shorter_than_the_chunk_are_padded_and_padding_has_no_gradient(tmp_path: Path):
    root = write_six(tmp_path / "data", (1, 2, 3, 7, 5, 4))
    run = RECIPES["imitate"](True)
    source = run.data.replace(path=root, image_size=16, validation_fraction=0.0, window=Window(chunk=8), batch_size=22)
    prepared = source.build(seed=0, device="cpu", executed_steps=1)
    batch = prepared.train.next()
    length = torch.tensor([1, 2, 3, 7, 5, 4])[batch.episode]
    left = length - batch.frame
    assert batch.action_is_pad is not None
    assert torch.equal(batch.action_is_pad, torch.arange(8) >= left[:, None])
    objective = ImitationConfig().build(build_policy(run.replace(data=source), prepared))
    results = []
    for filling in (0.0, 1e6):
        actions = torch.where(batch.action_is_pad[:, :, None], filling, batch.actions).requires_grad_()
        filled = replace(batch, actions=actions)
        terms = objective(filled, Clock(0, 10), objective.counts(filled))
        loss = sum(term.value * term.weight for term in terms.values())
        objective.zero_grad()
        loss.backward()
        assert actions.grad is not None
        assert (actions.grad[batch.action_is_pad] == 0).all()
        gradients = [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]
        results.append((loss.detach(), gradients))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_d33_a_camera_that_is_not_there_is_named(tmp_path: Path):
    root = write_six(tmp_path / "data")
    with pytest.raises(UsageError, match="no camera 'hed'; did you mean 'head'"):
        prepare(root, cameras=("hed",))
    edit(
        root / META,
        lambda table: table.drop_columns([name for name in table.column_names if name.startswith("videos/observation.images.head")]),
    )
    with pytest.raises(DataError, match=r"observation\.images\.head"):
        prepare(root)


def test_d36_a_file_that_changes_during_training_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "WATCH_EVERY_S", 0.0)  # seconds of training, in a test of milliseconds
    root = write_six(tmp_path / "data")
    prepared = prepare(root)
    prepared.train.next()
    change(root, 2, "action", put(3, [9.0] * 4))
    with pytest.raises(DataError, match=data(2)):
        steps(prepared, 1000)


def test_a_fault_is_exit_65_one_line_and_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_six(tmp_path / "data")
    change(root, 2, "action", put(3, [float("nan")] * 4))
    with pytest.raises(SystemExit) as caught:
        deftly(["train", "imitate", "--small", "--data.path", str(root), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert caught.value.code == 65
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "episode 2 frame 3: action" in line
    assert "deftly data check" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert prepare(root, check=CheckConfig(budget=0.5)).dataset.num_episodes == EPISODES - 1
    assert prepare(root, check=CheckConfig(budget=0.5)).dataset.num_frames == LENGTH * 5
