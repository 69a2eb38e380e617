"""The parquet tables of a LeRobotDataset v3.0, read defensively: tasks, episodes, and one numeric column at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.data.index import EpisodeIndex, Places
from deftly.data.parquet import check_columns, first_line, open_parquet
from deftly.data.schema import EPISODES_PATH, MAX_EPISODES, MAX_FRAMES, Info
from deftly.types import DataError

_KNOWN = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "tasks", "data/chunk_index", "data/file_index")


def read_table(
    path: Path,
    columns: list[str] | None = None,
    max_rows: int = MAX_FRAMES,
    groups: list[int] | None = None,
    values: Mapping[str, int] | None = None,
) -> pa.Table:
    """Columns of a parquet file, all by default, refused when it claims more than it may hold; `groups` reads these row groups alone,
    `values` says how many numbers a row of a column may have."""
    with open_parquet(path) as file:
        if file.metadata.num_rows > max_rows:  # guard: data.tables.max_rows
            raise DataError(f"{path}: {file.metadata.num_rows} rows, expected at most {max_rows}")
        names = file.schema_arrow.names
        for name in columns or []:
            if name not in names:
                raise DataError(f"{path}: no column {name!r}; it has {', '.join(names)}")
            if names.count(name) > 1:  # guard: data.tables.twice
                raise DataError(f"{path}: has {names.count(name)} columns {name!r}; nobody can tell which is meant")
        chosen = list(range(file.num_row_groups)) if groups is None else groups
        try:
            check_columns(path, file, columns, chosen, values or {})
            return file.read(columns=columns) if groups is None else file.read_row_groups(groups, columns=columns)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read ({first_line(error)}); it is truncated or corrupt") from None


def groups_of(path: Path, first: int, last: int) -> list[int]:
    """The row groups that can hold rows of episodes first..last, by their statistics where there are any."""
    with open_parquet(path) as file:
        bounds = [group_bounds(file.metadata.row_group(group)) for group in range(file.metadata.num_row_groups)]
    return [group for group, (low, high) in enumerate(bounds) if low <= last and high >= first]


def group_bounds(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """The first and last episode that a row group can hold; all of them where it does not say."""
    columns = (group.column(i) for i in range(group.num_columns))
    bounds = next((column.statistics for column in columns if column.path_in_schema == "episode_index"), None)
    if bounds is None or not bounds.has_min_max or not isinstance(bounds.min, int) or not 0 <= bounds.min <= bounds.max <= MAX_EPISODES:
        return 0, MAX_EPISODES
    return int(bounds.min), int(bounds.max)


def to_numpy(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """A numeric column as int64 [N] (whole numbers, booleans) or float32 [N ...] (floats as [N 1], and lists of anything, however deep)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=column.type)
    if array.null_count:
        raise DataError(f"{where}: {array.null_count} values are missing")
    shape = [len(array)]
    while _is_list(array.type):
        lengths = array.value_lengths().unique().to_pylist()
        if len(lengths) > 1:
            raise DataError(f"{where}: vectors of different lengths {sorted(lengths)[:4]}")
        shape.append(lengths[0] if lengths else 0)
        array = array.flatten()
        if array.null_count or not (_is_list(array.type) or _is_number(array.type)):
            raise DataError(f"{where}: not a vector of numbers")
    if len(shape) > 1:
        return _float32(array).reshape(shape)
    if pa.types.is_floating(array.type):
        return _float32(array)[:, None]
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        return array.to_numpy(zero_copy_only=False).astype(np.int64)
    raise DataError(f"{where}: {array.type} is not a number")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _float32(array: pa.Array) -> np.ndarray:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the check finds
        return array.to_numpy(zero_copy_only=False).astype(np.float32)


def image_bytes(value: pa.Scalar) -> bytes | None:
    """The encoded image in a row of an image column, None where there is none. The path beside it is left alone: it may be no text."""
    at = value.type.get_field_index("bytes") if isinstance(value, pa.StructScalar) else -1
    if at < 0 or not value.is_valid:
        return None
    kind = value.type.field(at).type
    return value["bytes"].as_py() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def read_tasks(path: Path) -> tuple[str, ...]:
    """The task strings in order of task_index."""
    table = read_table(path, max_rows=MAX_EPISODES)
    # "task" in newer files; older ones left the pandas index unnamed.
    name = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        raise DataError(f"{path}: needs the columns task and task_index, it has {', '.join(table.column_names)}")
    indices, texts = to_numpy(table.column("task_index"), f"{path}: task_index"), to_texts(table.column(name))
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: a task is not text")
    if sorted(indices.tolist()) != list(range(len(texts))) or len(set(texts)) != len(texts):
        raise DataError(f"{path}: task_index must run from 0 without gaps, and every task must occur once")
    return tuple(texts[i] for i in np.argsort(indices))


def to_texts(column: pa.ChunkedArray) -> list[Any]:
    """Strings; bytes that are no UTF-8 become U+FFFD, by which a check knows them. Columns of anything else as they are."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        try:
            return column.to_pylist()
        except UnicodeDecodeError as error:  # text inside of a list
            raise DataError(f"a column of {column.type} holds text that is not UTF-8 ({error})") from None
    return [None if value is None else value.decode("utf-8", "replace") for value in column.cast(pa.large_binary()).to_pylist()]


class EpisodeColumns:
    """The episode tables' further columns: provenance, statistics; each is read when it is asked for."""

    def __init__(self, paths: list[Path], names: list[str], order: np.ndarray) -> None:
        self.paths, self._all, self._order = paths, names, order

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are not of the format."""
        return tuple(name for name in self._all if name not in _KNOWN and not name.startswith(("videos/", "meta/", "stats/")))

    @property
    def num_episodes(self) -> int:
        return len(self._order)

    def read(self, name: str) -> list[Any]:
        """One value per episode of the folder; None where there is none."""
        if name not in self._all:
            return [None] * len(self._order)
        values: list[Any] = []
        for path in self.paths:
            with open_parquet(path) as file:
                known, rows = name in file.schema_arrow.names, file.metadata.num_rows
            values += to_texts(read_table(path, [name], max_rows=MAX_EPISODES).column(name)) if known else [None] * rows
        return [values[i] for i in self._order]


def read_episodes(root: Path, info: Info) -> tuple[EpisodeIndex, EpisodeColumns]:
    """meta/episodes, checked: every episode once, lengths positive and equal to their row ranges, every camera placed."""
    folder = root / EPISODES_PATH.split("/chunk")[0]
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: no episode tables")
    keys = [key for key, item in info.features.items() if item.dtype == "video"]
    wanted = [name for name in _KNOWN if name != "tasks"]
    wanted += [f"videos/{key}/{name}" for key in keys for name in ("chunk_index", "file_index", "from_timestamp")]
    tables, names = [], {}
    for path in paths:
        storage.inside(root, path.relative_to(root).as_posix())
        with open_parquet(path) as file:
            names |= dict.fromkeys(file.schema_arrow.names)
            found = [name for name in wanted if name in file.schema_arrow.names]
        tables.append(read_table(path, found, max_rows=MAX_EPISODES))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{folder}: the episode tables do not fit together ({first_line(error)})") from None
    index, order = _index(table, keys, str(folder))
    return index, EpisodeColumns(paths, list(names), order)


def _index(table: pa.Table, keys: list[str], where: str) -> tuple[EpisodeIndex, np.ndarray]:
    def integers(name: str) -> np.ndarray:
        values = to_numpy(_column(table, name, where), f"{where}: {name}")
        if values.dtype != np.int64:
            raise DataError(f"{where}: {name} is not a whole number")
        return values if order is None else values[order]

    def files(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        numbers = integers(f"{prefix}chunk_index"), integers(f"{prefix}file_index")
        for values in numbers:
            if len(values) and not (values.min() >= 0 and values.max() < 1 << 31):
                raise DataError(
                    f"{where}: {prefix}chunk_index and file_index must be numbers of files, found {values.min()}..{values.max()}"
                )
        return numbers

    order = None
    index = integers("episode_index")
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], np.arange(len(index))):
        raise DataError(f"{where}: episode_index must run from 0 to {len(index) - 1} with every number once")
    length, begin, end = integers("length"), integers("dataset_from_index"), integers("dataset_to_index")
    wrong = np.flatnonzero((length < 0) | (length > MAX_FRAMES) | (end - begin != length))
    if len(wrong):
        e = int(wrong[0])
        raise DataError(f"{where}: episode {e}: length {length[e]} does not match its rows {begin[e]}..{end[e]}")
    if length.sum() > MAX_FRAMES:
        raise DataError(f"{where}: {length.sum()} frames are more than {MAX_FRAMES}")
    videos = {}
    for key in keys:
        prefix = f"videos/{key}/"
        times = _column(table, prefix + "from_timestamp", where)
        if times.null_count or not _is_number(times.type):
            raise DataError(f"{where}: {prefix}from_timestamp is missing for an episode")
        start_s = times.cast(pa.float64()).to_numpy()[order]  # float32 would lose frames late in a long file
        if not np.isfinite(start_s).all() or start_s.min(initial=0) < 0 or start_s.max(initial=0) > 1e7:
            raise DataError(f"{where}: {prefix}from_timestamp must be a time in seconds within its file")
        videos[key] = Places.of(*files(prefix), length, start_s)
    start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    return EpisodeIndex(start, Places.of(*files("data/"), length), videos), order


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(f"{where}: no column {name!r}")
    return table.column(name)
