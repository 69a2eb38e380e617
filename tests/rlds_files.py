"""RLDS folders for tests, written by the definition of the format: a plain encoder with nothing in common with our reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from recordings import png
from small_data import picture


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % (1 << 32)


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", mask(slow_crc32c(head))) + data + struct.pack("<I", mask(slow_crc32c(data)))


def varint(value: int) -> bytes:
    value %= 1 << 64
    out = b""
    while value >= 0x80:
        out += bytes([value % 0x80 + 0x80])
        value //= 0x80
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(content)) + content


def feature(values: Any, packed: bool = True) -> bytes:
    """A tf.train.Feature from a list of bytes, of floats or of ints."""
    if values and isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if values and isinstance(values[0], float):
        floats = [struct.pack("<f", value) for value in values]
        return field(2, field(1, b"".join(floats)) if packed else b"".join(varint(13) + value for value in floats))
    numbers = [varint(value) for value in values]
    return field(3, field(1, b"".join(numbers)) if packed else b"".join(varint(8) + value for value in numbers))


def example(features: dict[str, Any], packed: bool = True) -> bytes:
    entries = [field(1, field(1, name.encode()) + field(2, feature(values, packed))) for name, values in features.items()]
    return field(1, b"".join(entries))


def tensor(shape: list[int], dtype: str = "float32") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(size) for size in shape]} if shape else {}, "dtype": dtype, "encoding": "none"}}


def nest(features: dict[str, Any]) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


def image(height: int = 16, width: int = 12) -> dict[str, Any]:
    return {"image": {"shape": {"dimensions": [str(height), str(width), "3"]}, "dtype": "uint8", "encodingFormat": "png"}}


STEP = {
    "action": tensor([3]),
    "reward": tensor([]),
    "is_terminal": tensor([], "bool"),
    "is_first": tensor([], "bool"),
    "language_instruction": {"text": {}},
    "language_embedding": tensor([2]),
    "observation": nest({"state": tensor([2]), "front": image(), "side": image()}),
}
FEATURES = nest(
    {
        "steps": {"sequence": {"feature": nest(STEP), "length": "-1"}},
        "episode_metadata": nest({"episode_id": tensor([], "int32"), "path": {"text": {}}}),
    }
)


def trajectory(number: int, length: int = 4) -> dict[str, Any]:
    """The flattened features of a trajectory whose values are functions of its number."""
    draw = np.random.default_rng(number)
    frames = {name: [png(picture(10 * number + i, name, 16, 12)) for i in range(length)] for name in ("front", "side")}
    return {
        "steps/action": [float(v) for v in draw.normal(size=length * 3).astype(np.float32)],
        "steps/reward": [0.0] * (length - 1) + [1.0],
        "steps/is_terminal": [0] * (length - 1) + [1],
        "steps/is_first": [1] + [0] * (length - 1),
        "steps/language_instruction": [f"do task {number % 2}".encode()] * length,
        "steps/language_embedding": [0.5] * (2 * length),
        "steps/observation/state": [float(v) for v in draw.normal(size=length * 2).astype(np.float32)],
        "steps/observation/front": frames["front"],
        "steps/observation/side": frames["side"],
        "episode_metadata/episode_id": [-number],
        "episode_metadata/path": [b"/raw/%d" % number],
    }


def write_rlds(root: Path, splits: dict[str, list[list[dict[str, Any]]]], name: str = "toys", features: Any = FEATURES) -> Path:
    """splits: name -> shards -> trajectories."""
    root.mkdir(parents=True)
    (root / "features.json").write_text(json.dumps(features))
    described = []
    for split, shards in splits.items():
        for i, trajectories in enumerate(shards):
            data = b"".join(record(example(item)) for item in trajectories)
            (root / f"{name}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}").write_bytes(data)
        described.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(s)) for s in shards],
            }
        )
    (root / "dataset_info.json").write_text(json.dumps({"name": name, "fileFormat": "tfrecord", "splits": described}))
    return root
