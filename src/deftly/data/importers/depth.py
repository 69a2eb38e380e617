"""Distances that come as arrays of numbers: which observations are that, and the one form in which they are kept, whole millimetres.

Floats are metres, as robomimic writes what its simulator measures, and 16-bit whole numbers are millimetres, as depth cameras do. Neither
kind of file says so itself: what was found is said in the report, with the range. Nothing else is guessed, so other types are left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import numpy as np

from deftly.data.depth import MOST_MM, millimetres
from deftly.data.schema import IMAGES, MAX_PIXELS, Feature
from deftly.types import DataError

METRES = ("float16", "float32", "float64")
MILLIMETRES = ("uint16",)


def depth_feature(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[str, Feature] | None:
    """(key, feature) of an observation whose frames [h w] or [h w 1] are distances by its name and type; None for any other."""
    if not re.fullmatch(r"[\w.-]{1,100}", name) or not re.search(r"(^|[_.-])depth([_.-]|$)", name):
        return None
    if dtype not in (*METRES, *MILLIMETRES) or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)):
        return None
    if not (min(shape) > 0 and math.prod(shape) <= MAX_PIXELS):
        return None
    about = {"video.is_depth_map": True, "depth_unit": "mm"}
    return IMAGES + name, Feature("image", (shape[0], shape[1], 1), ("height", "width", "channels"), about)


@dataclass
class DepthSeen:
    """What was read of each depth observation: from where to where it reaches, and how much of it could not be kept."""

    stored: set[str] = field(default_factory=set)  # encoded images, taken as they are
    ranges: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # name -> (unit, nearest, farthest), metres
    lost: dict[str, int] = field(default_factory=dict)  # name -> values beyond what fits, or not finite

    def take(self, name: str, values: np.ndarray, feature: Feature, length: int, where: str) -> np.ndarray:
        """Distances as uint16 [T h w] millimetres, 0 where nothing was measured; a `DataError` unless they are what `feature` says."""
        height, width, _ = feature.shape
        if values.dtype.name not in (*METRES, *MILLIMETRES) or values.size != length * height * width or len(values) != length:
            raise DataError(f"{where}: {name} is {values.dtype} {list(values.shape)}, expected distances [{length} {height} {width}]")
        values = values.reshape(length, height, width)
        unit = "millimetres" if values.dtype.name in MILLIMETRES else "metres"
        found = values
        if unit == "metres":
            if (values < 0).any():
                raise DataError(f"{where}: {name} holds distances below 0, down to {float(np.nanmin(values)):.4g}")
            found = np.stack([millimetres(frame) for frame in values])  # frame by frame: in float64 for a moment
            self.lost[name] = self.lost.get(name, 0) + int((~(values <= MOST_MM / 1000)).sum())
        measured = found[found > 0]
        if len(measured):
            _, near, far = self.ranges.get(name, (unit, math.inf, 0.0))
            self.ranges[name] = unit, min(near, float(measured.min()) / 1000), max(far, float(measured.max()) / 1000)
        return found

    def notes(self) -> list[str]:
        """What a reader of the dataset should know, one line per observation."""
        lines = [f"{name}: 16-bit images, read as millimetres" for name in sorted(self.stored)]
        for name, (unit, near, far) in sorted(self.ranges.items()):
            line = f"{name}: read as {unit}, {near:.3f} to {far:.3f} m, kept as whole millimetres"
            if unit == "metres" and far <= 1:
                line += "; if these are values of a depth buffer (0 to 1) and no metres, convert them and import again"
            lines.append(line + (f"; {lost} values that are no distance below 65.5 m became 0" if (lost := self.lost.get(name)) else ""))
        return lines
