"""The datasets that the rows are measured on: generated demonstrations, rows of numbers, very many episodes of which nothing is decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly.contract import Camera, Embodiment, Vector
from deftly.data.generate import GenerateConfig, generate
from deftly.data.metadata import write_tasks
from deftly.data.schema import DATA_PATH, EPISODES_PATH, IMAGES, STATS_PATH, TASKS_PATH, VIDEO_PATH, Info, features_of
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.sim.tabletop import TabletopConfig

STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")


def arm(cameras: tuple[str, ...] = (), dims: int = 14) -> Embodiment:
    names = tuple(f"joint_{i}" for i in range(dims))
    vector = Vector(names=names, units=("rad",) * dims)
    views = tuple(Camera(name=name, height=480, width=640) for name in cameras)
    return Embodiment(name="arm", rate_hz=30, cameras=views, state=vector, action=vector)


def demonstrations(root: Path, episodes: int, workers: int) -> Path:
    """Two cameras of 128 px, h264 with a key frame every other frame, as `deftly data generate` writes them."""
    generate(GenerateConfig(world=TabletopConfig(image_size=128), boxes=False), root, episodes, workers, 0)
    return root


def numbers(root: Path, episodes: int, length: int) -> Path:
    """State and action of 14 dimensions without any camera: random walks with rare outliers."""
    if root.exists():
        return root
    draw = np.random.default_rng(0)
    with DatasetWriter(root, arm()) as writer:
        for episode in range(episodes):
            state = np.cumsum(draw.normal(size=(length, 14)), axis=0).astype(np.float32) * 0.1
            action = state + draw.standard_t(2, size=(length, 14)).astype(np.float32) * 0.01
            writer.add(EpisodeData(images={}, state=state, action=action, task=f"task {episode % 8}"))
        writer.finish()
    return root


def many_episodes(root: Path, episodes: int, cameras: int = 3, length: int = 8, per_file: int = 1000) -> Path:
    """Metadata and rows of very many short episodes; the mp4 files hold placeholders, as opening decodes nothing."""
    if root.exists():
        return root
    robot = arm(tuple(f"camera_{i}" for i in range(cameras)))
    features = features_of(robot, {}, {})
    keys = [IMAGES + camera.name for camera in robot.cameras]
    number = np.arange(episodes)
    columns: dict[str, pa.Array] = {
        "episode_index": pa.array(number),
        "tasks": pa.array([[f"task {i % 100}"] for i in range(episodes)]),
        "length": pa.array(np.full(episodes, length)),
        "dataset_from_index": pa.array(number * length),
        "dataset_to_index": pa.array((number + 1) * length),
        "data/chunk_index": pa.array(number * 0),
        "data/file_index": pa.array(number // (10 * per_file)),
        "meta/episodes/chunk_index": pa.array(number * 0),
        "meta/episodes/file_index": pa.array(number * 0),
    }
    for key in keys:
        columns[f"videos/{key}/chunk_index"] = pa.array(number * 0)
        columns[f"videos/{key}/file_index"] = pa.array(number // per_file)
        columns[f"videos/{key}/from_timestamp"] = pa.array(number % per_file * length / 30)
        columns[f"videos/{key}/to_timestamp"] = pa.array((number % per_file + 1) * length / 30)
        for file in range(-(-episodes // per_file)):
            path = root / VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"nobody decodes this")
    for name, feature in features.items():  # as others write them: statistics of every feature beside every episode
        values = [[[0.5]]] * 3 if feature.is_camera else [0.5] * feature.shape[0]
        for statistic in STATISTICS:
            columns[f"stats/{name}/{statistic}"] = _repeated(values, episodes)
        columns[f"stats/{name}/count"] = _repeated([length], episodes)
    path = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path, row_group_size=10_000)
    write_tasks(root / TASKS_PATH, [f"task {i}" for i in range(100)])
    _write_rows(root, episodes, length, 10 * per_file)
    (root / STATS_PATH).write_text(json.dumps({name: {key: [0.5] for key in (*STATISTICS, "count")} for name in features}))
    info = Info(30, features, "arm", episodes, episodes * length, 100)
    (root / "meta/info.json").write_text(json.dumps(info.to_dict(), indent=4))
    return root


def _repeated(value: object, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))


def _write_rows(root: Path, episodes: int, length: int, per_file: int) -> None:
    """The frames of every episode; state and action repeat one pattern, which compresses well."""
    pattern = np.random.default_rng(0).normal(size=(per_file * length, 14)).astype(np.float32)
    for file, first in enumerate(range(0, episodes, per_file)):
        number = np.repeat(np.arange(first, min(first + per_file, episodes)), length)
        frame = np.tile(np.arange(length), len(number) // length)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(pattern[: len(number)].reshape(-1)), 14)
        table = pa.table(
            {
                "observation.state": vectors,
                "action": vectors,
                "timestamp": pa.array((frame / 30).astype(np.float32)),
                "frame_index": pa.array(frame),
                "episode_index": pa.array(number),
                "index": pa.array(np.arange(first * length, first * length + len(number))),
                "task_index": pa.array(number % 100),
            }
        )
        path = root / DATA_PATH.format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
