"""What is on disk after writing, to the letter of the format, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deftly.contract import Camera
from deftly.data import files, metadata, schema
from deftly.data.dataset import Dataset
from deftly.data.video import VideoClip, VideoWriter, decode_all
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError
from recordings import episode, png, write
from small_data import robot


def hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_tree_is_that_of_the_format(tmp_path):
    root = write(tmp_path / "data", (4, 6))
    assert set(hashes(root)) == {
        "data/chunk-000/file-000.parquet",
        "meta/deftly.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/image_histograms.json",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.head/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    }
    text = (root / "meta/info.json").read_text()
    info = json.loads(text)
    assert text == json.dumps(info, indent=4, ensure_ascii=False)
    assert info["splits"] == {"train": "0:2"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (2, 10, 2, 10)
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert info["features"]["observation.images.head"]["info"] == {
        "video.height": 32,
        "video.width": 32,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": 10,
        "video.channels": 3,
        "has_audio": False,
    }


def test_rows_are_one_per_frame_in_order_of_their_index(tmp_path):
    path = write(tmp_path / "data", (4, 6)) / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    assert table.column("index").to_pylist() == list(range(10))
    assert table.column("episode_index").to_pylist() == [0] * 4 + [1] * 6
    assert table.column("frame_index").to_pylist() == [*range(4), *range(6)]
    assert np.array_equal(table.column("timestamp").to_numpy(), np.float32([*range(4), *range(6)]) / np.float32(10))
    assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[4]"
    assert str(table.schema.field("note").type) == "fixed_size_list<element: float>[2]"
    assert not any(name.startswith("observation.images") for name in table.column_names)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 6]
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert described["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}
    assert described["index"] == {"dtype": "int64", "_type": "Value"}


def test_tasks_are_a_pandas_frame_with_the_text_as_its_index(tmp_path):
    table = pq.read_table(write(tmp_path / "data", (4, 6, 3)) / "meta/tasks.parquet")
    assert table.column("task_index").to_pylist() == [0, 1, 2]
    described = json.loads(table.schema.metadata[b"pandas"])
    assert described["index_columns"] == ["task"]
    assert {column["name"] for column in described["columns"]} == {"task", "task_index"}
    pandas = pytest.importorskip("pandas", reason="pandas is not a dependency")
    frame = pandas.read_parquet(tmp_path / "data/meta/tasks.parquet")
    assert frame.index.name == "task"
    assert frame.iloc[1].name == table.column("task")[1].as_py()


def test_episodes_say_where_everything_is(tmp_path):
    root = write(tmp_path / "data", (4, 6))
    table = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    rows = table.to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"], row["length"]) for row in rows] == [(0, 4, 4), (4, 10, 6)]
    for key in ("observation.images.head", "observation.images.wrist"):
        assert [row[f"videos/{key}/from_timestamp"] for row in rows] == [0.0, 4 / 10]
        assert [row[f"videos/{key}/to_timestamp"] for row in rows] == [4 / 10, 10 / 10]
    assert rows[0]["tasks"] == ["pick up the red cup"]
    assert rows[1]["seed"] == 1
    for name in ("action", "observation.state", "observation.images.head", "timestamp", "index"):
        for statistic in ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"):
            assert f"stats/{name}/{statistic}" in table.column_names
    assert np.shape(rows[0]["stats/observation.images.head/mean"]) == (3, 1, 1)
    assert rows[1]["stats/action/count"] == [6]


def test_statistics_are_over_all_frames(tmp_path):
    root = write(tmp_path / "data", (4, 6))
    found = json.loads((root / "meta/stats.json").read_text())
    dataset = Dataset.open(root)
    assert np.array_equal(found["action"]["mean"], dataset.action.astype(np.float64).mean(0))
    assert np.array_equal(found["action"]["q99"], np.quantile(dataset.action.astype(np.float64), 0.99, axis=0))
    assert found["index"]["max"] == [9]
    assert np.shape(found["observation.images.head"]["q50"]) == (3, 1, 1)
    assert 0 <= np.min(found["observation.images.head"]["min"]) <= np.max(found["observation.images.head"]["max"]) <= 1


def test_the_same_episodes_give_the_same_bytes(tmp_path):
    assert hashes(write(tmp_path / "a", (4, 6))) == hashes(write(tmp_path / "b", (4, 6)))


def test_files_roll_at_their_limits_and_episodes_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DATA_FILE_MB", 0)
    monkeypatch.setattr(files, "VIDEO_FILE_SECONDS", 1)
    monkeypatch.setattr(schema, "CHUNKS_SIZE", 2)
    monkeypatch.setattr(metadata, "EPISODES_PER_FILE", 2)
    root = write(tmp_path / "data", (4, 6, 7, 3, 5))
    names = set(hashes(root))
    assert {f"data/chunk-{c:03d}/file-{f:03d}.parquet" for c, f in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))} <= names
    head = {f"videos/observation.images.head/chunk-{c:03d}/file-{f:03d}.mp4" for c, f in ((0, 0), (0, 1), (1, 0))}
    assert head == {name for name in names if ".head" in name}  # 4 + 6 frames, 7 + 3, 5
    assert {name for name in names if "episodes" in name} == {
        f"meta/episodes/chunk-{c:03d}/file-{f:03d}.parquet" for c, f in ((0, 0), (0, 1), (1, 0))
    }
    whole = Dataset.open(root)
    for number in range(5):
        expected = episode(number, (4, 6, 7, 3, 5)[number])
        assert np.abs(whole.frames(number, "wrist").astype(int) - expected.images["wrist"]).mean() < 4
        rows = slice(*whole.episode_start[number : number + 2])
        assert np.array_equal(whole.action[rows], expected.action)


def test_images_may_stay_the_bytes_that_they_were(tmp_path):
    frames = episode(0, 4).images["head"]
    given = [png(frame) for frame in frames]
    with DatasetWriter(tmp_path / "data", robot().replace(cameras=(robot().cameras[0],)), images={"head": "image"}) as writer:
        writer.add(EpisodeData(images={"head": given}, state=np.zeros((4, 5)), action=np.zeros((4, 4)), task="x"))
        writer.finish()
    dataset = Dataset.open(tmp_path / "data")
    assert np.array_equal(dataset.frames(0, "head"), frames)
    assert np.array_equal(dataset.frames(0, "head", np.array([3, 0, 3])), frames[[3, 0, 3]])
    table = pq.read_table(tmp_path / "data/data/chunk-000/file-000.parquet")
    assert table.column("observation.images.head")[2].as_py() == {"bytes": given[2], "path": None}
    assert json.loads((tmp_path / "data/meta/info.json").read_text())["video_path"] is None


def clips(folder: Path, lengths: tuple[int, ...]) -> list[EpisodeData]:
    result = []
    for number, length in enumerate(lengths):
        data = episode(number, length)
        paths = {}
        for camera, frames in data.images.items():
            with VideoWriter(folder / f"{camera}-{number}.mp4", 10, 32, 32) as video:
                video.add_frames(frames)
            paths[camera] = VideoClip(folder / f"{camera}-{number}.mp4")
        result.append(EpisodeData(images=paths, state=data.state, action=data.action, task=data.task, extra_frame=data.extra_frame))
    return result


def test_clips_are_copied_without_loss(tmp_path):
    given = clips(tmp_path, (4, 6))
    root = write(tmp_path / "data", (), given)
    dataset = Dataset.open(root)
    for number, item in enumerate(given):
        for camera in ("head", "wrist"):
            original = np.stack(list(decode_all(item.images[camera].path, 32, 32, 99)))
            assert np.array_equal(dataset.frames(number, camera), original)


def test_frames_after_clips_open_a_new_file(tmp_path):
    root = write(tmp_path / "data", (), [*clips(tmp_path, (4,)), episode(1, 5)])
    assert {f"videos/observation.images.head/chunk-000/file-00{i}.mp4" for i in (0, 1)} <= set(hashes(root))
    assert len(Dataset.open(root).frames(1, "head")) == 5


def test_leaving_without_finishing_leaves_nothing(tmp_path):
    def broken() -> None:
        with DatasetWriter(tmp_path / "data", robot(), extra={"note": ("left", "right")}) as writer:
            writer.add(episode(0, 4))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_never_overwritten(tmp_path):
    root = write(tmp_path / "data", (4,))
    before = hashes(root)
    with pytest.raises(UsageError, match="exists already"):
        write(root, (5,))
    assert hashes(root) == before
    (tmp_path / "empty").mkdir()
    assert Dataset.open(write(tmp_path / "empty", (4,))).num_frames == 4


def test_embodiments_that_the_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(UsageError, match="whole number"):
        DatasetWriter(tmp_path / "a", robot().replace(rate_hz=7.5))
    with pytest.raises(UsageError, match="no episode"), DatasetWriter(tmp_path / "b", robot()) as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def changed(**changes: object) -> EpisodeData:
    data = episode(0, 4)
    return EpisodeData(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, **changes})  # type: ignore[arg-type]


def with_nan() -> np.ndarray:
    values = np.zeros((4, 4))
    values[2, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: changed(action=with_nan()), r"episode 1 frame 2: action\[1\] is nan"),
        (lambda: changed(action=np.zeros((4, 3))), r"action has shape \[4, 3\], expected \[4, 4\]"),
        (lambda: changed(state=np.zeros((3, 5))), r"observation\.state has shape"),
        (lambda: changed(action=np.zeros((0, 4))), "no frames"),
        (lambda: changed(extra_frame={}), "note is missing"),
        (lambda: changed(extra_frame={"note": np.zeros((4, 2)), "other": np.zeros((4, 2))}), "'other' was not announced"),
        (lambda: changed(task=["a", "b"]), "2 instructions for 4 frames"),
        (lambda: changed(images={"head": episode(0, 4).images["head"]}), "camera 'wrist': no images"),
        (lambda: changed(images={**episode(0, 4).images, "head": np.zeros((3, 32, 32, 3), np.uint8)}), "3 frames of 32 x 32, expected 4"),
        (lambda: changed(images={**episode(0, 4).images, "head": np.zeros((4, 32, 32, 3))}), "expected uint8"),
        (lambda: changed(images={**episode(0, 4).images, "head": [png(f) for f in episode(0, 4).images["head"]]}), "not told"),
        (lambda: changed(extra_episode={"length": 3}), "has the name of one of the format"),
        (lambda: changed(extra_episode={"a/b": 3}), "has the name of one of the format"),
    ],
)
def test_a_wrong_episode_is_named_and_leaves_no_trace(tmp_path, data, message):
    with DatasetWriter(tmp_path / "data", robot(), extra={"note": ("left", "right")}) as writer:
        writer.add(episode(0, 4))
        with pytest.raises(DataError, match=message) as caught:
            writer.add(data())
        assert "\n" not in str(caught.value)
        writer.add(episode(1, 6))
        writer.finish()
    plain = write(tmp_path / "plain", (4, 6))
    assert hashes(tmp_path / "data") == hashes(plain)


def test_provenance_that_some_episodes_lack_is_none_there(tmp_path):
    data = episode(1, 3)
    other = EpisodeData(
        images=data.images, state=data.state, action=data.action, task="x", extra_frame=data.extra_frame, extra_episode={"colour": "red"}
    )
    dataset = Dataset.open(write(tmp_path / "data", (4,), [other]))
    assert dataset.extra("colour") == [None, "red"]
    assert dataset.extra("seed") == [0, None]
    assert dataset.extra("nothing") == [None, None]


def test_instructions_may_change_within_an_episode(tmp_path):
    data = changed(task=["a", "a", "b", "a"])
    dataset = Dataset.open(write(tmp_path / "data", (), [data]))
    assert dataset.tasks == ("a", "b")
    assert dataset.task_of_frame.tolist() == [0, 0, 1, 0]
    assert pq.read_table(tmp_path / "data/meta/episodes/chunk-000/file-000.parquet").column("tasks")[0].as_py() == ["a", "b"]


def test_a_robot_without_state_or_with_one_dimension_is_written(tmp_path):
    small = robot(state=0, action=1).replace(cameras=(Camera(name="head", height=32, width=32),))
    with DatasetWriter(tmp_path / "data", small) as writer:
        writer.add(
            EpisodeData(images={"head": episode(0, 3).images["head"]}, state=np.zeros((3, 0)), action=np.arange(3)[:, None], task="x")
        )
        writer.finish()
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.state.shape == (3, 0)
    assert dataset.action.tolist() == [[0], [1], [2]]
    assert dataset.embodiment == small
