"""What may look or feel different from one episode to the next, and by how much. Drawn once per episode; no mujoco.

Changes of single images (brightness, blur, noise) do not belong here: those are augmentations, applied to recorded data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pydantic

from deftly.config import Config
from deftly.sim.scene import MAX_OBJECTS


class RandomizationConfig(Config):
    """Half-widths of uniform ranges around the nominal world; 0 switches one off, `RandomizationConfig.off()` all of them."""

    light_azimuth_deg: float = pydantic.Field(default=60.0, ge=0, le=180)
    """Direction that the lamp shines from, around the vertical."""
    light_tilt_deg: float = pydantic.Field(default=12.0, ge=0, le=40)
    """Angle of the lamp from the vertical, around its nominal value."""
    light_intensity: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Relative."""
    light_colour: float = pydantic.Field(default=0.06, ge=0, lt=1)
    """Relative, of each channel."""
    ambient: float = pydantic.Field(default=0.15, ge=0, lt=1)
    """Relative, of the light that comes from everywhere."""
    object_colour: float = pydantic.Field(default=0.06, ge=0, le=0.15)
    """Of each channel of each object, on a scale of 0 to 1; beyond 0.15 colours no longer deserve their names."""
    table_colour: float = pydantic.Field(default=0.06, ge=0, le=0.3)
    floor_colour: float = pydantic.Field(default=0.08, ge=0, le=0.3)
    gloss: float = pydantic.Field(default=0.2, ge=0, le=0.3)
    """Of specular reflection and shininess of the objects, on a scale of 0 to 1."""
    head_position_m: float = pydantic.Field(default=0.015, ge=0, le=0.1)
    head_look_at_m: float = pydantic.Field(default=0.010, ge=0, le=0.05)
    head_fov_deg: float = pydantic.Field(default=1.5, ge=0, le=10)
    wrist_position_m: float = pydantic.Field(default=0.003, ge=0, le=0.02)
    wrist_fov_deg: float = pydantic.Field(default=1.5, ge=0, le=10)
    friction: float = pydantic.Field(default=0.15, ge=0, le=0.4)
    """Relative, sliding friction of each object."""
    mass: float = pydantic.Field(default=0.2, ge=0, le=0.5)
    """Relative, of each object."""

    @classmethod
    def off(cls) -> Self:
        """The nominal world in every episode."""
        return cls(**dict.fromkeys(cls.model_fields, 0.0))

    @classmethod
    def strong(cls) -> Self:
        """Wide ranges, for training that must survive a change of camera and light, and for measuring that it does."""
        return cls(
            light_azimuth_deg=180.0,
            light_tilt_deg=25.0,
            light_intensity=0.45,
            light_colour=0.2,
            ambient=0.4,
            object_colour=0.1,
            table_colour=0.25,
            floor_colour=0.25,
            gloss=0.3,
            head_position_m=0.06,
            head_look_at_m=0.03,
            head_fov_deg=5.0,
            wrist_position_m=0.008,
            wrist_fov_deg=5.0,
            friction=0.3,
            mass=0.4,
        )


LIGHT_AZIMUTH_DEG = 50.0  # where the nominal lamp stands around the vertical, from x toward y


@dataclass(frozen=True, slots=True)
class Appearance:
    """One draw: offsets and factors around the nominal world, in the units of the config. n = MAX_OBJECTS."""

    light_azimuth_deg: float
    light_tilt_deg: float
    light_intensity: float
    light_colour: np.ndarray  # [3]
    ambient: float
    object_colour: np.ndarray  # [n, 3]
    table_colour: np.ndarray  # [3]
    floor_colour: np.ndarray  # [3]
    gloss: np.ndarray  # [2] specular, shininess
    head_position_m: np.ndarray  # [3]
    head_look_at_m: np.ndarray  # [3]
    head_fov_deg: float
    wrist_position_m: np.ndarray  # [3]
    wrist_fov_deg: float
    friction: np.ndarray  # [n]
    mass: np.ndarray  # [n]

    def mirrored(self) -> Appearance:
        """What the same world looks like with left and right exchanged: lamp and cameras change sides, everything else stays."""
        sides = np.array([1.0, -1.0, 1.0])
        return replace(
            self,
            light_azimuth_deg=-2 * LIGHT_AZIMUTH_DEG - self.light_azimuth_deg,
            head_position_m=self.head_position_m * sides,
            head_look_at_m=self.head_look_at_m * sides,
            wrist_position_m=self.wrist_position_m * sides,
        )


_SHAPES: dict[str, tuple[int, ...]] = {
    "light_colour": (3,),
    "object_colour": (MAX_OBJECTS, 3),
    "table_colour": (3,),
    "floor_colour": (3,),
    "gloss": (2,),
    "head_position_m": (3,),
    "head_look_at_m": (3,),
    "wrist_position_m": (3,),
    "friction": (MAX_OBJECTS,),
    "mass": (MAX_OBJECTS,),
}


def sample_appearance(config: RandomizationConfig, generator: np.random.Generator) -> Appearance:
    """Draws every quantity in a fixed order whatever the widths are, so that changing one range leaves the others' draws as they were."""
    draws = {}
    for name in RandomizationConfig.model_fields:
        unit = generator.uniform(-1.0, 1.0, size=_SHAPES.get(name, ()))
        value = unit * getattr(config, name)
        draws[name] = value if name in _SHAPES else float(value)
    return Appearance(**draws)
