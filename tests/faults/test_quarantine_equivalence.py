"""Training on good and broken episodes ends in the very weights of training on the good ones alone: the broken one was never there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from damage import LENGTH, META, change, corrupt, cut, data, edit, edit_info, put, set_column, video, write_six
from deftly import storage
from deftly.data.check.findings import CheckConfig
from deftly.data.dataset import Dataset
from deftly.data.split import split_episodes
from deftly.recipes import RECIPES
from deftly.run import Run, train
from deftly.types import DataError

BAD = 3
SEED = 1  # of a split that trains on BAD


def tiny_run(root: Path) -> Run:
    run = RECIPES["imitate"](True)
    check = CheckConfig(budget=0.5, full=True)
    source = run.data.replace(path=root, validation_fraction=0.3, image_size=16, check=check)
    return run.replace(seed=SEED, data=source, training=run.training.replace(steps=3, checkpoint_every=3, validate_every=3, threads=1))


def weights(root: Path, directory: Path) -> dict[str, str]:
    """sha256 of what training leaves behind: weights, statistics, tokenizer, contract."""
    train(tiny_run(root), directory, device="cpu")
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    names = ("model.safetensors", "stats.json", "tokenizer.json")
    return {name: storage.sha256(newest / "policy" / name) for name in names} | {
        "objective": storage.sha256(newest / "objective.safetensors"),
        "dataset": storage.read_json(newest / "policy" / "contract.json")["dataset_hash"],
    }


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_six(tmp_path_factory.mktemp("six") / "data")


@pytest.fixture(scope="module")
def good_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("five")
    return weights(write_six(folder / "data", without=BAD), folder / "run")


def no_frames(root: Path) -> None:
    edit(root / data(BAD), lambda table: table.slice(0, 0))
    lengths = [LENGTH if i != BAD else 0 for i in range(6)]
    ends = [sum(lengths[: i + 1]) for i in range(6)]

    def shorten(table: pa.Table) -> pa.Table:
        table = set_column(set_column(table, "length", lengths), "dataset_to_index", ends)
        return set_column(table, "dataset_from_index", [end - length for end, length in zip(ends, lengths, strict=True)])

    edit(root / META, shorten)
    edit_info(root, total_frames=sum(lengths))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "d1-truncated-video": lambda root: cut(root / video(BAD), 0.5),
    "d2-empty-video": lambda root: (root / video(BAD, "wrist")).write_bytes(b""),
    "d3-corrupt-frames": lambda root: corrupt(root / video(BAD), slice(4, 6)),
    "d4-no-footer": lambda root: cut(root / data(BAD), 0.8),
    "d11-nan-action": lambda root: change(root, BAD, "action", put(4, [float("nan")] * 4)),
    "d12-inf-state": lambda root: change(root, BAD, "observation.state", put(4, [float("inf")] * 5)),
    "d19-jitter": lambda root: change(root, BAD, "timestamp", put(6, 0.63)),
    "d20-backwards": lambda root: change(root, BAD, "timestamp", lambda values: [*values[:6], *values[3:9]]),
    "d25-unknown-task": lambda root: change(root, BAD, "task_index", put(2, 77)),
    "d27-no-frames": no_frames,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_broken_episode_leaves_no_trace(six: Path, good_alone: dict[str, str], tmp_path: Path, name: str):
    root = shutil.copytree(six, tmp_path / "data")
    DAMAGE[name](root)
    assert weights(root, tmp_path / "run") == good_alone
    lines = list(storage.read_lines(tmp_path / "run/quarantine.jsonl"))
    assert {line["episode"] for line in lines} == {BAD}


def test_the_undamaged_dataset_trains_to_other_weights(six: Path, good_alone: dict[str, str], tmp_path: Path):
    assert BAD in split_episodes(Dataset.open(six), 0.3, SEED)[0]
    assert weights(shutil.copytree(six, tmp_path / "data"), tmp_path / "run")["objective"] != good_alone["objective"]
    assert (tmp_path / "run/quarantine.jsonl").read_text() == ""


def test_over_the_budget_nothing_is_trained_and_nothing_written(six: Path, tmp_path: Path):
    root = shutil.copytree(six, tmp_path / "data")
    DAMAGE["d11-nan-action"](root)
    run = tiny_run(root)
    with pytest.raises(DataError, match="more than the budget"):
        train(run.replace(data=run.data.replace(check=CheckConfig())), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
