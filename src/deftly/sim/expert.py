"""The scripted demonstrator of `pick`, and the disturbances that make it show recoveries.

The label is a function of the current state alone: where the tip is, how far the gripper is open, where the target is. Nothing is
remembered, so that a policy that sees the same can say the same, and every state has the action that leads back.
"""

from __future__ import annotations

import math

import numpy as np
import pydantic

from deftly.config import Config
from deftly.randomness import generator
from deftly.sim import robot
from deftly.sim.scene import SHAPES
from deftly.sim.tabletop import Tabletop

HOVER_Z = 0.17  # tip height from which it descends, above the tallest object, metres
LIFT_Z = 0.22
OPEN, CLOSED = 0.0, 1.0
DESCEND_XY = 0.014  # start going down when this near in x and y
GRASP_XY, GRASP_Z = 0.018, 0.012  # close when this near to the grasp point
HELD_XY, HELD_Z = 0.030, 0.030  # a closed gripper this near to the grasp point may be holding
TOUCH = 0.006  # the pads touch when the gap is at most this much wider than the object
UPRIGHT = 0.9  # cosine of the tilt below which an object counts as fallen


class Expert:
    """Labels for the current target of a world."""

    def __init__(self, world: Tabletop) -> None:
        self._world = world

    def act(self) -> np.ndarray:
        """The action that the expert would command now: float32 [4]."""
        world = self._world
        assert world.scene is not None
        physics, item = world.physics, world.scene.objects[world.target]
        pose = physics.object_poses()[world.target]
        tip, gap = physics.tip(), physics.opening() * 2.0 * robot.FINGER_TRAVEL_M
        grasp, width = grasp_point(item.type, item.scale, pose), closing_width(item.type, item.scale, pose)
        away = math.hypot(tip[0] - grasp[0], tip[1] - grasp[1])
        above = abs(tip[2] - grasp[2])
        if gap <= width + TOUCH and gap >= 0.5 * width and away < HELD_XY and above < HELD_Z:
            return _action(grasp[0], grasp[1], LIFT_Z, CLOSED)
        if away < GRASP_XY and above < GRASP_Z and gap > width + TOUCH:
            return _action(grasp[0], grasp[1], grasp[2], CLOSED)
        if away < DESCEND_XY and gap > width + 0.02:
            return _action(grasp[0], grasp[1], grasp[2], OPEN)
        return _action(grasp[0], grasp[1], HOVER_Z, OPEN)


def grasp_point(kind: str, scale: float, pose: np.ndarray) -> np.ndarray:
    """Where the tip should close [3], metres, for an object at `pose` [7] (position, quaternion w x y z), standing or fallen."""
    shape = SHAPES[kind]
    offset = (shape.grasp - shape.origin) * scale
    axis = _axis(pose)
    point = pose[:3] + axis * offset
    if abs(axis[2]) < UPRIGHT and kind in ("cup", "bottle"):
        point = pose[:3] + axis * offset * 0.5
    point[2] = max(point[2], robot.WORKSPACE_LOW[2] + 0.003)
    return point


def closing_width(kind: str, scale: float, pose: np.ndarray) -> float:
    """How wide the object is along y, the direction in which the fingers close, metres."""
    width = SHAPES[kind].width * scale
    if kind != "box":
        return width
    w, x, y, z = pose[3:]
    turn = abs(math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))) % (math.pi / 2)
    return width * (math.cos(turn) + math.sin(turn))


def _axis(pose: np.ndarray) -> np.ndarray:
    w, x, y, z = pose[3:]
    return np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])


def _action(x: float, y: float, z: float, gripper: float) -> np.ndarray:
    low, high = (*robot.WORKSPACE_LOW, 0.0), (*robot.WORKSPACE_HIGH, 1.0)
    return np.clip((x, y, z, gripper), low, high).astype(np.float32)


class DisturbanceConfig(Config):
    """How often and how hard demonstrations are disturbed. Labels stay clean; only what is executed changes."""

    share: float = pydantic.Field(default=0.4, ge=0, le=1)
    """Of the episodes."""
    push_m: float = pydantic.Field(default=0.05, ge=0, le=0.1)
    """Longest push of the executed target in x and y."""
    num_pushes: int = pydantic.Field(default=2, ge=0, le=5)
    """Most pushes in an episode."""
    grip_share: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Of the disturbed episodes: the gripper closes too early, or lets go, once."""
    noise_m: float = pydantic.Field(default=0.004, ge=0, le=0.02)
    """Standard deviation of the noise on every executed target of a disturbed episode."""

    def build(self, seed: int) -> Disturbance:
        return Disturbance(self, generator("tabletop/disturbance", seed))


class Disturbance:
    """Turns the label of each step of one episode into the action that is executed."""

    def __init__(self, config: DisturbanceConfig, rng: np.random.Generator) -> None:
        self._config, self._rng = config, rng
        self.active = bool(rng.random() < config.share)
        count = int(rng.integers(0, config.num_pushes + 1)) if config.num_pushes else 0
        self._pushes = []
        for _ in range(count):
            angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.0) * config.push_m
            begin = int(rng.integers(2, 22))
            self._pushes.append((begin, begin + int(rng.integers(3, 7)), size * np.array([math.cos(angle), math.sin(angle)])))
        begin = int(rng.integers(4, 24))
        self._grip = (begin, begin + int(rng.integers(3, 6))) if rng.random() < config.grip_share else (0, 0)
        self._step = 0

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """The executed action [4] for the `label` [4] of this step; call it once per step, in order."""
        step, self._step = self._step, self._step + 1
        noise = self._rng.normal(size=3) * self._config.noise_m
        if not self.active:
            return label.copy()
        executed = label.astype(np.float64)
        executed[:3] += noise
        for begin, end, offset in self._pushes:
            if begin <= step < end:
                executed[:2] += offset
        if self._grip[0] <= step < self._grip[1]:
            executed[3] = 1.0 - executed[3]
        return np.clip(executed, (*robot.WORKSPACE_LOW, 0.0), (*robot.WORKSPACE_HIGH, 1.0)).astype(np.float32)
