"""Actions counted from where the robot is instead of as absolute targets, and back. The loader and the agent both go through here.

```
state now s        chunk  a0  a1  a2 ...        past actions  p0  p1 ...
relative                  a0-s  a1-s   a2-s                    p0-s  p1-s
delta                     a0-s  a1-a0  a2-a1                   p0-s  p1-s
```
s is the state of the newest frame, in the dimensions that the actions command; dimensions without one stay as they are. Differences are
in float64, which holds those of float32 without rounding (as long as the two are within a factor of 2^29): what is turned around comes
back to the bit. Letters: b batch, t frames, k chunk, a action dims, s state dims.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pydantic
from jaxtyping import Float

from deftly.config import Config
from deftly.contract import Embodiment, RelativeActions, Window, fingerprint
from deftly.data.schema import ACTION
from deftly.types import UsageError


class ActionsConfig(Config):
    """Train on actions as they were recorded, or counted from where the robot is."""

    kind: Literal["recorded", "relative", "delta"] = "recorded"
    state_of: dict[str, str | None] | None = None
    """Action dimension -> the state dimension that it is counted from (null: it stays absolute, as do dimensions that are left out); by
    default the state dimension of the same name and unit."""

    @pydantic.model_validator(mode="after")
    def check_effect(self) -> ActionsConfig:
        if self.kind == "recorded" and self.state_of is not None:
            raise ValueError("state_of says what relative and delta actions are counted from; kind is recorded")
        return self

    def build(self, robot: Embodiment) -> RelativeActions | None:
        """None where actions stay as recorded. Raises `UsageError` for a name that the robot does not have, and where there is nothing to
        count from."""
        if self.kind == "recorded":
            return None
        state, action = robot.state.names, robot.action.names
        if robot.action_kind.endswith("_delta"):
            raise UsageError(
                f"robot {robot.name!r} records actions of kind {robot.action_kind}, relative already: leave actions.kind at recorded"
            )
        if self.state_of is None:
            unit = dict(zip(state, robot.state.units, strict=True))
            chosen = {name: name for name, u in zip(action, robot.action.units, strict=True) if unit.get(name) == u}
        else:
            chosen = self.state_of
        for names, known, what in ((chosen.keys(), action, "action"), (filter(None, chosen.values()), state, "state")):
            for name in names:
                if name not in known:
                    raise UsageError(f"actions.state_of: {robot.name!r} has no {what} dimension {name!r}; it has {', '.join(known)}")
        places = tuple(None if (source := chosen.get(name)) is None else state.index(source) for name in action)
        if all(place is None for place in places):
            raise UsageError(
                f"actions: no action dimension of {robot.name!r} has a state of the same name and unit; say which in actions.state_of"
            )
        return RelativeActions(kind=self.kind, state_of=places)


def reference(state: Float[np.ndarray, "*b s"], relative: RelativeActions) -> Float[np.ndarray, "*b a"]:
    """What each action dimension is counted from, float64: the state, or 0 where it stays absolute."""
    found = np.zeros((*state.shape[:-1], len(relative.state_of)), np.float64)
    for i, place in enumerate(relative.state_of):
        if place is not None:
            found[..., i] = state[..., place]
    return found


def to_relative(
    chunk: Float[np.ndarray, "*b k a"], state: Float[np.ndarray, "*b s"], relative: RelativeActions
) -> Float[np.ndarray, "*b k a"]:
    """A chunk of recorded actions as the policy predicts it, float64. `state` is the one now, raw as recorded, like the chunk."""
    origin = reference(state, relative)[..., None, :]
    if relative.kind == "relative":
        return chunk.astype(np.float64) - origin
    before = np.where(_counted(relative), chunk[..., :-1, :], 0.0)
    return chunk.astype(np.float64) - np.concatenate([origin, before], axis=-2)


def from_relative(
    chunk: Float[np.ndarray, "*b k a"], state: Float[np.ndarray, "*b s"], relative: RelativeActions
) -> Float[np.ndarray, "*b k a"]:
    """The inverse of `to_relative`, float64."""
    origin = reference(state, relative)[..., None, :]
    if relative.kind == "relative":
        return chunk + origin
    steps = np.concatenate([chunk[..., :1, :] + origin, chunk[..., 1:, :]], axis=-2)
    return np.where(_counted(relative), np.cumsum(steps, axis=-2), steps)


def past_to_relative(
    past: Float[np.ndarray, "*b t a"], state: Float[np.ndarray, "*b s"], relative: RelativeActions
) -> Float[np.ndarray, "*b t a"]:
    """Past actions from the state now, float64; of both kinds: the step before the oldest one is outside of the window."""
    return past.astype(np.float64) - reference(state, relative)[..., None, :]


def features(relative: RelativeActions | None, window: Window) -> tuple[str, str]:
    """Names of the statistics of (actions, past actions) in `stats.json`.

    Relative ones have a fingerprint in their name: statistics of another way to count are another feature, and cannot be taken for these.
    """
    if relative is None:
        return ACTION, ACTION
    seen = {"frames": window.frames, "chunk": window.chunk}
    mark = f"({relative.kind} {fingerprint([relative.to_dict(), seen])[:12]})"
    return f"{ACTION} {mark}", f"past_{ACTION} {mark}"


def _counted(relative: RelativeActions) -> np.ndarray:
    return np.array([place is not None for place in relative.state_of])
