"""The rows of a dataset, found by their keys (episode, frame) and never by their position; one data file in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from deftly.data.index import EpisodeIndex
from deftly.data.schema import Feature, Info
from deftly.data.tables import groups_of, read_table, to_numpy, to_texts
from deftly.types import DataError, EpisodeError

EPISODE, FRAME, TASK = "episode_index", "frame_index", "task_index"


def row_files(root: Path, info: Info, index: EpisodeIndex) -> Iterator[tuple[Path, Int64[np.ndarray, "m"]]]:
    """Each data file with the episodes of the index that it holds, in order of their numbers in the folder."""
    for episodes in index.by_file(index.data):
        episodes = episodes[np.argsort(index.numbers(episodes), kind="stable")]
        yield index.data_path(root, info, int(episodes[0])), episodes


def read_rows(path: Path, info: Info, index: EpisodeIndex, episodes: Int64[np.ndarray, "m"], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Numeric columns of these episodes of one file, in their order, frame by frame.

    Raises `EpisodeError` for the first episode whose rows are not there once each, `DataError` where the whole file is wrong.
    """
    table, order = _table(path, info, index, episodes, names)
    found = {}
    for name in names:
        values = _key_column(path, table.column(name), name) if name == TASK else to_numpy(table.column(name), f"{path}: {name}")
        _check_shape(path, name, values, info.features[name])
        found[name] = values if order is None else values[order]
    return found


def _table(path: Path, info: Info, index: EpisodeIndex, episodes: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray | None]:
    """Columns of a file, and the order in which its rows are those of the episodes; None where they lie so."""
    numbers, length = index.numbers(episodes), np.diff(index.start)[episodes]
    columns = list(dict.fromkeys([EPISODE, FRAME, *names]))
    sizes = {name: math.prod(info.features[name].shape) for name in names}
    if index.source is None:
        table = read_table(path, columns, max_rows=int(length.sum()), values=sizes)
        if table.num_rows != length.sum():
            message = f"{path}: {table.num_rows} rows, its episodes have {length.sum()} frames by meta/episodes"
            raise EpisodeError(message, int(numbers[0]), "rows") if len(numbers) == 1 else DataError(message)
    else:
        table = read_table(path, columns, groups=groups_of(path, int(numbers[0]), int(numbers[-1])), values=sizes)
    return table, _by_key(path, table, numbers, length)


def _by_key(path: Path, table: pa.Table, numbers: np.ndarray, length: np.ndarray) -> np.ndarray | None:
    """Rows of the table in order of (episode, frame), only those of `numbers`; None where the table is that already."""
    episode, frame = (_key_column(path, table.column(name), name) for name in (EPISODE, FRAME))
    first = np.cumsum(length) - length
    expected_episode = np.repeat(numbers, length)
    expected_frame = np.arange(len(expected_episode)) - np.repeat(first, length)
    if np.array_equal(episode, expected_episode) and np.array_equal(frame, expected_frame):
        return None
    order = np.lexsort((frame, episode))
    order = order[np.isin(episode[order], numbers)]
    episode, frame = episode[order], frame[order]
    size = min(len(episode), len(expected_episode))
    wrong = np.flatnonzero((episode[:size] != expected_episode[:size]) | (frame[:size] != expected_frame[:size]))
    if len(wrong) or len(episode) != len(expected_episode):
        row = int(wrong[0]) if len(wrong) else size
        place = min(row, len(expected_episode) - 1)
        found = f"found episode {episode[row]} frame {frame[row]}" if row < len(episode) else "found no more rows"
        # The earlier of the two is the one whose rows end too early or go on too long.
        number = int(expected_episode[place]) if row >= len(episode) else int(min(expected_episode[place], episode[row]))
        raise EpisodeError(
            f"{path}: episode {expected_episode[place]} has no single row for frame {expected_frame[place]} ({found}); "
            "rows are missing, repeated or numbered wrongly",
            number,
            "rows",
        )
    return order


def _key_column(path: Path, column: pa.ChunkedArray, name: str) -> Int64[np.ndarray, "n"]:
    """A column that says which row is which."""
    values = to_numpy(column, f"{path}: {name}")
    if values.ndim != 1:  # guard: data.rows.key_type
        raise DataError(f"{path}: {name} is {column.type}, expected one whole number in each row")
    return values


def _check_shape(path: Path, name: str, values: np.ndarray, feature: Feature) -> None:
    shape = values.shape[1:] or (1,)
    if shape != feature.shape:
        found, said = (" x ".join(map(str, size)) for size in (shape, feature.shape))
        raise DataError(f"{path}: {name} has {found} dimensions, info.json says {said}")


def read_columns(root: Path, info: Info, index: EpisodeIndex, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Whole numeric columns in the order of the index, read-only."""
    columns: dict[str, np.ndarray] = {}
    for path, episodes in row_files(root, info, index):
        for name, values in read_rows(path, info, index, episodes, names).items():
            if name not in columns:
                columns[name] = np.empty((index.num_frames, *values.shape[1:]), values.dtype)
            if columns[name].dtype != values.dtype or columns[name].shape[1:] != values.shape[1:]:
                raise DataError(f"{path}: {name} is {values.dtype}, in other files {columns[name].dtype}")
            place_rows(columns[name], values, index, episodes)
    for name in names:
        columns.setdefault(name, np.zeros(0, np.int64)).flags.writeable = False
    return columns


def read_texts(root: Path, info: Info, index: EpisodeIndex, name: str) -> list[str]:
    """A column of text in the order of the index."""
    found: list[str] = [""] * index.num_frames
    for path, episodes in row_files(root, info, index):
        table, order = _table(path, info, index, episodes, [name])
        column = table.column(name) if order is None else table.column(name).take(order)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
            raise DataError(f"{path}: {name} is {column.type} with {column.null_count} values missing, expected text")
        values, at = to_texts(column), 0
        for begin, end in zip(index.start[episodes].tolist(), index.start[episodes + 1].tolist(), strict=True):
            found[begin:end] = values[at : at + end - begin]
            at += end - begin
    return found


def place_rows(column: np.ndarray, values: np.ndarray, index: EpisodeIndex, episodes: Int64[np.ndarray, "m"]) -> None:
    """Put the rows of some episodes, one after the other, where the index has them."""
    begin, end = index.start[episodes], index.start[episodes + 1]
    if (begin[1:] == end[:-1]).all():
        column[begin[0] : end[-1]] = values
        return
    at = 0
    for first, last in zip(begin.tolist(), end.tolist(), strict=True):
        column[first:last] = values[at : at + last - first]
        at += last - first


def rows_of_episode(path: Path, number: int, names: Sequence[str]) -> pa.Table:
    """Columns of one episode (by its number in the folder), frame by frame, without reading what lies far from it."""
    table = read_table(path, [EPISODE, FRAME, *names], groups=groups_of(path, number, number))
    rows = np.flatnonzero(_key_column(path, table.column(EPISODE), EPISODE) == number)
    frame = _key_column(path, table.column(FRAME), FRAME)[rows]
    order = np.argsort(frame, kind="stable")
    if not np.array_equal(frame[order], np.arange(len(rows))):
        raise EpisodeError(f"{path}: episode {number}: its rows are not numbered 0, 1, 2 ... once each", number, "rows")
    return table.take(rows[order])
