"""Writing what stands in meta/: info, statistics, tasks, episodes, and what the format has no place for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.contract import Embodiment
from deftly.data import statistics as stats
from deftly.data.files import PARQUET
from deftly.data.schema import (
    EPISODES_PATH,
    HISTOGRAMS_PATH,
    INFO_PATH,
    OURS_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    Feature,
    Info,
    fill_path,
    next_file,
)

FORMAT_VERSION = 1
RESERVED = ("format_version", "embodiment", "image_sample_per_episode")  # keys of deftly.json that are ours
EPISODES_PER_FILE = 10_000


def write_metadata(
    root: Path,
    *,
    features: Mapping[str, Feature],
    embodiment: Embodiment,
    tasks: Sequence[str],
    episodes: list[dict[str, Any]],
    columns: Mapping[str, np.ndarray],
    histograms: Mapping[str, np.ndarray],
    num_sampled: int,
    about: Mapping[str, Any],
) -> None:
    """Write all of meta/ for rows and videos that are there already; info.json comes last: a folder without it is not a dataset.

    `columns` are the numeric columns of all frames, `histograms` [3 256] count the sampled pixels of each camera feature.
    """
    write_tasks(root / TASKS_PATH, tasks)
    write_episodes(root, episodes)
    values = stats.statistics(columns)
    for key, histogram in histograms.items():
        values[key] = stats.image_statistics(histogram, num_sampled)
    order = [name for name in features if name in values]
    _write_json(root / STATS_PATH, stats.to_json({name: values[name] for name in order}))
    counts = {"frames": num_sampled, "histograms": {key: value.tolist() for key, value in histograms.items()}}
    storage.write_text(root / HISTOGRAMS_PATH, json.dumps(counts, separators=(",", ":")) + "\n")
    ours = {"format_version": FORMAT_VERSION, "embodiment": embodiment.to_dict(), "image_sample_per_episode": stats.IMAGE_SAMPLE, **about}
    _write_json(root / OURS_PATH, ours)
    info = Info(
        fps=embodiment.rate_hz,
        features=dict(features),
        robot_type=embodiment.name,
        total_episodes=len(episodes),
        total_frames=len(columns["index"]),
        total_tasks=len(tasks),
        video_path=VIDEO_PATH if any(item.dtype == "video" for item in features.values()) else None,
    )
    for name in ("data", "videos", "meta"):
        if (root / name).is_dir():
            sync_tree(root / name)
    _write_json(root / INFO_PATH, info.to_dict())


def _write_json(path: Path, value: Any) -> None:
    storage.write_text(path, json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False))


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """The task table with the strings as its pandas index, without needing pandas."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    text = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    header = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    pandas = {"index_columns": ["task"], "column_indexes": [header], "columns": [number, text], "creator": {"library": "pyarrow"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps({**pandas, "pandas_version": "2.2.0"})}), path, **PARQUET)


def write_episodes(root: Path, episodes: list[dict[str, Any]]) -> None:
    """The episode tables. A column that some episodes lack holds nulls there."""
    place = (0, 0)
    names = list(dict.fromkeys(name for row in episodes for name in row))
    for begin in range(0, len(episodes), EPISODES_PER_FILE):
        rows = episodes[begin : begin + EPISODES_PER_FILE]
        for row in rows:
            row["meta/episodes/chunk_index"], row["meta/episodes/file_index"] = place
        table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        path = fill_path(root, EPISODES_PATH, {"chunk_index": place[0], "file_index": place[1]}, EPISODES_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **PARQUET)
        place = next_file(*place)


def sync_tree(root: Path) -> None:
    """Make every file and folder below `root` durable."""
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            storage.sync_directory(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    storage.sync_directory(root)
