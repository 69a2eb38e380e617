"""v2.1 and v2.0 folders are datasets like any other: the same API, read where they are."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import edit_info
from deftly.data.dataset import Dataset
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.video import decode_all
from deftly.types import DataError, EpisodeError
from recordings import episode
from recordings_v2 import LENGTHS, ROWS, VIDEO, lines, write_v21
from small_data import TASKS

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")) / "g1_sample"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_v21(tmp_path_factory.mktemp("v21") / "src")


@pytest.fixture
def source(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "src"))


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_every_value_and_frame_is_read(source, version):
    edit_info(source, codebase_version=version)
    dataset = Dataset.open(source)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps, dataset.tasks) == (3, 13, 10, TASKS)
    assert dataset.cameras == ("head", "wrist")
    for number, length in enumerate(LENGTHS):
        rows = slice(*dataset.episode_start[number : number + 2])
        assert np.array_equal(dataset.action[rows], episode(number, length).action)
        assert np.array_equal(dataset.state[rows], episode(number, length).state)
        assert dataset.task_of_frame[rows].tolist() == [number % 3] * length
        clip = np.stack(list(decode_all(source / VIDEO.format(number // 2, number), 32, 32, 99)))
        assert np.array_equal(dataset.frames(number, "head"), clip)
        assert np.array_equal(dataset.frames(number, "wrist", np.array([1, 0])), episode(number, length).images["wrist"][[1, 0]])


def test_images_are_those_of_the_file_as_it_is_now(source):
    dataset = Dataset.open(source)
    before = dataset.frames(0, "wrist", np.array([0]))
    path = source / ROWS.format(0, 0)
    table = pq.read_table(path)
    at = table.schema.get_field_index("observation.images.wrist")
    order = pa.array([3, 2, 1, 0])
    pq.write_table(table.set_column(at, table.schema.field(at), table.column(at).take(order)), path)
    assert np.array_equal(dataset.frames(0, "wrist", np.array([3])), before)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        dataset.frames(0, "wrist")


def test_it_is_the_same_as_the_import_of_it(source, tmp_path):
    import_lerobot_v21(source, tmp_path / "out")
    native, imported = Dataset.open(source), Dataset.open(tmp_path / "out")
    assert native.embodiment == imported.embodiment
    assert native.episode_start.tolist() == imported.episode_start.tolist()
    for name in ("action", "observation.state", "next.reward", "timestamp", "frame_index", "task_index"):
        assert np.array_equal(native.column(name), imported.column(name))
    for number in range(3):
        assert np.array_equal(native.frames(number, "head"), imported.frames(number, "head"))


def test_a_selection_reads_only_its_own_files(source):
    (source / ROWS.format(0, 1)).write_bytes(b"")
    (source / VIDEO.format(0, 1)).unlink()
    part = Dataset.open(source).select(np.array([2, 0]))
    assert part.action.shape == (7, 4)
    assert part.tasks == (TASKS[2], TASKS[0])
    assert np.array_equal(part.frames(0, "head"), Dataset.open(source).frames(2, "head"))
    assert part.hash
    assert part.changed() is None


@pytest.mark.parametrize("name", ["episodes", "tasks"])
def test_a_last_line_that_is_whole_needs_no_newline(source, name):
    path = source / f"meta/{name}.jsonl"
    before = Dataset.open(source)
    path.write_text(path.read_text().rstrip("\n"))
    assert Dataset.open(source).tasks == before.tasks
    assert Dataset.open(source).hash == before.hash
    path.write_text(path.read_text()[:-1])
    with pytest.raises(DataError, match="the file is truncated"):
        Dataset.open(source)


def test_the_older_key_of_a_video_says_that_it_is_depth(source):
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["observation.images.head"]["video_info"] = {"video.is_depth_map": True}
    edit_info(source, codebase_version="v2.0", features=info["features"])
    dataset = Dataset.open(source)
    assert (dataset.cameras, dataset.depth_cameras) == (("wrist",), ("head",))


def test_what_episodes_jsonl_says_further_is_kept(source):
    lines(source / "meta/episodes.jsonl", [{"episode_index": i, "length": n, "operator": f"p{i}"} for i, n in enumerate(LENGTHS)])
    dataset = Dataset.open(source)
    assert dataset.extra_names == ("operator",)
    assert dataset.extra("operator") == ["p0", "p1", "p2"]
    assert dataset.select(np.array([2])).extra("operator") == ["p2"]
    assert dataset.extra("seed") == [None] * 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: edit_info(s, total_frames=14), "total_frames is 14, the tables hold 13"),
        (lambda s: edit_info(s, total_tasks=4), "total_tasks is 4"),
        (lambda s: edit_info(s, codebase_version="v1.6"), r"codebase_version is 'v1\.6', expected v3\.0 or v2\.1 or v2\.0"),
        (lambda s: (s / "meta/episodes.jsonl").unlink(), r"episodes\.jsonl: missing"),
        (lambda s: (s / "meta/tasks.jsonl").write_text('{"task_index": 0, "ta'), "last line is cut off"),
        (lambda s: (s / "meta/tasks.jsonl").write_bytes(b'{"task_index": 0, "task": "\xed\xa0\x80"}\n'), "not valid JSON"),
        (lambda s: (s / "meta/tasks.jsonl").write_text("[" * 100_000 + "\n"), "not valid JSON"),
        (lambda s: lines(s / "meta/tasks.jsonl", [{"task_index": 3, "task": "a"}]), "without gaps"),
        (lambda s: lines(s / "meta/episodes.jsonl", [{"episode_index": 0, "length": True}]), "a length in each line"),
        (lambda s: lines(s / "meta/episodes.jsonl", [{"episode_index": 0, "length": 1 << 40}]), "a length in each line"),
    ],
)
def test_broken_metadata_is_refused_in_one_line(source, damage, message):
    damage(source)
    with pytest.raises(DataError, match=message) as caught:
        Dataset.open(source)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_a_broken_episode_is_named(source):
    path = source / ROWS.format(0, 1)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(EpisodeError, match="5 rows, its episodes have 6 frames") as caught:
        _ = Dataset.open(source).action
    assert (caught.value.episode, caught.value.code) == (1, "rows")
    at = table.schema.get_field_index("task_index")
    pq.write_table(table.set_column(at, "task_index", pa.array([7] * 6)), path)
    with pytest.raises(EpisodeError, match="episode 1 frame 0: task_index is 7") as caught:
        _ = Dataset.open(source).task_of_frame
    assert (caught.value.episode, caught.value.code) == (1, "task")
    shutil.copy(source / VIDEO.format(1, 2), source / VIDEO.format(0, 1))
    with pytest.raises(EpisodeError, match=r"episode 1, camera 'head'.*frames for 3 of 6") as caught:
        Dataset.open(source).frames(1, "head")
    assert (caught.value.episode, caught.value.code) == (1, "video")


@pytest.mark.skipif(not REAL.is_dir(), reason="DEFTLY_REAL_DATA does not name a folder with g1_sample")
def test_the_real_humanoid_recordings_are_read_where_they_are():
    dataset = Dataset.open(REAL)
    assert (dataset.num_episodes, dataset.num_frames, dataset.cameras) == (10, 2725, ("cam_high",))
    given = pq.read_table(REAL / "data/chunk-000/episode_000007.parquet").to_pydict()
    rows = slice(*dataset.episode_start[7:9])
    assert dataset.action[rows].tolist() == given["action"]
    assert dataset.frames(7, "cam_high", np.array([0, 100])).shape == (2, 480, 640, 3)
