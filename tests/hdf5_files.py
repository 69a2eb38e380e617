"""Small demonstration files as robomimic and LIBERO write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from small_data import picture

LIBERO_NAME = "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"


def pixels(number: int, camera: str, length: int) -> np.ndarray:
    return np.stack([picture(10 * number + i, camera, 16, 24) for i in range(length)])


def demo(number: int, length: int = 5) -> dict[str, Any]:
    """One LIBERO demonstration: every value is a function of its number."""
    draw = np.random.default_rng(number)
    return {
        "actions": draw.normal(size=(length, 7)),
        "rewards": np.eye(length, dtype=np.uint8)[-1],
        "dones": np.eye(length, dtype=np.uint8)[-1],
        "states": draw.normal(size=(length, 20)),
        "obs": {
            "agentview_rgb": pixels(number, "head", length),
            "eye_in_hand_rgb": pixels(number, "wrist", length),
            "ee_states": draw.normal(size=(length, 6)),
            "gripper_states": draw.normal(size=(length, 2)),
            "joint_states": draw.normal(size=(length, 7)),
            "object": draw.normal(size=(length, 3)),
        },
    }


def write_file(path: Path, demos: list[dict[str, Any]], about: dict[str, Any] | None = None, rate: Any = 20) -> Path:
    """`about` are attributes of the group data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "x", "env_kwargs": {"control_freq": rate, "robots": ["Panda"]}})
        for name, value in (about or {}).items():
            data.attrs[name] = value
        for number, values in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(values["actions"])
            for name, value in values.items():
                if name == "obs":
                    for key, item in value.items():
                        group.create_dataset(f"obs/{key}", data=item, compression="gzip" if item.ndim == 4 else None)
                else:
                    group.create_dataset(name, data=value)
    return path
