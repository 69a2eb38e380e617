"""What a LeRobotDataset v3.0 is made of: features, file layout, and the mapping between features and an embodiment. No rows, no pixels.

Every name and number that comes out of a file is checked here before it becomes a path, a shape or an allocation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deftly import storage
from deftly.contract import Camera, Embodiment, Vector
from deftly.types import DataError, UsageError

VERSION = "v3.0"
CHUNKS_SIZE = 1000  # files per chunk folder
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
# A reader that keeps frame times in float32 loses 1e-4 s, its tolerance, beyond 1024 s into a file.
VIDEO_FILE_SECONDS = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
OURS_PATH = "meta/deftly.json"  # what v3.0 has no place for: the whole embodiment, and where the data came from
HISTOGRAMS_PATH = "meta/image_histograms.json"

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
FEATURE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
MAX_FRAMES = 100_000_000
MAX_EPISODES = 10_000_000
MAX_SIDE = 16_384
MAX_PIXELS = 1 << 25  # of one image: 8192 x 4096

NUMERIC = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
Storage = Literal["video", "image"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One entry of `features` in info.json. `shape` is that of one frame; `names` label its elements where it is a vector."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    info: Mapping[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def is_numeric(self) -> bool:
        return self.dtype in NUMERIC

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `names` is always there, as readers index it."""
        values: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "names": None if self.names is None else list(self.names)}
        return values if self.info is None else {**values, "info": dict(self.info)}

    @property
    def is_vector(self) -> bool:
        """Numbers in a row: what has statistics."""
        return self.is_numeric and len(self.shape) == 1

    @property
    def can_be_extra(self) -> bool:
        """Whether a writer can keep it beside cameras, state and action."""
        if self.dtype == "image":
            return self.is_depth and len(self.shape) == 3 and self.shape[2] == 1
        return (self.is_numeric and 1 <= len(self.shape) <= 5) or (self.dtype == "string" and self.shape == (1,))

    @property
    def is_depth(self) -> bool:
        """Whether its pixels are distances."""
        return self.is_camera and self.info is not None and bool(self.info.get("video.is_depth_map") or self.info.get("is_depth_map"))

    def metres_per_unit(self, where: str) -> float:
        """What a depth pixel of 1 means, as `info` declares it."""
        unit = (self.info or {}).get("depth_unit")
        if unit not in _METRES:  # guard: data.schema.depth_unit
            raise DataError(f"{where}: depth_unit is {unit!r}; add one of {', '.join(_METRES)} to its info in info.json")
        return _METRES[unit]

    def image_shape(self, where: str) -> tuple[int, int, int]:
        """(height, width, channels) whatever the order of the axes: by `names`, else channels come last."""
        if len(self.shape) != 3:
            raise DataError(f"{where}: an image has three axes, this shape is {list(self.shape)}")
        axes = [str(name).lower().rstrip("s") for name in self.names or ()]
        if sorted(axes) != ["channel", "height", "width"]:
            axes = ["height", "width", "channel"]  # the order of the format; another one is declared, never guessed
        height, width, channels = (self.shape[axes.index(axis)] for axis in ("height", "width", "channel"))
        if channels not in _CHANNELS or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise DataError(
                f"{where}: {channels} x {height} x {width} is not an image of 1, 3 or 4 channels; add the names of its axes to info.json"
            )
        if height * width > MAX_PIXELS:  # guard: data.schema.pixels
            raise DataError(f"{where}: {height} x {width} are more than {MAX_PIXELS} pixels; make the images smaller")
        return height, width, channels

    def height_width(self, where: str) -> tuple[int, int]:
        """Image size in pixels."""
        height, width, _ = self.image_shape(where)
        return height, width


_METRES = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
_CHANNELS = (1, 3, 4)  # grey, colour, colour and opacity


def _default_features() -> dict[str, Feature]:
    integers = ("frame_index", "episode_index", "index", "task_index")
    return {"timestamp": Feature("float32", (1,)), **{name: Feature("int64", (1,)) for name in integers}}


DEFAULT_FEATURES = _default_features()


@dataclass(frozen=True)
class Info:
    """meta/info.json, checked."""

    fps: float
    features: dict[str, Feature]
    robot_type: str | None
    total_episodes: int
    total_frames: int
    total_tasks: int
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH
    version: str = VERSION
    chunks_size: int = CHUNKS_SIZE

    def to_dict(self) -> dict[str, Any]:
        """The JSON form with every key that readers of v3.0 expect."""
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": self.total_tasks,
            "chunks_size": self.chunks_size,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self.fps),
            "splits": {"train": f"0:{self.total_episodes}"},
            "data_path": self.data_path,
            "video_path": self.video_path,
            "features": {name: item.to_dict() for name, item in self.features.items()},
        }

    def cameras(self, depth: bool = False) -> dict[str, str]:
        """Camera name -> feature key, in the order of the file: those that see colour, or those that measure depth."""
        found: dict[str, str] = {}
        for key, item in self.features.items():
            if item.is_camera and item.is_depth == depth:
                name = key.removeprefix(IMAGES).removeprefix("observation.")
                found[key if name in found else name] = key
        return found


def read_info(path: Path, versions: tuple[str, ...] = ("v3.0",)) -> Info:
    """Parse an info.json of one of `versions`; a one-line `DataError` names the field that is wrong."""
    values = storage.read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object")
    version = values.get("codebase_version")
    if version not in versions:
        hint = "; run `deftly data import lerobot-v2.1 SRC DST`" if str(version).startswith("v2") else ""
        raise DataError(f"{path}: codebase_version is {version!r}, expected {' or '.join(versions)}{hint}")
    fps = values.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps <= 10_000:
        raise DataError(f"{path}: fps is {fps!r}, expected a positive number")
    features = values.get("features")
    if not isinstance(features, dict) or not features:
        raise DataError(f"{path}: features is missing or not an object")
    robot = values.get("robot_type")
    video_path = values.get("video_path")
    for name, value in (("robot_type", robot), ("video_path", video_path)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{path}: {name} is {value!r}, expected text or null")
    if not isinstance(values.get("data_path"), str):
        raise DataError(f"{path}: data_path is missing")
    return Info(
        fps=float(fps),
        features={name: parse_feature(name, item, f"{path}: feature {name!r}") for name, item in features.items()},
        robot_type=robot,
        total_episodes=_count(values, "total_episodes", MAX_EPISODES, path),
        total_frames=_count(values, "total_frames", MAX_FRAMES, path),
        total_tasks=_count(values, "total_tasks", MAX_EPISODES, path),
        chunks_size=max(1, _count(values, "chunks_size", 1 << 31, path)),
        data_path=values["data_path"],
        video_path=video_path,
        version=version,
    )


def _count(values: Mapping[str, Any], name: str, limit: int, path: Path) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise DataError(f"{path}: {name} is {value!r}, expected a whole number from 0 to {limit}")
    return value


def parse_feature(name: str, values: Any, where: str) -> Feature:
    """One feature from JSON; names may be a list, a nested list, or an object of lists, as different recorders write them."""
    if not isinstance(values, dict) or not isinstance(values.get("dtype"), str) or not isinstance(values.get("shape"), list):
        raise DataError(f"{where}: needs dtype (text) and shape (list)")
    if name in (".", "..") or not FEATURE_NAME.fullmatch(name):  # guard: data.schema.feature_name
        raise DataError(f"{where}: this name cannot be part of a path")
    shape = values["shape"]
    if len(shape) > 8 or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1 << 24 for size in shape):
        raise DataError(f"{where}: shape {str(shape)[:60]} is not a list of positive whole numbers")
    infos = [info for info in (values.get("video_info"), values.get("info")) if isinstance(info, dict)]  # the former in early v2.0
    info = {key: value for info in infos for key, value in info.items()} if infos else None
    return Feature(values["dtype"], tuple(shape), flat_names(values.get("names")), info)


def flat_names(names: Any) -> tuple[str, ...] | None:
    """Element names as one flat tuple, or None where there are none."""
    if isinstance(names, dict):
        names = [label for value in names.values() for label in (value if isinstance(value, list) else [value])]
    if not isinstance(names, list) or not names:
        return None
    return tuple(str(label) for item in names for label in (item if isinstance(item, list) else [item]))


def fill_path(root: Path, template: str, values: Mapping[str, int | str], where: str) -> Path:
    """`root / template` with `{name}` and `{name:03d}` replaced; anything else in braces, and any way out of `root`, is refused."""

    def replace(match: re.Match[str]) -> str:
        name, width = match.group(1), match.group(2)
        if name not in values:
            raise DataError(f"{where}: the path template {template!r} asks for {name!r}; known: {', '.join(values)}")
        return f"{int(values[name]):0{int(width)}d}" if width else str(values[name])

    filled = re.sub(r"\{([a-z_]+)(?::0?([1-9])d)?\}", replace, template)
    if "{" in filled or "}" in filled or "\0" in filled:  # guard: data.schema.template
        raise DataError(f"{where}: the path template {template!r} cannot be read")
    return storage.inside(root, filled)


def next_file(chunk: int, file: int) -> tuple[int, int]:
    """The chunk and file number after this one."""
    return (chunk + 1, 0) if file == CHUNKS_SIZE - 1 else (chunk, file + 1)


Extra = Mapping[str, tuple[str, ...] | Feature]
"""Further columns per frame: the names of a float32 vector's elements, or a feature: numbers of rank 1 to 5, text, 16-bit depth images."""


def features_of(embodiment: Embodiment, images: Mapping[str, Storage], extra: Extra) -> dict[str, Feature]:
    """The features that hold an embodiment and `extra`."""
    features: dict[str, Feature] = {}
    for camera in embodiment.cameras:
        kind = images.get(camera.name, "video")
        if kind == "video" and (camera.height % 2 or camera.width % 2):
            raise UsageError(
                f"camera {camera.name!r} is {camera.height} x {camera.width}: h264 needs even sides; make them even or store images"
            )
        features[IMAGES + camera.name] = Feature(kind, (camera.height, camera.width, 3), ("height", "width", "channels"))
    if len(embodiment.state):
        features[STATE] = Feature("float32", (len(embodiment.state),), embodiment.state.names)
    features[ACTION] = Feature("float32", (len(embodiment.action),), embodiment.action.names)
    for name, names in extra.items():
        if name in features or name in DEFAULT_FEATURES or "/" in name:
            raise UsageError(f"the extra feature {name!r} collides with a feature of the format, or holds a '/'")
        features[name] = names if isinstance(names, Feature) else Feature("float32", (len(names),), names)
        if not features[name].can_be_extra:
            raise UsageError(f"the extra feature {name!r} is neither numbers of rank 1 to 5, nor text, nor depth images of one channel")
    return {**features, **DEFAULT_FEATURES}


def embodiment_of(info: Info, where: str) -> Embodiment:
    """What a dataset that nobody described says about its robot: names and sizes; units and the kind of action stay unknown."""
    cameras = []
    for name, key in info.cameras().items():
        height, width = info.features[key].height_width(f"{where}: feature {key!r}")
        cameras.append(Camera(name=name, height=height, width=width, role="wrist" if "wrist" in name.lower() else "scene"))
    return Embodiment(
        name=info.robot_type or "unknown",
        rate_hz=info.fps,
        cameras=tuple(cameras),
        state=_vector(info.features.get(STATE), "state"),
        action=_vector(info.features.get(ACTION), "action"),
    )


def _vector(feature: Feature | None, label: str) -> Vector:
    size = feature.shape[0] if feature is not None and len(feature.shape) == 1 else 0
    names = feature.names if feature is not None and feature.names and len(feature.names) == size else None
    names = names or tuple(f"{label}_{i}" for i in range(size))
    return Vector(names=names, units=("",) * size)
