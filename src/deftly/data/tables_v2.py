"""The metadata of a LeRobotDataset v2.0 or v2.1, which is JSON line by line; each episode has a parquet file and one mp4 per camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from deftly import storage
from deftly.data.index import EpisodeIndex, Places
from deftly.data.schema import MAX_EPISODES, MAX_FRAMES, Info
from deftly.types import DataError

VERSIONS = ("v2.1", "v2.0")
EPISODES = "meta/episodes.jsonl"
TASKS = "meta/tasks.jsonl"
_KNOWN = ("episode_index", "length", "tasks")


class EpisodeLines:
    """What episodes.jsonl says further about the episodes; read again when it is asked for."""

    def __init__(self, path: Path, names: tuple[str, ...], num_episodes: int) -> None:
        self.paths, self.names, self.num_episodes = [path], names, num_episodes

    def read(self, name: str) -> list[Any]:
        """One value per episode of the folder; None where there is none."""
        values: list[Any] = [None] * self.num_episodes
        if name in self.names:
            for line in lines(self.paths[0]):
                values[line["episode_index"]] = line.get(name)
        return values


def read_tasks(root: Path) -> tuple[str, ...]:
    """The task strings in order of task_index."""
    path = storage.inside(root, TASKS)
    tasks: dict[int, str] = {}
    for line in lines(path):
        index, text = line.get("task_index"), line.get("task")
        if not is_count(index) or not isinstance(text, str) or index in tasks:
            raise DataError(f"{path}: needs a new task_index (number) and task (text) in each line, found {str(line)[:80]}")
        tasks[index] = text
    if sorted(tasks) != list(range(len(tasks))):
        raise DataError(f"{path}: task_index must run from 0 to {len(tasks) - 1} without gaps")
    return tuple(tasks[i] for i in range(len(tasks)))


def read_episodes(root: Path, info: Info) -> tuple[EpisodeIndex, EpisodeLines]:
    """meta/episodes.jsonl, checked: episodes numbered 0..n-1, once each; one of no frames is for the check to find."""
    path = storage.inside(root, EPISODES)
    lengths: dict[int, int] = {}
    names: dict[str, None] = {}
    for line in lines(path):
        index, length = line.get("episode_index"), line.get("length")
        if not is_count(index) or not is_count(length) or length > MAX_FRAMES or index in lengths:
            raise DataError(f"{path}: needs a new episode_index and a length in each line, found {str(line)[:80]}")
        lengths[index] = length
        names |= dict.fromkeys(name for name in line if name not in _KNOWN)
    count = len(lengths)
    if not 0 < count <= MAX_EPISODES or max(lengths) != count - 1:
        raise DataError(f"{path}: episodes must be numbered from 0 without gaps, found {count}")
    length = np.array([lengths[i] for i in range(count)], np.int64)
    if length.sum() > MAX_FRAMES:
        raise DataError(f"{path}: {length.sum()} frames are more than {MAX_FRAMES}")
    nowhere = Places(None, np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    videos = {key: nowhere for key, item in info.features.items() if item.dtype == "video"}
    start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    return EpisodeIndex(start, nowhere, videos), EpisodeLines(path, tuple(names), count)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value from JSON is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of metadata, one per line; a `DataError` where a line is something else."""
    if not path.is_file():
        raise DataError(f"{path}: missing")
    if path.stat().st_size > storage.MAX_JSON_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes of JSON is more than {storage.MAX_JSON_BYTES}")
    found = list(storage.read_lines(path, drop_torn=False))
    if not all(isinstance(line, dict) for line in found):
        raise DataError(f"{path}: expected one JSON object per line")
    return found
