"""Raw units to numbers around [-1, 1] and back. Affine per dimension; `normalize` and `unnormalize` are exact mirror images.

A dimension that hardly moves would have its noise blown up to full scale. So a spread below 1 % of the feature's typical spread is raised
to that, a constant keeps its unit, and every such dimension is listed in `adjusted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from deftly.types import DataError

Mode = Literal["identity", "mean_std", "min_max", "quantile"]
FLOOR = 1e-2  # of the typical (median) spread of the feature's dimensions that move at all
EPSILON = 1e-6  # of the largest magnitude: below this a dimension is constant but for rounding
NEEDED: dict[Mode, tuple[str, str]] = {
    "identity": ("min", "max"),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
}


class Normalizer:
    """One feature's affine map: normalised = (raw - offset) / scale, float32.

    quantile   the 1 % and 99 % quantiles become -1 and 1; outliers pass beyond
    min_max    the smallest and largest value become -1 and 1
    mean_std   zero mean, unit variance
    identity   raw units
    """

    def __init__(self, mode: Mode, statistics: Mapping[str, Any], names: Sequence[str], feature: str) -> None:
        """`statistics` of one feature (lists of len(names)); `DataError` for a missing, misshapen or non-finite one."""
        self.mode, self.feature, self.dim = mode, feature, len(names)
        self.adjusted: list[str] = []
        if mode == "identity" or not self.dim:
            self.offset, self.scale = np.zeros(self.dim, np.float32), np.ones(self.dim, np.float32)
            return
        values = {name: self._statistic(statistics, name) for name in {"min", "max", *NEEDED[mode]}}
        low, high = (values[name] for name in NEEDED[mode])
        offset, scale = (low, high) if mode == "mean_std" else ((low + high) / 2, (high - low) / 2)
        if (scale < 0).any():
            raise DataError(f"statistics of {feature!r}: {names[int((scale < 0).argmax())]!r} has a negative spread; compute them again")
        self.offset, self.scale = self._floored(offset, scale, values["min"], values["max"], names)

    def _statistic(self, statistics: Mapping[str, Any], name: str) -> Float[np.ndarray, "d"]:
        if name not in statistics:
            raise DataError(
                f"statistics of {self.feature!r}: {name!r} is missing, and {self.mode} normalisation needs it; compute them again"
            )
        try:
            value = np.asarray(statistics[name], np.float64)
        except (TypeError, ValueError):
            raise DataError(f"statistics of {self.feature!r}: {name!r} is not a list of numbers") from None
        if value.shape != (self.dim,) or not np.isfinite(value).all():
            raise DataError(f"statistics of {self.feature!r}: {name!r} must be {self.dim} finite numbers, found shape {list(value.shape)}")
        return value

    def _floored(
        self, offset: np.ndarray, scale: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str]
    ) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
        offset, scale = offset.copy(), scale.copy()
        half = (high - low) / 2
        tiny = EPSILON * np.maximum(np.maximum(np.abs(low), np.abs(high)), EPSILON)
        # a signal that is nearly always at one value (a gripper that closes once) has no quantile spread: its range is what there is
        for i in np.flatnonzero((scale <= tiny) & (half > tiny)).tolist():
            offset[i], scale[i] = (low[i] + high[i]) / 2, half[i]
            self.adjusted.append(f"{names[i]}: rarely moves, scaled by its range {low[i]:.4g} .. {high[i]:.4g}")
        moves = scale > tiny
        floor = FLOOR * np.median(scale[moves]) if moves.any() else 0.0
        for i in np.flatnonzero(moves & (scale < floor)).tolist():
            self.adjusted.append(f"{names[i]}: spread {scale[i]:.3g} raised to {floor:.3g}")
            scale[i] = floor
        for i in np.flatnonzero(~moves).tolist():
            self.adjusted.append(f"{names[i]}: constant at {offset[i]:.4g}, not scaled")
            scale[i] = 1.0
        return offset.astype(np.float32), scale.astype(np.float32)

    def normalize(self, raw: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
        """Raw units to normalised, float32."""
        return (raw.astype(np.float32) - self.offset) / self.scale

    def unnormalize(self, normalized: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
        """Normalised to raw units, float32."""
        return normalized.astype(np.float32) * self.scale + self.offset
