"""The parquet tables of a LeRobotDataset v3.0, read defensively: tasks, episodes, and the numeric columns of the data files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly.data.schema import EPISODES_PATH, MAX_EPISODES, MAX_FRAMES, Info, fill_path
from deftly.types import DataError

_MAX_META_BYTES = 4 << 30  # of a table once decoded; a small file can claim any size


_KNOWN = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "tasks", "data/chunk_index", "data/file_index")


@dataclass(frozen=True, slots=True)
class VideoPlaces:
    """Where the episodes of one camera are: file numbers int64 [E], and the time of the first frame in the file in seconds, float64 [E]."""

    chunk: np.ndarray
    file: np.ndarray
    start_s: np.ndarray


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """meta/episodes in order of episode_index: `length` and file numbers int64 [E], videos by feature key, further columns."""

    length: np.ndarray
    chunk: np.ndarray
    file: np.ndarray
    videos: dict[str, VideoPlaces]
    extra: dict[str, list[Any]]

    def data_path(self, root: Path, info: Info, episode: int) -> Path:
        values = {"chunk_index": int(self.chunk[episode]), "file_index": int(self.file[episode])}
        return fill_path(root, info.data_path, values, str(root / "meta/info.json"))

    def data_files(self, root: Path, info: Info) -> dict[Path, int]:
        """Each data file with the number of frames that its episodes should have in it, in order of first use."""
        pairs, first, inverse = np.unique(np.stack([self.chunk, self.file]), axis=1, return_index=True, return_inverse=True)
        frames = np.bincount(inverse.reshape(-1), weights=self.length, minlength=pairs.shape[1])
        return {self.data_path(root, info, int(first[i])): int(frames[i]) for i in np.argsort(first)}


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file; a one-line `DataError` when it is missing or broken."""
    if not path.is_file():
        raise DataError(f"{path}: missing")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({_first_line(error)}); it is truncated or corrupt") from None


def read_table(path: Path, columns: list[str] | None = None, max_rows: int = MAX_FRAMES) -> pa.Table:
    """Columns of a parquet file, all by default, refused when it claims more than it may hold."""
    with open_parquet(path) as file:
        if file.metadata.num_rows > max_rows:
            raise DataError(f"{path}: {file.metadata.num_rows} rows, expected at most {max_rows}")
        names = file.schema_arrow.names
        for name in columns or []:
            if name not in names:
                raise DataError(f"{path}: no column {name!r}; it has {', '.join(names)}")
        try:
            if columns is None and sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)) > _MAX_META_BYTES:
                raise DataError(f"{path}: more than {_MAX_META_BYTES} bytes once decoded")
            return file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read ({_first_line(error)}); it is truncated or corrupt") from None


def to_numpy(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """A numeric column as int64 [N] (whole numbers, booleans) or float32 [N dim] (floats, and vectors of anything)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=column.type)
    if array.null_count:
        raise DataError(f"{where}: {array.null_count} values are missing")
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = array.value_lengths().unique().to_pylist()
        if len(lengths) > 1:
            raise DataError(f"{where}: vectors of different lengths {sorted(lengths)[:4]}")
        values = array.flatten()
        if values.null_count or not _is_number(values.type):
            raise DataError(f"{where}: not a vector of numbers")
        flat = _plain(values).astype(np.float32)
        return flat.reshape(len(array), lengths[0] if lengths else 0)
    if pa.types.is_floating(kind):
        return _plain(array).astype(np.float32)[:, None]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return _plain(array).astype(np.int64)
    raise DataError(f"{where}: {kind} is not a number")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _plain(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def read_columns(root: Path, info: Info, episodes: EpisodeTable, names: list[str]) -> dict[str, np.ndarray]:
    """Numeric columns over all data files, in the order of the files."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path, frames in episodes.data_files(root, info).items():
        table = read_table(path, names, max_rows=frames)
        if table.num_rows != frames:
            raise DataError(f"{path}: {table.num_rows} rows, its episodes have {frames} frames by meta/episodes")
        for name in names:
            values = to_numpy(table.column(name), f"{path}: {name}")
            if values.ndim == 2 and values.shape[1] != info.features[name].shape[0]:
                raise DataError(f"{path}: {name} has {values.shape[1]} dimensions, info.json says {info.features[name].shape[0]}")
            parts[name].append(values)
    return {name: np.concatenate(values) if values else np.zeros(0, dtype=np.int64) for name, values in parts.items()}


def read_tasks(path: Path) -> tuple[str, ...]:
    """The task strings in order of task_index."""
    table = read_table(path, max_rows=MAX_EPISODES)
    # "task" in newer files; older ones left the pandas index unnamed.
    name = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        raise DataError(f"{path}: needs the columns task and task_index, it has {', '.join(table.column_names)}")
    indices, texts = to_numpy(table.column("task_index"), f"{path}: task_index"), table.column(name).to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: a task is not text")
    if sorted(indices.tolist()) != list(range(len(texts))) or len(set(texts)) != len(texts):
        raise DataError(f"{path}: task_index must run from 0 without gaps, and every task must occur once")
    return tuple(texts[i] for i in np.argsort(indices))


def read_episodes(root: Path, info: Info) -> EpisodeTable:
    """meta/episodes, checked: every episode once, lengths positive and equal to their row ranges, every camera placed."""
    folder = root / EPISODES_PATH.split("/chunk")[0]
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: no episode tables")
    tables = []
    for path in paths:
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        tables.append(read_table(path, names, max_rows=MAX_EPISODES))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{folder}: the episode tables do not fit together ({_first_line(error)})") from None
    return _episodes(table, info, str(folder))


def _episodes(table: pa.Table, info: Info, where: str) -> EpisodeTable:
    def integers(name: str) -> np.ndarray:
        values = to_numpy(_column(table, name, where), f"{where}: {name}")
        if values.dtype != np.int64:
            raise DataError(f"{where}: {name} is not a whole number")
        return values[order]

    order = np.arange(table.num_rows)
    index = integers("episode_index")
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], np.arange(len(index))):
        raise DataError(f"{where}: episode_index must run from 0 to {len(index) - 1} with every number once")
    length, start, end = integers("length"), integers("dataset_from_index"), integers("dataset_to_index")
    wrong = np.flatnonzero((length <= 0) | (end - start != length))
    if len(wrong):
        e = int(wrong[0])
        raise DataError(f"{where}: episode {e}: length {length[e]} does not match its rows {start[e]}..{end[e]}")
    if length.sum() > MAX_FRAMES:
        raise DataError(f"{where}: {length.sum()} frames are more than {MAX_FRAMES}")
    videos = {}
    for key in [key for key, item in info.features.items() if item.dtype == "video"]:
        prefix = f"videos/{key}/"
        times = _column(table, prefix + "from_timestamp", where)
        if times.null_count or not _is_number(times.type):
            raise DataError(f"{where}: {prefix}from_timestamp is missing for an episode")
        start_s = times.cast(pa.float64()).to_numpy()[order]  # float32 would lose frames late in a long file
        if not np.isfinite(start_s).all() or start_s.min(initial=0) < 0 or start_s.max(initial=0) > 1e7:
            raise DataError(f"{where}: {prefix}from_timestamp must be a time in seconds within its file")
        videos[key] = VideoPlaces(integers(prefix + "chunk_index"), integers(prefix + "file_index"), start_s)
    names = [name for name in table.column_names if name not in _KNOWN and not name.startswith(("videos/", "meta/", "stats/"))]
    extra = {name: table.column(name).take(order).to_pylist() for name in names}
    return EpisodeTable(length, integers("data/chunk_index"), integers("data/file_index"), videos, extra)


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(f"{where}: no column {name!r}")
    return table.column(name)


def _first_line(error: Iterable[str] | BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
