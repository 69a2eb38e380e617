"""Writing a LeRobotDataset v3.0: episodes in, a folder that appears whole or not at all out.

Several episodes share a parquet file and an mp4 per camera; an episode is never split. Episode i is row i of meta/episodes, its frames are
rows `dataset_from_index:dataset_to_index` over the data files in order, its video starts at exactly first frame in the file / fps.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deftly import storage
from deftly.contract import Embodiment
from deftly.data import statistics as stats
from deftly.data import video
from deftly.data.files import DataFiles, VideoFiles, arrow_schema, arrow_table
from deftly.data.images import decode_depth, decode_image, encode_depth
from deftly.data.metadata import write_metadata
from deftly.data.provenance import Kinds, join
from deftly.data.schema import ACTION, DEFAULT_FEATURES, IMAGES, STATE, Extra, Feature, Storage, features_of
from deftly.data.video import VideoClip
from deftly.types import DataError, UsageError

Images = np.ndarray | VideoClip | Sequence[bytes]
"""uint8 [T h w 3], a clip whose packets are copied, or T encoded PNG or JPEG files that are stored as they are."""


@dataclass(kw_only=True)
class EpisodeData:
    """One episode to be written. T frames."""

    images: Mapping[str, Images]  # by camera
    state: np.ndarray  # [T s]
    action: np.ndarray  # [T a]
    task: str | Sequence[str]  # the instruction, of the episode or of every frame
    extra_frame: Mapping[str, np.ndarray | Sequence[str] | Sequence[bytes]] = field(default_factory=dict)
    """For every name that the writer was told: [T d] or [T ...] numbers, T texts, depth as uint16 [T h w] or as T encoded PNG."""
    extra_episode: Mapping[str, int | float | str | bool] = field(default_factory=dict)  # provenance: any names


class DatasetWriter:
    """`with DatasetWriter(root, embodiment) as writer: writer.add(EpisodeData(...)); writer.finish()`.

    Everything is written into a temporary sibling of `root`, which is renamed by `finish`; leaving the block without it removes it.
    `images` says per camera whether frames become an mp4 ("video", the default) or stay encoded images in the parquet file ("image").
    `extra` says what else there is per frame (`schema.Extra`). `about` is kept in meta/deftly.json.
    """

    def __init__(
        self,
        root: Path,
        embodiment: Embodiment,
        *,
        images: Mapping[str, Storage] | None = None,
        extra: Extra | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UsageError(f"{self.root}: exists already; choose another folder, or remove it first")
        if embodiment.rate_hz != round(embodiment.rate_hz):
            raise UsageError(f"a LeRobot dataset has a whole number of frames per second, not {embodiment.rate_hz}; resample the episodes")
        self.embodiment, self.fps, self.about = embodiment, round(embodiment.rate_hz), dict(about or {})
        self.features = features_of(embodiment, images or {}, extra or {})
        self.tasks: dict[str, int] = {}
        self.num_frames = 0
        self._schema = arrow_schema(self.features)
        self._directory = self.root.with_name(f".{self.root.name}.{os.getpid()}.tmp")
        shutil.rmtree(self._directory, ignore_errors=True)
        storage.make_directory(self._directory.parent)
        self._directory.mkdir()
        self._rows = DataFiles(self._directory, self._schema)
        self._videos = {
            camera.name: VideoFiles(self._directory, IMAGES + camera.name, self.fps, camera.height, camera.width)
            for camera in embodiment.cameras
            if self.features[IMAGES + camera.name].dtype == "video"
        }
        self._episodes: list[dict[str, Any]] = []
        self._kinds: Kinds = {}
        self._columns: dict[str, list[np.ndarray]] = {}
        self._histograms = {IMAGES + camera.name: np.zeros((3, 256), dtype=np.int64) for camera in embodiment.cameras}
        self._num_sampled = 0

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    @property
    def num_encoded_clips(self) -> int:
        """Clips that could not be copied packet by packet and were encoded anew."""
        return sum(files.num_encoded for files in self._videos.values())

    def add(self, episode: EpisodeData) -> int:
        """Append an episode; returns its number. Raises `DataError` naming the field that is wrong; nothing is added then."""
        number, length = len(self._episodes), len(episode.action)
        where = f"episode {number}"
        columns = self._vectors(episode, length, where)
        tasks = [episode.task] * length if isinstance(episode.task, str) else list(episode.task)
        if len(tasks) != length:
            raise DataError(f"{where}: {len(tasks)} instructions for {length} frames")
        kinds = join(self._kinds, episode.extra_episode, where)
        samples = {camera.name: self._sample(episode, camera.name, length, where) for camera in self.embodiment.cameras}
        for camera in samples:
            given = episode.images[camera]
            if (self.features[IMAGES + camera].dtype == "image") != (not isinstance(given, (np.ndarray, VideoClip))):
                raise DataError(f"{where}, camera {camera!r}: given as {type(given).__name__}, which this writer was not told")

        frame_index = np.arange(length, dtype=np.int64)
        columns["timestamp"] = (frame_index / self.fps).astype(np.float32)
        columns["frame_index"] = frame_index
        columns["episode_index"] = np.full(length, number, dtype=np.int64)
        columns["index"] = self.num_frames + frame_index
        columns["task_index"] = np.array([self.tasks.setdefault(task, len(self.tasks)) for task in tasks], dtype=np.int64)
        row = episode_row(number, list(dict.fromkeys(tasks)), self.num_frames, columns)
        texts, encoded = self._others(episode, length, where)
        for camera, sample in samples.items():
            key, images = IMAGES + camera, episode.images[camera]
            histogram = stats.image_histogram(sample)
            self._histograms[key] += histogram
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in stats.image_statistics(histogram, len(sample)).items()}
            if isinstance(images, (np.ndarray, VideoClip)):
                row |= self._videos[camera].add(images, length)
            else:
                encoded[key] = images
        row |= self._rows.add(arrow_table(self._schema, {**columns, **texts}, encoded))
        self._episodes.append({**row, **episode.extra_episode})
        self._kinds = kinds
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        self.num_frames += length
        self._num_sampled += len(stats.sample_indices(length))
        return number

    def _vectors(self, episode: EpisodeData, length: int, where: str) -> dict[str, np.ndarray]:
        if length == 0:
            raise DataError(f"{where}: holds no frames")
        given = {ACTION: episode.action, **episode.extra_frame}
        if STATE in self.features:
            given[STATE] = episode.state
        columns: dict[str, np.ndarray] = {}
        for name, feature in self.features.items():
            if not feature.is_vector or name in DEFAULT_FEATURES:
                continue
            columns[name] = _numbers(given.get(name), feature, length, f"{where}: {name}")
        others = {name for name, feature in self.features.items() if feature.can_be_extra and not feature.is_vector}
        unknown = sorted(set(given) - set(columns) - others)
        if unknown:
            raise DataError(f"{where}: {unknown[0]!r} was not announced to the writer")
        return columns

    def _others(self, episode: EpisodeData, length: int, where: str) -> tuple[dict[str, Any], dict[str, Sequence[bytes]]]:
        """What has no statistics: texts and arrays of further axes, and encoded depth."""
        plain: dict[str, Any] = {}
        encoded: dict[str, Sequence[bytes]] = {}
        for name, feature in self.features.items():
            if feature.is_vector or not feature.can_be_extra:
                continue
            given, what = episode.extra_frame.get(name), f"{where}: {name}"
            if feature.is_numeric:
                plain[name] = _numbers(given, feature, length, what)
            elif isinstance(given, np.ndarray) and (given.dtype != np.uint16 or given.ndim != 3):
                raise DataError(f"{what} is {given.dtype} {list(given.shape)}, expected uint16 [T h w] in its unit")
            elif given is None or len(given) != length:
                raise DataError(f"{what}: {'is missing' if given is None else f'{len(given)} values for {length} frames'}")
            elif feature.dtype == "string":
                if not all(isinstance(text, str) for text in given):
                    raise DataError(f"{what}: a value is not text")
                plain[name] = list(given)
            else:
                height, width, _ = feature.shape
                encoded[name] = [encode_depth(item) if isinstance(item, np.ndarray) else item for item in given]  # type: ignore[misc]
                for frame, data in enumerate(encoded[name]):
                    decode_depth(data, height, width, f"{what} frame {frame}")
        return plain, encoded

    def _sample(self, episode: EpisodeData, camera: str, length: int, where: str) -> np.ndarray:
        """Check an episode's images; returns the frames that its image statistics are taken from, uint8 [n h w 3]."""
        where = f"{where}, camera {camera!r}"
        images = episode.images.get(camera)
        height, width, _ = self.features[IMAGES + camera].shape
        indices = stats.sample_indices(length)
        if images is None:
            raise DataError(f"{where}: no images")
        if isinstance(images, VideoClip):
            info = video.probe(images.path, self.fps)
            count, size = info.num_frames, (info.height, info.width)
        elif isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise DataError(f"{where}: expected uint8 [T h w 3], got {images.dtype} {list(images.shape)}")
            count, size = len(images), images.shape[1:3]
        else:
            count, size = len(images), (height, width)
        if count != length or size != (height, width):
            raise DataError(f"{where}: {count} frames of {size[0]} x {size[1]}, expected {length} of {height} x {width}")
        if isinstance(images, np.ndarray):
            return images[indices]
        if isinstance(images, VideoClip):
            return video.sample(images, self.fps, indices, height, width, where)
        wanted = set(indices.tolist())
        decoded = ((i, decode_image(data, height, width, f"{where} frame {i}")) for i, data in enumerate(images))
        return np.stack([pixels for i, pixels in decoded if i in wanted])

    def finish(self) -> Path:
        """Close every file, write the metadata, make it durable and rename it into place; returns `root`."""
        if not self._episodes:
            raise UsageError(f"{self.root}: there is no episode to write")
        self._rows.close()
        features = dict(self.features)
        for files in self._videos.values():
            files.close()
            features[files.key] = Feature("video", features[files.key].shape, features[files.key].names, files.info)
        write_metadata(
            self._directory,
            features=features,
            embodiment=self.embodiment,
            tasks=list(self.tasks),
            episodes=self._episodes,
            columns={name: np.concatenate(values) for name, values in self._columns.items()},
            histograms=self._histograms,
            num_sampled=self._num_sampled,
            about=self.about,
        )
        storage.sync_directory(self._directory)
        if self.root.exists():
            self.root.rmdir()  # it was empty when we began; anything that appeared since is an error here
        os.replace(self._directory, self.root)
        storage.sync_directory(self.root.parent)
        return self.root

    def abort(self) -> None:
        """Remove everything written so far."""
        for files in (self._rows, *self._videos.values()):
            files.abort()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._directory.exists():
            self.abort()


def _numbers(given: Any, feature: Feature, length: int, where: str) -> np.ndarray:
    """A numeric column of an episode, checked."""
    if given is None:
        raise DataError(f"{where} is missing")
    values = np.ascontiguousarray(given, dtype=np.dtype(feature.dtype))
    if values.shape != (length, *feature.shape):
        raise DataError(f"{where} has shape {list(values.shape)}, expected {[length, *feature.shape]}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        frame, *place = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        at, name = where.rsplit(": ", 1)
        raise DataError(f"{at} frame {frame}: {name}[{', '.join(map(str, place))}] is {values[(frame, *place)]}")
    return values


def episode_row(number: int, tasks: list[str], first_row: int, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The row of meta/episodes that follows from an episode's numeric columns; file places and images are added by who knows them."""
    length = len(columns["frame_index"])
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": tasks,
        "length": length,
        "dataset_from_index": first_row,
        "dataset_to_index": first_row + length,
    }
    for key, values in stats.statistics(columns).items():
        row |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
    return row
