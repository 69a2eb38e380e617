"""Reading: by key, with everything checked against everything else."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from damage import edit, edit_info, set_column
from deftly.data.dataset import Dataset
from deftly.data.images import decode_image
from deftly.data.tables import read_table, read_tasks, to_numpy
from deftly.data.writer import DatasetWriter
from deftly.types import DataError
from guards import guards
from recordings import episode, png, write
from small_data import TASKS, robot

LENGTHS = (4, 6, 3, 5)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "data", LENGTHS)


@pytest.fixture
def root(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def test_everything_that_was_written_is_read(original):
    dataset = Dataset.open(original)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps, dataset.robot_type) == (4, 18, 10, "toy")
    assert dataset.embodiment == robot()
    assert dataset.cameras == ("head", "wrist")
    assert dataset.tasks == TASKS
    assert dataset.episode_start.tolist() == [0, 4, 10, 13, 18]
    assert dataset.episode_length.tolist() == list(LENGTHS)
    for number, length in enumerate(LENGTHS):
        expected, rows = episode(number, length), slice(*dataset.episode_start[number : number + 2])
        assert np.array_equal(dataset.state[rows], expected.state)
        assert np.array_equal(dataset.action[rows], expected.action)
        assert np.array_equal(dataset.column("note")[rows], expected.extra_frame["note"])
        assert {dataset.tasks[i] for i in dataset.task_of_frame[rows]} == {expected.task}
        assert np.abs(dataset.frames(number, "wrist").astype(int) - expected.images["wrist"]).mean() < 4
    assert dataset.extra("seed") == [0, 1, 2, 3]
    assert dataset.extra("scene") == ["scene-0", "scene-1", "scene-0", "scene-1"]
    assert dataset.extra_names == ("seed", "scene")


def test_columns_have_one_type_and_cannot_be_changed(original):
    dataset = Dataset.open(original)
    assert (dataset.column("index").dtype, dataset.column("index").shape) == (np.int64, (18,))
    assert (dataset.column("timestamp").dtype, dataset.column("timestamp").shape) == (np.float32, (18, 1))
    assert dataset.action.dtype == np.float32
    assert dataset.action is dataset.column("action")
    for values in (dataset.action, dataset.task_of_frame):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_frames_are_those_asked_for(original):
    dataset = Dataset.open(original)
    everything = dataset.frames(1, "head")
    assert np.array_equal(dataset.frames(1, "head", np.array([5, 0, 5])), everything[[5, 0, 5]])
    assert dataset.frames(1, "head", np.array([], dtype=np.int64)).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.frames(0, "tail"), "no camera 'tail'; there are head, wrist"),
        (lambda d: d.frames(4, "head"), "no episode 4"),
        (lambda d: d.frames(0, "head", np.array([4])), "episode 0 has 4 frames, asked for 4..4"),
        (lambda d: d.frames(0, "head", np.array([-1])), "asked for -1..-1"),
        (lambda d: d.column("nothing"), "no numeric column 'nothing'; there are observation.state, action"),
        (lambda d: d.column("observation.images.head"), "no numeric column"),
    ],
)
def test_what_is_not_there_is_said(original, ask, message):
    with pytest.raises(DataError, match=message):
        ask(Dataset.open(original))


def test_rows_are_found_by_key_wherever_they_are(original, root):
    order = np.random.default_rng(0).permutation(18)
    edit(root / DATA, lambda table: table.take(order))
    shuffled, plain = Dataset.open(root), Dataset.open(original)
    for name in ("action", "observation.state", "task_index", "index", "timestamp"):
        assert np.array_equal(shuffled.column(name), plain.column(name))
    assert shuffled.hash == plain.hash


def test_episode_rows_may_be_in_any_order(original, root):
    edit(root / EPISODES, lambda table: table.take([2, 0, 3, 1]))
    dataset = Dataset.open(root)
    assert dataset.episode_length.tolist() == list(LENGTHS)
    assert dataset.extra("seed") == [0, 1, 2, 3]
    assert np.array_equal(dataset.frames(1, "head"), Dataset.open(original).frames(1, "head"))


def test_without_our_own_file_the_features_describe_the_robot(original, root):
    (root / "meta/deftly.json").unlink()
    dataset = Dataset.open(root)
    assert dataset.embodiment.action_kind == "unspecified"
    assert dataset.embodiment.action.names == robot().action.names
    assert [camera.role for camera in dataset.embodiment.cameras] == ["scene", "wrist"]
    assert dataset.hash != Dataset.open(original).hash


def test_a_dataset_without_images_or_ours_is_enough_to_read_numbers(root):
    info = json.loads((root / "meta/info.json").read_text())
    features = {name: item for name, item in info["features"].items() if item["dtype"] != "video"}
    edit_info(root, features=features, video_path=None)
    shutil.rmtree(root / "videos")
    (root / "meta/deftly.json").unlink()
    dataset = Dataset.open(root)
    assert dataset.cameras == ()
    assert dataset.action.shape == (18, 4)


def test_the_hash_follows_the_data_and_nothing_else(original, root, tmp_path):
    before = Dataset.open(root).hash
    assert before == Dataset.open(original).hash
    assert Dataset.open(write(tmp_path / "again", LENGTHS)).hash == before
    assert Dataset.open(write(tmp_path / "other", (4, 6, 3, 6))).hash != before
    edit(root / DATA, lambda table: set_column(table, "action", [[0.0] * 4] * 18))
    assert Dataset.open(root).hash != before


def test_the_hash_sees_a_replaced_video(original, root):
    video = "videos/observation.images.head/chunk-000/file-000.mp4"
    shutil.copy(root / video.replace("head", "wrist"), root / video)
    assert Dataset.open(root).hash != Dataset.open(original).hash


def test_the_hash_sees_an_image_that_changed_in_the_middle_of_its_file(tmp_path):
    """Neither the size nor the first and last bytes need tell: what is compressed to nothing is as long as anything else."""

    def png(image: np.ndarray) -> bytes:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG", compress_level=0)
        return file.getvalue()

    numbers = episode(0, 12)
    pictures = {name: [png(image) for image in images] for name, images in numbers.images.items()}
    root = tmp_path / "data"
    with DatasetWriter(root, robot(), images=dict.fromkeys(pictures, "image"), extra={"note": ("left", "right")}) as writer:
        writer.add(replace(numbers, images=pictures))
        writer.finish()
    dataset = Dataset.open(root)
    before = dataset.hash
    assert dataset.select(np.array([0])).hash == before
    path = root / DATA
    size, content = path.stat().st_size, bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    chunk = next(found for found in map(group.column, range(group.num_columns)) if found.path_in_schema.endswith("wrist.bytes"))
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == size
    assert Dataset.open(root).hash != before


@pytest.mark.parametrize("name", ["episode_index", "frame_index", "task_index"])
@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.float64()])
@guards("data.rows.key_type")
def test_a_key_that_is_no_whole_number_is_refused_in_one_line(root, name, kind):
    def spoil(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        return set_column(table, name, [[value] for value in values] if pa.types.is_list(kind) else values, kind)

    edit(root / DATA, spoil)
    for read in (lambda d: d.task_of_frame, lambda d: list(d.chunks(["task_index"])), lambda d: d.hash):
        with pytest.raises(DataError, match=f"{name} is .*, expected one whole number in each row"):
            read(Dataset.open(root))


def test_rows_in_pieces_are_the_columns(root):
    for dataset in (Dataset.open(root), Dataset.open(root).select(np.array([2, 0]))):
        for episodes, found in dataset.chunks(["task_index", "action"]):
            rows = np.concatenate([np.arange(*dataset.episode_start[e : e + 2]) for e in episodes])
            assert np.array_equal(found["task_index"], dataset.task_of_frame[rows])
            assert np.array_equal(found["action"], dataset.action[rows])


def read(root: Path) -> None:
    """Opening goes by the metadata; what else is wrong shows when it is read."""
    dataset = Dataset.open(root)
    _ = dataset.task_of_frame, dataset.frames(0, "head")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: shutil.rmtree(r), "no such dataset"),
        (lambda r: (r / "meta/info.json").unlink(), r"holds no meta/info\.json"),
        (lambda r: (r / "meta/info.json").write_text("{"), "not valid JSON"),
        (lambda r: (r / "meta/tasks.parquet").unlink(), r"tasks\.parquet: missing"),
        (lambda r: (r / "meta/tasks.parquet").write_bytes(b"PAR1"), "not a parquet file"),
        (lambda r: (r / EPISODES).unlink(), "no episode tables"),
        (lambda r: (r / EPISODES).write_bytes((r / EPISODES).read_bytes()[:-100]), "not a parquet file"),
        (lambda r: (r / DATA).unlink(), r"file-000\.parquet: missing"),
        (lambda r: (r / DATA).write_bytes((r / DATA).read_bytes()[:200]), "not a parquet file"),
        (lambda r: (r / DATA).write_bytes(b""), "not a parquet file"),
        (lambda r: (r / "videos/observation.images.head/chunk-000/file-000.mp4").unlink(), "missing video file|cannot be decoded"),
        (lambda r: (r / "videos/observation.images.head/chunk-000/file-000.mp4").write_bytes(b""), "missing video file|cannot be decoded"),
        (lambda r: edit_info(r, total_frames=19), "total_frames is 19, the tables hold 18"),
        (lambda r: edit_info(r, total_episodes=3), "total_episodes is 3"),
        (lambda r: edit_info(r, total_tasks=9), "total_tasks is 9"),
        (lambda r: edit_info(r, data_path="../../{chunk_index}/{file_index}"), "outside"),
        (lambda r: edit_info(r, video_path="/etc/{video_key}"), "outside"),
        (lambda r: edit_info(r, video_path=None), "missing video file"),
        (lambda r: edit(r / DATA, lambda t: t.slice(0, 17)), "17 rows, its episodes have 18 frames"),
        (lambda r: edit(r / DATA, lambda t: pa.concat_tables([t, t])), "36 rows, expected at most 18"),
        (lambda r: edit(r / DATA, lambda t: t.drop_columns(["frame_index"])), "no column 'frame_index'"),
        (lambda r: edit(r / DATA, lambda t: set_column(t, "frame_index", [0] * 18)), "episode 0 has no single row for frame 1"),
        (lambda r: edit(r / DATA, lambda t: set_column(t, "task_index", [*[0] * 12, 3, *[0] * 5])), "episode 2 frame 2: task_index is 3"),
        (lambda r: edit(r / DATA, lambda t: set_column(t, "episode_index", [9] * 18)), "episode 0 has no single row"),
        (lambda r: edit(r / EPISODES, lambda t: set_column(t, "length", [4, 6, 3, 4])), "episode 3: length 4 does not match its rows"),
        (lambda r: edit(r / EPISODES, lambda t: set_column(t, "episode_index", [0, 1, 1, 3])), "every number once"),
        (lambda r: edit(r / EPISODES, lambda t: t.drop_columns(["length"])), "no column 'length'"),
        (lambda r: edit(r / EPISODES, lambda t: set_column(t, "length", [4, None, 3, 5])), "1 values are missing"),
        (lambda r: edit(r / EPISODES, lambda t: set_column(t, "data/file_index", [0, 0, 7, 0])), "18 rows, expected at most 15"),
        (
            lambda r: edit(
                r / EPISODES, lambda t: set_column(t, "videos/observation.images.head/from_timestamp", [0.0, float("nan"), 0.0, 0.0])
            ),
            "from_timestamp must be a time",
        ),
        (
            lambda r: edit(r / EPISODES, lambda t: set_column(t, "videos/observation.images.head/from_timestamp", [0.0, None, 0.0, 0.0])),
            "from_timestamp is missing",
        ),
        (lambda r: (r / "meta/deftly.json").write_text("[]"), "holds no embodiment"),
        (lambda r: (r / "meta/deftly.json").write_text('{"embodiment": {}}'), r"name: Field required .* more\); delete the file"),
        (lambda r: (r / "meta/deftly.json").write_text(json.dumps({"embodiment": robot(state=3).to_dict()})), "contradicts"),
    ],
)
def test_a_broken_dataset_is_refused_in_one_line(root, damage, message):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: set_column(t, "action", [None] * 18), "values are missing"),
        (
            lambda t: t.set_column(t.schema.get_field_index("action"), "action", pa.array([[1.0] * 3] * 18)),
            "has 3 dimensions, info.json says 4",
        ),
        (lambda t: t.set_column(t.schema.get_field_index("action"), "action", pa.array([[1.0] * 4] * 17 + [[1.0]])), "different lengths"),
        (lambda t: t.set_column(t.schema.get_field_index("action"), "action", pa.array(["x"] * 18)), "is not a number"),
        (lambda t: t.set_column(t.schema.get_field_index("action"), "action", pa.array([["x"] * 4] * 18)), "not a vector of numbers"),
    ],
)
def test_a_broken_column_is_refused_when_it_is_read(root, damage, message):
    edit(root / DATA, damage)
    dataset = Dataset.open(root)
    with pytest.raises(DataError, match=message) as caught:
        _ = dataset.action
    assert "\n" not in str(caught.value)


def test_a_broken_video_names_the_episode(root):
    path = root / "videos/observation.images.head/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"file-000\.mp4"):
        Dataset.open(root).frames(2, "head")
    edit(root / EPISODES, lambda t: set_column(t, "videos/observation.images.wrist/from_timestamp", [0.0, 0.4, 1.05, 1.3]))
    with pytest.raises(DataError, match=r"episode 2, camera 'wrist': .* has frames for 0 of 3 times"):
        Dataset.open(root).frames(2, "wrist")


def test_numbers_of_any_type_become_two(tmp_path):
    assert to_numpy(pa.chunked_array([[True, False], [True]]), "x").tolist() == [1, 0, 1]
    assert to_numpy(pa.chunked_array([pa.array([1, 2], pa.uint8())]), "x").dtype == np.int64
    assert to_numpy(pa.chunked_array([pa.array([1.5])]), "x").tolist() == [[1.5]]
    assert to_numpy(pa.chunked_array([[[1, 2]], [[3, 4]]]), "x").tolist() == [[1, 2], [3, 4]]
    assert to_numpy(pa.chunked_array([], type=pa.float32()), "x").shape == (0, 1)


def test_task_tables_of_older_recorders_are_read(tmp_path):
    path = tmp_path / "tasks.parquet"
    pq.write_table(pa.table({"task_index": [1, 0], "__index_level_0__": ["b", "a"]}), path)
    assert read_tasks(path) == ("a", "b")
    for table in (
        {"task_index": [0, 0], "task": ["a", "b"]},
        {"task_index": [0, 1], "task": ["a", "a"]},
        {"task_index": [0], "task": [None]},
        {"x": [1]},
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=r"tasks\.parquet"):
            read_tasks(path)


def test_a_table_that_claims_too_much_is_refused(tmp_path):
    pq.write_table(pa.table({"x": pa.array([0] * 1000)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="1000 rows, expected at most 10"):
        read_table(tmp_path / "a.parquet", max_rows=10)


def test_images_are_checked_before_they_are_decoded():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    assert np.array_equal(decode_image(png(pixels), 8, 6, "x"), pixels)
    for data, message in ((None, "no bytes"), (b"", "no bytes"), (b"GIF89a", "cannot be decoded"), (png(pixels)[:60], "cannot be decoded")):
        with pytest.raises(DataError, match=message):
            decode_image(data, 8, 6, "x")
    with pytest.raises(DataError, match="is 8 x 6, expected 6 x 8"):
        decode_image(png(pixels), 6, 8, "x")


@pytest.mark.slow
def test_a_thousand_episodes_open_in_half_a_second(tmp_path):
    import time

    root = write(tmp_path / "data", (27,) * 1000)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        dataset = Dataset.open(root)
        seconds.append(time.perf_counter() - started)
    print(f"open 1000 episodes, {dataset.num_frames} frames: {min(seconds):.3f} s, hash included {dataset.hash[:8]}")
    assert min(seconds) < 0.5
