"""What a policy needs to know of its robot, written at training and compared wherever the policy is used.

What does not belong here: tensors, files other than `contract.json`, and anything about how a policy was trained.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import pydantic

from deftly.config import Config
from deftly.types import DataError

FORMAT_VERSION = 1
ActionKind = Literal["end_effector_target", "end_effector_delta", "joint_target", "joint_delta", "unspecified"]
CameraRole = Literal["scene", "wrist"]


class Camera(Config):
    """A camera as it is recorded. A `wrist` camera moves with the gripper: geometry must not be augmented on it."""

    name: str
    height: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)
    role: CameraRole = "scene"


class Vector(Config):
    """A named vector with units; `low` and `high` are hard limits in those units where they are known."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @pydantic.model_validator(mode="after")
    def check_lengths(self) -> Vector:
        for label in ("units", "low", "high"):
            values = getattr(self, label)
            if values is not None and len(values) != len(self.names):
                raise ValueError(f"{label} has {len(values)} entries for {len(self.names)} names")
        return self

    def __len__(self) -> int:
        return len(self.names)


class Mirror(Config):
    """What the robot's world becomes when left and right change places: mirrored[i] = sign[i] * recorded[order[i]], in raw units.

    Declared, never guessed: which axis is lateral and which joints swap sides is knowledge about a robot. Doing it twice changes nothing.
    """

    state_order: tuple[int, ...]
    state_sign: tuple[Literal[-1, 1], ...]
    action_order: tuple[int, ...]
    action_sign: tuple[Literal[-1, 1], ...]
    cameras: dict[str, str]
    """Camera -> the camera whose flipped image it shows: itself where it sits on the plane of symmetry, a left one's right partner."""

    @pydantic.model_validator(mode="after")
    def check_twice_is_nothing(self) -> Mirror:
        for label in ("state", "action"):
            order, sign = getattr(self, f"{label}_order"), getattr(self, f"{label}_sign")
            if sorted(order) != list(range(len(order))) or len(sign) != len(order):
                raise ValueError(f"{label}_order must name every dimension once, and {label}_sign give each its sign")
            for i, other in enumerate(order):
                if order[other] != i or sign[other] != sign[i]:
                    raise ValueError(f"mirroring {label} dimensions {i} and {other} twice must give back what was there")
        for name, other in self.cameras.items():
            if self.cameras.get(other) != name:
                raise ValueError(f"cameras: {name!r} shows {other!r}, so {other!r} must show {name!r}")
        return self


class Embodiment(Config):
    """A robot with its cameras, state, action space and rate."""

    name: str
    rate_hz: float = pydantic.Field(gt=0)
    cameras: tuple[Camera, ...]
    state: Vector
    action: Vector
    action_kind: ActionKind = "unspecified"
    mirror: Mirror | None = None
    """Where it is declared, an episode may be shown mirrored in training (`data/mirror.py`)."""

    @pydantic.model_validator(mode="after")
    def check_mirror(self) -> Embodiment:
        if self.mirror is None:
            return self
        for label, order, vector in (
            ("state", self.mirror.state_order, self.state),
            ("action", self.mirror.action_order, self.action),
        ):
            if len(order) != len(vector):
                raise ValueError(f"mirror: {label}_order has {len(order)} entries for {len(vector)} dimensions")
        sizes = {camera.name: (camera.height, camera.width, camera.role) for camera in self.cameras}
        if set(self.mirror.cameras) != set(sizes):
            raise ValueError(f"mirror: cameras are {', '.join(self.mirror.cameras)}, the robot's are {', '.join(sizes)}")
        for name, other in self.mirror.cameras.items():
            if sizes[name] != sizes[other]:
                raise ValueError(f"mirror: cameras {name!r} and {other!r} show each other's image and differ in size or role")
        return self

    def camera(self, name: str) -> Camera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise DataError(f"embodiment {self.name!r} has no camera {name!r}; it has {', '.join(c.name for c in self.cameras)}")


class Window(Config):
    """What a sample is: `frames` observations ending now, the past actions, and the `chunk` actions that follow."""

    frames: int = pydantic.Field(default=1, ge=1)
    chunk: int = pydantic.Field(default=16, ge=1)
    past_actions: bool = False
    """Whether the policy may see the actions that were commanded before each observation frame."""


class MixedCamera(Config):
    """One of the cameras of a policy of several robots, on one of them."""

    recorded: str | None
    """Its name in the embodiment; null: this robot has no such camera, and the policy is told so."""
    role: CameraRole


class DepthCamera(Config):
    """A camera that measures distances, beside one that sees."""

    name: str
    camera: str
    """The policy's camera whose image moves with it."""
    height: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)


class RelativeActions(Config):
    """Actions counted from where the robot is, as the policy predicts them; `data/actions.py` turns them around.

    relative   each step of a chunk minus the state now
    delta      the first step minus the state now, every other minus the step before it
    """

    kind: Literal["relative", "delta"]
    state_of: tuple[int | None, ...]
    """For each action dimension the state dimension that it is counted from; null: it stays as recorded (a gripper, say)."""


class Contract(Config):
    """The embodiment as the policy saw it in training, and what turns its observations into the policy's inputs and back.

    A policy of several robots has one contract for each. They share what the policy is built from: cameras, roles, sizes, window, widths.
    """

    format_version: int = FORMAT_VERSION
    embodiment: Embodiment
    cameras: tuple[str, ...]
    """The cameras that the policy looks at, in order: by the embodiment's names, or by the mixture's where there is one."""
    mixed_cameras: dict[str, MixedCamera] | None = None
    """What each of the policy's cameras is on this robot, for a policy of several robots; null: every camera is the embodiment's own."""
    depth: tuple[DepthCamera, ...] = ()
    """The depth cameras that the policy is given, in order."""
    image_size: int = pydantic.Field(gt=0)
    """Side in pixels of the square image that the policy sees."""
    stored_size: int | None = pydantic.Field(default=None, gt=0)
    """Side in pixels to which images are fitted first, where training kept larger frames so that a crop had pixels; null: image_size."""
    window: Window
    executed_steps: int = pydantic.Field(gt=0)
    """How many actions of a chunk are played before the next inference."""
    normalization: Literal["identity", "mean_std", "min_max", "quantile"]
    statistics_hash: str
    tokenizer_hash: str
    text_length: int = pydantic.Field(gt=0)
    dataset_hash: str
    """Content hash of the training data: what resume compares, and a provenance for everybody else."""

    actions: RelativeActions | None = None
    """How the policy's actions are counted; null: as they were recorded."""
    widths: tuple[int, int] | None = None
    """Dimensions of state and action as the policy has them, for a policy of several robots; null: the embodiment's own."""
    robot_index: int = pydantic.Field(default=0, ge=0)
    """Which of the policy's robots this is: `Batch.embodiment`."""
    num_robots: int = pydantic.Field(default=1, ge=1)

    @pydantic.model_validator(mode="after")
    def check_parts(self) -> Contract:
        robot = self.embodiment
        if self.widths is not None and not (self.widths[0] >= len(robot.state) and self.widths[1] >= len(robot.action)):
            raise ValueError(
                f"widths {list(self.widths)} are less than {robot.name!r} has: {len(robot.state)} state, {len(robot.action)} action"
            )
        if self.robot_index >= self.num_robots:
            raise ValueError(f"robot_index {self.robot_index} of {self.num_robots} robots")
        if self.mixed_cameras is not None and set(self.mixed_cameras) != set(self.cameras):
            raise ValueError(f"mixed_cameras describes {', '.join(self.mixed_cameras)}, cameras lists {', '.join(self.cameras)}")
        if self.actions is not None and len(self.actions.state_of) != len(robot.action):
            raise ValueError(f"actions.state_of has {len(self.actions.state_of)} entries for {len(robot.action)} action dimensions")
        if self.actions is not None and not all(place is None or 0 <= place < len(robot.state) for place in self.actions.state_of):
            raise ValueError(f"actions.state_of names a state dimension outside of 0 .. {len(robot.state) - 1}")
        return self

    @property
    def frame_size(self) -> int:
        """Side in pixels at which frames wait for augmentation: `stored_size`, else `image_size`."""
        return self.stored_size or self.image_size

    @property
    def state_dim(self) -> int:
        """Width of the policy's state."""
        return len(self.embodiment.state) if self.widths is None else self.widths[0]

    @property
    def action_dim(self) -> int:
        """Width of the policy's actions."""
        return len(self.embodiment.action) if self.widths is None else self.widths[1]

    def recorded_camera(self, name: str) -> str | None:
        """The embodiment's name of one of the policy's cameras; None where this robot has no such camera."""
        return name if self.mixed_cameras is None else self.mixed_cameras[name].recorded

    def recorded_cameras(self) -> dict[str, str]:
        """The policy's cameras that this robot has -> their names in the embodiment."""
        return {name: found for name in self.cameras if (found := self.recorded_camera(name)) is not None}

    def role_of(self, name: str) -> CameraRole:
        """Whether one of the policy's cameras moves with the gripper."""
        return self.embodiment.camera(name).role if self.mixed_cameras is None else self.mixed_cameras[name].role


def fingerprint(value: Any) -> str:
    """sha256 of JSON-able data in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Every leaf in which two pieces of plain data differ, as `path: expected X, found Y`."""
    if isinstance(expected, Config):
        expected = expected.to_dict()
    if isinstance(found, Config):
        found = found.to_dict()
    if isinstance(expected, dict) and isinstance(found, dict):
        dot = f"{path}." if path else ""
        names = list(expected) + [name for name in found if name not in expected]
        return [line for name in names for line in differences(expected.get(name), found.get(name), f"{dot}{name}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [line for i, pair in enumerate(zip(expected, found, strict=True)) for line in differences(*pair, f"{path}[{i}]")]
    return [] if expected == found else [f"{path}: expected {_short(expected)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def require_same(expected: Config, found: Config, what: str, remedy: str) -> None:
    """Raise a one-line `DataError` that names the first differences, or return."""
    lines = differences(expected, found)
    if lines:
        more = f" (+{len(lines) - 3} more)" if len(lines) > 3 else ""
        raise DataError(f"{what} does not match: {'; '.join(lines[:3])}{more}; {remedy}")
