"""The statistics that a policy is trained with: of state, actions and, where they are relative, of the actions as the policy predicts them.

    CACHE/statistics/<key>.json     `key` hashes the datasets, their episodes and how actions are counted, so none is ever stale

Columns are read in blocks of whole episodes, never decoding video; several datasets of one robot are measured as one.
Letters: n rows, s state dims, a action dims, e1 episodes + 1, m selected episodes, k chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pydantic
from jaxtyping import Float, Int64

from deftly import storage
from deftly.contract import Embodiment, Mirror, RelativeActions, Window, fingerprint
from deftly.data.actions import features, past_to_relative, to_relative
from deftly.data.encoding import Statistics, plain_statistics
from deftly.data.mirror import MirroredNumbers
from deftly.data.schema import ACTION, STATE
from deftly.data.statistics import describe
from deftly.data.windows import window_rows
from deftly.types import DataError

FORMAT = "statistics-1"
BLOCK = 1 << 16  # rows read at once


class Numbers(Protocol):
    """What is measured of a dataset."""

    @property
    def state(self) -> np.ndarray: ...

    @property
    def action(self) -> np.ndarray: ...

    @property
    def task(self) -> np.ndarray: ...


class Part(NamedTuple):
    """Some episodes of a dataset."""

    numbers: Numbers
    episode_start: Int64[np.ndarray, "e1"]
    episodes: Int64[np.ndarray, "m"]
    dataset_hash: str


def mirrored(part: Part, mirror: Mirror) -> Part:
    """The same episodes as the mirrored robot would have recorded them. Where training mirrors samples, both are measured: an arm that
    rests throughout the data moves in the mirrored half of it."""
    return part._replace(numbers=MirroredNumbers(part.numbers, mirror), dataset_hash=f"{part.dataset_hash}/{fingerprint(mirror.to_dict())}")


def measure(parts: Sequence[Part], relative: RelativeActions | None = None, window: Window = Window()) -> Statistics:
    """Statistics over all rows of the parts; a state of no dimensions has none. The absolute actions are always among them."""
    found = {
        name: describe(name, lambda name=name: (getattr(part.numbers, name)[rows] for part in parts for rows in blocks(part)))
        for name in ("state", "action")
        if getattr(parts[0].numbers, name).shape[1]
    }
    result = {{"state": STATE, "action": ACTION}[name]: values for name, values in found.items()}
    if relative is not None:
        actions, past = features(relative, window)
        result[actions] = describe(actions, lambda: _chunks(parts, relative, window))
        result[past] = describe(past, lambda: _past(parts, relative, window))
    return plain_statistics(result)


def cached_statistics(
    parts: Sequence[Part], cache_dir: Path, relative: RelativeActions | None = None, window: Window = Window()
) -> Statistics:
    """`measure`, or what it found before for the same data. A file that is broken is measured again."""
    about = [[part.dataset_hash, part.episodes.tolist()] for part in parts]
    path = cache_dir / "statistics" / f"{fingerprint([FORMAT, about, features(relative, window)])[:32]}.json"
    try:
        kept = storage.read_json(path)
        values = pydantic.TypeAdapter(Statistics).validate_python(kept["statistics"])
        if fingerprint(values) == kept["sha256"]:
            return values
    except (DataError, KeyError, TypeError, pydantic.ValidationError):
        pass
    values = measure(parts, relative, window)
    storage.write_json(path, {"format": FORMAT, "statistics": values, "sha256": fingerprint(values)})
    return values


def blocks(part: Part, size: int = BLOCK) -> Iterator[slice]:
    """Rows of the selected episodes, in order: runs of episodes that follow each other, `size` rows at most."""
    start, end = part.episode_start[part.episodes], part.episode_start[part.episodes + 1]
    breaks = np.flatnonzero(start[1:] != end[:-1]) + 1
    for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(start)], strict=True):
        for row in range(int(start[first]) if last else 0, int(end[last - 1]) if last else 0, size):
            yield slice(row, min(row + size, int(end[last - 1])))


def _chunks(parts: Sequence[Part], relative: RelativeActions, window: Window) -> Iterator[Float[np.ndarray, "n a"]]:
    """The actions that follow each row, as the policy predicts them; none beyond the end of an episode."""
    for part in parts:
        for now, at in _windows(part, window, window.chunk):
            chunk = to_relative(part.numbers.action[at.action], part.numbers.state[now], relative).astype(np.float32)
            yield chunk[~at.action_is_pad]


def _past(parts: Sequence[Part], relative: RelativeActions, window: Window) -> Iterator[Float[np.ndarray, "n a"]]:
    for part in parts:
        for now, at in _windows(part, window, window.frames):
            past = past_to_relative(part.numbers.action[at.past_action], part.numbers.state[now], relative).astype(np.float32)
            yield past[~at.past_action_is_pad]


def _windows(part: Part, window: Window, per_row: int) -> Iterator[tuple[np.ndarray, Any]]:
    for rows in blocks(part, max(1, BLOCK // per_row)):
        now = np.arange(rows.start, rows.stop)
        episode = np.searchsorted(part.episode_start, now, side="right") - 1
        yield now, window_rows(now, part.episode_start[episode], part.episode_start[episode + 1], window)


def check_numbers(root: Path, robot: Embodiment, part: Part) -> None:
    """Raise a `DataError` naming episode, frame and dimension of the first state or action that is not finite."""
    for feature, values, names in ((STATE, part.numbers.state, robot.state.names), (ACTION, part.numbers.action, robot.action.names)):
        for rows in blocks(part):
            bad = ~np.isfinite(values[rows])
            if bad.any():  # guard: data.measure.finite
                at, dim = (int(i) for i in np.argwhere(bad)[0])
                row = rows.start + at
                episode = int(np.searchsorted(part.episode_start, row, side="right")) - 1
                raise DataError(
                    f"{root}: episode {episode}, frame {row - part.episode_start[episode]}: {feature} {names[dim]!r} is "
                    f"{values[row, dim]}; repair the episode or leave it out"
                )
