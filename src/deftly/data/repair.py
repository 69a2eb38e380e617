"""A mended copy of a dataset: what is sound is taken over, what can be mended is, what cannot is left out and named.

Mended: counts in info.json, gaps in the numbering, lengths that are missing or contradict each other (`renumber.py`), rows that
occur twice, timestamps, statistics, number types, tables without their end (`salvage.py`), recordings that were glued into one episode.
An episode whose rows stop early is kept up to there; a further column that one file lacks, or with values that no column may have, is
left out, its episodes are not.
The result has passed the full check. The source is only read.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deftly import storage
from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.check.rows import files_of
from deftly.data.check.run import check
from deftly.data.check.stretches import check_stretches
from deftly.data.cut import cut
from deftly.data.dataset import Dataset
from deftly.data.files import arrow_schema
from deftly.data.parquet import open_parquet
from deftly.data.renumber import mended_metadata, whole_numbers
from deftly.data.salvage import pattern_for, pattern_of, salvage
from deftly.data.schema import ACTION, DEFAULT_FEATURES, STATE, Feature
from deftly.data.tables import image_bytes, read_table, to_numpy
from deftly.data.thrift import Struct
from deftly.data.video import VideoClip
from deftly.data.writer import DatasetWriter, EpisodeData, Images
from deftly.types import DataError, UsageError

PASSES = 3  # what decoding finds in the copy is left out of the next one


@dataclass
class RepairReport:
    """What a repair did."""

    episodes: int = 0
    frames: int = 0
    mended: list[str] = field(default_factory=list)
    dropped: dict[int, str] = field(default_factory=dict)  # number in the source -> why
    left_out: dict[str, str] = field(default_factory=dict)  # features that the copy does not have -> why

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        lines = [f"{self.episodes} episodes, {self.frames} frames in the mended copy", *self.mended]
        lines += [f"left out episode {episode}: {reason}" for episode, reason in sorted(self.dropped.items())]
        return lines + [f"left out the feature {name}: {reason}" for name, reason in self.left_out.items()]


class _LeaveOut(Exception):
    """A further column that cannot be copied, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Piece:
    """Rows of one episode of the source that become an episode of the copy: `table` holds them in order, they begin at frame `first`."""

    episode: int
    first: int
    table: pa.Table


def repair(source: Path, target: Path) -> RepairReport:
    """Write a mended copy of `source` to the new folder `target`.

    Raises `UsageError` when `target` exists, or is `source` or lies inside it, `DataError` when nothing sound is left. Nothing is written
    then.
    """
    source, target = Path(source), Path(target)
    if target.resolve().is_relative_to(source.resolve()):  # guard: data.repair.inside
        place = "is the source itself" if target.resolve() == source.resolve() else f"lies inside {source}"
        raise UsageError(f"{target}: {place}, which is only read; choose a folder beside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists already; choose another folder, or remove it first")
    work = target.with_name(f".{target.name}.{os.getpid()}.repair")
    shutil.rmtree(work, ignore_errors=True)
    try:
        mended = mended_metadata(source, work / "source")
        dataset = Dataset.open(work / "source")
        dropped = {finding.episode or 0: _reason(finding) for finding in check_stretches(dataset)}  # the copy has lost the traces of it
        left_out: dict[str, str] = {}
        for _ in range(PASSES):
            copy = _written(dataset, work, mended.numbers, dropped, left_out)
            copy.report.mended[:0] = mended.lines
            verdict = check(work / "copy", CheckConfig(full=True, budget=1.0))
            broken = verdict.of("quarantine")
            if not broken:
                break
            for finding in broken:
                dropped[copy.origin[finding.episode or 0]] = _reason(finding)
        if verdict.refusal is not None or broken:
            raise DataError(f"{source}: cannot be mended: {verdict.refusal or broken[0].line()}")
        copy.report.dropped = {copy.number(episode): why for episode, why in (copy.report.dropped | dropped).items()}
        storage.make_directory(target.parent)
        if target.exists():
            target.rmdir()
        os.replace(work / "copy", target)
        storage.sync_directory(target.parent)
        return copy.report
    except DataError as error:  # it names the folder in which we worked
        raise DataError(str(error).replace(str(work / "source"), str(source)).replace(str(work / "copy"), str(target))) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _reason(finding: Finding) -> str:
    """A finding about an episode that is left out; numbers and files are those of the copy, and say nothing here."""
    return dataclasses.replace(finding, episode=None, file=None, remedy="").line()


def _written(dataset: Dataset, work: Path, numbers: list[int] | None, dropped: dict[int, str], left_out: dict[str, str]) -> _Copy:
    """A copy without some episodes and features; a feature that turns out to be unfit is added to `left_out`."""
    while True:
        copy = _Copy(dataset, work, numbers, dict(dropped), dict(left_out))
        try:
            copy.write()
        except _LeaveOut as unfit:
            left_out[unfit.name] = unfit.reason
        else:
            return copy


class _Copy:
    """One attempt at the copy."""

    def __init__(self, dataset: Dataset, work: Path, numbers: list[int] | None, dropped: dict[int, str], left_out: dict[str, str]) -> None:
        self.dataset, self.work, self.numbers = dataset, work, numbers
        self.named = dataset.index if numbers is None else dataclasses.replace(dataset.index, source=np.array(numbers, np.int64))
        self.report = RepairReport(dropped=dropped, left_out=left_out)
        self.origin: list[int] = []  # of each episode of the copy
        self.cameras = dataset.info.cameras()
        plain = (STATE, ACTION, *DEFAULT_FEATURES)
        others = {name: item for name, item in dataset.features.items() if name not in (*plain, *self.cameras.values())}
        for name, item in others.items():
            if not item.can_be_extra:
                left_out[name] = f"{item.dtype} {list(item.shape)} is neither numbers of rank 1 to 5, nor text, nor depth images"
        self.extra: dict[str, Feature] = {name: item for name, item in others.items() if name not in left_out}
        self.plain = [name for name in plain if name in dataset.features]
        self.names = [*self.plain, *self.extra, *(key for key in self.cameras.values() if dataset.features[key].dtype == "image")]
        self.more = {name: dataset.extra(name) for name in dataset.extra_names}

    def number(self, episode: int) -> int:
        """What the source calls an episode."""
        return self.named.number(episode)

    def write(self) -> None:
        shutil.rmtree(self.work / "copy", ignore_errors=True)
        images = {camera: self.dataset.features[key].dtype for camera, key in self.cameras.items()}
        with DatasetWriter(self.work / "copy", self.dataset.embodiment, images=images, extra=self.extra) as writer:  # type: ignore[arg-type]
            for piece in self._pieces():
                if piece.episode in self.report.dropped:
                    continue
                try:
                    writer.add(self._episode(piece))
                    self.origin.append(piece.episode)
                except DataError as error:
                    self.report.dropped[piece.episode] = str(error).replace(f"{self.work / 'source'}/", "")
                finally:
                    shutil.rmtree(self.work / "clips", ignore_errors=True)
            if not writer.num_episodes:
                first = next((f"episode {self.number(e)}: {why}" for e, why in self.report.dropped.items()), "meta/episodes has no rows")
                raise DataError(f"{self.dataset.root}: nothing sound is left; {first}")
            self.report.episodes, self.report.frames = writer.num_episodes, writer.num_frames
            writer.about["repair"] = {
                "mended": self.report.mended,
                "dropped": {str(self.number(e)): why for e, why in self.report.dropped.items()},
            }
            writer.finish()

    def _pieces(self) -> Iterator[Piece]:
        """What is there of every episode, in their order where files keep it."""
        for path, episodes in files_of(self.dataset).items():
            table = self._table(path, episodes)
            if table is None:
                continue
            try:
                keys = {name: f"{path.name}: {name}" for name in ("episode_index", "frame_index")}
                numbers, frames = (whole_numbers(to_numpy(table.column(name), where), where) for name, where in keys.items())
                times = to_numpy(table.column("timestamp"), f"{path.name}: timestamp").reshape(-1)
            except DataError as error:
                self._drop(episodes, str(error))
                continue
            for episode in episodes.tolist():
                rows = np.flatnonzero(numbers == episode)
                yield from self._split(episode, rows[np.argsort(frames[rows], kind="stable")], frames, times, table)

    def _split(self, episode: int, rows: np.ndarray, frames: np.ndarray, times: np.ndarray, table: pa.Table) -> Iterator[Piece]:
        """The unbroken beginning of an episode, cut where time starts again at 0."""
        once = rows[np.diff(frames[rows], prepend=-1) != 0]
        whole = int((frames[once] == np.arange(len(once))).cumprod().sum())
        expected = int(self.dataset.episode_length[episode])
        if len(once) < len(rows):
            self.report.mended.append(f"episode {self.number(episode)}: {len(rows) - len(once)} repeated rows left out")
        if whole > expected:
            self.report.mended.append(f"episode {self.number(episode)}: {whole - expected} rows beyond its length of {expected} left out")
        whole = min(whole, expected)
        if whole < expected and whole:
            self.report.mended.append(f"episode {self.number(episode)}: kept up to frame {whole - 1}, the row of frame {whole} is missing")
        if not whole:
            self.report.dropped.setdefault(episode, "holds no frames")
            return
        time = times[once[:whole]]
        starts = np.flatnonzero((np.diff(time, prepend=0) < 0) & (np.abs(time) <= 0.5 / self.dataset.fps))
        starts = starts[np.append(time, np.inf)[starts + 1] > time[starts]]
        if len(starts):
            self.report.mended.append(f"episode {self.number(episode)}: {len(starts) + 1} recordings in it became episodes of their own")
        elif (np.abs(time - np.arange(whole) / self.dataset.fps) > 1e-3).any():
            self.report.mended.append(f"episode {self.number(episode)}: timestamps set to frame / fps")
        for first, end in itertools.pairwise([0, *starts.tolist(), whole]):
            yield Piece(episode, first, table.take(once[first:end]))

    def _table(self, path: Path, episodes: np.ndarray) -> pa.Table | None:
        """The rows of a file, salvaged where it has lost its end; None, and its episodes dropped, where there are none."""
        file = self.named.data_path(self.dataset.root, self.dataset.info, int(episodes[0])).relative_to(self.dataset.root)
        try:
            with open_parquet(path) as parquet:
                there = parquet.schema_arrow.names
            self._require_further(there, file)
            return read_table(path, self.names)
        except DataError as error:
            found = salvage(path, self._pattern()) if path.is_file() else None
            if found is None or not set(self.names) - set(self.extra) <= set(found.column_names):
                self._drop(episodes, str(error).removeprefix(f"{path}: "))
                return None
            self._require_further(found.column_names, file)
            self.report.mended.append(f"{file}: {found.num_rows} rows salvaged from a table without its end")
            if self.numbers is not None and (numbers := found.column("episode_index")).null_count == 0:  # nobody could renumber them before
                new = {number: episode for episode, number in enumerate(self.numbers)}
                numbers = pa.array([new.get(number, -1) for number in numbers.to_pylist()], pa.int64())
                found = found.set_column(found.column_names.index("episode_index"), "episode_index", numbers)
            return found.select(self.names)

    def _require_further(self, there: list[str], file: Path) -> None:
        """`_LeaveOut` for a further column that a file lacks: the copy would lack it for these episodes, and a column is for all."""
        missing = [name for name in self.extra if name not in there]
        if missing:
            raise _LeaveOut(missing[0], f"{file} has no such column")

    def _pattern(self) -> Struct | None:
        """What the end of a table of this dataset looks like: of a whole one, or as our writer would write it."""
        for path in self.dataset.data_files():
            if path.is_file() and (found := pattern_of(path)) is not None:
                return found
        return pattern_for(arrow_schema(self.dataset.features))

    def _drop(self, episodes: np.ndarray, reason: str) -> None:
        for episode in episodes.tolist():
            self.report.dropped.setdefault(episode, reason)

    def _episode(self, piece: Piece) -> EpisodeData:
        dataset, length = self.dataset, piece.table.num_rows
        where = f"episode {self.number(piece.episode)}"
        columns = {name: to_numpy(piece.table.column(name), f"{where}: {name}").reshape(length, -1) for name in self.plain}
        task = whole_numbers(columns["task_index"], f"{where}: task_index").reshape(-1)
        if ((task < 0) | (task >= len(dataset.tasks))).any():
            raise DataError(f"{where}: its task_index is {int(task.max())}, there are {len(dataset.tasks)} tasks")
        images: dict[str, Images] = {}
        for camera, key in self.cameras.items():
            if dataset.features[key].dtype == "image":
                images[camera] = [image_bytes(value) or b"" for value in piece.table.column(key)]
            else:
                path, start_s = dataset.video_place(piece.episode, camera)
                clip = self.work / "clips" / f"{camera}.mp4"
                cut(path, start_s + piece.first / dataset.fps, round(dataset.fps), length, clip, f"{where}, camera {camera!r}")
                images[camera] = VideoClip(clip)
        more: dict[str, Any] = {name: values[piece.episode] for name, values in self.more.items()}
        return EpisodeData(
            images=images,
            state=columns.get(STATE, np.zeros((length, 0), np.float32)),
            action=columns[ACTION],
            task=[dataset.tasks[i] for i in task.tolist()],
            extra_frame={name: _further(piece.table.column(name), name, feature, where) for name, feature in self.extra.items()},
            extra_episode={name: value for name, value in more.items() if isinstance(value, int | float | str | bool)},
        )


def _further(column: pa.ChunkedArray, name: str, feature: Feature, where: str) -> Any:
    """Rows of a column that nothing is trained on, in its own type; `_LeaveOut` where a writer would refuse them."""
    values = column.to_pylist()
    missing = next((frame for frame, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise _LeaveOut(name, f"{where} frame {missing}: the value is missing")
    if feature.dtype == "string":
        return values
    if feature.is_camera:
        return [value.get("bytes") or b"" for value in values]
    try:
        found = np.array(values, np.dtype(feature.dtype)).reshape(len(values), *feature.shape)
    except (TypeError, ValueError, OverflowError):
        raise _LeaveOut(name, f"{where}: its values are not {feature.dtype} {list(feature.shape)}") from None
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        frame = int(np.argwhere(~np.isfinite(found))[0][0])
        raise _LeaveOut(name, f"{where} frame {frame}: {found[frame][~np.isfinite(found[frame])][0]} is not a finite number")
    return found
