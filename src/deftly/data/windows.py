"""Which rows of a dataset a sample is made of. Pure index arithmetic; a window never leaves its episode.

```
frames = 3, chunk = 4, now = row n of an episode that starts at s and ends before e
observation rows      n-2  n-1   n           clamped to s, observation_is_pad where they were
past action rows      n-3  n-2  n-1          the action commanded one step before each of them; pad before s
action rows                      n  n+1  n+2  n+3    clamped to e-1, action_is_pad where they were
```
Letters: b batch, t observation frames, k chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from deftly.contract import Window


class WindowRows(NamedTuple):
    """Rows into the dataset's columns, with their padding."""

    observation: Int64[np.ndarray, "b t"]
    observation_is_pad: Bool[np.ndarray, "b t"]
    past_action: Int64[np.ndarray, "b t"]
    past_action_is_pad: Bool[np.ndarray, "b t"]
    action: Int64[np.ndarray, "b k"]
    action_is_pad: Bool[np.ndarray, "b k"]


def window_rows(now: Int64[np.ndarray, "b"], start: Int64[np.ndarray, "b"], end: Int64[np.ndarray, "b"], window: Window) -> WindowRows:
    """Rows of the windows whose current frame is row `now` of an episode [start, end)."""
    seen = now[:, None] + np.arange(1 - window.frames, 1)
    seen_is_pad = seen < start[:, None]
    past = seen - 1
    past_is_pad = past < start[:, None]
    ahead = now[:, None] + np.arange(window.chunk)
    ahead_is_pad = ahead >= end[:, None]
    first, last = start[:, None], end[:, None] - 1
    return WindowRows(np.maximum(seen, first), seen_is_pad, np.maximum(past, first), past_is_pad, np.minimum(ahead, last), ahead_is_pad)


def rows_of(episode_start: Int64[np.ndarray, "e1"], episodes: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "m"]:
    """Every row of some episodes, in order; `episode_start` is the dataset's [E+1]."""
    ranges = [np.arange(int(episode_start[episode]), int(episode_start[episode + 1])) for episode in episodes]
    return np.concatenate(ranges).astype(np.int64) if ranges else np.zeros(0, np.int64)


def episode_of(episode_start: Int64[np.ndarray, "e1"], rows: Int64[np.ndarray, "b"]) -> Int64[np.ndarray, "b"]:
    """The episode that each row belongs to; empty episodes own no row."""
    return np.searchsorted(episode_start, rows, side="right").astype(np.int64) - 1
