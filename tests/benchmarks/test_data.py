"""Our half of the benchmark works on small datasets, so that it does not fall behind the data engine unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import small_data
from deftly.data.dataset import Dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ours

    return ours.Ours()


def test_very_many_episodes_open(ours, tmp_path: Path) -> None:
    root = str(tmp_path / "many")
    ours.fixture("many_episodes", root, {"episodes": 2500, "length": 3, "per_file": 1000})
    assert ours.open(root)["episodes"] == 2500
    assert ours.index_bytes(root) > 0
    assert ours.lengths(root) == [3] * 2500
    dataset = Dataset.open(Path(root))
    assert np.array_equal(dataset.column("frame_index").reshape(-1), np.tile(np.arange(3), 2500))
    assert dataset.video_place(2400, "camera_1")[0].name == "file-002.mp4"


def test_numbers_are_loaded_and_measured(ours, tmp_path: Path) -> None:
    root = str(tmp_path / "numbers")
    ours.fixture("numbers", root, {"episodes": 3, "length": 20})
    ours.numbers(root, str(tmp_path / "cache"), chunk=50, batch_size=8)
    assert ours.next(count=2)["samples"] == 16
    rows = ours.sample(str(tmp_path / "batch.npz"))
    batch, dataset = np.load(tmp_path / "batch.npz", allow_pickle=False), Dataset.open(Path(root))
    assert np.allclose(batch["observation.state"][:, 0], dataset.state[rows], atol=1e-5)
    assert batch["action"].shape == (8, 50, 14)
    ours.statistics(root, str(tmp_path / "statistics.npz"))
    found = np.load(tmp_path / "statistics.npz", allow_pickle=False)
    assert np.allclose(found["action/q99"], np.quantile(dataset.action.astype(np.float64), 0.99, axis=0))


@pytest.mark.parametrize("frames", ["store", "video"])
def test_windows_and_batches_hold_the_same_pixels(ours, frames: str, tmp_path: Path) -> None:
    root = str(small_data.write_dataset(tmp_path / "data"))
    prepared = ours.prepare(root, str(tmp_path / "cache"), image_size=32, chunk=4, batch_size=4, frames=frames)
    assert prepared["windows"] == sum(ours.lengths(root))
    assert (prepared["bytes"] > 0) == (frames == "store")
    rows = ours.sample(str(tmp_path / "batch.npz"))
    batch, dataset = np.load(tmp_path / "batch.npz", allow_pickle=False), Dataset.open(Path(root))
    episode = np.searchsorted(dataset.episode_start, rows, side="right") - 1
    windows = [[int(e), "observation.images.head", [int(row - dataset.episode_start[e])]] for e, row in zip(episode, rows, strict=True)]
    ours.windows(root, windows, str(tmp_path / "windows.npz"))
    seen = np.load(tmp_path / "windows.npz", allow_pickle=False)
    assert np.array_equal(batch["observation.images.head"][:, 0], np.concatenate([seen[name].transpose(0, 2, 3, 1) for name in seen.files]))
