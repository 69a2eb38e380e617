"""Importing RLDS datasets (TFRecord shards with features.json), without TensorFlow.

Images stay the JPEG or PNG bytes that they were, embedded in parquet: nothing is lost. RLDS does not say at what rate it was recorded, so
the rate must be given, but for the sources in `KNOWN_RATES`. Trajectories that occur more than once, in whatever shard, are imported once.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deftly import storage
from deftly.contract import Camera, Embodiment, Vector
from deftly.data.importers.depth import DepthSeen, depth_feature
from deftly.data.importers.report import BUDGET, ImportReport, require_folder, require_rate
from deftly.data.importers.tfrecord import Values, parse_example, read_records
from deftly.data.schema import MAX_SIDE, Feature
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.types import DataError, UsageError

# Frames per second of well-known sources, by the name in dataset_info.json. BridgeData V2: 5 Hz control (Walke et al., CoRL 2023).
KNOWN_RATES = {"bridge_dataset": 5}
INSTRUCTIONS = (
    "language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
    "observation/natural_language_instruction",
)
MAX_DEPTH = 16
MAX_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Leaf:
    """A feature at the end of a path in features.json: `kind` is tensor, image or text; `shape` that of one step (or of the episode)."""

    kind: str
    dtype: str
    shape: tuple[int, ...]


def import_rlds(source: Path, target: Path, rate_hz: int | None = None, budget: float = BUDGET) -> ImportReport:
    """Write the trajectories of an RLDS folder as a LeRobotDataset v3.0 at `target`.

    Raises `UsageError` when no rate is known, `DataError` when a file is damaged or more than `budget` of the trajectories are not what
    features.json promises, naming file and record. Nothing is left at `target` then.
    """
    require_rate(rate_hz)
    source = require_folder(Path(source))
    info = storage.read_json(source / "dataset_info.json")
    steps, episode = read_features(source / "features.json")
    rate = rate_hz or KNOWN_RATES.get(str(info.get("name") if isinstance(info, dict) else None))
    if not rate:
        raise UsageError(f"{source}: RLDS does not store the frame rate; give it, as in --fps 5")
    plan = _Plan.of(steps, str(source / "features.json"))
    report, depth = ImportReport(source="rlds", left_out=plan.left_out), DepthSeen()
    if rate_hz is None:
        report.notes.append(f"{rate} frames per second, as published for {info['name']}; give --fps to say otherwise")
    seen: dict[bytes, str] = {}
    total = num_records(info)
    with DatasetWriter(
        target, plan.embodiment(str(info.get("name")), rate), images=dict.fromkeys(plan.cameras, "image"), extra=plan.extra
    ) as writer:
        for label, where, data in shards(source, info):
            example = parse_example(data, where)
            digest = _digest(example)
            if digest in seen:
                report.duplicates.append((label, seen[digest]))
                continue
            seen[digest] = label
            read = functools.partial(plan.read, example, episode, depth, where, label)
            report.take(writer, where, read, budget, total)
        if not writer.num_episodes:
            raise DataError(f"{source}: holds no trajectories")
        report.notes += depth.notes()
        report.finish(writer)
    return report


def num_records(info: Any) -> int:
    """How many trajectories dataset_info.json promises, at least 1; what is wrong with it is said by `shards`."""
    splits = info.get("splits") if isinstance(info, dict) else None
    lengths = [split.get("shardLengths") for split in splits if isinstance(split, dict)] if isinstance(splits, list) else []
    counts = [str(count) for shard in lengths if isinstance(shard, list) for count in shard]
    return max(1, sum(int(count) for count in counts if re.fullmatch(r"\d{1,12}", count)))


def shards(source: Path, info: Any) -> Iterator[tuple[str, str, bytes]]:
    """Every record that dataset_info.json promises, as (label "split/shard#record", where to look, bytes); counts are checked."""
    where = source / "dataset_info.json"
    splits = info.get("splits") if isinstance(info, dict) else None
    if not isinstance(splits, list) or not splits:
        raise DataError(f"{where}: lists no splits")
    for split in splits:
        lengths = split.get("shardLengths") if isinstance(split, dict) else None
        if not isinstance(lengths, list) or not all(isinstance(n, str | int) and re.fullmatch(r"\d{1,12}", str(n)) for n in lengths):
            raise DataError(f"{where}: a split has no shardLengths")
        template = str(split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        for shard, expected in enumerate(lengths):
            values = {
                "DATASET": str(info.get("name")),
                "SPLIT": str(split.get("name")),
                "FILEFORMAT": str(info.get("fileFormat") or "tfrecord"),
                "SHARD_X_OF_Y": f"{shard:05d}-of-{len(lengths):05d}",
                "SHARD_INDEX": f"{shard:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
            }
            name = re.sub(r"\{([A-Z_]+)\}", lambda match, values=values: values.get(match.group(1), match.group(0)), template)
            path = storage.inside(source, name)
            count = 0
            for count, data in enumerate(read_records(path), 1):
                yield f"{split.get('name')}/{shard}#{count - 1}", f"{path}: record {count - 1}", data
            if count != int(expected):
                raise DataError(f"{path}: holds {count} records, dataset_info.json says {expected}; files are missing or truncated")


def read_features(path: Path) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """features.json as (features of a step, features of an episode), each by its path ("observation/image_0")."""
    steps: dict[str, Leaf] = {}
    episode: dict[str, Leaf] = {}

    def walk(node: Any, prefix: tuple[str, ...], found: dict[str, Leaf], depth: int) -> None:
        where = f"{path}: {'/'.join(prefix) or 'the root'}"
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            raise DataError(f"{where}: not a feature, or nested too deep")
        if "featuresDict" in node:
            children = node["featuresDict"].get("features") if isinstance(node["featuresDict"], dict) else None
            if not isinstance(children, dict):
                raise DataError(f"{where}: featuresDict without features")
            for name, child in children.items():
                walk(child, (*prefix, name), found, depth + 1)
        elif "sequence" in node and prefix == ("steps",):
            walk(node["sequence"].get("feature") if isinstance(node["sequence"], dict) else None, (), steps, depth + 1)
        else:
            leaf = _leaf(node, where)
            if leaf is not None:
                found["/".join(prefix)] = leaf

    walk(storage.read_json(path), (), episode, 0)
    if not steps:
        raise DataError(f"{path}: has no steps; it does not describe an RLDS dataset")
    return steps, episode


def _leaf(node: dict[str, Any], where: str) -> Leaf | None:
    """None for kinds that are not read (nested sequences, videos); they are reported as left out by nobody wanting them."""
    if "text" in node:
        return Leaf("text", "string", ())
    for kind in ("tensor", "image"):
        if isinstance(node.get(kind), dict):
            shape = node[kind].get("shape")
            sizes = shape.get("dimensions", []) if isinstance(shape, dict) else None
            if not isinstance(sizes, list) or not all(re.fullmatch(r"-?\d{1,7}", str(size)) for size in sizes):
                raise DataError(f"{where}: a shape that cannot be read")
            encoding = node[kind].get("encoding", "none")
            return Leaf(kind if encoding in ("none", None) else "encoded", str(node[kind].get("dtype")), tuple(int(size) for size in sizes))
    return None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which feature of a step becomes what."""

    steps: dict[str, Leaf]
    cameras: dict[str, str]  # camera -> path
    action: str
    state: str | None
    instruction: str
    extra: dict[str, tuple[str, ...] | Feature]  # new feature -> names, or depth
    extra_source: dict[str, str]
    left_out: list[str]

    @classmethod
    def of(cls, steps: dict[str, Leaf], where: str) -> _Plan:
        def vector(name: str) -> bool:
            leaf = steps.get(name)
            return leaf is not None and leaf.kind == "tensor" and len(leaf.shape) == 1 and leaf.shape[0] > 0

        if not vector("action"):
            raise DataError(f"{where}: steps need an `action` that is a vector; they have {', '.join(sorted(steps))}")
        instruction = next((name for name in INSTRUCTIONS if name in steps and steps[name].kind == "text"), None)
        if instruction is None:
            raise DataError(f"{where}: steps have no instruction (looked for {', '.join(INSTRUCTIONS)})")
        cameras = {}
        for name, leaf in sorted(steps.items()):
            if leaf.kind == "image" and len(leaf.shape) == 3 and leaf.shape[2] == 3 and all(0 < size <= MAX_SIDE for size in leaf.shape):
                cameras[name.split("/")[-1]] = name
        state = next((name for name in ("observation/state", "observation/proprio") if vector(name)), None)
        extra = {"next.reward": "reward", "next.done": "is_terminal"}
        extra = {new: old for new, old in extra.items() if old in steps and steps[old].kind == "tensor" and steps[old].shape == ()}
        features: dict[str, tuple[str, ...] | Feature] = {new: (new,) for new in extra}
        for name, leaf in sorted(steps.items()):
            is_read = leaf.kind == "tensor" or (leaf.kind, leaf.dtype) == ("image", "uint16")
            found = depth_feature(name.split("/")[-1], leaf.dtype, leaf.shape)
            if is_read and found is not None:
                extra[found[0]], features[found[0]] = name, found[1]
        used = {"action", state, instruction, *cameras.values(), *extra.values()}
        # Where an episode begins and ends is in the table of episodes already.
        left_out = sorted(name for name in steps if name not in used and name not in ("is_first", "is_last"))
        return cls(steps, cameras, "action", state, instruction, features, extra, left_out)

    def embodiment(self, name: str, rate_hz: int) -> Embodiment:
        cameras = tuple(
            Camera(name=camera, height=self.steps[path].shape[0], width=self.steps[path].shape[1]) for camera, path in self.cameras.items()
        )
        state = self.steps[self.state].shape[0] if self.state else 0
        action = self.steps[self.action].shape[0]
        return Embodiment(name=name, rate_hz=rate_hz, cameras=cameras, state=_named("state", state), action=_named("action", action))

    def read(self, example: dict[str, Values], episode: dict[str, Leaf], depth: DepthSeen, where: str, label: str) -> EpisodeData:
        action = _vectors(example, f"steps/{self.action}", self.steps[self.action], None, where)
        length = len(action)
        state = _vectors(example, f"steps/{self.state}", self.steps[self.state], length, where) if self.state else np.zeros((length, 0))
        texts = [_text(item, where) for item in _strings(example, f"steps/{self.instruction}", length, where)]
        extra: dict[str, Any] = {}
        for new, old in self.extra_source.items():
            kind, leaf = self.extra[new], self.steps[old]
            if leaf.kind == "image":
                extra[new] = _strings(example, f"steps/{old}", length, where)
                depth.stored.add(old)
            elif isinstance(kind, Feature):
                extra[new] = depth.take(old, _distances(example, f"steps/{old}", leaf, length, where), kind, length, where)
            else:
                extra[new] = _vectors(example, f"steps/{old}", leaf, length, where)
        provenance: dict[str, Any] = {"source": label}
        for name, leaf in episode.items():
            value = _scalar(example.get(name), leaf, where)
            if value is not None:
                provenance["source_" + name.split("/")[-1]] = value
        return EpisodeData(
            images={camera: _strings(example, f"steps/{path}", length, where) for camera, path in self.cameras.items()},
            state=state,
            action=action,
            task=texts,
            extra_frame=extra,
            extra_episode=provenance,
        )


def _named(label: str, size: int) -> Vector:
    return Vector(names=tuple(f"{label}_{i}" for i in range(size)), units=("",) * size)


def _vectors(example: dict[str, Values], name: str, leaf: Leaf, length: int | None, where: str) -> np.ndarray:
    """A flattened feature as float32 [T d]; T follows from its size where it is not given."""
    values = example.get(name)
    width = math.prod(leaf.shape)
    if not isinstance(values, np.ndarray):
        raise DataError(f"{where}: {name} is missing or not numeric")
    steps = len(values) // width if length is None else length
    if len(values) != steps * width or not 0 < steps <= MAX_STEPS:
        expected = f"a multiple of {width}" if length is None else f"{length} steps of {width}"
        raise DataError(f"{where}: {name} holds {len(values)} numbers, expected {expected}")
    return values.reshape(steps, width).astype(np.float32)


def _distances(example: dict[str, Values], name: str, leaf: Leaf, length: int, where: str) -> np.ndarray:
    """A depth tensor in its declared type, [T h w]: records hold whole numbers as int64."""
    values = example.get(name)
    if not isinstance(values, np.ndarray) or len(values) != length * math.prod(leaf.shape):
        found = f"{len(values)} values" if values is not None else "nothing"
        raise DataError(f"{where}: {name} holds {found}, expected {length} steps of {math.prod(leaf.shape)} distances")
    if leaf.dtype == "uint16":
        if values.dtype.kind != "i" or (len(values) and not (values.min() >= 0 and values.max() <= 65535)):
            raise DataError(f"{where}: {name} holds other numbers than the whole ones of 16 bits that are declared")
        values = values.astype(np.uint16)
    return values.reshape(length, *leaf.shape[:2])


def _strings(example: dict[str, Values], name: str, length: int, where: str) -> list[bytes]:
    values = example.get(name)
    if not isinstance(values, list) or len(values) != length:
        found = f"{len(values)} entries" if isinstance(values, list) else "nothing of that kind"
        raise DataError(f"{where}: {name} holds {found}, expected {length}")
    return values


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: an instruction is not UTF-8 text") from None


def _scalar(values: Values | None, leaf: Leaf, where: str) -> str | int | float | bool | None:
    """A per-episode value that fits into a column; None for what does not."""
    if values is None or len(values) != 1 or leaf.shape != ():
        return None
    value = values[0]
    if isinstance(value, bytes):
        return _text(value, where) if leaf.kind == "text" else None
    return bool(value) if leaf.dtype == "bool" else float(value) if values.dtype == np.float32 else int(value)  # type: ignore[union-attr]


def _digest(example: dict[str, Values]) -> bytes:
    """What makes two trajectories the same: every value of every step; the order of the features in the file does not matter."""
    digest = hashlib.sha256()
    for name in sorted(example):
        if name.startswith("steps/"):
            values = example[name]
            parts = values if isinstance(values, list) else [values.tobytes()]
            digest.update(f"{name}/{len(parts)}/".encode())
            for part in parts:
                digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
