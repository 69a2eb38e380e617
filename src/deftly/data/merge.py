"""Several datasets become one: rows are renumbered, videos are linked as they are, statistics are those of everything together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deftly import storage
from deftly.contract import Embodiment, require_same
from deftly.data.dataset import Dataset
from deftly.data.files import DataFiles
from deftly.data.metadata import write_metadata
from deftly.data.schema import EPISODES_PATH, HISTOGRAMS_PATH, INFO_PATH, OURS_PATH, VIDEO_PATH, Feature, fill_path, next_file
from deftly.data.tables import read_table
from deftly.data.writer import episode_row
from deftly.types import DataError, UsageError

FOLDERS = ("data", "videos", "meta")


def merge(sources: Sequence[Path], root: Path, about: Mapping[str, Any]) -> None:
    """Write the episodes of `sources`, datasets of ours with the same features, in order into the folder `root`.

    The same sources in the same order give the same bytes. Video files are hard links where the file system allows it. info.json is
    written last, so an interrupted merge leaves a folder that nothing takes for a dataset; merging again finishes it.
    Raises `UsageError` when `root` holds anything but what an interrupted merge leaves, or is, holds or lies in a source; nothing is
    touched then. Raises `DataError` when there is no source, or when embodiments or features differ.
    """
    if not sources:
        raise DataError(f"{root}: nothing to merge")
    first = Dataset.open(sources[0])
    _require_free(root, sources, first)
    target = _Target(root, first)
    for source in sources:
        target.add(Dataset.open(source))
    target.finish(about)


def _require_free(root: Path, sources: Sequence[Path], first: Dataset) -> None:
    """Refuse a folder whose data, videos or meta are somebody's work: they are removed before the merge starts."""
    place = root.resolve()
    for source in sources:
        there = Path(source).resolve()
        if place.is_relative_to(there) or any(there.is_relative_to(place / name) for name in FOLDERS):  # guard: data.merge.source
            raise UsageError(f"{root}: is, holds or lies in {source}, which is only read; merge into a folder beside it")
    if (root / INFO_PATH).exists():  # guard: data.merge.finished
        raise UsageError(f"{root}: holds a dataset already; merge into another folder, or remove it first")
    rows, videos = (sorted(path.name for path in (root / name).glob("*")) for name in ("data", "videos"))
    foreign = [f"data/{name}" for name in rows if not name.startswith("chunk-")]
    foreign += [f"videos/{name}" for name in videos if name not in first.features]
    if foreign:  # guard: data.merge.foreign
        raise UsageError(f"{root}: holds {foreign[0]}, which no merge wrote; merge into another folder")


class _Target:
    """The dataset that grows."""

    def __init__(self, root: Path, first: Dataset) -> None:
        for name in FOLDERS:
            shutil.rmtree(root / name, ignore_errors=True)
        self._root, self._first = root, first
        self._embodiment: Embodiment = first.embodiment
        self._features: dict[str, Feature] = first.features
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._histograms: dict[str, np.ndarray] = {}
        self._num_frames = self._num_sampled = 0
        self._rows: DataFiles | None = None
        self._next: dict[str, tuple[int, int]] = {}

    def add(self, source: Dataset) -> None:
        require_same(self._embodiment, source.embodiment, f"{source.root}: its embodiment", "merge only datasets of one robot")
        if {n: f.to_dict() for n, f in source.features.items()} != {n: f.to_dict() for n, f in self._features.items()}:
            raise DataError(f"{source.root}: its features differ from those of {self._first.root}; merge only datasets of one kind")
        places = self._link_videos(source)
        tables = [read_table(path) for path in source.data_files()]
        rows = pa.concat_tables(tables).combine_chunks() if len(tables) > 1 else tables[0]
        if self._rows is None:
            self._rows = DataFiles(self._root, rows.schema)
        old = [row for path in _episode_files(source.root) for row in read_table(path).to_pylist()]
        numeric = [name for name, item in source.features.items() if item.is_vector]
        columns = {name: source.column(name) for name in numeric}
        tasks = np.array([self._tasks.setdefault(task, len(self._tasks)) for task in source.tasks], dtype=np.int64)
        for episode, before in enumerate(old):
            begin, end = (int(i) for i in source.episode_start[episode : episode + 2])
            mine = {name: column[begin:end].copy() for name, column in columns.items()}
            mine["index"] = self._num_frames + np.arange(end - begin, dtype=np.int64)
            mine["episode_index"] = np.full(end - begin, len(self._episodes), dtype=np.int64)
            mine["task_index"] = tasks[mine["task_index"]]
            counted = {name: mine[name] for name in ("frame_index", "index", "episode_index", "task_index")}  # the rest has its statistics
            table = rows.slice(begin, end - begin)
            for name in ("index", "episode_index", "task_index"):
                table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(mine[name]))
            row = {**before, **episode_row(len(self._episodes), before["tasks"], self._num_frames, counted), **self._rows.add(table)}
            for key, moved in places.items():
                old_place = (before[f"videos/{key}/chunk_index"], before[f"videos/{key}/file_index"])
                row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = moved[old_place]
            self._episodes.append(row)
            for name, values in mine.items():
                self._columns.setdefault(name, []).append(values)
            self._num_frames += end - begin
        self._add_histograms(source)

    def _link_videos(self, source: Dataset) -> dict[str, dict[tuple[int, int], tuple[int, int]]]:
        """Give the videos of a source the next free numbers; feature -> old place -> new place."""
        places: dict[str, dict[tuple[int, int], tuple[int, int]]] = {}
        for key, item in source.features.items():
            if item.dtype != "video":
                continue
            places[key] = {}
            for old, path in source.video_places(key).items():
                new = self._next.get(key, (0, 0))
                self._next[key] = next_file(*new)
                target = fill_path(self._root, VIDEO_PATH, {"video_key": key, "chunk_index": new[0], "file_index": new[1]}, VIDEO_PATH)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copyfile(path, target)
                places[key][old] = new
        return places

    def _add_histograms(self, source: Dataset) -> None:
        if not source.cameras:
            return
        counts = storage.read_json(source.root / HISTOGRAMS_PATH)
        self._num_sampled += int(counts["frames"])
        for key, histogram in counts["histograms"].items():
            values = np.array(histogram, dtype=np.int64)
            self._histograms[key] = self._histograms[key] + values if key in self._histograms else values

    def finish(self, about: Mapping[str, Any]) -> None:
        assert self._rows is not None
        self._rows.close()
        write_metadata(
            self._root,
            features=self._features,
            embodiment=self._embodiment,
            tasks=list(self._tasks),
            episodes=self._episodes,
            columns={name: np.concatenate(values) for name, values in self._columns.items()},
            histograms=self._histograms,
            num_sampled=self._num_sampled,
            about=about,
        )


def _episode_files(root: Path) -> list[Path]:
    return sorted((root / EPISODES_PATH.split("/chunk")[0]).glob("chunk-*/file-*.parquet"))


def described(root: Path) -> dict[str, Any]:
    """What meta/deftly.json says about where a dataset came from; empty for one that we did not write."""
    path = root / OURS_PATH
    values = storage.read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}
