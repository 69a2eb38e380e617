"""The tables of a dataset, file by file: is every row there, once, under its key, with the columns and sizes that info.json declares?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.dataset import Dataset
from deftly.data.parquet import open_parquet
from deftly.data.schema import ACTION, DEFAULT_FEATURES, STATE, Feature
from deftly.data.tables import read_table
from deftly.types import DataError

KEPT = (STATE, ACTION, "timestamp", "task_index", "index")  # what is looked at across files; the rest is checked file by file
KEYS = ("episode_index", "frame_index", "index", "task_index")
REPAIR = "`deftly data repair` writes a copy without these episodes"
SALVAGE = "`deftly data repair` salvages what can be read"


@dataclass
class Rows:
    """The rows of the episodes whose keys are sound, in the order of the files. Row i of episode `episodes[j]` is `start[j] + i`."""

    episodes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    start: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # those of KEPT: [N] int64 or [N d] float32
    index_runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # stretches [begin, end) of the global index

    def place(self, row: int) -> tuple[int, int]:
        """(episode, frame) of a row."""
        at = int(np.searchsorted(self.start, row, side="right")) - 1
        return int(self.episodes[at]), int(row - self.start[at])

    def first(self, mask: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(episode, frame, row) of the first row of each episode for which `mask` [N] holds."""
        rows = np.flatnonzero(mask)
        place = np.searchsorted(self.start, rows, side="right") - 1
        for j, at in zip(*np.unique(place, return_index=True), strict=True):
            yield int(self.episodes[j]), int(rows[at] - self.start[j]), int(rows[at])


def files_of(dataset: Dataset) -> dict[Path, np.ndarray]:
    """Each data file with the episodes that should be in it."""
    files: dict[Path, list[int]] = {}
    for episode in range(dataset.num_episodes):
        files.setdefault(dataset.data_path(episode), []).append(episode)
    return {path: np.array(episodes, dtype=np.int64) for path, episodes in files.items()}


def check_rows(dataset: Dataset, config: CheckConfig) -> tuple[Rows, list[Finding]]:
    """Read every data file; returns what could be read, and what could not."""
    findings: list[Finding] = []
    lengths = dataset.episode_length
    if (lengths <= 0).any():  # guard: data.check.empty_episode
        findings += [
            Finding(code="empty_episode", verdict="quarantine", episode=int(e), message="holds no frames", remedy=REPAIR)
            for e in np.flatnonzero(lengths <= 0)
        ]
    parts: list[Rows] = []
    for path, episodes in files_of(dataset).items():
        file = path.relative_to(dataset.root).as_posix()
        episodes = episodes[lengths[episodes] > 0]
        rows, found = _File(dataset, path, file, episodes, config).read()
        findings += found
        if rows is not None:
            parts.append(rows)
    rows = _joined(parts)
    findings += _check_index(rows.index_runs)
    return rows, findings


class _File:
    """One parquet file and the episodes that should be in it."""

    def __init__(self, dataset: Dataset, path: Path, file: str, episodes: np.ndarray, config: CheckConfig) -> None:
        self.dataset, self.path, self.file, self.episodes, self.config = dataset, path, file, episodes, config
        self.wanted = {name: item for name, item in dataset.features.items() if item.is_numeric and len(item.shape) == 1}
        self.wanted = {**self.wanted, **{name: DEFAULT_FEATURES[name] for name in (*KEYS, "timestamp")}}
        self.findings: list[Finding] = []
        self.nulls = np.zeros(0, dtype=bool)

    def read(self) -> tuple[Rows | None, list[Finding]]:
        """The rows in order of their keys, or None when they cannot be told apart."""
        table = self._table()
        if table is None:
            return None, self.findings
        self.nulls = np.zeros(table.num_rows, dtype=bool)
        columns = {name: values for name in self.wanted if (values := self._column(table, name)) is not None}
        if any(finding.verdict == "refuse" for finding in self.findings) or not self._check_keys(columns):
            return None, self.findings
        order = np.lexsort((columns["frame_index"], columns["episode_index"]))
        columns = {name: columns[name][order] for name in KEPT if name in columns}
        lengths = self.dataset.episode_length[self.episodes]
        rows = Rows(self.episodes, np.concatenate([[0], np.cumsum(lengths)]), columns, _runs(columns.pop("index")))
        self._quarantine_nulls(rows, self.nulls[order])
        return rows, self.findings

    def _say(self, code: str, verdict: str, message: str, remedy: str = "", **more: object) -> None:
        self.findings.append(Finding(code=code, verdict=verdict, message=message, remedy=remedy, file=self.file, **more))  # type: ignore[arg-type]

    def _leave_out(self, code: str, message: str, remedy: str) -> None:
        for episode in self.episodes.tolist():
            self._say(code, "quarantine", message, remedy, episode=episode)

    def _table(self) -> pa.Table | None:
        there = self.path.is_file()
        if not there and not self.config.allow_missing_files:  # guard: data.check.missing_table
            remedy = "copy it again, or leave its episodes out with allow_missing_files (`data check --allow-missing-files`)"
            self._say("missing_file", "refuse", f"the file of {_named(self.episodes)} is missing", remedy)
            return None
        if not there:
            self._leave_out("missing_file", "the file is missing", REPAIR)
            return None
        expected = int(self.dataset.episode_length[self.episodes].sum())
        try:
            with open_parquet(self.path) as file:
                names, num_rows = file.schema_arrow.names, file.metadata.num_rows
            absent = [name for name in self.wanted if name not in names]
            if absent:  # guard: data.check.column_missing
                self._say("missing_column", "refuse", f"no column {absent[0]!r}; it has {', '.join(names)}", field=absent[0])
                return None
            if num_rows != expected:  # guard: data.check.row_count
                message = f"{num_rows} rows, its episodes have {expected} frames by meta/episodes ({num_rows - expected:+d})"
                self._say("row_count", "refuse", message, SALVAGE)
                return None
            return read_table(self.path, list(self.wanted), max_rows=expected)
        except DataError as error:
            self._leave_out("broken_table", _reason(error, self.path), SALVAGE)
            return None

    def _column(self, table: pa.Table, name: str) -> np.ndarray | None:
        """A column as int64 [N] or float32 [N d]; a missing value becomes NaN and marks its row."""
        feature, column = self.wanted[name], table.column(name)
        array = column.combine_chunks()
        array = (
            (pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type))
            if isinstance(array, pa.ChunkedArray)
            else array
        )
        kind = array.type
        if name in KEYS:
            if not pa.types.is_integer(kind) or array.null_count:  # guard: data.check.key_type
                self._say(
                    "column_type",
                    "refuse",
                    f"{kind} with {array.null_count} missing values where a whole number identifies a row",
                    field=name,
                )
                return None
            return array.to_numpy(zero_copy_only=False).astype(np.int64)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return self._vectors(array, name, feature)
        if not _is_number(kind) or feature.shape != (1,):  # guard: data.check.column_type
            self._say(
                "column_type",
                "refuse",
                f"is {kind}, info.json declares {feature.dtype} {list(feature.shape)}",
                "write it anew as declared",
                field=name,
            )
            return None
        self._note_cast(kind, name, feature)
        self.nulls |= _is_null(array)
        return _floats(array)[:, None]

    def _vectors(self, array: pa.Array, name: str, feature: Feature) -> np.ndarray | None:
        inner = array.type.value_type
        if not _is_number(inner):
            self._say(
                "column_type", "refuse", f"is {array.type}, info.json declares {feature.dtype}", "write it anew as declared", field=name
            )
            return None
        missing = _is_null(array)
        sizes = array.drop_null().value_lengths().unique().to_pylist()
        if sizes and sizes != [feature.shape[0]]:  # guard: data.check.vector_size
            message = f"has {' and '.join(map(str, sorted(sizes)))} dimensions, info.json says {feature.shape[0]}"
            self._say(
                "vector_size",
                "refuse",
                message,
                "write it anew with one size, or move the file's episodes into a dataset of their own",
                field=name,
            )
            return None
        self._note_cast(inner, name, feature)
        self.nulls |= missing
        values = np.full((len(array), feature.shape[0]), np.nan, dtype=np.float32)
        values[~missing] = _floats(array.drop_null().flatten()).reshape(-1, feature.shape[0])
        return values

    def _note_cast(self, found: pa.DataType, name: str, feature: Feature) -> None:
        declared = pa.bool_() if feature.dtype == "bool" else pa.type_for_alias(feature.dtype)
        if found != declared:
            self._say("dtype", "note", f"stored as {found}, declared {feature.dtype}: read as float32", field=name)

    def _check_keys(self, columns: dict[str, np.ndarray]) -> bool:
        """Whether each frame of each episode has exactly one row."""
        episode, frame = columns["episode_index"], columns["frame_index"]
        strange = np.flatnonzero(~np.isin(episode, self.episodes))
        if len(strange):  # guard: data.check.strange_episode
            row = int(strange[0])
            message = f"row {row} is of episode {episode[row]}, which meta/episodes does not place in this file ({_named(self.episodes)})"
            self._say(
                "episode_gap",
                "refuse",
                message,
                "number the episodes without gaps, in tables and meta/episodes alike",
                frame=int(frame[row]),
            )
            return False
        order = np.lexsort((frame, episode))
        episode, frame = episode[order], frame[order]
        twice = np.flatnonzero((np.diff(episode) == 0) & (np.diff(frame) == 0))
        if len(twice):  # guard: data.check.duplicate_frame
            row = int(twice[0])
            message = f"{len(twice)} rows repeat the (episode_index, frame_index) of another"
            self._say("duplicate_frame", "refuse", message, SALVAGE, episode=int(episode[row]), frame=int(frame[row]))
            return False
        lengths = self.dataset.episode_length[self.episodes]
        expected = np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else frame
        owner = np.repeat(self.episodes, lengths)
        wrong = np.flatnonzero((frame != expected) | (episode != owner))
        if len(wrong):  # guard: data.check.missing_frame
            row = int(wrong[0])
            message = f"frame {expected[row]} has no row (found episode {episode[row]} frame {frame[row]})"
            self._say("missing_frame", "refuse", message, SALVAGE, episode=int(owner[row]), frame=int(expected[row]))
            return False
        return True

    def _quarantine_nulls(self, rows: Rows, nulls: np.ndarray) -> None:
        for episode, frame, _ in rows.first(nulls):
            self._say("missing_value", "quarantine", "a value is missing (null)", REPAIR, episode=episode, frame=frame)


def _joined(parts: list[Rows]) -> Rows:
    if not parts:
        return Rows()
    offset = np.cumsum([0] + [int(part.start[-1]) for part in parts])
    start = [part.start[:-1] + begin for part, begin in zip(parts, offset, strict=False)]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    runs = np.concatenate([part.index_runs for part in parts])
    return Rows(np.concatenate([part.episodes for part in parts]), np.concatenate([*start, offset[-1:]]), columns, runs)


def _runs(index: np.ndarray) -> np.ndarray:
    """The stretches [begin, end) that a column of row numbers is made of: one per file in a healthy dataset."""
    cuts = np.flatnonzero(np.diff(index) != 1) + 1
    first = np.concatenate([[0], cuts]).astype(np.int64)
    last = np.concatenate([cuts - 1, [len(index) - 1]]).astype(np.int64)
    return np.stack([index[first], index[last] + 1], axis=1) if len(index) else np.zeros((0, 2), np.int64)


def _check_index(runs: np.ndarray) -> list[Finding]:
    """The global row number: once each. That it also follows the order of the files is what readers by position need, not we."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    overlap = np.flatnonzero(runs[1:, 0] < np.maximum.accumulate(runs[:, 1])[:-1]) if len(runs) else runs
    if len(overlap):  # guard: data.check.duplicate_index
        number = int(runs[overlap[0] + 1, 0])
        message = f"row number {number} occurs twice"
        return [Finding(code="duplicate_index", verdict="refuse", field="index", message=message, remedy=SALVAGE)]
    if len(runs) and (runs[0, 0] != 0 or (runs[1:, 0] != runs[:-1, 1]).any()):
        message = "row numbers do not run from 0 without gaps: readers that look rows up by position take the wrong ones"
        return [Finding(code="index_gap", verdict="note", field="index", message=message, remedy="`deftly data repair` renumbers")]
    return []


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _is_null(array: pa.Array) -> np.ndarray:
    return pc.is_null(array).to_numpy(zero_copy_only=False).astype(bool)  # type: ignore[attr-defined]


def _floats(array: pa.Array) -> np.ndarray:
    """float32, with NaN for what is missing."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is found as such
        return array.to_numpy(zero_copy_only=False).astype(np.float32)


def _named(episodes: np.ndarray) -> str:
    if not len(episodes):
        return "no episode"
    if len(episodes) == 1:
        return f"episode {episodes[0]}"
    return f"episodes {episodes.min()}..{episodes.max()}"


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def vectors(rows: Rows, dataset: Dataset) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """State and action [N d] with the names of their dimensions."""
    robot = dataset.embodiment
    found = {STATE: robot.state.names, ACTION: robot.action.names}
    return {name: (rows.columns[name], names) for name, names in found.items() if name in rows.columns and names}
