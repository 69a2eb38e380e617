"""Importing LeRobotDataset v2.0 and v2.1, which keep one parquet file and one mp4 per camera for each episode.

Videos are not encoded again: their packets are copied, so every decoded frame stays the same. Only a clip whose frames are not at
frame / fps is encoded anew, and the report says so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deftly.contract import Embodiment
from deftly.data.importers.report import BUDGET, ImportReport, require_folder
from deftly.data.schema import ACTION, DEFAULT_FEATURES, STATE, Feature, Info, embodiment_of, read_info
from deftly.data.tables import image_bytes, read_table, to_numpy
from deftly.data.tables_v2 import EPISODES, VERSIONS, read_episodes, read_tasks
from deftly.data.video import VideoClip
from deftly.data.writer import DatasetWriter, EpisodeData, Images
from deftly.types import DataError

TIME_TOLERANCE_S = 1e-3  # of a recorded timestamp around frame / fps; older recorders rounded


def import_lerobot_v21(source: Path, target: Path, budget: float = BUDGET) -> ImportReport:
    """Write a LeRobotDataset v2.0 or v2.1 as v3.0 at `target`.

    Raises `DataError` naming file and episode when the metadata contradict each other, or when more than `budget` of the episodes are
    missing, damaged or wrong. Nothing is left at `target` then.
    """
    return _Source(require_folder(Path(source))).write(Path(target), budget)


class _Source:
    """The dataset that is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info: Info = read_info(root / "meta/info.json", VERSIONS)
        self.where = str(root / "meta/info.json")
        self.tasks = read_tasks(root)
        self.index, _ = read_episodes(root, self.info)
        for name, found in (("total_episodes", len(self.index)), ("total_frames", self.index.num_frames)):
            if getattr(self.info, name) != found:
                raise DataError(f"{self.where}: {name} is {getattr(self.info, name)}, {Path(EPISODES).name} adds up to {found}")
        self.cameras = self.info.cameras()
        self.embodiment: Embodiment = embodiment_of(self.info, self.where)
        self.extra, self.left_out = self._other_features()
        if ACTION not in self.info.features:
            raise DataError(f"{self.where}: has no feature {ACTION!r}; there are {', '.join(self.info.features)}")

    def _other_features(self) -> tuple[dict[str, tuple[str, ...] | Feature], list[str]]:
        """Further columns per frame that can be taken over, and the names of what cannot."""
        extra: dict[str, tuple[str, ...] | Feature] = {}
        left_out = []
        for name, item in self.info.features.items():
            if (item.is_camera and not item.is_depth) or name in DEFAULT_FEATURES or name in (STATE, ACTION):
                continue
            if item.is_vector:
                size = item.shape[0]
                names = item.names if item.names and len(item.names) == size else tuple(f"{name}_{i}" for i in range(size))
                extra[name] = Feature(item.dtype, item.shape, names)
            elif item.can_be_extra:
                extra[name] = item
            else:
                left_out.append(name)
        return extra, left_out

    def write(self, target: Path, budget: float) -> ImportReport:
        report = ImportReport(source=f"lerobot-{self.info.version}", left_out=self.left_out)
        images = {name: self.info.features[key].dtype for name, key in self.cameras.items()}
        with DatasetWriter(target, self.embodiment, images=images, extra=self.extra) as writer:  # type: ignore[arg-type]
            for episode, length in enumerate(np.diff(self.index.start).tolist()):
                path = self.index.data_path(self.root, self.info, episode)
                read = functools.partial(self._episode, path, episode, length)
                report.take(writer, f"{path}: episode {episode}", read, budget, len(self.index))
            if writer.num_encoded_clips:
                report.notes.append(
                    f"{writer.num_encoded_clips} clips have frames off the grid of frame / fps and were encoded anew (h264, crf 18)"
                )
            report.finish(writer)
        return report

    def _episode(self, path: Path, episode: int, length: int) -> EpisodeData:
        where = f"{path}: episode {episode}"
        names = [name for name, item in self.info.features.items() if item.dtype != "video" and name not in self.left_out]
        table = read_table(path, names, max_rows=length)
        if table.num_rows != length:
            raise DataError(f"{where}: {table.num_rows} rows, meta/episodes.jsonl says {length}")
        numeric = [name for name in names if self.info.features[name].is_numeric]
        columns = {name: to_numpy(table.column(name), f"{where}: {name}") for name in numeric}
        self._check_keys(columns, episode, length, where)
        unknown = [int(i) for i in np.unique(columns["task_index"]) if not 0 <= i < len(self.tasks)]
        if unknown:
            raise DataError(f"{where}: task_index {unknown[0]} is not in meta/tasks.jsonl")
        vectors = {name: values.reshape(length, *values.shape[1:] or (1,)) for name, values in columns.items() if name in (STATE, ACTION)}
        others: dict[str, Any] = {
            name: _exact(table.column(name), values.shape, self.info.features[name].dtype, f"{where}: {name}")
            for name, values in columns.items()
            if name in self.extra
        }
        for name in set(self.extra) - set(columns):
            is_text = self.info.features[name].dtype == "string"
            others[name] = table.column(name).to_pylist() if is_text else _embedded(table.column(name), f"{where}, {name}")
        images: dict[str, Images] = {}
        for camera, key in self.cameras.items():
            if self.info.features[key].dtype == "image":
                images[camera] = _embedded(table.column(key), f"{where}, {key}")
            else:
                images[camera] = VideoClip(self.index.video_path(self.root, self.info, key, episode))
        try:
            return EpisodeData(
                images=images,
                state=vectors.pop(STATE, np.zeros((length, 0), dtype=np.float32)),
                action=vectors.pop(ACTION),
                task=[self.tasks[int(i)] for i in columns["task_index"]],
                extra_frame={**vectors, **others},
            )
        except KeyError as error:
            raise DataError(f"{where}: {error} is missing") from None

    def _check_keys(self, columns: dict[str, np.ndarray], episode: int, length: int, where: str) -> None:
        for name in DEFAULT_FEATURES:
            if name not in columns:
                raise DataError(f"{self.where}: has no feature {name!r}")
        if (columns["episode_index"] != episode).any() or (columns["frame_index"] != np.arange(length)).any():
            raise DataError(f"{where}: its rows are numbered as other episodes or frames")
        late = np.abs(columns["timestamp"].reshape(-1) - np.arange(length) / self.info.fps)
        if not (late <= TIME_TOLERANCE_S).all():
            frame = int(np.argmax(~(late <= TIME_TOLERANCE_S)))
            raise DataError(
                f"{where} frame {frame}: timestamp is {columns['timestamp'].reshape(-1)[frame]}, expected {frame / self.info.fps:.4f}"
            )


def _exact(column: pa.ChunkedArray, shape: tuple[int, ...], dtype: str, where: str) -> np.ndarray:
    """A numeric column, which `to_numpy` found to be of this shape, in the type that info.json declares: no digit is lost on the way."""
    array = pa.concat_arrays(column.chunks)
    while not (pa.types.is_primitive(array.type) or pa.types.is_boolean(array.type)):
        array = array.flatten()
    stored = array.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):
        values = stored.astype(dtype)
    if values.dtype.kind != "f" and not np.array_equal(values, stored):  # guard: data.lerobot_v21.whole
        raise DataError(f"{where}: holds numbers that are not {dtype}, as info.json declares them; mend its dtype there")
    return values.reshape(len(column), *shape[1:] or (1,))


def _embedded(column: pa.ChunkedArray, where: str) -> Sequence[bytes]:
    found = [data for item in column if (data := image_bytes(item)) is not None]
    if len(found) != len(column):
        raise DataError(f"{where}: an image is not embedded in the parquet file")
    return found
