"""LeRobot v2.1 folders become v3.0: every value, every decoded frame, and nothing at all when something is wrong."""

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import edit_info
from deftly.data.dataset import Dataset
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.video import decode_all
from deftly.types import DataError
from guards import guards
from recordings import episode
from recordings_v2 import LENGTHS, ROWS, VIDEO, lines, rows_of, write_v21
from small_data import TASKS, robot

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")) / "g1_sample"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_v21(tmp_path_factory.mktemp("v21") / "src")


@pytest.fixture
def source(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "src"))


def test_every_value_and_frame_arrives(source, tmp_path):
    report = import_lerobot_v21(source, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.episodes, report.frames, report.left_out, report.notes) == (3, 13, [], [])
    assert (dataset.fps, dataset.tasks, dataset.cameras) == (10, TASKS, ("head", "wrist"))
    assert dataset.embodiment.action.names == robot().action.names
    for number, length in enumerate(LENGTHS):
        given, rows = rows_of(number, length), slice(*dataset.episode_start[number : number + 2])
        assert np.array_equal(dataset.action[rows], episode(number, length).action)
        assert np.array_equal(dataset.state[rows], episode(number, length).state)
        assert dataset.column("next.reward")[rows].ravel().tolist() == given.column("next.reward").to_pylist()
        assert dataset.task_of_frame[rows].tolist() == given.column("task_index").to_pylist()
        clip = np.stack(list(decode_all(source / VIDEO.format(number // 2, number), 32, 32, 99)))
        assert np.array_equal(dataset.frames(number, "head"), clip)
        assert np.array_equal(dataset.frames(number, "wrist"), episode(number, length).images["wrist"])
    assert dataset.column("index").tolist() == list(range(13))
    assert dataset.texts("note") == ["x"] * 13


def test_clips_off_the_grid_are_encoded_anew_and_reported(source, tmp_path):
    path = source / VIDEO.format(0, 1)
    frames = episode(1, 6).images["head"]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i * 103
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = import_lerobot_v21(source, tmp_path / "out")
    assert any("1 clips have frames off the grid" in note for note in report.notes)
    dataset = Dataset.open(tmp_path / "out")
    assert np.abs(dataset.frames(1, "head").astype(int) - frames).mean() < 5
    assert np.array_equal(dataset.frames(2, "head"), np.stack(list(decode_all(source / VIDEO.format(1, 2), 32, 32, 99))))


def edit_rows(root: Path, name: str, values: list, number: int = 1) -> None:
    path = root / ROWS.format(number // 2, number)
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, pa.array(values)), path)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGE = {
    "no such feature": (
        lambda s: edit_info(s, features={"timestamp": {"dtype": "float32", "shape": [1], "names": None}}),
        "no feature 'action'",
    ),
    "no index": (
        lambda s: edit_info(s, features={"action": {"dtype": "float32", "shape": [4], "names": None}}),
        "has no feature 'timestamp'",
    ),
    "version": (lambda s: edit_info(s, codebase_version="v3.0"), "codebase_version is 'v3.0', expected v2.1 or v2.0"),
    "totals": (lambda s: edit_info(s, total_frames=14), r"total_frames is 14, episodes\.jsonl adds up to 13"),
    "data path": (lambda s: edit_info(s, data_path="../../{episode_index}"), "outside"),
    "video path": (lambda s: edit_info(s, video_path="/etc/{video_key}"), "outside"),
    "template": (lambda s: edit_info(s, data_path="{episode_index.__class__}"), "cannot be read"),
    "tasks": (lambda s: (s / "meta/tasks.jsonl").unlink(), r"tasks\.jsonl: missing"),
    "task twice": (lambda s: lines(s / "meta/tasks.jsonl", [{"task_index": 0, "task": "a"}] * 2), "new task_index"),
    "task gone": (lambda s: lines(s / "meta/tasks.jsonl", [{"task_index": 0, "task": "a"}]), "task_index 1 is not in"),
    "task list": (lambda s: lines(s / "meta/tasks.jsonl", [[1]]), "one JSON object per line"),
    "torn line": (lambda s: cut(s / "meta/tasks.jsonl"), "last line is cut off"),
    "torn episodes": (lambda s: cut(s / "meta/episodes.jsonl"), "last line is cut off"),
    "length": (lambda s: lines(s / "meta/episodes.jsonl", [{"episode_index": 0, "length": -1}]), "a length in each line"),
    "numbering": (lambda s: lines(s / "meta/episodes.jsonl", [{"episode_index": 5, "length": 3}]), "numbered from 0"),
    "no rows": (lambda s: (s / ROWS.format(0, 1)).unlink(), r"episode_000001\.parquet: missing"),
    "cut rows": (lambda s: cut(s / ROWS.format(0, 1)), r"episode_000001\.parquet: not a parquet file"),
    "few rows": (lambda s: pq.write_table(rows_of(1, 5), s / ROWS.format(0, 1)), "5 rows, meta/episodes.jsonl says 6"),
    "many rows": (lambda s: pq.write_table(rows_of(1, 7), s / ROWS.format(0, 1)), "7 rows, expected at most 6"),
    "other episode": (lambda s: edit_rows(s, "episode_index", [2] * 6), "episode_000001.*numbered as other"),
    "frame order": (lambda s: edit_rows(s, "frame_index", [1, 0, 2, 3, 4, 5]), "numbered as other"),
    "time": (lambda s: edit_rows(s, "timestamp", [0.0, 0.1, 0.25, 0.3, 0.4, 0.5]), r"frame 2: timestamp is 0\.25, expected 0\.2"),
    "time nan": (lambda s: edit_rows(s, "timestamp", [0.0, float("nan"), 0.2, 0.3, 0.4, 0.5]), "frame 1: timestamp is nan"),
    "nan": (lambda s: edit_rows(s, "action", [[0.0] * 4] * 5 + [[0.0, 1.0, float("inf"), 0.0]]), r"episode 1 frame 5: action\[2\] is inf"),
    "dimensions": (lambda s: edit_rows(s, "action", [[0.0] * 3] * 6), r"episode_000001\.parquet.*action has shape \[6, 3\]"),
    "no column": (lambda s: edit_rows(s, "action", [None] * 6), "values are missing"),
    "no image": (lambda s: edit_rows(s, "observation.images.wrist", [{"bytes": None, "path": "../../x"}] * 6), "not embedded"),
    "bad image": (
        lambda s: edit_rows(s, "observation.images.wrist", [{"bytes": b"x", "path": ""}] * 6),
        "'wrist' frame 0: cannot be decoded",
    ),
    "no video": (lambda s: (s / VIDEO.format(0, 1)).unlink(), r"episode_000001\.mp4: missing"),
    "cut video": (lambda s: cut(s / VIDEO.format(0, 1)), r"episode_000001\.mp4: cannot be decoded"),
    "other video": (lambda s: shutil.copy(s / VIDEO.format(1, 2), s / VIDEO.format(0, 1)), "3 frames of 32 x 32, expected 6"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_broken_is_named_and_leaves_nothing(source, tmp_path, damage):
    change, message = DAMAGE[damage]
    change(source)
    with pytest.raises(DataError, match=message) as caught:
        import_lerobot_v21(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@guards("data.importers.budget")
@pytest.mark.parametrize("damage", ["no rows", "cut rows", "few rows", "other episode", "time nan", "nan", "no image"])
def test_within_the_budget_a_broken_episode_is_left_out_as_if_it_had_never_been_there(source, original, tmp_path, damage):
    DAMAGE[damage][0](source)
    report = import_lerobot_v21(source, tmp_path / "out", budget=0.34)
    assert (report.episodes, len(report.broken)) == (2, 1)
    assert "episode_000001.parquet" in report.broken[0]
    left, whole = Dataset.open(tmp_path / "out"), Dataset.open(original).select(np.array([0, 2]))
    assert left.tasks == whole.tasks
    assert np.array_equal(left.action, whole.action)
    assert np.array_equal(left.column("index"), np.arange(7))
    for number in range(2):
        for camera in ("head", "wrist"):
            assert np.array_equal(left.frames(number, camera), whole.frames(number, camera))


BIG = 1_700_000_000_123_456_789
FURTHER = {
    "stamp": ("int64", [1], [BIG + i for i in range(6)], pa.int64()),
    "seconds": ("float64", [1], [1.7e9 + i / 100 for i in range(6)], pa.float64()),
    "ready": ("bool", [1], [i % 2 == 0 for i in range(6)], pa.bool_()),
    "ticks": ("int64", [2], [[BIG + i, -BIG] for i in range(6)], pa.list_(pa.int64(), 2)),
    "grid": ("uint64", [2, 2], [[[2**64 - 1 - i, 0], [1, 2]] for i in range(6)], pa.list_(pa.list_(pa.uint64()))),
    "small": ("int16", [1], [i - 3 for i in range(6)], pa.int64()),
}


def write_further(source: Path, values: dict) -> None:
    info = json.loads((source / "meta/info.json").read_text())
    features = {name: {"dtype": dtype, "shape": shape, "names": None} for name, (dtype, shape, *_) in values.items()}
    edit_info(source, features={**info["features"], **features})
    for number, length in enumerate(LENGTHS):
        path = source / ROWS.format(number // 2, number)
        table = pq.read_table(path)
        for name, (_, _, items, kind) in values.items():
            table = table.append_column(name, pa.array(items[:length], kind))
        pq.write_table(table, path)


def test_further_numbers_keep_type_and_every_digit(source, tmp_path):
    write_further(source, FURTHER)
    report = import_lerobot_v21(source, tmp_path / "out")
    assert (report.left_out, report.broken) == ([], [])
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    dataset = Dataset.open(tmp_path / "out")
    for name, (dtype, shape, values, _) in FURTHER.items():
        assert table.column(name).to_pylist() == [value for length in LENGTHS for value in values[:length]], name
        assert (dataset.features[name].dtype, list(dataset.features[name].shape)) == (dtype, shape)


@guards("data.lerobot_v21.whole")
@pytest.mark.parametrize(("dtype", "value"), [("int64", 1.5), ("int16", 70_000.0), ("bool", 2.0), ("uint8", -1.0)])
def test_numbers_that_are_not_what_is_declared_are_refused_not_rounded(source, tmp_path, dtype, value):
    write_further(source, {"odd": (dtype, [1], [value] * 6, pa.float64())})
    with pytest.raises(DataError, match=f"odd: holds numbers that are not {dtype}"):
        import_lerobot_v21(source, tmp_path / "out")


def test_a_link_out_of_the_source_is_not_followed(source, tmp_path):
    secret = tmp_path / "secret.mp4"
    shutil.move(source / VIDEO.format(0, 1), secret)
    (source / VIDEO.format(0, 1)).symlink_to(secret)
    with pytest.raises(DataError, match="outside"):
        import_lerobot_v21(source, tmp_path / "out")


@pytest.mark.skipif(not REAL.is_dir(), reason="DEFTLY_REAL_DATA does not name a folder with g1_sample")
def test_the_real_humanoid_recordings_arrive_with_every_value_and_frame(tmp_path):
    report = import_lerobot_v21(REAL, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.episodes, report.frames, report.notes, report.left_out) == (10, 2725, [], [])
    assert dataset.features["observation.images.cam_high"].info["video.codec"] == "av1"  # type: ignore[index]
    for number in range(10):
        given = pq.read_table(REAL / f"data/chunk-000/episode_{number:06d}.parquet").to_pydict()
        rows = slice(*dataset.episode_start[number : number + 2])
        assert dataset.action[rows].tolist() == given["action"]
        assert dataset.state[rows].tolist() == given["observation.state"]
        assert np.array_equal(dataset.column("timestamp")[rows].ravel(), np.float32(given["timestamp"]))
    for number, wanted in ((0, [0, 1, 2, 289]), (9, [0, 1, 133])):  # decoding AV1 takes its time: the ends, and what lies between files
        with av.open(str(REAL / f"videos/chunk-000/observation.images.cam_high/episode_{number:06d}.mp4")) as container:
            frames = {i: frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i in wanted}
        found = dataset.frames(number, "cam_high", np.array(wanted))
        assert all(np.array_equal(found[i], frames[index]) for i, index in enumerate(wanted))
