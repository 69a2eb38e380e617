"""Every recipe builds, shrinks, and its shrunk form trains on a small dataset of its kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deftly.recipes import RECIPES
from deftly.run import Run, train
from deftly.types import DataError, UsageError
from small_data import write_dataset


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_data(name: str, tmp_path: Path) -> None:
    for small in (False, True):
        run = RECIPES[name](small)
        path = tmp_path / "run.json"
        path.write_text(run.to_json())
        assert Run.load(path) == run
        assert run.name == name
    assert RECIPES[name](True).training.steps < 20


@pytest.mark.parametrize("name", ["imitate", "act", "bridge", "g1"])
def test_a_small_recipe_trains_on_any_lerobot_dataset(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", lengths=(9, 7, 8, 6))
    run = RECIPES[name](True)
    run = run.replace(data=run.data.replace(path=tmp_path / "data", cameras=None, validation_fraction=0.3))
    summary = train(run, tmp_path / "run", device="cpu")
    if run.folds:
        assert len(summary["folds"]) == run.folds
        assert summary["mean"]["policy"] == pytest.approx(np.mean([fold["policy"] for fold in summary["folds"]]))
        assert json.loads((tmp_path / "run" / "folds.json").read_text()) == summary
        wins = all(summary["mean"]["policy"] < summary["mean"][other] for other in ("mean_action", "repeat_last"))
        assert summary["policy_beats_both_baselines"] == wins
        held_out = [json.loads((tmp_path / "run" / f"fold-{i}" / "run.json").read_text())["name"] for i in range(run.folds)]
        assert held_out == [f"{name} fold {i}" for i in range(run.folds)]
    else:
        assert set(summary["offline"]) == {"policy", "mean_action", "repeat_last"}
        assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_folds_are_kept_and_go_on(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", lengths=(6, 7, 5, 6))
    run = RECIPES["bridge"](True)
    run = run.replace(data=run.data.replace(path=tmp_path / "data", cameras=None), training=run.training.replace(steps=3))
    first = train(run, tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="--resume"):
        train(run, tmp_path / "run", device="cpu")
    assert train(run, tmp_path / "run", resume=True, device="cpu") == first
    with pytest.raises(DataError, match=r"seed: expected 0, found 5"):
        train(run.replace(seed=5), tmp_path / "run", resume=True, device="cpu")


def test_a_world_that_is_not_the_datasets_is_refused_before_training(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    run = RECIPES["demo"](True)
    with pytest.raises(DataError, match=r"the run's world does not match: .*name: expected") as caught:
        train(run.replace(data=run.data.replace(path=tmp_path / "data", validation_fraction=0.3)), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
