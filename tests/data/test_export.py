"""A v2.1 export holds every value and every pixel of the dataset, and is to the letter of that format."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deftly.data.cut import cut
from deftly.data.dataset import Dataset
from deftly.data.export import export_v21, modality, parse_parts
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.schema import Feature
from deftly.data.video import VideoWriter, decode_all
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError
from recordings import episode, png, write
from small_data import picture, robot

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")) / "g1_sample"


def require_equal(left: Dataset, right: Dataset) -> None:
    assert (left.fps, left.tasks, left.cameras) == (right.fps, right.tasks, right.cameras)
    assert left.episode_length.tolist() == right.episode_length.tolist()
    for name, item in left.features.items():
        if item.is_numeric:
            assert np.array_equal(left.column(name), right.column(name)), name
    for number in range(left.num_episodes):
        for camera in left.cameras:
            assert np.array_equal(left.frames(number, camera), right.frames(number, camera)), (number, camera)


def test_every_value_and_every_pixel_is_kept(tmp_path):
    dataset = Dataset.open(write(tmp_path / "data", (5, 3, 7, 4)))  # two of the four begin between key frames
    report = export_v21(dataset, tmp_path / "old")
    assert (report.copied, report.encoded) == (4, 4)
    old = Dataset.open(tmp_path / "old")
    assert old.info.version == "v2.1"
    require_equal(dataset, old)
    assert old.extra("seed") == dataset.extra("seed")
    import_lerobot_v21(tmp_path / "old", tmp_path / "back")
    require_equal(dataset, Dataset.open(tmp_path / "back"))


def test_a_selection_is_exported_as_if_it_were_all(tmp_path):
    dataset = Dataset.open(write(tmp_path / "data", (5, 3, 7, 4))).select(np.array([2, 0]))
    export_v21(dataset, tmp_path / "old")
    old = Dataset.open(tmp_path / "old")
    assert np.array_equal(old.column("index"), np.arange(12))
    assert np.array_equal(old.column("episode_index"), np.repeat([0, 1], [7, 5]))
    assert np.array_equal(old.action, dataset.action)
    assert old.tasks == dataset.tasks
    assert np.array_equal(old.frames(0, "head"), dataset.frames(0, "head"))


def test_the_folder_is_that_of_the_format(tmp_path):
    export_v21(Dataset.open(write(tmp_path / "data", (5, 3))), tmp_path / "old")
    names = {str(path.relative_to(tmp_path / "old")) for path in (tmp_path / "old").rglob("*") if path.is_file()}
    assert names == {
        *(f"data/chunk-000/episode_00000{i}.parquet" for i in (0, 1)),
        *(f"videos/chunk-000/observation.images.{camera}/episode_00000{i}.mp4" for camera in ("head", "wrist") for i in (0, 1)),
        *(f"meta/{name}" for name in ("info.json", "modality.json", "episodes.jsonl", "episodes_stats.jsonl", "tasks.jsonl")),
    }
    info = json.loads((tmp_path / "old/meta/info.json").read_text())
    assert (info["total_videos"], info["total_chunks"], info["chunks_size"], info["splits"]) == (4, 1, 1000, {"train": "0:2"})
    table = pq.read_table(tmp_path / "old/data/chunk-000/episode_000001.parquet")
    assert b"huggingface" in table.schema.metadata
    assert table.column("index").to_pylist() == [5, 6, 7]
    lines = [json.loads(line) for line in (tmp_path / "old/meta/episodes_stats.jsonl").read_text().splitlines()]
    assert [line["episode_index"] for line in lines] == [0, 1]
    assert set(lines[0]["stats"]["action"]) == {"min", "max", "mean", "std", "count"}
    assert np.shape(lines[0]["stats"]["observation.images.head"]["mean"]) == (3, 1, 1)
    assert lines[1]["stats"]["index"]["min"] == [5]


def test_modality_names_parts(tmp_path):
    dataset = Dataset.open(write(tmp_path / "data", (3,)))
    assert modality(dataset) == {
        "state": {"state": {"start": 0, "end": 5}},
        "action": {"action": {"start": 0, "end": 4}},
        "video": {name: {"original_key": f"observation.images.{name}"} for name in ("head", "wrist")},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }
    parts = parse_parts(("arm=0:3", "gripper=3:4"))
    assert modality(dataset, action_parts=parts)["action"] == {"arm": {"start": 0, "end": 3}, "gripper": {"start": 3, "end": 4}}
    with pytest.raises(UsageError, match="'arm' of the state is 0:6; the state has 5 elements"):
        export_v21(dataset, tmp_path / "old", state_parts={"arm": (0, 6)})
    for words in (("arm",), ("arm=3",), ("arm=a:b",), ("a=0:1", "a=1:2")):
        with pytest.raises(UsageError, match="is not a new NAME=START:END"):
            parse_parts(words)
    assert not (tmp_path / "old").exists()


def test_images_stay_the_bytes_that_they_were(tmp_path):
    frames = episode(0, 4).images["head"]
    with DatasetWriter(tmp_path / "data", robot().replace(cameras=(robot().cameras[0],)), images={"head": "image"}) as writer:
        writer.add(
            EpisodeData(images={"head": [png(frame) for frame in frames]}, state=np.zeros((4, 5)), action=np.zeros((4, 4)), task="x")
        )
        writer.finish()
    export_v21(Dataset.open(tmp_path / "data"), tmp_path / "old")
    assert np.array_equal(Dataset.open(tmp_path / "old").frames(0, "head"), frames)
    assert json.loads((tmp_path / "old/meta/info.json").read_text())["video_path"] is None


def test_depth_text_and_arrays_are_carried_along(tmp_path):
    extra = {
        "observation.images.depth": Feature(
            "image", (32, 32, 1), ("height", "width", "channels"), {"is_depth_map": True, "depth_unit": "mm"}
        ),
        "subtask": Feature("string", (1,)),
        "grid": Feature("float32", (2, 3)),
    }
    draw, data = np.random.default_rng(0), episode(0, 4)
    more = {"observation.images.depth": draw.integers(0, 9000, (4, 32, 32)).astype(np.uint16), "subtask": list("abcd")}
    more["grid"] = draw.normal(size=(4, 2, 3)).astype(np.float32)
    with DatasetWriter(tmp_path / "data", robot(), extra=extra) as writer:
        writer.add(EpisodeData(images=data.images, state=data.state, action=data.action, task="x", extra_frame=more))
        writer.finish()
    dataset = Dataset.open(tmp_path / "data")
    export_v21(dataset, tmp_path / "old")
    old = Dataset.open(tmp_path / "old")
    assert {name: item.to_dict() for name, item in old.features.items()} == {
        name: item.to_dict() for name, item in dataset.features.items()
    }
    assert np.array_equal(old.depth(0, "depth"), dataset.depth(0, "depth"))
    table = pq.read_table(tmp_path / "old/data/chunk-000/episode_000000.parquet")
    assert table.column("subtask").to_pylist() == list("abcd")
    assert np.array_equal(table.column("grid").to_pylist(), more["grid"])


@pytest.mark.parametrize("damage", ["truncated", "missing", "rows"])
def test_a_broken_source_leaves_nothing(tmp_path, damage):
    root = write(tmp_path / "data", (5, 3))
    path = next(root.glob("data/**/*.parquet" if damage == "rows" else "videos/*head/**/*.mp4"))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DataError) as caught:
        export_v21(Dataset.open(root), tmp_path / "old")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["data"]
    with pytest.raises(UsageError, match="exists already"):
        export_v21(Dataset.open(write(tmp_path / "other", (3,))), root)


@pytest.mark.parametrize("start", range(9))
def test_a_cut_is_exact_wherever_it_begins(tmp_path, start):
    with VideoWriter(tmp_path / "all.mp4", 10, 32, 32) as video:
        video.add_frames(picture(i, "head", 32, 32) for i in range(12))
    whole = list(decode_all(tmp_path / "all.mp4", 32, 32, 99))
    copied = cut(tmp_path / "all.mp4", start / 10, 10, 3, tmp_path / "one.mp4", "x")
    assert copied == (start % 2 == 0)
    assert np.array_equal(np.stack(list(decode_all(tmp_path / "one.mp4", 32, 32, 99))), np.stack(whole[start : start + 3]))
    with pytest.raises(DataError, match="x: has 2 of 3 frames"):
        cut(tmp_path / "all.mp4", 1.0, 10, 3, tmp_path / "two.mp4", "x")


@pytest.mark.skipif(not REAL.is_dir(), reason="DEFTLY_REAL_DATA does not name a folder with g1_sample")
def test_a_real_recording_goes_there_and_back(tmp_path):
    dataset = Dataset.open(REAL).select(np.array([3, 1]))
    report = export_v21(dataset, tmp_path / "old")
    assert (report.copied, report.encoded) == (2, 0)
    old = Dataset.open(tmp_path / "old")
    assert np.array_equal(old.action, dataset.action)
    assert np.array_equal(old.frames(1, "cam_high", np.array([0, 100])), dataset.frames(1, "cam_high", np.array([0, 100])))
