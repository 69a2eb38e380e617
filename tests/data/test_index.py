"""The index: a few bytes per episode, opened by the metadata alone; a selection is a dataset of its own."""

import json
import pickle
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deftly.contract import Camera, Embodiment, Vector
from deftly.data.dataset import Dataset
from deftly.data.index import Places
from deftly.data.metadata import write_tasks
from deftly.data.schema import Info, features_of
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, EpisodeError, UsageError
from recordings import episode, write
from small_data import TASKS, robot

LENGTHS = (4, 6, 3, 5)
CAMERAS = ("head", "left", "right")


def write_many(root: Path, episodes: int, length: int = 50) -> Path:
    """The metadata of a large dataset of three cameras; there is neither a row nor a video, and opening must not look for one."""
    vector = Vector(names=tuple("abcdefg"), units=("",) * 7)
    cameras = tuple(Camera(name=name, height=32, width=32) for name in CAMERAS)
    features = features_of(Embodiment(name="arm", rate_hz=10, cameras=cameras, state=vector, action=vector), {}, {})
    info = Info(10, features, "arm", episodes, episodes * length, len(TASKS))
    number = np.arange(episodes)
    columns = {
        "episode_index": number,
        "length": np.full(episodes, length),
        "dataset_from_index": number * length,
        "dataset_to_index": (number + 1) * length,
        "data/chunk_index": number // 500_000,
        "data/file_index": number // 500,
        "seed": number * 7,
    }
    for camera in CAMERAS:
        prefix = f"videos/observation.images.{camera}/"
        columns |= {
            prefix + "chunk_index": number * 0,
            prefix + "file_index": number // 200,
            prefix + "from_timestamp": number % 200 * length / 10,
        }
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info.to_dict()))
    write_tasks(root / "meta/tasks.parquet", TASKS)
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "data", LENGTHS)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    return write_many(tmp_path_factory.mktemp("many") / "data", 100_000)


def test_an_episode_of_three_cameras_takes_fewer_than_80_bytes(many):
    dataset = Dataset.open(many)
    assert dataset.num_frames == 5_000_000
    assert dataset.index.nbytes / dataset.num_episodes <= 50
    tracemalloc.start()
    dataset = Dataset.open(many)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{held / dataset.num_episodes:.1f} bytes per episode are held after opening")
    assert held / dataset.num_episodes <= 80
    half = dataset.select(np.arange(0, 100_000, 2))
    assert half.index.nbytes / half.num_episodes <= 80
    assert sys.getsizeof(pickle.dumps(dataset)) < 1000


def test_a_hundred_thousand_episodes_open_in_less_than_a_second(many):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        Dataset.open(many)
        seconds.append(time.perf_counter() - started)
    print(f"open 100 000 episodes of three cameras: {min(seconds):.3f} s")
    assert min(seconds) < 1


def test_places_are_found_where_they_were_put(many):
    dataset = Dataset.open(many)
    path, start = dataset.video_place(70_001, "left")
    assert path == many / "videos/observation.images.left/chunk-000/file-350.mp4"
    assert start == 5.0
    assert dataset.data_path(70_001) == many / "data/chunk-000/file-140.parquet"
    assert dataset.extra("seed")[70_001] == 490_007
    assert dataset.select(np.array([70_001])).extra("seed") == [490_007]


@pytest.mark.parametrize("seed", range(20))
def test_files_are_grouped_whatever_the_order(seed):
    draw = np.random.default_rng(seed)
    chunk, file, length = draw.integers(0, 3, 40), draw.integers(0, 3, 40), draw.integers(1, 9, 40)
    places = Places.of(chunk, file, length)
    assert places.file is not None
    assert np.array_equal(places.numbers[places.file], np.stack([chunk, file], axis=1))
    for place, (a, b) in enumerate(places.numbers):
        assert places.frames[place] == length[(chunk == a) & (file == b)].sum()
    assert np.unique(places.file, return_index=True)[1].tolist() == sorted(np.unique(places.file, return_index=True)[1])


@pytest.mark.parametrize("chosen", [[0], [3, 1], [2, 3, 0, 1], [1, 2]])
def test_a_selection_is_the_episodes_in_that_order(original, chosen):
    whole = Dataset.open(original)
    part = whole.select(np.array(chosen))
    assert part.source_episode.tolist() == chosen
    assert part.episode_length.tolist() == [LENGTHS[i] for i in chosen]
    assert part.num_frames == sum(LENGTHS[i] for i in chosen)
    assert part.extra("seed") == chosen
    for new, old in enumerate(chosen):
        mine, theirs = slice(*part.episode_start[new : new + 2]), slice(*whole.episode_start[old : old + 2])
        assert np.array_equal(part.action[mine], whole.action[theirs])
        assert np.array_equal(part.column("note")[mine], whole.column("note")[theirs])
        assert {part.tasks[i] for i in part.task_of_frame[mine]} == {whole.tasks[i] for i in whole.task_of_frame[theirs]}
        assert np.array_equal(part.frames(new, "head"), whole.frames(old, "head"))
    assert part.task_of_frame[0] == 0
    assert len(part.tasks) == len(set(part.task_of_frame.tolist()))


def test_a_selection_of_a_selection_and_of_everything(original):
    whole = Dataset.open(original)
    twice = whole.select(np.array([3, 1, 0])).select(np.array([2, 0]))
    assert twice.source_episode.tolist() == [0, 3]
    again = whole.select(np.array([2, 3, 0, 1])).select(np.array([2, 3, 0, 1]))
    assert again.hash == whole.hash
    assert again.tasks == whole.tasks
    for wrong in ([0, 0], [4], [-1]):
        with pytest.raises(UsageError, match=r"asked for|selected twice"):
            whole.select(np.array(wrong))


def test_chunks_are_the_columns_file_by_file(original):
    for dataset in (Dataset.open(original), Dataset.open(original).select(np.array([2, 0]))):
        seen = []
        for episodes, columns in dataset.chunks(["action", "task_index"]):
            rows = np.concatenate([np.arange(*dataset.episode_start[e : e + 2]) for e in episodes])
            assert np.array_equal(columns["action"], dataset.action[rows])
            assert np.array_equal(columns["task_index"], dataset.task_of_frame[rows])
            seen += episodes.tolist()
        assert sorted(seen) == list(range(dataset.num_episodes))


def write_images(root: Path, numbers: list[int]) -> Path:
    """Episodes without video: their images lie in the parquet file, so the same episode has the same bytes anywhere."""
    bare = Embodiment(name="toy", rate_hz=10, cameras=(), state=robot().state, action=robot().action)
    with DatasetWriter(root, bare) as writer:
        for number in numbers:
            data = episode(number, LENGTHS[number])
            writer.add(EpisodeData(images={}, state=data.state, action=data.action, task=data.task))
        writer.finish()
    return root


def test_a_selection_has_the_hash_of_a_folder_with_those_episodes_alone(tmp_path):
    whole = Dataset.open(write_images(tmp_path / "whole", [0, 1, 2, 3]))
    part = Dataset.open(write_images(tmp_path / "part", [1, 3]))
    assert whole.select(np.array([1, 3])).hash == part.hash
    assert whole.select(np.array([3, 1])).hash != part.hash
    assert whole.hash != part.hash
    assert whole.select(np.array([1, 3])).tasks == part.tasks
    assert np.array_equal(whole.select(np.array([1, 3])).task_of_frame, part.task_of_frame)


def test_what_is_left_out_is_never_read(original, tmp_path):
    root = Path(shutil.copytree(original, tmp_path / "data"))
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("frame_index")
    values = table.column("frame_index").to_pylist()
    values[5] = 0  # frame 1 of episode 1
    table = table.set_column(at, table.schema.field(at), pa.array(values))
    pq.write_table(table, path, row_group_size=4)
    with pytest.raises(EpisodeError, match="episode 1 has no single row for frame 1") as caught:
        _ = Dataset.open(root).action
    assert (caught.value.episode, caught.value.code) == (1, "rows")
    good = Dataset.open(root).select(np.array([0, 2, 3]))
    assert np.array_equal(good.action, Dataset.open(original).select(np.array([0, 2, 3])).action)
    assert good.hash == Dataset.open(original).select(np.array([0, 2, 3])).hash


def test_an_episode_error_survives_the_way_from_another_process():
    error = pickle.loads(pickle.dumps(EpisodeError("episode 3 is broken", 3, "video")))
    assert (str(error), error.episode, error.code, error.exit_code) == ("episode 3 is broken", 3, "video", 65)
    assert isinstance(error, DataError)


def test_a_dataset_pickles_as_its_path_and_selection(original):
    part = Dataset.open(original).select(np.array([3, 0]))
    _ = part.action
    again = pickle.loads(pickle.dumps(part))
    assert again.hash == part.hash
    assert np.array_equal(again.source_episode, part.source_episode)
    assert not again._columns


@pytest.mark.parametrize(
    "name", ["meta/info.json", "data/chunk-000/file-000.parquet", "videos/observation.images.head/chunk-000/file-000.mp4"]
)
@pytest.mark.parametrize("how", ["gone", "written"])
def test_a_file_that_changes_is_named(original, tmp_path, name, how):
    root = Path(shutil.copytree(original, tmp_path / "data"))
    dataset = Dataset.open(root)
    assert dataset.changed() is None
    if how == "gone":
        (root / name).unlink()
    else:
        (root / name).write_bytes((root / name).read_bytes() + b" ")
    assert dataset.changed() == f"{root / name} {'is gone' if how == 'gone' else 'was written to'}"
