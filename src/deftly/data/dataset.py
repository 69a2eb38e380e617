"""Reading a LeRobotDataset v3.0, v2.1 or v2.0: columns, tasks, provenance, frames. Rows are found by their keys, never by their place.

Opening reads the metadata alone; columns and pixels are read, and checked against it, when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from deftly import storage
from deftly.contract import Embodiment
from deftly.data import tables_v2, video
from deftly.data.content import Watch, episode_digests
from deftly.data.embedded import read_depth, read_images
from deftly.data.index import EpisodeIndex
from deftly.data.recording import recover
from deftly.data.rows import TASK, read_columns, read_rows, read_texts, row_files
from deftly.data.schema import ACTION, INFO_PATH, OURS_PATH, STATE, TASKS_PATH, VERSION, Info, embodiment_of, read_info
from deftly.data.tables import EpisodeColumns, read_episodes, read_tasks
from deftly.data.tables_v2 import EpisodeLines
from deftly.types import DataError, EpisodeError, UsageError


class Dataset:
    """A dataset on disk. Make one with `Dataset.open(path)`.

    Frames of all episodes are numbered in one line: those of episode e are `episode_start[e]:episode_start[e + 1]`.
    """

    def __init__(
        self,
        root: Path,
        info: Info,
        tasks: tuple[str, ...],
        index: EpisodeIndex,
        more: EpisodeColumns | EpisodeLines,
        embodiment: Embodiment,
    ) -> None:
        self.root, self.info, self.index, self.embodiment = root, info, index, embodiment
        self.fps, self.robot_type, self.features = info.fps, info.robot_type, info.features
        self.num_episodes, self.num_frames = len(index), index.num_frames
        self._camera_keys = info.cameras()
        self._depth_keys = info.cameras(depth=True)
        self.cameras, self.depth_cameras = tuple(self._camera_keys), tuple(self._depth_keys)
        self._all_tasks, self._more = tasks, more
        self._columns: dict[str, np.ndarray] = {}
        self._opened = Watch(self._metadata_files())

    @classmethod
    def open(cls, root: Path) -> Dataset:
        """Open a dataset folder by its metadata; rows and videos are read, and checked against it, when they are asked for.

        A one-line `DataError` says which file and episode contradict each other.
        A recording that nobody finished becomes a dataset first, of all the episodes that were saved.
        """
        root = Path(root)
        if not root.is_dir():
            is_file = "a file, and a dataset is a folder" if root.exists() else "no such dataset folder"
            raise DataError(f"{root}: {is_file}; check the path (it is the folder that holds meta/, data/ and videos/)")
        recover(root)
        if not (root / INFO_PATH).is_file():
            is_unfinished = (root / ".shards").is_dir()
            remedy = (
                "run the same `deftly data generate` again to finish it" if is_unfinished else "`deftly data import` reads other formats"
            )
            raise DataError(f"{root}: holds no {INFO_PATH}, so it is not a LeRobot dataset; {remedy}")
        info = read_info(storage.inside(root, INFO_PATH), (VERSION, *tables_v2.VERSIONS))
        if info.version == VERSION:
            tasks, (index, more) = read_tasks(storage.inside(root, TASKS_PATH)), read_episodes(root, info)
        else:
            tasks, (index, more) = tables_v2.read_tasks(root), tables_v2.read_episodes(root, info)
        for name, found in (("total_episodes", len(index)), ("total_frames", index.num_frames), ("total_tasks", len(tasks))):
            if getattr(info, name) != found:
                raise DataError(f"{root / INFO_PATH}: {name} is {getattr(info, name)}, the tables hold {found}")
        return cls(root, info, tasks, index, more, _embodiment(root, info))

    def select(self, episodes: Int64[np.ndarray, "n"]) -> Dataset:
        """These episodes in this order, renumbered from 0; nothing is copied, and what is left out is never read.

        Its tasks are those of its episodes, numbered by first use, as a writer would number them. Raises `UsageError` for an episode that
        is not there, or is named twice.
        """
        index = self.index.take(np.asarray(episodes, np.int64))
        if index.source is not None and np.array_equal(index.source, np.arange(self._more.num_episodes)):
            index = replace(index, source=None)
        return Dataset(self.root, self.info, self._all_tasks, index, self._more, self.embodiment)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.root, self.index.source)  # other processes read the metadata themselves, and no column before they use it

    @property
    def episode_start(self) -> Int64[np.ndarray, "e1"]:
        """The first frame of each episode, and the number of all frames at the end."""
        return self.index.start

    @property
    def source_episode(self) -> Int64[np.ndarray, "e"]:
        """The number that each episode has in the folder."""
        return self.index.numbers(np.arange(self.num_episodes, dtype=np.int64))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions; those of a selection are the ones that occur in it."""
        return self._all_tasks if self.index.source is None else tuple(self._all_tasks[i] for i in self._used_tasks)

    @cached_property
    def _used_tasks(self) -> np.ndarray:
        """The folder's task numbers that occur here, in order of first use."""
        used, first = np.unique(self._task_column, return_index=True)
        return used[np.argsort(first)]

    @cached_property
    def _task_column(self) -> np.ndarray:
        """The folder's task number of every frame, int64 [N], checked."""
        task = read_columns(self.root, self.info, self.index, [TASK])[TASK]
        self._check_tasks(task, np.arange(self.num_episodes))
        return task

    def _check_tasks(self, task: Int64[np.ndarray, "n"], episodes: Int64[np.ndarray, "m"]) -> None:
        """Refuse a number that is no task's, in the rows of these episodes one after the other."""
        outside = np.flatnonzero((task < 0) | (task >= len(self._all_tasks)))
        if len(outside):
            row, end = int(outside[0]), np.cumsum(self.episode_length[episodes])
            place = int(np.searchsorted(end, row, side="right"))
            number, frame = self.index.number(int(episodes[place])), row - end[place] + self.episode_length[episodes[place]]
            where = f"{self.root}/data: episode {number} frame {frame}"
            raise EpisodeError(f"{where}: task_index is {task[row]}, there are {len(self._all_tasks)} tasks", number, "task")

    @cached_property
    def _place_of_task(self) -> Int64[np.ndarray, "t"]:
        """Index into `tasks` of each of the folder's tasks."""
        if self.index.source is None:
            return np.arange(len(self._all_tasks))
        place = np.zeros(len(self._all_tasks), np.int64)
        place[self._used_tasks] = np.arange(len(self._used_tasks))
        return place

    def column(self, name: str) -> np.ndarray:
        """A numeric column over all frames, read-only: vectors and floats as [N dim] float32 (or [N ...]), whole numbers as [N] int64."""
        if name not in self._columns:
            feature = self.features.get(name)
            if feature is None or not feature.is_numeric:
                known = [key for key, item in self.features.items() if item.is_numeric]
                raise DataError(f"{self.root}: no numeric column {name!r}; there are {', '.join(known)}")
            self._columns[name] = read_columns(self.root, self.info, self.index, [name])[name]
        return self._columns[name]

    def texts(self, name: str) -> list[str]:
        """A column of text over all frames."""
        if name not in self.features or self.features[name].dtype != "string":
            known = [key for key, item in self.features.items() if item.dtype == "string"]
            raise DataError(f"{self.root}: no column of text {name!r}; there are {', '.join(known) or 'none'}")
        return read_texts(self.root, self.info, self.index, name)

    @property
    def state(self) -> np.ndarray:
        """Proprioception, float32 [N s]; s is 0 where the dataset records none."""
        return self.column(STATE) if STATE in self.features else np.zeros((self.num_frames, 0), dtype=np.float32)

    @property
    def action(self) -> np.ndarray:
        """Actions, float32 [N a]."""
        return self.column(ACTION)

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[Int64[np.ndarray, "m"], dict[str, np.ndarray]]]:
        """Numeric columns file by file, so that one file at a time is in memory: (episodes, name -> their rows one after the other).

        Files come in order of first use, which is not always the order of the episodes. `task_index` is an index into `tasks`.
        """
        for path, episodes in row_files(self.root, self.info, self.index):
            found = read_rows(path, self.info, self.index, episodes, names)
            if TASK in names:
                self._check_tasks(found[TASK], episodes)
                found[TASK] = self._place_of_task[found[TASK]]
            yield episodes, found

    @cached_property
    def task_of_frame(self) -> np.ndarray:
        """Index into `tasks`, int64 [N]."""
        if self.index.source is None:
            return self._task_column
        task = self._place_of_task[self._task_column]
        task.flags.writeable = False
        return task

    @cached_property
    def episode_length(self) -> np.ndarray:
        """Frames of each episode, int64 [E]."""
        return np.diff(self.episode_start)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of the per-episode columns beyond those of the format."""
        return self._more.names

    def extra(self, name: str) -> list[Any]:
        """A per-episode column beyond those of the format (seed, scene, skill ...): one value per episode, None where there is none."""
        values = self._more.read(name)
        return values if self.index.source is None else [values[number] for number in self.index.source]

    @cached_property
    def hash(self) -> str:
        """sha256 over the features, the embodiment and each episode's content in order: equal for equal data, without decoding any."""
        features = {name: item.to_dict() for name, item in sorted(self.features.items())}
        digest = hashlib.sha256(json.dumps([self.fps, features, self.embodiment.to_dict()], sort_keys=True).encode())
        digest.update(self.episode_length.tobytes())
        digest.update(episode_digests(self.root, self.info, self.index, self.tasks, self.task_of_frame).tobytes())
        return digest.hexdigest()

    @cached_property
    def _watch(self) -> Watch:
        return Watch([*self.data_files(), *self.video_files()])

    def changed(self) -> str | None:
        """Which file is not as it was; None where all are. Cheap: time of change and size of at most some thousand files.

        The metadata is compared with when it was opened, rows and videos with the first call.
        """
        return self._opened.changed() or self._watch.changed()

    def _metadata_files(self) -> list[Path]:
        return [self.root / INFO_PATH, self.root / OURS_PATH, *self._more.paths]

    def data_files(self) -> list[Path]:
        """The parquet files that hold rows, in order of first use."""
        return [path for path, _ in row_files(self.root, self.info, self.index)]

    def data_path(self, episode: int) -> Path:
        """The parquet file that holds the rows of an episode; whether it is there is another question."""
        return self.index.data_path(self.root, self.info, episode)

    def video_place(self, episode: int, camera: str) -> tuple[Path, float]:
        """The mp4 file that holds an episode of a camera, and the time in it, in seconds, of the episode's first frame."""
        key = self._camera_keys[camera]
        start_s = self.index.videos[key].start_s
        return self.index.video_path(self.root, self.info, key, episode), 0.0 if start_s is None else float(start_s[episode])

    def video_files(self) -> list[Path]:
        """Every mp4 that an episode refers to, camera by camera."""
        return [
            self.index.video_path(self.root, self.info, key, int(episodes[0]))
            for key, places in self.index.videos.items()
            for episodes in self.index.by_file(places)
        ]

    def video_places(self, key: str) -> dict[tuple[int, int], Path]:
        """The mp4 files of a video feature: (chunk, file) number -> path, in order."""
        places = self.index.videos[key]
        found = {}
        for episodes in self.index.by_file(places):
            chunk, file = places.numbers[places.file[episodes[0]]] if places.file is not None else (0, int(episodes[0]))
            found[int(chunk), int(file)] = self.index.video_path(self.root, self.info, key, int(episodes[0]))
        return dict(sorted(found.items()))

    def frames(self, episode: int, camera: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Decoded frames of an episode, uint8 [n h w 3]: all of them, or those at `indices` (any order, repeats allowed).

        Raises `DataError` naming file and episode when the video or an image is broken.
        """
        key, number, indices = self._frames_of(episode, camera, self._camera_keys, indices)
        feature, where = self.features[key], f"episode {number}, camera {camera!r}"
        if feature.dtype == "image":
            return read_images(self.data_path(episode), number, key, feature, indices, where)
        height, width = feature.height_width(where)
        path, start_s = self.video_place(episode, camera)
        try:
            return video.decode(path, start_s, self.fps, indices, height, width, where)
        except DataError as error:
            raise EpisodeError(str(error), number, "video") from None

    def depth(self, episode: int, camera: str, indices: np.ndarray | None = None) -> Float32[np.ndarray, "n h w"]:
        """Distances of an episode in metres, 0 where nothing was measured; errors and `indices` as of `frames`."""
        key, number, indices = self._frames_of(episode, camera, self._depth_keys, indices)
        feature, where = self.features[key], f"episode {number}, depth {camera!r}"
        if feature.dtype != "image":
            raise DataError(f"{self.root}: depth {camera!r} is stored as video, which changes distances; store it as 16 bit images")
        return read_depth(self.data_path(episode), number, key, feature, indices, where)

    def _frames_of(self, episode: int, camera: str, keys: dict[str, str], indices: np.ndarray | None) -> tuple[str, int, np.ndarray]:
        """(feature, number of the episode in the folder, frames), checked."""
        if camera not in keys:
            raise DataError(f"{self.root}: no camera {camera!r}; there are {', '.join(keys) or 'none'}")
        if not 0 <= episode < self.num_episodes:
            raise DataError(f"{self.root}: no episode {episode}; there are {self.num_episodes}")
        length = int(self.episode_start[episode + 1] - self.episode_start[episode])
        indices = np.arange(length) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < length):
            raise DataError(f"{self.root}: episode {episode} has {length} frames, asked for {indices.min()}..{indices.max()}")
        return keys[camera], self.index.number(episode), indices


def _reopen(root: Path, episodes: np.ndarray | None) -> Dataset:
    dataset = Dataset.open(root)
    return dataset if episodes is None else dataset.select(episodes)


def _embodiment(root: Path, info: Info) -> Embodiment:
    """Ours where our writer left one that agrees with the features; else what the features tell."""
    plain = embodiment_of(info, str(root / INFO_PATH))
    if not (root / OURS_PATH).is_file():
        return plain
    values = storage.read_json(storage.inside(root, OURS_PATH))
    if not isinstance(values, dict) or not isinstance(values.get("embodiment"), dict):
        raise DataError(f"{root / OURS_PATH}: holds no embodiment; delete the file to read the dataset without it")
    try:
        ours = Embodiment.parse(values["embodiment"], where=str(root / OURS_PATH))
    except UsageError as error:
        first, *more = str(error).splitlines()
        others = f" (and {len(more)} more)" if more else ""
        raise DataError(f"{first}{others}; delete the file to read the dataset without it") from None
    same = [(c.name, c.height, c.width) for c in ours.cameras] == [(c.name, c.height, c.width) for c in plain.cameras]
    if not same or len(ours.state) != len(plain.state) or len(ours.action) != len(plain.action) or ours.rate_hz != plain.rate_hz:
        raise DataError(f"{root / OURS_PATH}: its embodiment contradicts {INFO_PATH}; delete the file to read the dataset without it")
    return ours
