"""Text, arrays of several axes, and depth: written, read, selected, merged and imported like any other column."""

import json
from pathlib import Path

import numpy as np
import pytest

from deftly.data.dataset import Dataset
from deftly.data.images import decode_depth, encode_depth
from deftly.data.merge import merge
from deftly.data.schema import Feature
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, EpisodeError, UsageError
from recordings import episode
from small_data import robot

LENGTHS = (4, 3)
DEPTH = Feature("image", (12, 16, 1), ("height", "width", "channels"), {"video.is_depth_map": True, "depth_unit": "mm"})
EXTRA = {
    "note": ("left", "right"),
    "says": Feature("string", (1,)),
    "grid": Feature("float32", (2, 3)),
    "count": Feature("int64", (2,)),
    "depth": DEPTH,
}


def columns(number: int, length: int) -> dict:
    draw = np.random.default_rng(100 + number)
    return {
        "says": [f"step {i} of {number}: ü" for i in range(length)],
        "grid": draw.normal(size=(length, 2, 3)).astype(np.float32),
        "count": draw.integers(0, 1000, (length, 2)),
        "depth": draw.integers(0, 65536, (length, 12, 16)).astype(np.uint16),
    }


def write(root: Path, numbers: list[int], **changes: object) -> Path:
    with DatasetWriter(root, robot(), extra=EXTRA) as writer:
        for number in numbers:
            data = episode(number, LENGTHS[number])
            more = {**data.extra_frame, **columns(number, LENGTHS[number]), **changes}
            writer.add(EpisodeData(images=data.images, state=data.state, action=data.action, task=data.task, extra_frame=more))
        writer.finish()
    return root


def check(dataset: Dataset, numbers: list[int]) -> None:
    expected = [columns(number, LENGTHS[number]) for number in numbers]
    assert dataset.texts("says") == [text for item in expected for text in item["says"]]
    assert np.array_equal(dataset.column("grid"), np.concatenate([item["grid"] for item in expected]))
    assert np.array_equal(dataset.column("count"), np.concatenate([item["count"] for item in expected]))
    assert dataset.depth_cameras == ("depth",)
    assert dataset.cameras == ("head", "wrist")
    for place, item in enumerate(expected):
        found = dataset.depth(place, "depth", np.array([2, 0]))
        assert found.dtype == np.float32
        assert np.array_equal(found, item["depth"][[2, 0]] * np.float32(0.001))


def test_everything_comes_back(tmp_path):
    dataset = Dataset.open(write(tmp_path / "a", [0, 1]))
    check(dataset, [0, 1])
    check(dataset.select(np.array([1])), [1])
    assert dataset.hash
    assert dataset.embodiment == robot()


def test_the_hash_sees_every_kind(tmp_path):
    before = Dataset.open(write(tmp_path / "a", [0])).hash
    assert Dataset.open(write(tmp_path / "b", [0])).hash == before
    for name, value in (("says", ["other"] * 4), ("grid", np.ones((4, 2, 3))), ("depth", np.full((4, 12, 16), 7, np.uint16))):
        assert Dataset.open(write(tmp_path / name, [0], **{name: value})).hash != before


def test_a_merge_carries_them(tmp_path):
    merge([write(tmp_path / "a", [0]), write(tmp_path / "b", [1])], tmp_path / "all", {})
    check(Dataset.open(tmp_path / "all"), [0, 1])


def test_depth_survives_its_image():
    depth = np.random.default_rng(0).integers(0, 65536, (7, 5)).astype(np.uint16)
    assert np.array_equal(decode_depth(encode_depth(depth), 7, 5, "x"), depth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"says": ["a"]}, "says: 1 values for 4 frames"),
        ({"says": [1, 2, 3, 4]}, "says: a value is not text"),
        ({"grid": np.zeros((4, 3, 2), np.float32)}, r"grid has shape \[4, 3, 2\], expected \[4, 2, 3\]"),
        ({"grid": np.full((4, 2, 3), np.nan)}, r"episode 0 frame 0: grid\[0, 0\] is nan"),
        ({"depth": np.zeros((4, 12, 17), np.uint16)}, "depth frame 0: is 12 x 17, expected 12 x 16"),
        ({"depth": np.zeros((4, 12, 16), np.uint8)}, r"depth is uint8 .*expected uint16"),
        ({"depth": [b"x"] * 4}, "depth frame 0: cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", [0], **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "feature", [Feature("string", (2,)), Feature("image", (4, 4, 3)), Feature("video", (4, 4, 3)), Feature("float32", (1,) * 6)]
)
def test_other_kinds_are_refused_by_name(tmp_path, feature):
    with pytest.raises(UsageError, match="extra feature 'x' is neither"):
        DatasetWriter(tmp_path / "a", robot(), extra={"x": feature})


def test_what_is_not_there_is_said(tmp_path):
    root = write(tmp_path / "a", [0])
    dataset = Dataset.open(root)
    with pytest.raises(DataError, match="no column of text 'grid'; there are says"):
        dataset.texts("grid")
    with pytest.raises(DataError, match="no camera 'head'; there are depth"):
        dataset.depth(0, "head")
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["depth"]["info"]["depth_unit"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="depth_unit is None"):
        Dataset.open(root).depth(0, "depth")
    info["features"]["depth"] |= {"info": {"video.is_depth_map": True, "depth_unit": "mm"}, "shape": [12, 15, 1]}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(EpisodeError, match="is 12 x 16, expected 12 x 15"):
        Dataset.open(root).depth(0, "depth")
