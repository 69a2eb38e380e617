"""What stands on the table: object types, colours, sizes, and the sampling of scenes from a seed. No physics, no mujoco.

Lengths are metres in the robot base frame: x forward, y left, z up, the table top at z = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

TYPES = ("cup", "box", "ball", "bottle")
COLOURS = ("red", "blue", "green", "yellow")
MAX_OBJECTS = 4
AREA_LOW = (0.32, -0.17)  # x, y of the corner of the area in which object centres are drawn
AREA_HIGH = (0.64, 0.17)
# The open gripper is 11.4 cm wide from outside to outside, and the widest neighbour reaches 3.4 cm from its centre.
MIN_DISTANCE = 0.11
SCALE_LOW, SCALE_HIGH = 0.92, 1.0  # the compiled model holds each type at scale 1, so that bounding volumes stay conservative
_MAX_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """One type at scale 1. `width` is what the closing gripper meets; `origin` is the height of the body frame above the table."""

    width: float
    height: float
    origin: float
    grasp: float  # height of the grasp point above the table, when upright
    mass: float  # kilograms


SHAPES = {
    "cup": Shape(width=0.050, height=0.062, origin=0.031, grasp=0.034, mass=0.08),
    "box": Shape(width=0.046, height=0.046, origin=0.023, grasp=0.024, mass=0.09),
    "ball": Shape(width=0.048, height=0.048, origin=0.024, grasp=0.024, mass=0.06),
    "bottle": Shape(width=0.044, height=0.128, origin=0.064, grasp=0.055, mass=0.09),
}


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object at its sampled pose; `yaw` in radians, `scale` multiplies every length of its shape."""

    colour: str
    type: str
    x: float
    y: float
    yaw: float
    scale: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.type}"

    @property
    def origin(self) -> float:
        """Height of the body frame above the table when the object stands, metres."""
        return SHAPES[self.type].origin * self.scale


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects, which of them the episode is about, and the other one that a policy is told to handle when its hearing is tested."""

    objects: tuple[ObjectSpec, ...]
    target: int
    other: int

    def __post_init__(self) -> None:
        assert 0 <= self.target < len(self.objects), (self.target, len(self.objects))
        assert 0 <= self.other < len(self.objects), (self.other, len(self.objects))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        objects = [
            {"colour": o.colour, "type": o.type, "x": o.x, "y": o.y, "z": o.origin, "yaw": o.yaw, "scale": o.scale} for o in self.objects
        ]
        return {"objects": objects, "target": self.target, "other": self.other}

    def mirrored(self) -> Scene:
        """The same scene with left and right exchanged: every shape is symmetric in the plane of its body's x and z."""
        return replace(self, objects=tuple(replace(item, y=-item.y, yaw=-item.yaw) for item in self.objects))

    def names(self) -> str:
        return ", ".join(f"the {item.name}" for item in self.objects)


def sample_scene(
    generator: np.random.Generator,
    num_objects: tuple[int, int] = (2, 3),
    target_types: tuple[str, ...] = TYPES,
    colours: tuple[str, ...] = COLOURS,
) -> Scene:
    """A scene in which one object can be named by colour and type, and neither word alone is enough.

    `num_objects` is an inclusive range within 2..4. `other` shares exactly one of colour and type with the target; no two objects
    share both. Draws only from `generator`.
    """
    low, high = num_objects
    assert 2 <= low <= high <= MAX_OBJECTS, num_objects
    pairs = sample_names(generator, int(generator.integers(low, high + 1)), target_types, colours)
    places = sample_places(generator, len(pairs))
    objects = [
        ObjectSpec(
            colour=colour,
            type=kind,
            x=x,
            y=y,
            yaw=float(generator.uniform(-math.pi, math.pi)),
            scale=float(generator.uniform(SCALE_LOW, SCALE_HIGH)),
        )
        for (colour, kind), (x, y) in zip(pairs, places, strict=True)
    ]
    # The target was drawn first: shuffled, so that its index says nothing.
    order = [int(i) for i in generator.permutation(len(objects))]
    return Scene(objects=tuple(objects[i] for i in order), target=order.index(0), other=order.index(1))


def sample_names(
    generator: np.random.Generator, count: int, target_types: tuple[str, ...] = TYPES, colours: tuple[str, ...] = COLOURS
) -> list[tuple[str, str]]:
    """`count` different (colour, type) pairs: the target, a distractor that shares one word with it, then any others."""
    colour, kind = str(generator.choice(colours)), str(generator.choice(target_types))
    if len(colours) == 1 or generator.random() < 0.5:
        distractor = (colour, str(generator.choice([t for t in TYPES if t != kind])))
    else:
        distractor = (str(generator.choice([c for c in colours if c != colour])), kind)
    names = [(colour, kind), distractor]
    free = [(c, t) for c in colours for t in TYPES if (c, t) not in names]
    chosen = generator.permutation(len(free))[: count - 2]
    return names + [free[int(i)] for i in chosen]


def sample_places(generator: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """`count` points of the area, uniform given that no two are nearer than MIN_DISTANCE."""
    for _ in range(_MAX_DRAWS):
        points = generator.uniform(AREA_LOW, AREA_HIGH, size=(count, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count)
        if gaps.min() >= MIN_DISTANCE:
            return [(float(x), float(y)) for x, y in points]
    raise AssertionError(f"no placement of {count} objects in {_MAX_DRAWS} draws")
