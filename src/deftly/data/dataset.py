"""Reading a LeRobotDataset v3.0: columns, tasks, provenance and decoded frames. Rows are found by their keys, never by their position.

Opening checks the tables against each other; values and pixels are read when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.contract import Embodiment
from deftly.data import video
from deftly.data.images import decode_image
from deftly.data.recording import recover
from deftly.data.schema import ACTION, DEFAULT_FEATURES, INFO_PATH, OURS_PATH, STATE, TASKS_PATH, Info, embodiment_of, fill_path, read_info
from deftly.data.tables import EpisodeTable, open_parquet, read_columns, read_episodes, read_tasks, to_numpy
from deftly.types import DataError

_TAIL_BYTES = 64 << 10  # the end of an mp4 holds its index, with the size of every packet


class Dataset:
    """A dataset on disk. Make one with `Dataset.open(path)`.

    Frames of all episodes are numbered in one line: those of episode e are `episode_start[e]:episode_start[e + 1]`.
    """

    def __init__(self, root: Path, info: Info, tasks: tuple[str, ...], episodes: EpisodeTable, embodiment: Embodiment) -> None:
        self.root, self.info, self.tasks, self.embodiment = root, info, tasks, embodiment
        self.fps, self.robot_type, self.features = info.fps, info.robot_type, info.features
        self.num_episodes, self.num_frames = len(episodes.length), int(episodes.length.sum())
        self.episode_start = np.concatenate([[0], np.cumsum(episodes.length)]).astype(np.int64)
        self._camera_keys = info.cameras()
        self.cameras = tuple(self._camera_keys)
        self._episodes = episodes
        self._columns: dict[str, np.ndarray] = {}
        self._order: np.ndarray | None = None

    @classmethod
    def open(cls, root: Path) -> Dataset:
        """Open a dataset folder; a one-line `DataError` says which file and episode contradict each other.

        A recording that nobody finished becomes a dataset first, of all the episodes that were saved.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: no such dataset folder")
        recover(root)
        if not (root / INFO_PATH).is_file():
            unfinished = "; run the same `deftly data generate` again to finish it" if (root / ".shards").is_dir() else ""
            raise DataError(f"{root}: holds no {INFO_PATH}, so it is not a LeRobot dataset{unfinished}")
        info = read_info(root / INFO_PATH)
        tasks = read_tasks(root / TASKS_PATH)
        episodes = read_episodes(root, info)
        dataset = cls(root, info, tasks, episodes, _embodiment(root, info))
        dataset._check()
        return dataset

    def _check(self) -> None:
        for name, found in (("total_episodes", self.num_episodes), ("total_frames", self.num_frames), ("total_tasks", len(self.tasks))):
            if getattr(self.info, name) != found:
                raise DataError(f"{self.root / INFO_PATH}: {name} is {getattr(self.info, name)}, the tables hold {found}")
        keys = read_columns(self.root, self.info, self._episodes, ["episode_index", "frame_index", "task_index"])
        episode, frame, task = keys["episode_index"], keys["frame_index"], keys["task_index"]
        expected_episode = np.repeat(np.arange(self.num_episodes), self._episodes.length)
        expected_frame = np.arange(self.num_frames) - self.episode_start[expected_episode]
        if not (np.array_equal(episode, expected_episode) and np.array_equal(frame, expected_frame)):
            self._order = np.lexsort((frame, episode))
            episode, frame, task = episode[self._order], frame[self._order], task[self._order]
            wrong = np.flatnonzero((episode != expected_episode) | (frame != expected_frame))
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{self.root}/data: episode {expected_episode[row]} has no single row for frame {expected_frame[row]} "
                    f"(found episode {episode[row]} frame {frame[row]}); rows are missing, repeated or numbered wrongly"
                )
        outside = np.flatnonzero((task < 0) | (task >= len(self.tasks)))
        if len(outside):
            row = int(outside[0])
            where = f"{self.root}/data: episode {episode[row]} frame {frame[row]}"
            raise DataError(f"{where}: task_index is {task[row]}, {TASKS_PATH} holds {len(self.tasks)} tasks")
        task.flags.writeable = False
        self._columns["task_index"] = task
        for path in self.video_files():
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(f"{path}: the video is missing or empty")

    def column(self, name: str) -> np.ndarray:
        """A numeric column over all frames, read-only: vectors and floats as [N dim] float32, whole numbers as [N] int64."""
        if name not in self._columns:
            feature = self.features.get(name)
            if feature is None or not feature.is_numeric or len(feature.shape) != 1:
                known = [key for key, item in self.features.items() if item.is_numeric and len(item.shape) == 1]
                raise DataError(f"{self.root}: no numeric column {name!r}; there are {', '.join(known)}")
            values = read_columns(self.root, self.info, self._episodes, [name])[name]
            values = values if self._order is None else values[self._order]
            values = np.ascontiguousarray(values)
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]

    @property
    def state(self) -> np.ndarray:
        """Proprioception, float32 [N s]; s is 0 where the dataset records none."""
        return self.column(STATE) if STATE in self.features else np.zeros((self.num_frames, 0), dtype=np.float32)

    @property
    def action(self) -> np.ndarray:
        """Actions, float32 [N a]."""
        return self.column(ACTION)

    @property
    def task_of_frame(self) -> np.ndarray:
        """Index into `tasks`, int64 [N]."""
        return self._columns["task_index"]

    @property
    def episode_length(self) -> np.ndarray:
        """Frames of each episode, int64 [E]."""
        return self._episodes.length

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of the per-episode columns beyond those of the format."""
        return tuple(self._episodes.extra)

    def extra(self, name: str) -> list[Any]:
        """A per-episode column beyond those of the format (seed, scene, skill ...): one value per episode, None where there is none."""
        return list(self._episodes.extra.get(name, [None] * self.num_episodes))

    @cached_property
    def hash(self) -> str:
        """sha256 over the metadata, every numeric column, and size and end of every video: equal for equal data, without decoding any."""
        digest = hashlib.sha256()
        features = {name: item.to_dict() for name, item in sorted(self.features.items())}
        digest.update(json.dumps([self.fps, features, self.tasks, self.embodiment.to_dict()], sort_keys=True).encode())
        digest.update(self._episodes.length.tobytes())
        for name, item in sorted(self.features.items()):
            if item.is_numeric and len(item.shape) == 1 and name not in DEFAULT_FEATURES:
                digest.update(name.encode() + self.column(name).tobytes())
        digest.update(self.task_of_frame.tobytes())
        for key, places in sorted(self._episodes.videos.items()):
            digest.update(key.encode() + places.chunk.tobytes() + places.file.tobytes() + places.start_s.tobytes())
        for path in self.video_files():
            digest.update(_size_and_end(path))
        if any(item.dtype == "image" for item in self.features.values()):
            for path in self.data_files():
                digest.update(_size_and_end(path))
        return digest.hexdigest()

    def data_files(self) -> list[Path]:
        """The parquet files that hold rows, in order of first use."""
        return list(self._episodes.data_files(self.root, self.info))

    def data_path(self, episode: int) -> Path:
        """The parquet file that holds the rows of an episode; whether it is there is another question."""
        return self._episodes.data_path(self.root, self.info, episode)

    def video_place(self, episode: int, camera: str) -> tuple[Path, float]:
        """The mp4 file that holds an episode of a camera, and the time in it, in seconds, of the episode's first frame."""
        key = self._camera_keys[camera]
        return self._video_path(key, episode), float(self._episodes.videos[key].start_s[episode])

    def video_files(self) -> list[Path]:
        """Every mp4 that an episode refers to, camera by camera."""
        return [path for key in self._episodes.videos for path in self.video_places(key).values()]

    def video_places(self, key: str) -> dict[tuple[int, int], Path]:
        """The mp4 files of a video feature: (chunk, file) number -> path, in order."""
        places = self._episodes.videos[key]
        pairs, first = np.unique(np.stack([places.chunk, places.file]), axis=1, return_index=True)
        return {(int(chunk), int(file)): self._video_path(key, int(e)) for chunk, file, e in zip(*pairs, first, strict=True)}

    def _video_path(self, key: str, episode: int) -> Path:
        places = self._episodes.videos[key]
        values = {"video_key": key, "chunk_index": int(places.chunk[episode]), "file_index": int(places.file[episode])}
        return fill_path(self.root, self.info.video_path or "", values, str(self.root / INFO_PATH))

    def frames(self, episode: int, camera: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Decoded frames of an episode, uint8 [n h w 3]: all of them, or those at `indices` (any order, repeats allowed).

        Raises `DataError` naming file and episode when the video or an image is broken.
        """
        if camera not in self._camera_keys:
            raise DataError(f"{self.root}: no camera {camera!r}; there are {', '.join(self.cameras) or 'none'}")
        if not 0 <= episode < self.num_episodes:
            raise DataError(f"{self.root}: no episode {episode}; there are {self.num_episodes}")
        length = int(self._episodes.length[episode])
        indices = np.arange(length) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < length):
            raise DataError(f"{self.root}: episode {episode} has {length} frames, asked for {indices.min()}..{indices.max()}")
        key = self._camera_keys[camera]
        where = f"episode {episode}, camera {camera!r}"
        height, width = self.features[key].height_width(where)
        if self.features[key].dtype == "image":
            return self._images(episode, key, indices, height, width)
        start = float(self._episodes.videos[key].start_s[episode])
        return video.decode(self._video_path(key, episode), start, self.fps, indices, height, width, where)

    def _images(self, episode: int, key: str, indices: np.ndarray, height: int, width: int) -> np.ndarray:
        path = self._episodes.data_path(self.root, self.info, episode)
        with open_parquet(path) as file:
            groups = _groups_of(file, episode)
            try:
                table = file.read_row_groups(groups, columns=["episode_index", "frame_index", key])
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read ({error}); the file is truncated or corrupt") from None
        rows = to_numpy(table.column("episode_index"), str(path)) == episode
        numbers = to_numpy(table.column("frame_index"), str(path))
        place = {int(number): i for i, number in enumerate(numbers) if rows[i]}
        column = table.column(key)
        images = np.zeros((len(indices), height, width, 3), dtype=np.uint8)
        for i, index in enumerate(indices):
            value = column[place[int(index)]].as_py()
            images[i] = decode_image((value or {}).get("bytes"), height, width, f"{path}: episode {episode} frame {index} of {key!r}")
        return images


def _groups_of(file: pq.ParquetFile, episode: int) -> list[int]:
    """The row groups that can hold rows of an episode, by their statistics where there are any."""
    groups = []
    for group in range(file.metadata.num_row_groups):
        chunk = file.metadata.row_group(group)
        columns = (chunk.column(i) for i in range(chunk.num_columns))
        bounds = next((column.statistics for column in columns if column.path_in_schema == "episode_index"), None)
        if bounds is None or not bounds.has_min_max or bounds.min <= episode <= bounds.max:
            groups.append(group)
    return groups


def _size_and_end(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        return size.to_bytes(8, "little") + hashlib.sha256(file.read()).digest()


def _embodiment(root: Path, info: Info) -> Embodiment:
    """Ours where our writer left one that agrees with the features; else what the features tell."""
    plain = embodiment_of(info, str(root / INFO_PATH))
    if not (root / OURS_PATH).is_file():
        return plain
    values = storage.read_json(root / OURS_PATH)
    if not isinstance(values, dict) or not isinstance(values.get("embodiment"), dict):
        raise DataError(f"{root / OURS_PATH}: holds no embodiment; delete the file to read the dataset without it")
    ours = Embodiment.parse(values["embodiment"], where=str(root / OURS_PATH))
    same = [(c.name, c.height, c.width) for c in ours.cameras] == [(c.name, c.height, c.width) for c in plain.cameras]
    if not same or len(ours.state) != len(plain.state) or len(ours.action) != len(plain.action) or ours.rate_hz != plain.rate_hz:
        raise DataError(f"{root / OURS_PATH}: its embodiment contradicts {INFO_PATH}; delete the file to read the dataset without it")
    return ours
