"""Left and right change places: the recorded episode of one world is an episode of the mirrored one, if everything is mirrored together.

Image, camera roles, state, action and the words of the instruction, all for one draw per sample; how each is mirrored is declared by the
embodiment (`contract.Mirror`). The numbers are here, in raw units, before relative actions and normalisation. The image is flipped in
`warp.py` (`draw_maps` makes the same draw); words change in `language/`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from deftly.contract import Mirror
from deftly.randomness import uniform

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
