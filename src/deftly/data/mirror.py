"""Left and right change places: the recorded episode of one world is an episode of the mirrored one, if everything is mirrored together.

Image, camera roles, state, action and the words of the instruction, all for one draw per sample; how each is mirrored is declared by the
embodiment (`contract.Mirror`). The numbers are here, in raw units, before relative actions and normalisation. The image is flipped in
`warp.py` (`draw_maps` makes the same draw); words change in `language/`. A recorded robot's mirror is declared once, by hand, from the
names of its dimensions (`declare`).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from deftly import storage
from deftly.contract import Embodiment, Mirror
from deftly.data.dataset import Dataset
from deftly.data.schema import OURS_PATH
from deftly.randomness import uniform
from deftly.types import UsageError

STREAM = "augment.mirror"


def draw_mirrored(key: Int64[Tensor, "b"], probability: float) -> Bool[np.ndarray, "b"]:
    """Which samples are shown mirrored."""
    if not probability:
        return np.zeros(len(key), bool)
    return uniform(key.cpu(), STREAM).numpy() < probability


def mirror_state(raw: Float[np.ndarray, "... s"], mirror: Mirror) -> Float[np.ndarray, "... s"]:
    """A copy as the mirrored robot would report it."""
    return raw[..., list(mirror.state_order)] * np.asarray(mirror.state_sign, raw.dtype)


def mirror_action(raw: Float[np.ndarray, "... a"], mirror: Mirror) -> Float[np.ndarray, "... a"]:
    """A copy as it would be commanded in the mirrored world."""
    return raw[..., list(mirror.action_order)] * np.asarray(mirror.action_sign, raw.dtype)


class MirroredNumbers:
    """A dataset's columns as its mirrored robot would have recorded them; rows are mirrored when they are read."""

    def __init__(self, numbers: Any, mirror: Mirror) -> None:
        self.state: Any = _Rows(numbers.state, partial(mirror_state, mirror=mirror))
        self.action: Any = _Rows(numbers.action, partial(mirror_action, mirror=mirror))
        self.task = numbers.task


class _Rows:
    def __init__(self, column: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shape, self._column, self._change = column.shape, column, change

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._change(self._column[rows])


def declare(root: Path, lateral: Sequence[str]) -> Embodiment:
    """Write into a dataset's `meta/deftly.json` how its robot is mirrored (`mirror_by_names`); returns the robot as it is now declared.

    The declaration belongs to the data: its hash changes, so prepared frames and verdicts of checks are made again.
    """
    dataset = Dataset.open(root)
    robot = dataset.embodiment.replace(mirror=mirror_by_names(dataset.embodiment, lateral))
    path = dataset.root / OURS_PATH
    values = storage.read_json(path) if path.is_file() else {}
    storage.write_json(path, {**values, "embodiment": robot.to_dict()})
    return robot


def mirror_by_names(robot: Embodiment, lateral: Sequence[str]) -> Mirror:
    """A mirror in which dimensions and cameras called left and right change places, and those that match a pattern of `lateral` their sign.

    Patterns are those of file names ("*Roll"). Raises `UsageError` for a left one without a right one, and for a pattern that fits nothing.
    """
    names = [*robot.state.names, *robot.action.names]
    for pattern in lateral:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*"), names, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(dict.fromkeys(names))}"
            raise UsageError(f"{pattern!r} fits no dimension of {robot.name!r}; {hint}")
    order = {label: [_partner(name, part, label) for name in part] for label, part in _parts(robot).items()}
    sign = {
        label: [-1 if any(fnmatch.fnmatchcase(name, pattern) for pattern in lateral) else 1 for name in part]
        for label, part in _parts(robot).items()
    }
    cameras = tuple(camera.name for camera in robot.cameras)
    values = {f"{label}_order": order[label] for label in order} | {f"{label}_sign": sign[label] for label in sign}
    return Mirror.parse({**values, "cameras": {name: cameras[_partner(name, cameras, "camera")] for name in cameras}}, "mirror")


def _parts(robot: Embodiment) -> dict[str, tuple[str, ...]]:
    return {"state": robot.state.names, "action": robot.action.names}


def _partner(name: str, names: tuple[str, ...], label: str) -> int:
    """The index of the name with left and right exchanged; of the name itself where it has no side."""
    other = re.sub("left|right", lambda match: _other_side(match[0]), name, flags=re.IGNORECASE)
    if other not in names:
        raise UsageError(f"{label} {name!r} has no partner {other!r}: the two sides must have the same dimensions to change places")
    return names.index(other)


def _other_side(word: str) -> str:
    """The opposite of left or right, in the same case."""
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def describe(robot: Embodiment) -> list[str]:
    """A mirror for people to check, a line for each dimension and camera that changes: `left_y = -right_y`."""
    assert robot.mirror is not None
    lines = []
    for label, names in _parts(robot).items():
        order, sign = getattr(robot.mirror, f"{label}_order"), getattr(robot.mirror, f"{label}_sign")
        for i, name in enumerate(names):
            if order[i] != i or sign[i] < 0:
                lines.append(f"{label:>6}  {name} = {'-' if sign[i] < 0 else ''}{names[order[i]]}")
    return lines + [f"camera  {name} shows {other} flipped" for name, other in robot.mirror.cameras.items()]
