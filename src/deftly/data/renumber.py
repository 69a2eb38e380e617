"""Metadata that counts and numbers what is really there: a copy of a dataset's meta/ beside links to its rows and videos."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly import storage
from deftly.data import tables_v2
from deftly.data.files import PARQUET
from deftly.data.provenance import EXACT
from deftly.data.schema import EPISODES_PATH, INFO_PATH, OURS_PATH, TASKS_PATH, VERSION, fill_path, read_info
from deftly.data.tables import read_table, to_numpy
from deftly.types import DataError

RANGE = ("length", "dataset_from_index", "dataset_to_index")
COUNTS = ("total_episodes", "total_frames", "total_tasks")
MAX_RATE = 10_000
UNKNOWN = -1  # in place of a length or a row that meta/episodes does not say
RATE_TOLERANCE = 0.01  # relative, as the check allows


@dataclass(frozen=True)
class Mended:
    """What was mended, and the numbers that the episodes had in the source; None where they keep theirs."""

    lines: list[str]
    numbers: list[int] | None = None


def mended_metadata(source: Path, copy: Path) -> Mended:
    """Fill `copy` with the dataset of `source`, meta/ mended, everything else as links; returns what was mended."""
    if not (source / INFO_PATH).is_file():
        raise DataError(f"{source}: holds no {INFO_PATH}, so it is not a LeRobot dataset")
    info = storage.read_json(source / INFO_PATH)
    if not isinstance(info, dict):
        raise DataError(f"{source / INFO_PATH}: expected a JSON object")
    for name in ("data", "videos"):
        _link(source / name, copy / name)
    shutil.copytree(source / "meta", copy / "meta", symlinks=True)
    mended: list[str] = []
    numbers: list[int] | None = None
    if is_v3 := info.get("codebase_version") == VERSION:
        mended, numbers = _mend_episodes(copy)
        contradictions, lengths = _mend_lengths(copy, numbers)
        mended += contradictions
        tasks = read_table(copy / TASKS_PATH).num_rows
    else:
        lines = tables_v2.lines(copy / tables_v2.EPISODES)
        lengths = [line["length"] for line in lines if tables_v2.is_count(line.get("length"))]
        tasks = len(tables_v2.lines(copy / tables_v2.TASKS))
    for name, found in zip(COUNTS, (len(lengths), sum(lengths), tasks), strict=True):
        if info.get(name) != found:
            mended.append(f"{INFO_PATH}: {name} is {found}, not {info.get(name)!r}")
            info[name] = found
    mended += _mend_rate(copy, info)
    storage.write_text(copy / INFO_PATH, json.dumps(info, indent=4, ensure_ascii=False))
    if not is_v3:
        closed, numbers = _mend_episodes_v2(copy)
        mended = closed + mended
    return Mended(mended, numbers)


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


def _mend_rate(copy: Path, info: dict[str, Any]) -> list[str]:
    """Where info.json and deftly.json name different rates, the one that the timestamps run at stands; changes `info`, not its file."""
    path = storage.inside(copy, OURS_PATH)
    ours = storage.read_json(path) if path.is_file() else None
    embodiment = ours.get("embodiment") if isinstance(ours, dict) else None
    if not isinstance(embodiment, dict):
        return []
    said, other = info.get("fps"), embodiment.get("rate_hz")
    if not (_is_rate(said) and _is_rate(other)) or said == other:
        return []
    measured = _measured_rate(copy)
    contradiction = f"{INFO_PATH} says {said:g} frames per second, {OURS_PATH} {other:g}"
    right = [rate for rate in (said, other) if measured is not None and abs(measured / rate - 1) <= RATE_TOLERANCE]
    if len(right) != 1:  # guard: data.repair.rate
        found = "no timestamps say which is right" if measured is None else f"the timestamps run at {measured:.4g}"
        raise DataError(f"{copy}: {contradiction}, {found}; correct the wrong one, then repair")
    if right[0] == said:
        embodiment["rate_hz"] = said
        storage.write_json(path, ours)
        return [f"{OURS_PATH}: rate_hz is {said:g}, as the timestamps run, not {other:g}"]
    info["fps"] = int(other) if other == int(other) else other
    return [f"{INFO_PATH}: fps is {other:g}, as the timestamps run, not {said:g}"]


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_RATE


def _measured_rate(copy: Path) -> float | None:
    """Rows per second between neighbours, the median over the tables that can be read; None where there are none."""
    steps = []
    for path in sorted((copy / "data").rglob("*.parquet")):
        try:
            table = read_table(path, ["frame_index", "timestamp"])
            frame, time = (to_numpy(table.column(name), f"{path.name}: {name}").reshape(-1) for name in table.column_names)
        except DataError:
            continue  # it cannot be a witness
        found = np.diff(time.astype(np.float64))[np.diff(frame) == 1]
        steps += [float(np.median(found))] if len(found) else []
    step = float(np.median(steps)) if steps else 0.0
    return 1 / step if step > 0 else None


def _episode_tables(copy: Path) -> tuple[dict[Path, pa.Table], dict[str, np.ndarray], list[str]]:
    """meta/episodes file by file, and its whole numbers, int64 [E]: the episodes and their ranges of rows, `UNKNOWN` where it has none;
    then the ranges that are not kept as whole numbers."""
    folder = copy / EPISODES_PATH.split("/chunk")[0]
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: no episode tables")
    tables: dict[Path, pa.Table] = {}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("episode_index", *RANGE)}
    retyped: dict[str, None] = {}
    for path in paths:
        index = to_numpy(read_table(path, ["episode_index"]).column("episode_index"), f"{path}: episode_index")
        parts["episode_index"].append(whole_numbers(index, f"{path}: episode_index"))
        tables[path] = table = read_table(path)
        for name in RANGE:
            parts[name].append(_known(table, name))
            if name not in table.column_names or not pa.types.is_integer(table.schema.field(name).type):
                retyped[name] = None
    return tables, {name: np.concatenate(part) for name, part in parts.items()}, list(retyped)


def whole_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """A column as `to_numpy` gives it, as int64 [N]: whole numbers are also taken where they are kept as floats."""
    if values.dtype == np.int64:
        return values
    if values.shape[1:] != (1,) or not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise DataError(f"{where} is not a whole number")
    return values.reshape(-1).astype(np.int64)


def _known(table: pa.Table, name: str) -> np.ndarray:
    """The whole numbers of a column, int64 [N]; `UNKNOWN` where it holds none."""
    kind = table.schema.field(name).type if name in table.column_names else pa.null()
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        return np.full(table.num_rows, UNKNOWN)
    values = table.column(name).to_numpy()
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    return np.where(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < EXACT), values, UNKNOWN).astype(np.int64)


def _mend_episodes(copy: Path) -> tuple[list[str], list[int] | None]:
    """Close gaps in the episode numbers, in meta/episodes and in the rows; returns what was mended and the numbers before."""
    tables, columns, _ = _episode_tables(copy)
    numbers = columns["episode_index"]
    if not _has_gaps(numbers.tolist()):
        return [], None
    new = {int(number): i for i, number in enumerate(np.sort(numbers))}
    for path, table in tables.items():
        _rewrite(path, table, new)
    for path in sorted((copy / "data").rglob("*.parquet")):
        try:
            _rewrite(path, read_table(path), new)
        except DataError:
            continue  # what can be salvaged of it is renumbered then
    return [_renumbered(new)], list(new)


def _mend_episodes_v2(copy: Path) -> tuple[list[str], list[int] | None]:
    """The same for v2.x, where an episode's number also names its files."""
    lines = tables_v2.lines(copy / tables_v2.EPISODES)
    numbers = [number for line in lines if tables_v2.is_count(number := line.get("episode_index")) and number < 1 << 62]
    if len(numbers) != len(lines) or not _has_gaps(numbers):
        return [], None
    info = read_info(copy / INFO_PATH, tables_v2.VERSIONS)
    new = {number: i for i, number in enumerate(sorted(numbers))}
    templates: list[tuple[str, dict[str, str]]] = [(info.data_path, {})]
    templates += [(info.video_path or "", {"video_key": key}) for key, item in info.features.items() if item.dtype == "video"]
    for old, number in new.items():  # ascending, so that what stands in the place of a number has moved away
        for template, more in templates:
            source, target = (
                fill_path(copy, template, {"episode_chunk": n // info.chunks_size, "episode_index": n, **more}, str(copy / INFO_PATH))
                for n in (old, number)
            )
            if source == target:
                continue
            target.unlink(missing_ok=True)  # of an episode that meta/ does not know
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
            with contextlib.suppress(DataError):  # missing, or to be salvaged
                if not more:
                    _rewrite(target, read_table(target), new)
    lines = [{**line, "episode_index": new[line["episode_index"]]} for line in lines]
    storage.write_text(copy / tables_v2.EPISODES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return [_renumbered(new)], list(new)


def _has_gaps(numbers: list[int]) -> bool:
    """Whether every number occurs once, and they are not 0, 1, 2 ..."""
    return len(set(numbers)) == len(numbers) and sorted(numbers) != list(range(len(numbers)))


def _renumbered(new: dict[int, int]) -> str:
    return f"episodes renumbered 0..{len(new) - 1}, they were {min(new)}..{max(new)} with gaps"


def _mend_lengths(copy: Path, before: list[int] | None) -> tuple[list[str], list[int]]:
    """Where an episode's length is not that of its range of rows, count its frames in the data files, and number all ranges anew."""
    tables, columns, retyped = _episode_tables(copy)
    numbers, length, begin, end = (columns[name] for name in ("episode_index", *RANGE))
    wrong = np.flatnonzero((length < 0) | (begin < 0) | (end < 0) | (end - begin != length))
    if not len(wrong) and not retyped:
        return [], length.tolist()
    counted = _count_frames(copy)
    mended = [f"{EPISODES_PATH.split('/chunk')[0]}: {name} made anew, as whole numbers" for name in retyped]
    for row in wrong.tolist():
        number, ends = int(numbers[row]), (int(begin[row]), int(end[row]))
        before_it = [int(length[row])] if length[row] >= 0 else []
        before_it += [ends[1] - ends[0]] if 0 <= ends[0] <= ends[1] else []
        frames = counted.get(number, next(iter(before_it), 0))
        if not retyped or set(before_it) - {frames}:  # a column that is made anew is said once, not for every episode
            was, *rows = ("unknown" if value == UNKNOWN else value for value in (int(length[row]), *ends))
            found = f"the data files hold {frames} frames" if number in counted else "no data file that can be read holds it"
            mended.append(f"episode {before[number] if before else number}: its length was {was}, its rows {rows[0]}..{rows[1]}; {found}")
        length[row] = frames
    end = np.zeros(len(length), np.int64)
    order = np.argsort(numbers, kind="stable")
    end[order] = np.cumsum(length[order])
    columns, at = {"length": length, "dataset_from_index": end - length, "dataset_to_index": end}, 0
    for path, table in tables.items():
        for name, values in columns.items():
            kind = pa.array(values[at : at + table.num_rows], pa.int64())
            at_column = table.schema.get_field_index(name)
            table = table.append_column(name, kind) if at_column < 0 else table.set_column(at_column, name, kind)
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
            keys = [whole_numbers(to_numpy(table.column(name), name), name) for name in ("episode_index", "frame_index")]
        except DataError:
            continue  # salvaged later, as far as it can be
        found.append(np.stack(keys, axis=1))
    if not found:
        return {}
    different = np.unique(np.concatenate(found), axis=0)
    episodes, counts = np.unique(different[:, 0], return_counts=True)
    return dict(zip(episodes.tolist(), counts.tolist(), strict=True))


def _rewrite(path: Path, table: pa.Table, new: dict[int, int]) -> None:
    if "episode_index" not in table.column_names:
        raise DataError(f"{path}: no column 'episode_index'")
    numbers = table.column("episode_index").to_pylist()
    values = [new.get(int(number), -1) if isinstance(number, int | float) and number == number // 1 else -1 for number in numbers]
    at = table.schema.get_field_index("episode_index")
    path.unlink()  # it may be a link to the source's own file
    pq.write_table(table.set_column(at, "episode_index", pa.array(values, pa.int64())), path, **PARQUET)
