"""A recording on disk before it is a dataset, and how it becomes one: by `Recorder.finish`, or by whoever opens it after a crash.

```
ROOT/.recording/plan.json            what is recorded: embodiment, how images are kept, further columns
ROOT/.recording/lock                 held by the process that records or assembles
ROOT/.recording/episode-00000012/    rows.parquet, camera-0.mp4 ..., manifest.json: committed whole by `save_episode`
ROOT/.recording/current/             the episode under way; worth nothing until it is committed
ROOT/.recording/dataset/             the dataset that is being put together
```
Everything in ROOT but `.recording` comes from the episodes, and meta/ arrives last, in one rename: so whatever moment the power goes, the
episodes are there, and putting them together again gives the same bytes. What does not belong here: recording (`recorder.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from deftly import storage
from deftly.contract import Embodiment
from deftly.data.images import MAX_IMAGE_BYTES
from deftly.data.metadata import RESERVED
from deftly.data.parquet import first_line
from deftly.data.schema import ACTION, DEFAULT_FEATURES, IMAGES, INFO_PATH, STATE, Feature, Storage, features_of
from deftly.data.tables import image_bytes, read_table, to_numpy
from deftly.data.video import VideoClip
from deftly.data.writer import DatasetWriter, EpisodeData, Images
from deftly.types import DataError, UsageError

RECORDING = ".recording"
ROWS = "rows.parquet"
FORMAT_VERSION = 1
PARTS = ("data", "videos", "meta")  # in the order in which they are moved into place


@dataclass(frozen=True)
class Plan:
    """What a recording holds; the same for all of its episodes."""

    embodiment: Embodiment
    images: Mapping[str, Storage]
    extra: Mapping[str, tuple[str, ...]]
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        extra = {name: list(names) for name, names in self.extra.items()}
        described = {"embodiment": self.embodiment.to_dict(), "images": dict(self.images), "extra": extra, "about": dict(self.about)}
        return {"format_version": FORMAT_VERSION, **described}

    @classmethod
    def of(cls, embodiment: Embodiment, images: Any, extra: Any, about: Any, where: str) -> Plan:
        """From what a caller gives. Raises `UsageError` for what no recording could keep: it is said before the work, not after."""
        for name, given in {"images": images, "extra": extra, "about": about}.items():
            if not isinstance(given, Mapping | None):
                raise UsageError(f"{where}: {name} is {type(given).__name__}, expected names and what each stands for")
        cameras = [camera.name for camera in embodiment.cameras]
        for camera, kind in (images or {}).items():
            if camera not in cameras:
                raise UsageError(f"{where}: images names {camera!r}, which is no camera of the embodiment; it has {', '.join(cameras)}")
            if kind not in get_args(Storage):
                raise UsageError(f"{where}: images of camera {camera!r} are kept as 'video' or 'image', not {str(kind)[:60]!r}")
        for name, names in (extra or {}).items():
            is_list = isinstance(names, Sequence) and not isinstance(names, str)
            if not isinstance(name, str) or not is_list or not all(isinstance(label, str) for label in names):
                raise UsageError(f"{where}: extra {str(name)[:60]!r} is {str(names)[:60]!r}, expected the names of its elements as a list")
        try:
            about = json.loads(json.dumps(dict(about or {}), ensure_ascii=False, allow_nan=False).encode())  # as it will be read back
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{where}: about cannot be kept as JSON ({str(error)[:80]}): give text, numbers, lists, dicts") from None
        if taken := sorted(set(about) & set(RESERVED)):
            raise UsageError(f"{where}: about holds {taken[0]!r}, which is a key of the format; rename it")
        return cls(embodiment, dict(images or {}), {name: tuple(names) for name, names in (extra or {}).items()}, about)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """From plan.json, which may be a stranger's."""
        values = storage.read_json(path)
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path}: not the plan of a recording of this version of deftly")
        embodiment, images, extra, about = (values.get(name) or {} for name in ("embodiment", "images", "extra", "about"))
        if not all(isinstance(part, dict) for part in (images, extra, about)) or not _are_names(extra):
            raise DataError(f"{path}: the plan is damaged; copy the recording again")
        if not _is_json(about):
            raise DataError(f"{path}: `about` holds numbers that are not finite, which JSON has no word for; mend it")
        if not set(map(str, images.values())) <= set(get_args(Storage)):
            raise DataError(f"{path}: images are kept as video or image, not {str(list(images.values()))[:60]}")
        return cls(Embodiment.parse(embodiment, where=str(path)), images, {name: tuple(names) for name, names in extra.items()}, about)

    @property
    def features(self) -> dict[str, Feature]:
        """Those of the dataset to be."""
        return features_of(self.embodiment, self.images, self.extra)

    def columns(self) -> dict[str, Feature]:
        """The features that are rows of an episode: vectors, and images that stay images."""
        return {name: item for name, item in self.features.items() if name not in DEFAULT_FEATURES and item.dtype != "video"}

    def writer(self, root: Path) -> DatasetWriter:
        return DatasetWriter(root, self.embodiment, images=self.images, extra=self.extra, about=self.about)


def _is_json(values: Any) -> bool:
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        return False
    return True


def _are_names(extra: Any) -> bool:
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in extra.values())


def home(root: Path) -> Path:
    """The folder of a recording below `root`, refused when it, or anything in it, is a link: it could lead anywhere."""
    folder = root / RECORDING
    links = [folder] if folder.is_symlink() else []
    for path, folders, files in os.walk(folder):
        links += [Path(path, name) for name in (*folders, *files) if Path(path, name).is_symlink()]
    if links:  # guard: data.recording.link
        raise DataError(f"{links[0]}: a symbolic link, which no recording holds; remove it")
    return folder


@contextlib.contextmanager
def claimed(root: Path) -> Iterator[Path]:
    """Hold the recording below `root` for this process; yields its folder.

    Raises `UsageError` while another process records or assembles.
    """
    folder = home(root)
    with storage.lock(folder / "lock", wait=False, who="recorder", remedy="finish that recording first"):
        yield folder


def saved_episodes(folder: Path) -> list[Path]:
    """The committed episodes of a recording, in order; a gap says that somebody removed one."""
    found = sorted(path for path in folder.glob("episode-*") if re.fullmatch(r"episode-\d{8}", path.name))
    for number, path in enumerate(found):
        if path.name != episode_name(number):
            raise DataError(f"{folder}: {episode_name(number)} is missing; rename the later episodes to go on without it")
    return found


def episode_name(number: int) -> str:
    return f"episode-{number:08d}"


def told(folder: Path) -> dict[str, Any]:
    """What a committed episode says about itself (`save_episode`'s `extra`)."""
    about = storage.read_json(folder / storage.MANIFEST)
    more = about.get("extra") if isinstance(about, dict) else None
    if not isinstance(more, dict):
        raise DataError(f"{folder}: its manifest has no extra; it is not an episode of a recording")
    return more


def read_episode(folder: Path, plan: Plan) -> EpisodeData:
    """A committed episode, checked against the sha256 of its manifest; its videos stay where they are."""
    about = storage.verify(folder, storage.MAX_JSON_BYTES)  # it may hold an instruction for every frame
    where, length, tasks, more = str(folder), about.get("frames"), about.get("tasks"), about.get("extra")
    if not isinstance(length, int) or not isinstance(more, dict) or not isinstance(tasks, list):
        raise DataError(f"{folder}: its manifest has no frames, tasks and extra; it is not an episode of a recording")
    if len(tasks) not in (1, length) or not all(isinstance(task, str) for task in tasks):
        raise DataError(f"{folder}: {len(tasks)} instructions for {length} frames")
    columns = plan.columns()
    table = read_table(folder / ROWS, list(columns), max_rows=length)
    if table.num_rows != length:
        raise DataError(f"{folder / ROWS}: {table.num_rows} rows, the manifest says {length}")
    vectors, images = {}, {}
    for name, feature in columns.items():
        if feature.is_camera:
            images[name.removeprefix(IMAGES)] = [_encoded(image_bytes(value), f"{where}: {name}") for value in table.column(name)]
        else:
            vectors[name] = to_numpy(table.column(name), f"{where}: {name}").reshape(length, -1)
    clips: dict[str, Images] = {
        camera.name: VideoClip(folder / clip_name(place))
        for place, camera in enumerate(plan.embodiment.cameras)
        if camera.name not in images
    }
    return EpisodeData(
        images={**clips, **images},
        state=vectors.pop(STATE, np.zeros((length, 0), dtype=np.float32)),
        action=vectors.pop(ACTION),
        task=tasks[0] if len(tasks) == 1 else tasks,
        extra_frame=vectors,
        extra_episode=more,
    )


def clip_name(camera: int) -> str:
    """File of the camera at this place of the embodiment: a number, because a camera's name is anybody's."""
    return f"camera-{camera}.mp4"


def _encoded(data: bytes | None, where: str) -> bytes:
    if data is None or len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: an image is missing or larger than {MAX_IMAGE_BYTES} bytes")
    return data


def recover(root: Path) -> None:
    """Make the dataset of a recording that was left unfinished; a folder without one is left alone. Doing it again changes nothing.

    Raises `DataError` when nothing was saved, an episode is damaged, or the folder cannot be written; `UsageError` while it is recorded.
    """
    if not (root / RECORDING).exists():
        return
    try:
        with claimed(root) as folder:
            if (root / INFO_PATH).is_file():
                shutil.rmtree(folder)  # only this was missing
            else:
                assemble(root)
    except (OSError, UsageError) as error:
        if (root / INFO_PATH).is_file():
            return  # a whole dataset: what it was made from may stay
        if isinstance(error, OSError):
            why = f"{root}: its recording cannot be put together ({error.strerror or error})"
            raise DataError(f"{why}; make room, or copy it to where it can be written, then open it again") from None
        raise


def assemble(root: Path) -> Path:
    """The dataset of all saved episodes, in `root`; the recording is removed. The caller holds it (`claimed`)."""
    folder = home(root)
    episodes = saved_episodes(folder)
    if not episodes:
        raise DataError(f"{root}: no episode was saved in this recording; remove the folder to start anew")
    plan, target = Plan.read(folder / "plan.json"), folder / "dataset"
    for leftover in [target, *folder.glob(".*.tmp")]:
        shutil.rmtree(leftover, ignore_errors=True)
    with plan.writer(target) as writer:
        for path in episodes:
            try:
                writer.add(read_episode(path, plan))
            except (DataError, pa.ArrowException) as error:  # a DataError of our own, and what pyarrow says of values that nobody foresaw
                why = str(error) if isinstance(error, DataError) else f"{path}: cannot be written ({first_line(error)})"
                raise DataError(f"{why}; move {path} away and rename the later episodes to go on without it") from None
        try:
            writer.finish()
        except pa.ArrowException as error:
            why = f"what its episodes say about themselves does not fit into one table ({first_line(error)})"
            raise DataError(f"{root}: {why}; make the extra values in {folder} of one kind") from None
    for name in PARTS:
        if name == PARTS[-1]:
            storage.sync_directory(root)  # what meta/ speaks of is there before it
        shutil.rmtree(root / name, ignore_errors=True)  # of an earlier attempt
        if (target / name).is_dir():
            os.replace(target / name, root / name)
    storage.sync_directory(root)
    shutil.rmtree(folder)
    return root
