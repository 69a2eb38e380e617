"""Metadata that counts and numbers what is really there: a copy of a dataset's meta/ beside links to its rows and videos."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.data import tables_v2
from deftly.data.files import PARQUET
from deftly.data.schema import EPISODES_PATH, INFO_PATH, TASKS_PATH, VERSION
from deftly.data.tables import read_table
from deftly.types import DataError

RANGE = ("length", "dataset_from_index", "dataset_to_index")
COUNTS = ("total_episodes", "total_frames", "total_tasks")


def mended_metadata(source: Path, copy: Path) -> list[str]:
    """Fill `copy` with the dataset of `source`, meta/ mended, everything else as links; returns what was mended."""
    if not (source / INFO_PATH).is_file():
        raise DataError(f"{source}: holds no {INFO_PATH}, so it is not a LeRobot dataset")
    info = storage.read_json(source / INFO_PATH)
    if not isinstance(info, dict):
        raise DataError(f"{source / INFO_PATH}: expected a JSON object")
    for name in ("data", "videos"):
        _link(source / name, copy / name)
    shutil.copytree(source / "meta", copy / "meta", symlinks=True)
    if info.get("codebase_version") == VERSION:
        mended, _ = _mend_episodes(copy)
        contradictions, lengths = _mend_lengths(copy)
        mended += contradictions
        tasks = read_table(copy / TASKS_PATH).num_rows
    else:
        mended, lengths = [], [line.get("length", 0) for line in storage.read_lines(copy / tables_v2.EPISODES)]
        tasks = len(list(storage.read_lines(copy / tables_v2.TASKS)))
    for name, found in zip(COUNTS, (len(lengths), sum(lengths), tasks), strict=True):
        if info.get(name) != found:
            mended.append(f"{INFO_PATH}: {name} is {found}, not {info.get(name)!r}")
            info[name] = found
    storage.write_text(copy / INFO_PATH, json.dumps(info, indent=4, ensure_ascii=False))
    return mended


def _link(source: Path, copy: Path) -> None:
    """The same files under another folder; symbolic links are not followed."""
    for folder, _, names in os.walk(source):
        target = copy / os.path.relpath(folder, source)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                continue
            try:
                os.link(path, target / name)
            except OSError:
                shutil.copyfile(path, target / name)


def _mend_episodes(copy: Path) -> tuple[list[str], list[int]]:
    """Close gaps in the episode numbers, in meta/episodes and in the rows; returns what was mended and the lengths."""
    folder = copy / EPISODES_PATH.split("/chunk")[0]
    tables = {path: read_table(path) for path in sorted(folder.glob("chunk-*/file-*.parquet"))}
    if not tables:
        raise DataError(f"{folder}: no episode tables")
    numbers = np.concatenate([table.column("episode_index").to_numpy() for table in tables.values()])
    lengths = [int(value) for table in tables.values() for value in table.column("length").to_pylist()]
    if np.array_equal(np.sort(numbers), np.arange(len(numbers))) or len(np.unique(numbers)) != len(numbers):
        return [], lengths
    new = {int(number): i for i, number in enumerate(np.sort(numbers))}
    for path, table in tables.items():
        _rewrite(path, table, new)
    for path in sorted((copy / "data").rglob("*.parquet")):
        try:
            table = read_table(path)
        except DataError:
            continue  # what cannot be read is left out later
        _rewrite(path, table, new)
    return [f"episodes renumbered 0..{len(new) - 1}, they were {min(new)}..{max(new)} with gaps"], lengths


def _mend_lengths(copy: Path) -> tuple[list[str], list[int]]:
    """Where an episode's length is not that of its range of rows, count its frames in the data files, and number all ranges anew."""
    folder = copy / EPISODES_PATH.split("/chunk")[0]
    tables = {path: read_table(path) for path in sorted(folder.glob("chunk-*/file-*.parquet"))}
    columns = {name: np.concatenate([table.column(name).to_numpy() for table in tables.values()]) for name in RANGE}
    length = columns["length"].astype(np.int64)
    wrong = np.flatnonzero(columns["dataset_to_index"] - columns["dataset_from_index"] != length)
    if not len(wrong):
        return [], length.tolist()
    numbers = np.concatenate([table.column("episode_index").to_numpy() for table in tables.values()])
    counted = _count_frames(copy)
    mended = []
    for row in wrong.tolist():
        begin, end = int(columns["dataset_from_index"][row]), int(columns["dataset_to_index"][row])
        said = f"its length was {length[row]}, its rows {begin}..{end}"
        length[row] = counted.get(int(numbers[row]), int(length[row]))
        mended.append(f"episode {numbers[row]}: {said}; the data files hold {length[row]} frames")
    end = np.zeros(len(length), np.int64)
    order = np.argsort(numbers, kind="stable")
    end[order] = np.cumsum(length[order])
    columns, at = {"length": length, "dataset_from_index": end - length, "dataset_to_index": end}, 0
    for path, table in tables.items():
        for name, values in columns.items():
            kind = pa.array(values[at : at + table.num_rows], pa.int64())
            table = table.set_column(table.schema.get_field_index(name), name, kind)
        at += table.num_rows
        path.unlink(missing_ok=True)
        pq.write_table(table, path, **PARQUET)
    return mended, length.tolist()


def _count_frames(copy: Path) -> dict[int, int]:
    """How many different frames each episode has in the tables that can be read."""
    found: list[np.ndarray] = []
    for path in sorted((copy / "data").rglob("*.parquet")):
        try:
            table = read_table(path, ["episode_index", "frame_index"])
        except DataError:
            continue  # salvaged later, as far as it can be
        found.append(np.stack([table.column(name).to_numpy() for name in ("episode_index", "frame_index")], axis=1))
    if not found:
        return {}
    keys = np.unique(np.concatenate(found), axis=0)
    episodes, counts = np.unique(keys[:, 0], return_counts=True)
    return dict(zip(episodes.tolist(), counts.tolist(), strict=True))


def _rewrite(path: Path, table: pa.Table, new: dict[int, int]) -> None:
    values: list[Any] = [new.get(number, -1) for number in table.column("episode_index").to_pylist()]
    at = table.schema.get_field_index("episode_index")
    path.unlink()  # it may be a link to the source's own file
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, pa.int64())), path, **PARQUET)
