"""Exporting a dataset as LeRobotDataset v2.1, for readers that know no v3.0 (lerobot < 0.4, openpi, GR00T), with GR00T's modality.json.

One parquet file and one mp4 per camera for each episode; every value and every decoded pixel stays what it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.data import statistics as stats
from deftly.data.cut import cut
from deftly.data.dataset import Dataset
from deftly.data.files import PARQUET
from deftly.data.metadata import sync_tree
from deftly.data.rows import rows_of_episode
from deftly.data.schema import ACTION, STATE
from deftly.progress import Progress
from deftly.types import DataError, UsageError

VERSION = "v2.1"
CHUNK = 1000  # episodes per folder
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
STATISTICS = ("min", "max", "mean", "std", "count")  # those that v2.1 knows
Parts = Mapping[str, tuple[int, int]]
"""Name of a part of a vector -> half-open range of its elements."""


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    episodes: int
    frames: int
    copied: int  # clips whose packets were copied
    encoded: int  # clips that were encoded anew, without loss

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        lines = [f"{self.episodes} episodes, {self.frames} frames exported as LeRobot {VERSION}"]
        if self.copied + self.encoded:
            lines.append(f"{self.copied} clips copied, {self.encoded} encoded anew without loss, because they begin between key frames")
        return lines


def export_v21(dataset: Dataset, target: Path, *, state_parts: Parts | None = None, action_parts: Parts | None = None) -> ExportReport:
    """Write a dataset, or a selection of one, as LeRobotDataset v2.1 into the new folder `target`.

    The parts name ranges of state and action in meta/modality.json; without them each is one part.
    Raises `UsageError` when `target` exists or a part is no range, `DataError` when an episode cannot be read. Nothing is left then.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists already; choose another folder, or remove it first")
    described = modality(dataset, state_parts, action_parts)
    if dataset.fps != round(dataset.fps):
        raise UsageError(f"{dataset.root}: {dataset.fps} frames per second; LeRobot {VERSION} wants a whole number")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        storage.make_directory(temporary / "meta")
        storage.write_text(temporary / "meta/modality.json", _json(described, indent=4))
        report = _Export(dataset, temporary).write()
        sync_tree(temporary)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    storage.sync_directory(target.parent)
    return report


def modality(dataset: Dataset, state_parts: Parts | None = None, action_parts: Parts | None = None) -> dict[str, Any]:
    """GR00T's meta/modality.json: which range of which column is what, and which videos there are."""
    found: dict[str, Any] = {}
    for kind, key, parts in (("state", STATE, state_parts), ("action", ACTION, action_parts)):
        size = dataset.features[key].shape[0] if key in dataset.features else 0
        parts = parts or ({kind: (0, size)} if size else {})
        for name, (start, end) in parts.items():
            if not 0 <= start < end <= size:
                raise UsageError(f"the part {name!r} of the {kind} is {start}:{end}; the {kind} has {size} elements")
        found[kind] = {name: {"start": start, "end": end} for name, (start, end) in parts.items()}
    videos = [key for key, item in dataset.features.items() if item.dtype == "video"]
    found["video"] = {key.removeprefix("observation.images."): {"original_key": key} for key in videos}
    found["annotation"] = {"human.task_description": {"original_key": "task_index"}}
    return found


def parse_parts(words: Sequence[str]) -> dict[str, tuple[int, int]]:
    """("left_arm=0:7", "right_arm=7:14") as parts."""
    found: dict[str, tuple[int, int]] = {}
    for word in words:
        match = re.fullmatch(r"([\w.-]+)=(\d{1,6}):(\d{1,6})", word)
        if match is None or match.group(1) in found:
            raise UsageError(f"{word!r} is not a new NAME=START:END, as in left_arm=0:7")
        found[match.group(1)] = (int(match.group(2)), int(match.group(3)))
    return found


class _Export:
    """The folder that is being filled."""

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self._dataset, self._root = dataset, root
        self._cameras = dict(zip(dataset.cameras, dataset.info.cameras().values(), strict=True))
        self._columns = [name for name, item in dataset.features.items() if item.dtype != "video"]
        self._numeric = [name for name, item in dataset.features.items() if item.is_numeric and len(item.shape) == 1]
        self._copied = self._encoded = 0

    def write(self) -> ExportReport:
        dataset, fps = self._dataset, round(self._dataset.fps)
        extra = {name: dataset.extra(name) for name in dataset.extra_names}
        episodes, measured = [], []
        with Progress("export", dataset.num_episodes, "episodes") as progress:
            for episode in range(dataset.num_episodes):
                rows = slice(int(dataset.episode_start[episode]), int(dataset.episode_start[episode + 1]))
                tasks = dataset.task_of_frame[rows]
                numbers = {"episode_index": np.full(len(tasks), episode), "index": np.arange(rows.start, rows.stop), "task_index": tasks}
                self._write_rows(episode, numbers)
                for key in dataset.index.videos:
                    self._write_video(episode, key, fps, len(tasks))
                more = {name: values[episode] for name, values in extra.items() if values[episode] is not None}
                texts = [dataset.tasks[int(i)] for i in dict.fromkeys(tasks.tolist())]
                episodes.append({**more, "episode_index": episode, "tasks": texts, "length": len(tasks)})
                measured.append({"episode_index": episode, "stats": self._statistics(episode, rows, numbers)})
                progress.advance(1)
        self._write_lines("episodes", episodes)
        self._write_lines("episodes_stats", measured)
        self._write_lines("tasks", [{"task_index": i, "task": task} for i, task in enumerate(dataset.tasks)])
        storage.write_text(self._root / "meta/info.json", _json(self._info(), indent=4))
        return ExportReport(dataset.num_episodes, dataset.num_frames, self._copied, self._encoded)

    def _path(self, template: str, episode: int, key: str = "") -> Path:
        path = self._root / template.format(episode_chunk=episode // CHUNK, episode_index=episode, video_key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_rows(self, episode: int, numbers: dict[str, np.ndarray]) -> None:
        number = int(self._dataset.source_episode[episode])
        known = [name for name in self._columns if name not in ("episode_index", "frame_index")]
        table = rows_of_episode(self._dataset.data_path(episode), number, known).select(self._columns)
        if table.num_rows != len(numbers["index"]):
            raise DataError(
                f"{self._dataset.data_path(episode)}: episode {number}: {table.num_rows} rows, expected {len(numbers['index'])}"
            )
        for name, values in numbers.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), pa.array(values, pa.int64()))
        pq.write_table(table, self._path(DATA_PATH, episode), **PARQUET)

    def _write_video(self, episode: int, key: str, fps: int, length: int) -> None:
        index = self._dataset.index
        path, starts_s = index.video_path(self._dataset.root, self._dataset.info, key, episode), index.videos[key].start_s
        start_s = 0.0 if starts_s is None else float(starts_s[episode])
        where = f"episode {index.number(episode)}, {key}"
        if cut(path, start_s, fps, length, self._path(VIDEO_PATH, episode, key), where):
            self._copied += 1
        else:
            self._encoded += 1

    def _statistics(self, episode: int, rows: slice, numbers: dict[str, np.ndarray]) -> dict[str, Any]:
        columns = {name: self._dataset.column(name)[rows] for name in self._numeric if name not in numbers}
        found = stats.statistics({**columns, **numbers})
        for camera, key in self._cameras.items():
            frames = self._dataset.frames(episode, camera, stats.sample_indices(rows.stop - rows.start))
            found[key] = stats.image_statistics(stats.image_histogram(frames), len(frames))
        order = [name for name in self._dataset.features if name in found]
        return {name: {key: found[name][key].tolist() for key in STATISTICS} for name in order}

    def _write_lines(self, name: str, values: list[dict[str, Any]]) -> None:
        storage.write_text(self._root / f"meta/{name}.jsonl", "".join(_json(value) + "\n" for value in values))

    def _info(self) -> dict[str, Any]:
        dataset = self._dataset
        videos = list(dataset.index.videos)
        return {
            "codebase_version": VERSION,
            "robot_type": dataset.robot_type,
            "total_episodes": dataset.num_episodes,
            "total_frames": dataset.num_frames,
            "total_tasks": len(dataset.tasks),
            "total_videos": dataset.num_episodes * len(videos),
            "total_chunks": -(-dataset.num_episodes // CHUNK),
            "chunks_size": CHUNK,
            "fps": round(dataset.fps),
            "splits": {"train": f"0:{dataset.num_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if videos else None,
            "features": {name: item.to_dict() for name, item in dataset.features.items()},
        }


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
