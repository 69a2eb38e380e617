"""Raw units to numbers around [-1, 1] and back. Affine per dimension; `normalize` and `unnormalize` are exact mirror images.

A dimension that hardly moves would have its noise blown up to full scale. So a spread below 1 % of the feature's typical spread is raised
to that, and further until nothing recorded goes beyond LIMIT; a constant keeps its unit. A single absurd value (an outlier) decides over
mean, deviation and range: there it is refused, while quantiles do not feel it. Every such dimension is listed in `adjusted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from deftly.types import DataError

Mode = Literal["identity", "mean_std", "min_max", "quantile"]
FLOOR = 1e-2  # of the typical (median) spread of the feature's dimensions that move at all
LIMIT = 20.0  # largest normalised value of a dimension that hardly moves
OUTLIER = 1e3  # times the spread between the 10 % and 90 % quantiles, away from the median: as the check sees it, and no robot's motion
EPSILON = 1e-6  # of the largest magnitude: below this a dimension is constant but for rounding
NEEDED: dict[Mode, tuple[str, str]] = {
    "identity": ("min", "max"),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
}
ROBUST = ("min", "max", "q10", "q50", "q90")  # what tells an outlier, in every mode


class Normalizer:
    """One feature's affine map: normalised = (raw - offset) / scale, float32.

    quantile   the 1 % and 99 % quantiles become -1 and 1; outliers pass beyond
    min_max    the smallest and largest value become -1 and 1
    mean_std   zero mean, unit variance
    identity   raw units
    """

    def __init__(self, mode: Mode, statistics: Mapping[str, Any], names: Sequence[str], feature: str) -> None:
        """`statistics` of one feature (lists of len(names)); `DataError` for a missing, misshapen or non-finite one, and for an outlier
        where the mode would feel it."""
        self.mode, self.feature, self.dim = mode, feature, len(names)
        self.adjusted: list[str] = []
        if mode == "identity" or not self.dim:
            self.offset, self.scale = np.zeros(self.dim, np.float32), np.ones(self.dim, np.float32)
            return
        values = {name: self._statistic(statistics, name) for name in dict.fromkeys((*ROBUST, *NEEDED[mode]))}
        is_outlying = outlying(values)
        for i in np.flatnonzero(is_outlying).tolist():
            low, high, q10, q90 = (f"{values[name][i]:.3g}" for name in ("min", "max", "q10", "q90"))
            line = f"{names[i]}: reaches {low} .. {high}, 80 % of it {q10} .. {q90}"
            if mode != "quantile":  # guard: data.normalize.outlier
                raise DataError(
                    f"statistics of {feature!r}: {line}: {mode} normalisation would squash the rest; use quantile, or repair it"
                )
            self.adjusted.append(f"{line}: outliers are kept as they are")
        low, high = (values[name] for name in NEEDED[mode])
        offset, scale = (low, high) if mode == "mean_std" else ((low + high) / 2, (high - low) / 2)
        if (scale < 0).any():  # guard: data.normalize.negative
            raise DataError(f"statistics of {feature!r}: {names[int((scale < 0).argmax())]!r} has a negative spread; compute them again")
        self.offset, self.scale = self._floored(offset, scale, values, is_outlying, names)

    def _statistic(self, statistics: Mapping[str, Any], name: str) -> Float[np.ndarray, "d"]:
        if name not in statistics:  # guard: data.normalize.missing
            raise DataError(
                f"statistics of {self.feature!r}: {name!r} is missing, and {self.mode} normalisation needs it; compute them again"
            )
        try:
            value = np.asarray(statistics[name], np.float64)
        except (TypeError, ValueError):
            raise DataError(f"statistics of {self.feature!r}: {name!r} is not a list of numbers") from None
        if value.shape != (self.dim,) or not np.isfinite(value).all():  # guard: data.normalize.statistic
            raise DataError(f"statistics of {self.feature!r}: {name!r} must be {self.dim} finite numbers, found shape {list(value.shape)}")
        return value

    def _floored(
        self, offset: np.ndarray, scale: np.ndarray, values: dict[str, np.ndarray], is_outlying: np.ndarray, names: Sequence[str]
    ) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
        offset, scale = offset.copy(), scale.copy()
        low, high = (np.where(is_outlying, values[inner], values[outer]) for outer, inner in (("min", "q10"), ("max", "q90")))
        half = (high - low) / 2
        tiny = EPSILON * np.maximum(np.maximum(np.abs(low), np.abs(high)), EPSILON)
        # a signal that is nearly always at one value (a gripper that closes once) has no quantile spread: its range is what there is
        for i in np.flatnonzero((scale <= tiny) & (half > tiny)).tolist():
            offset[i], scale[i] = (low[i] + high[i]) / 2, half[i]
            self.adjusted.append(f"{names[i]}: rarely moves, scaled by its range {low[i]:.4g} .. {high[i]:.4g}")
        moves = scale > tiny
        floor = FLOOR * np.median(scale[moves]) if moves.any() else 0.0
        hardly = moves & (np.minimum(scale, (values["q90"] - values["q10"]) / 2) < floor)
        raised = np.maximum(floor, np.maximum(high - offset, offset - low) / LIMIT)
        for i in np.flatnonzero(hardly & (scale < raised)).tolist():
            self.adjusted.append(f"{names[i]}: spread {scale[i]:.3g} raised to {raised[i]:.3g}")
            scale[i] = raised[i]
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


def outlying(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which dimensions [d] hold a value that no motion explains; none where nothing moves that it could be compared with."""
    spread = values["q90"] - values["q10"]
    typical = np.median(spread[spread > 0]) if (spread > 0).any() else 0.0
    reach = OUTLIER * np.maximum(spread, FLOOR * typical)
    return (reach > 0) & (np.maximum(values["max"] - values["q50"], values["q50"] - values["min"]) > reach)
