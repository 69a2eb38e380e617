"""Merged datasets hold what their parts held."""

import json

import numpy as np
import pytest

from deftly.data.dataset import Dataset
from deftly.data.merge import described, merge
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError
from guards import guards
from recordings import episode, write
from small_data import robot


def parts(folder):
    first = write(folder / "a", (4, 6))
    second = write(folder / "b", (), [episode(2, 3), episode(3, 5)])
    return first, second


def test_a_merge_equals_one_dataset_with_all_the_episodes(tmp_path):
    first, second = parts(tmp_path)
    merge([first, second], tmp_path / "all", {"note": "x"})
    merged, whole = Dataset.open(tmp_path / "all"), Dataset.open(write(tmp_path / "whole", (4, 6, 3, 5)))
    for name in ("action", "observation.state", "note", "timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert np.array_equal(merged.column(name), whole.column(name)), name
    assert merged.tasks == whole.tasks
    assert merged.extra("seed") == whole.extra("seed")
    sources = [Dataset.open(first), Dataset.open(second)]
    for camera in ("head", "wrist"):
        for number in range(4):
            assert np.array_equal(merged.frames(number, camera), sources[number // 2].frames(number % 2, camera))
    stats = [json.loads((root / "meta/stats.json").read_text()) for root in (tmp_path / "all", tmp_path / "whole")]
    assert stats[0] == stats[1]
    assert described(tmp_path / "all")["note"] == "x"
    assert merged.embodiment == robot()


def test_merging_again_gives_the_same_bytes(tmp_path):
    sources = parts(tmp_path)
    for name in ("x", "y"):
        merge(sources, tmp_path / name, {})
    (tmp_path / "y/meta/info.json").unlink()
    merge(sources, tmp_path / "y", {})
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("x", "y")]
    assert files[0] == files[1]
    assert all((tmp_path / "x" / f).read_bytes() == (tmp_path / "y" / f).read_bytes() for f in files[0])


def test_what_does_not_fit_together_is_refused(tmp_path):
    first = write(tmp_path / "a", (4,))
    with DatasetWriter(tmp_path / "b", robot(action=3), extra={"note": ("left", "right")}) as writer:
        data = episode(0, 4)
        writer.add(EpisodeData(images=data.images, state=data.state, action=data.action[:, :3], task="x", extra_frame=data.extra_frame))
        writer.finish()
    with DatasetWriter(tmp_path / "c", robot()) as writer:
        writer.add(EpisodeData(images=data.images, state=data.state, action=data.action, task="x"))
        writer.finish()
    with pytest.raises(DataError, match="its embodiment does not match"):
        merge([first, tmp_path / "b"], tmp_path / "all", {})
    with pytest.raises(DataError, match="its features differ"):
        merge([first, tmp_path / "c"], tmp_path / "all", {})
    with pytest.raises(DataError, match="nothing to merge"):
        merge([], tmp_path / "all", {})
    with pytest.raises(DataError, match=r"no such dataset|holds no"):
        Dataset.open(tmp_path / "all")


def test_an_interrupted_merge_is_no_dataset_and_can_be_repeated(tmp_path, monkeypatch):
    sources = parts(tmp_path)
    merge(sources, tmp_path / "all", {})
    (tmp_path / "all/meta/info.json").unlink()
    with pytest.raises(DataError, match="not a LeRobot dataset"):
        Dataset.open(tmp_path / "all")
    merge(sources, tmp_path / "all", {})
    assert Dataset.open(tmp_path / "all").num_episodes == 4


@guards("data.merge.source")
@pytest.mark.parametrize("place", ["a", "a/data/m", "."])
def test_a_merge_never_writes_into_its_sources(tmp_path, place):
    """In the last case `root / "data"`, which a merge empties first, holds them."""
    source = write(tmp_path / ("data/a" if place == "." else "a"), (4,))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="which is only read"):
        merge([source, source], tmp_path / place, {})
    assert sorted(tmp_path.rglob("*")) == before


@guards("data.merge.finished")
def test_a_finished_dataset_is_not_merged_over(tmp_path):
    first, second = parts(tmp_path)
    with pytest.raises(UsageError, match="holds a dataset already"):
        merge([first], second, {})
    assert Dataset.open(second).num_episodes == 2


@guards("data.merge.foreign")
@pytest.mark.parametrize("name", ["data/notes", "videos/holiday"])
def test_folders_that_no_merge_wrote_are_left_alone(tmp_path, name):
    (tmp_path / "all" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"holds {name}"):
        merge(parts(tmp_path), tmp_path / "all", {})
    assert (tmp_path / "all" / name).is_dir()
