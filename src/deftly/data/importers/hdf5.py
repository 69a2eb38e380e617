"""Importing demonstrations in HDF5 as robomimic and LIBERO write them: data/demo_N/{actions, obs/...}, one task per file.

Images come as raw pixels, so they are encoded: as video, or exactly as PNG. Numbers become float32, distances millimetres (`depth.py`).
Only what is stored in the file itself is read: links, virtual datasets and external storage could name any other file of this machine, and
are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deftly import storage
from deftly.contract import Camera, Embodiment, Vector
from deftly.data.images import encode_png
from deftly.data.importers.depth import DepthSeen, depth_feature
from deftly.data.importers.report import BUDGET, MAX_RATE_HZ, ImportReport, require_rate
from deftly.data.schema import FEATURE_NAME, IMAGES, MAX_SIDE, STATE, Feature, Storage
from deftly.data.writer import DatasetWriter, EpisodeData, Images
from deftly.types import DataError, UsageError

SUFFIXES = (".hdf5", ".h5")
MAX_ARRAY_BYTES = 4 << 30  # of one array of one episode: five minutes of 480 x 640 at 15 Hz
MAX_RATIO = 2000  # bytes in memory per byte in the file; deflate reaches 1032
MAX_STEPS = 1_000_000
MAX_NAMES = 100_000  # episodes of a file, observations of an episode
# What stands for proprioception, by who recorded it; the first layout of which all are there is taken.
STATES = (
    ("ee_states", "gripper_states"),  # LIBERO
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),  # robomimic
)
RENAMED = {"object": "observation.environment_state"}  # the simulator's knowledge; not something a policy may look at by accident
PER_STEP = {"rewards": "next.reward", "dones": "next.done"}
INSTRUCTIONS = ("language_instruction", "instruction", "language", "lang")


def import_hdf5(
    source: Path,
    target: Path,
    *,
    rate_hz: int | None = None,
    task: str | None = None,
    state: tuple[str, ...] = (),
    images: Storage = "video",
    budget: float = BUDGET,
) -> ImportReport:
    """Write the demonstrations of an HDF5 file, or of every one below a folder, as a LeRobotDataset v3.0 at `target`.

    The rate is `control_freq` of the environment that the file describes, the instruction what the file, or its LIBERO-style name, says:
    `rate_hz` and `task` are for files that say neither. `state` names the observations that make up the state, in order.

    Raises `UsageError` when one of these is unknown, `DataError` when files contradict each other or too many episodes are broken.
    Nothing is left at `target` then.
    """
    require_rate(rate_hz)
    files = [_File(path, task) for path in find_files(Path(source))]
    episodes = [(file, name) for file in files for name in file.episodes]
    if not episodes:
        raise DataError(f"{source}: holds no demonstrations (data/demo_N with actions and obs)")
    first = files[0]
    layout, left_out = common_layout(episodes, state)
    rate = rate_hz or first.rate_hz
    if rate is None:
        raise UsageError(f"{first.path}: does not say its control_freq; give the rate, as in --fps 20")
    others = [file.path for file in files if file.rate_hz != first.rate_hz]
    if others and rate_hz is None:
        raise DataError(f"{others[0]}: its control_freq is not that of {first.path}; import them apart")
    report, depth = ImportReport(source="hdf5", left_out=left_out), DepthSeen()
    kinds: dict[str, Storage] = {
        camera.name: "image" if images == "image" or camera.height % 2 or camera.width % 2 else "video" for camera in layout.cameras
    }
    with DatasetWriter(target, layout.embodiment(first.robot, rate), images=kinds, extra=layout.extra) as writer:
        for file, name in episodes:
            where = f"{file.path}: {name}"
            report.take(writer, where, lambda f=file, n=name, w=where: layout.read(f, n, kinds, depth, w), budget, len(episodes))
        report.notes += depth.notes()
        if "image" not in kinds.values() and kinds:
            report.notes.append("images were encoded as h264 (crf 18); --images image keeps every pixel exactly")
        report.finish(writer)
    return report


def find_files(source: Path) -> list[Path]:
    """The HDF5 file itself, or all below a folder, in order of their names."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    found = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{source}: holds no {' or '.join(SUFFIXES)} file")
    return [storage.inside(source, str(path.relative_to(source))) for path in found]


class _File:
    """What one file says about all of its episodes. Opened for each episode anew: a thousand files are not open at once."""

    def __init__(self, path: Path, task: str | None) -> None:
        self.path = path
        with self.open() as file:
            data = _group(file, "data", str(path))
            demos = [name for name in _names(data, str(path)) if re.fullmatch(r"demo_\d{1,9}", name)]
            self.episodes = sorted(demos, key=lambda name: int(name.removeprefix("demo_")))
            self._about = _json(data.attrs, "env_args", str(path))
            problem = _json(data.attrs, "problem_info", str(path))
            self.task = task or _instruction(_texts(data.attrs, str(path))) or _instruction(problem) or _instruction(self._about)
            self.task = self.task or task_of_name(path.stem)
            self.splits = _splits(file, str(path))

    def open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(f"{self.path}: not an HDF5 file, or a damaged one ({' '.join(str(error).split())[:120]})") from None

    @property
    def rate_hz(self) -> int | None:
        """The control rate of the environment that was recorded, where it is a whole number."""
        options = self._about.get("env_kwargs")
        value = options.get("control_freq") if isinstance(options, dict) else self._about.get("control_freq")
        return round(value) if isinstance(value, int | float) and 1 <= value <= MAX_RATE_HZ and value == round(value) else None

    @property
    def robot(self) -> str:
        options = self._about.get("env_kwargs")
        robots = options.get("robots") if isinstance(options, dict) else None
        robots = [robots] if isinstance(robots, str) else robots
        return "+".join(robots) if isinstance(robots, list) and robots and all(isinstance(name, str) for name in robots) else "unknown"


def task_of_name(stem: str) -> str | None:
    """The instruction in a LIBERO file name: KITCHEN_SCENE3_turn_on_the_stove_demo -> "turn on the stove"."""
    if not stem.endswith("_demo"):
        return None
    words = re.sub(r"^[A-Z_]+SCENE\d+_", "", stem.removesuffix("_demo")).replace("_", " ").strip()
    return words or None


def _instruction(values: dict[str, Any]) -> str | None:
    found = next((values[name] for name in INSTRUCTIONS if isinstance(values.get(name), str | list)), None)
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    return found.strip().strip('"') or None if isinstance(found, str) else None


def _texts(attributes: Any, where: str) -> dict[str, Any]:
    return {name: _attribute(attributes, name, where) for name in INSTRUCTIONS}


def _attribute(attributes: Any, name: str, where: str) -> Any:
    """An attribute, bytes as text; None where there is none."""
    try:
        value = attributes.get(name)
        if isinstance(value, str):  # h5py hides bytes that are no UTF-8 in characters that no file can hold
            value.encode()
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the attribute {name} cannot be read ({' '.join(str(error).split())[:80]})") from None


def _json(attributes: Any, name: str, where: str) -> dict[str, Any]:
    """An attribute that holds a JSON object; empty where there is none."""
    text = _attribute(attributes, name, where)
    if not isinstance(text, str):
        return {}
    if len(text) > storage.MAX_JSON_BYTES:
        raise DataError(f"{where}: the attribute {name} holds {len(text)} characters of JSON, more than {storage.MAX_JSON_BYTES}")
    try:
        values = storage.parse_json(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: the attribute {name} is not valid JSON") from None
    return values if isinstance(values, dict) else {}


def _names(group: h5py.Group, where: str) -> list[str]:
    if len(group) > MAX_NAMES:  # guard: data.hdf5.names
        raise DataError(f"{where}: {group.name} has {len(group)} entries, more than {MAX_NAMES}")
    names = list(group)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise DataError(f"{where}: {group.name} has an entry whose name is not UTF-8 ({str(wrong)[:40]}); rename it in the file")
    return names


def _item(group: h5py.Group, name: str, where: str) -> Any:
    """A member of a group, or None. A link that is not to something in this very file is refused before it is followed."""
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):  # guard: data.hdf5.link
        raise DataError(f"{where}: {name!r} is a {type(link).__name__}, which can lead anywhere; copy the data into the file")
    try:
        return group[name]
    except (KeyError, OSError, RuntimeError) as error:
        raise DataError(f"{where}: {name!r} cannot be read ({' '.join(str(error).split())[:80]})") from None


def _group(group: h5py.Group, name: str, where: str) -> h5py.Group:
    item = _item(group, name, where)
    if not isinstance(item, h5py.Group):
        raise DataError(f"{where}: has no group {name!r}; a robomimic or LIBERO file holds data/demo_N/{{actions, obs}}")
    return item


def _shape(item: Any, where: str) -> tuple[int, ...] | None:
    """The shape of an array of numbers whose bytes are in this file; None for anything else, a refusal for what points elsewhere."""
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in "fiub":
        return None
    if item.is_virtual or item.external:  # guard: data.hdf5.external
        raise DataError(f"{where}: its values are kept in another file, which could be any; copy the data into the file")
    size = int(np.prod([int(n) for n in item.shape], dtype=object)) * item.dtype.itemsize
    if size > MAX_ARRAY_BYTES:  # guard: data.hdf5.size
        raise DataError(f"{where}: {size} bytes, more than {MAX_ARRAY_BYTES} for one episode")
    if size > MAX_RATIO * max(item.id.get_storage_size(), 4096):  # guard: data.hdf5.ratio
        raise DataError(f"{where}: claims {size} bytes, of which the file holds {item.id.get_storage_size()}; it is truncated or a trap")
    return tuple(item.shape)


def _array(group: h5py.Group, name: str, where: str) -> np.ndarray:
    item = _item(group, name, where)
    if _shape(item, f"{where}: {name}") is None:
        raise DataError(f"{where}: {name} is missing or not an array of numbers")
    try:
        return item[()]
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise DataError(f"{where}: {name} cannot be read ({' '.join(str(error).split())[:120]})") from None


def _splits(file: h5py.File, where: str) -> dict[str, list[str]]:
    """Episode -> the names of robomimic's masks ("train", "valid") that it is in."""
    masks = _item(file, "mask", where)
    found: dict[str, list[str]] = {}
    if not isinstance(masks, h5py.Group):
        return found
    for name in _names(masks, where):
        item = _item(masks, name, where)
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "SO" and len(item.shape) == 1 and (item.size or 0) <= MAX_NAMES:
            for episode in item.asstr(errors="replace")[()] if h5py.check_string_dtype(item.dtype) else []:
                found.setdefault(str(episode), []).append(name)
    return found


@dataclass(frozen=True)
class _Layout:
    """Which observation becomes what, in one episode."""

    cameras: tuple[Camera, ...]
    camera_keys: dict[str, str]  # camera -> observation
    state: tuple[str, ...]
    sizes: dict[str, int]  # of every vector among the observations
    action: int
    extra: dict[str, tuple[str, ...] | Feature]  # labels of a vector, or depth
    extra_keys: dict[str, str]  # new feature -> path in the episode
    left_out: list[str]

    @property
    def taken(self) -> set[str]:
        """Paths in the episode of what is taken over."""
        return {f"obs/{key}" for key in (*self.camera_keys.values(), *self.state)} | set(self.extra_keys.values())

    @classmethod
    def of(cls, file: _File, name: str, state: tuple[str, ...]) -> _Layout:
        where = f"{file.path}: {name}"
        with file.open() as opened:
            _, observations, shapes, steps = _episode(opened, name, where)
            dtypes = {key: item.dtype.name for key in shapes if isinstance(item := observations[key], h5py.Dataset) and shapes[key]}
        action = steps["actions"]
        assert action
        images = {k: s for k, s in shapes.items() if s and len(s) == 4 and s[3] == 3 and max(s[1:3]) <= MAX_SIDE}
        cameras = {camera_name(key): key for key in images}
        sizes = {key: shape[1] if len(shape) == 2 else 1 for key, shape in shapes.items() if shape and len(shape) in (1, 2)}
        missing = [key for key in state if key not in sizes]
        if missing:
            raise UsageError(f"{where}: has no observation {missing[0]!r}; its vectors are {', '.join(sorted(sizes))}")
        known = next((layout for layout in STATES if set(layout) <= set(sizes)), None)
        state = state or known or tuple(key for key in sorted(sizes) if key not in RENAMED)
        features: list[tuple[str, tuple[str, ...] | Feature, str]] = [
            (RENAMED.get(key, f"observation.{key}"), _labels(key, sizes[key]), f"obs/{key}") for key in sorted(sizes) if key not in state
        ]
        depth = {key: found for key, dtype in dtypes.items() if (found := depth_feature(key, dtype, (shapes[key] or ())[1:]))}
        features += [(*found, f"obs/{key}") for key, found in depth.items()]
        features += [(new, (key,), key) for key, new in PER_STEP.items() if len(steps.get(key) or ()) == 1]
        extra: dict[str, tuple[str, ...] | Feature] = {}
        keys: dict[str, str] = {}
        for new, feature, path in features:  # the name of another feature, or none at all: it is left out, and said so
            if new not in (STATE, *keys, *(IMAGES + camera for camera in cameras)) and FEATURE_NAME.fullmatch(new):
                extra[new], keys[new] = feature, path
        used = {"actions", *(f"obs/{key}" for key in (*cameras.values(), *state)), *keys.values()}
        left_out = sorted({*(f"obs/{key}" for key in shapes), *steps} - used)
        found = [
            Camera(name=n, height=images[k][1], width=images[k][2], role="wrist" if re.search("wrist|hand", n) else "scene")
            for n, k in cameras.items()
        ]
        return cls(tuple(found), cameras, state, sizes, action[1], extra, keys, left_out)

    def embodiment(self, robot: str, rate_hz: int) -> Embodiment:
        names = tuple(label for key in self.state for label in _labels(key, self.sizes[key]))
        action = _labels("action", self.action)
        return Embodiment(
            name=robot,
            rate_hz=rate_hz,
            cameras=self.cameras,
            state=Vector(names=names, units=("",) * len(names)),
            action=Vector(names=action, units=("",) * len(action)),
        )

    def read(self, file: _File, name: str, kinds: dict[str, Storage], depth: DepthSeen, where: str) -> EpisodeData:
        with file.open() as opened:
            episode, observations, _, _ = _episode(opened, name, where)
            action = _array(episode, "actions", where)
            length = len(action)
            claimed = _attribute(episode.attrs, "num_samples", where)
            if not 0 < length <= MAX_STEPS or (claimed is not None and not np.array_equal(claimed, length)):
                raise DataError(f"{where}: holds {length} actions, its num_samples is {str(claimed)[:20]}")
            task = _instruction(_texts(episode.attrs, where)) or _instruction(_json(episode.attrs, "ep_meta", where)) or file.task
            if not task:
                raise DataError(f"{where}: no instruction in the file or its name; give one, as in --task 'lift the cube'")
            vectors = [self._vector(observations, key, self.sizes[key], length, where) for key in self.state]
            extra = {}
            for new, path in self.extra_keys.items():
                group, key, kind = observations if path.startswith("obs/") else episode, path.removeprefix("obs/"), self.extra[new]
                if isinstance(kind, Feature):
                    extra[new] = depth.take(path, _array(group, key, where), kind, length, where)
                else:
                    extra[new] = self._vector(group, key, len(kind), length, where)
            images: dict[str, Images] = {}
            for camera, key in self.camera_keys.items():
                pixels = _array(observations, key, where)
                if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != length:
                    raise DataError(f"{where}: obs/{key} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [{length} h w 3]")
                images[camera] = pixels if kinds[camera] == "video" else [encode_png(frame) for frame in pixels]
        more: dict[str, Any] = {"source": f"{file.path.name}/{name}"}
        if file.splits:
            more["split"] = ",".join(file.splits.get(name, []))
        state = np.concatenate(vectors, axis=1) if vectors else np.zeros((length, 0), np.float32)
        return EpisodeData(images=images, state=state, action=action, task=task, extra_frame=extra, extra_episode=more)

    def _vector(self, group: h5py.Group, key: str, size: int, length: int, where: str) -> np.ndarray:
        values = _array(group, key, where)
        if values.shape != (length, size) and not (size == 1 and values.shape == (length,)):
            raise DataError(f"{where}: {key} has shape {list(values.shape)}, expected {[length, size]}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the writer refuses
            return values.reshape(length, size).astype(np.float32)


Shapes = dict[str, tuple[int, ...] | None]


def _episode(file: h5py.File, name: str, where: str) -> tuple[h5py.Group, h5py.Group, Shapes, Shapes]:
    """An episode, its observations, and the shapes of these and of what else it has per step, actions [T a] among it."""
    episode = _group(_group(file, "data", where), name, where)
    observations = _group(episode, "obs", where)
    shapes = {key: _shape(_item(observations, key, where), f"{where}: obs/{key}") for key in _names(observations, where)}
    steps = {key: _shape(_item(episode, key, where), f"{where}: {key}") for key in _names(episode, where) if key != "obs"}
    if len(steps.get("actions") or ()) != 2:
        raise DataError(f"{where}: has no actions [T a]; it has {', '.join(sorted(steps)) or 'nothing'}")
    return episode, observations, shapes, steps


def common_layout(episodes: list[tuple[_File, str]], state: tuple[str, ...]) -> tuple[_Layout, list[str]]:
    """The layout that most episodes have (the first of them, where as many have another), and what is not taken over, by name.

    An episode that lacks something of it is broken; what only some others have is left out, and named with their number.
    """
    layouts: list[_Layout] = []
    problem: UsageError | None = None
    for file, name in episodes:
        try:
            layouts.append(_Layout.of(file, name, state))
        except UsageError as error:
            problem = problem or error
    if not layouts:
        raise problem or DataError("no episodes")
    kinds = [
        repr((one.cameras, one.camera_keys, one.state, [one.sizes[key] for key in one.state], one.action, one.extra)) for one in layouts
    ]
    chosen = layouts[kinds.index(Counter(kinds).most_common(1)[0][0])]
    counts = Counter(path for item in layouts for path in item.taken - chosen.taken)
    some = [f"{path} (in {count} of {len(episodes)} episodes)" for path, count in sorted(counts.items()) if path not in chosen.left_out]
    return chosen, chosen.left_out + some


def camera_name(key: str) -> str:
    """agentview_rgb -> agentview."""
    if not re.fullmatch(r"[\w.-]{1,100}", key):
        raise DataError(f"the observation {key[:40]!r} is no name for a camera; rename it in the file")
    return re.sub(r"_(image|rgb)$", "", key)


def _labels(name: str, size: int) -> tuple[str, ...]:
    return (name,) if size == 1 else tuple(f"{name}_{i}" for i in range(size))
