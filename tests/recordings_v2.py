"""Small LeRobotDatasets v2.1: a file per episode and camera, metadata line by line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly.data.schema import features_of
from deftly.data.video import VideoWriter
from recordings import episode, png
from small_data import TASKS, robot

LENGTHS = (4, 6, 3)
VIDEO = "videos/chunk-00{}/observation.images.head/episode_{:06d}.mp4"
ROWS = "data/chunk-00{}/episode_{:06d}.parquet"


def rows_of(number: int, length: int) -> pa.Table:
    data = episode(number, length)
    columns = {
        "observation.state": pa.array(data.state.tolist(), pa.list_(pa.float32(), 5)),
        "action": pa.array(data.action.tolist(), pa.list_(pa.float32(), 4)),
        "next.reward": pa.array([0.0] * (length - 1) + [1.0], pa.float32()),
        "note": pa.array(["x"] * length),
        "timestamp": pa.array((np.arange(length) / 10).astype(np.float32)),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([number] * length),
        "index": pa.array(range(sum(LENGTHS[:number]), sum(LENGTHS[:number]) + length)),
        "task_index": pa.array([number % 3] * length),
        "observation.images.wrist": pa.array([{"bytes": png(frame), "path": "x.png"} for frame in data.images["wrist"]]),
    }
    return pa.table(columns)


def write_v21(root: Path) -> Path:
    """Three episodes, two per chunk; the head camera as video, the wrist camera as images in parquet."""
    (root / "meta").mkdir(parents=True)
    features = {name: item.to_dict() for name, item in features_of(robot(), {"wrist": "image"}, {}).items()}
    features["action"]["names"] = {"motors": features["action"]["names"]}
    features["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    features["note"] = {"dtype": "string", "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "toy",
        "total_episodes": 3,
        "total_frames": sum(LENGTHS),
        "total_tasks": 3,
        "total_videos": 3,
        "total_chunks": 2,
        "chunks_size": 2,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    lines(root / "meta/episodes.jsonl", [{"episode_index": i, "tasks": [TASKS[i]], "length": n} for i, n in enumerate(LENGTHS)])
    for number, length in enumerate(LENGTHS):
        path = root / ROWS.format(number // 2, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows_of(number, length), path)
        with VideoWriter(root / VIDEO.format(number // 2, number), 10, 32, 32) as video:
            video.add_frames(episode(number, length).images["head"])
    return root


def lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
