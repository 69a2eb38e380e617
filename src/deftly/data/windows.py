"""Which windows there are, which rows of a dataset each is made of, and how rows become a batch. A window never leaves its episode.

```
frames = 3, chunk = 4, now = row n of an episode that starts at s and ends before e
observation rows      n-2  n-1   n           clamped to s, observation_is_pad where they were
past action rows      n-3  n-2  n-1          the action commanded one step before each of them; pad before s
action rows                      n  n+1  n+2  n+3    clamped to e-1, action_is_pad where they were
```
Letters: b batch, t observation frames, k chunk, s selected episodes, e1 all episodes + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from deftly.contract import Contract, Window
from deftly.data.augment import OFF, AugmentConfig
from deftly.data.columns import Columns
from deftly.data.depth import PREFIX
from deftly.data.encoding import Gathered, ObservationEncoder
from deftly.data.language.augment import Augmenter
from deftly.data.language.texts import Texts
from deftly.data.mirror import draw_mirrored, mirror_action, mirror_state
from deftly.data.warp import draw_maps, warp
from deftly.types import Batch, UsageError


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


def episode_of(episode_start: Int64[np.ndarray, "e1"], rows: Int64[np.ndarray, "b"]) -> Int64[np.ndarray, "b"]:
    """The episode that each row belongs to; empty episodes own no row."""
    return np.searchsorted(episode_start, rows, side="right").astype(np.int64) - 1


def locate(
    episode_start: Int64[np.ndarray, "e1"], rows: Int64[np.ndarray, "b"], window: Window
) -> tuple[Int64[np.ndarray, "b"], WindowRows]:
    """(episode, rows of the window) of the windows whose current frames are `rows`."""
    episode = episode_of(episode_start, rows)
    return episode, window_rows(rows, episode_start[episode], episode_start[episode + 1], window)


class Selection:
    """Windows 0 .. n-1: those of some episodes, in their order, or an even share of them. Two numbers per episode, nothing per frame.

    Every row of an episode is the current frame of one window; empty episodes have none.
    """

    def __init__(self, episode_start: Int64[np.ndarray, "e1"], episodes: Int64[np.ndarray, "s"], at_most: int | None = None) -> None:
        """`episode_start` is the dataset's [E+1]; with `at_most`, evenly spaced windows are taken when there are more."""
        self.episodes = np.asarray(episodes, np.int64)
        self.row_end = episode_start[self.episodes + 1]  # of each episode, in the dataset
        self.window_end = np.cumsum(self.row_end - episode_start[self.episodes])  # of each episode, among the windows
        self.all = int(self.window_end[-1]) if len(self.episodes) else 0
        self.count = self.all if at_most is None else min(at_most, self.all)

    def __len__(self) -> int:
        return self.count

    def rows(self, index: Int64[np.ndarray, "b"]) -> Int64[np.ndarray, "b"]:
        """The current row, in the dataset, of some windows; an index outside of 0 .. n-1 is an `IndexError`."""
        if len(index) and not (index.min() >= 0 and index.max() < self.count):
            raise IndexError(f"windows {index.min()} .. {index.max()} of {self.count}")
        if self.count < self.all:
            index = index * self.all // self.count
        place = np.searchsorted(self.window_end, index, side="right")
        return index + self.row_end[place] - self.window_end[place]


class WindowOrder(Protocol):
    """In which order an endless stream shows its windows."""

    name: str  # of the kind of order, for the saved state

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, "m"], Int64[Tensor, "m"]]:
        """(window, key) of samples start .. start + count - 1."""
        ...


class Share(NamedTuple):
    """Which samples of every batch are made here: one process makes all, one of several a stretch of them."""

    batch: int
    """Samples in the whole batch."""
    first: int
    count: int

    @property
    def stop(self) -> int:
        return self.first + self.count


def share_of(batch: int, rank: int = 0, ranks: int = 1) -> Share:
    """The stretch of process `rank` of `ranks`. Raises `UsageError` where the stretches would not be equal."""
    if batch % ranks:  # guard: data.share.divides
        raise UsageError(f"data.batch_size {batch} does not divide into {ranks} processes; it counts the samples of all of them together")
    return Share(batch, rank * (batch // ranks), batch // ranks)


class Feed(Protocol):
    """The images of an endless stream, prepared in its order."""

    @property
    def order(self) -> WindowOrder: ...

    def images(self, start: int, count: int) -> dict[str, Tensor]:
        """Camera -> uint8 [count t h w 3] of samples start .. start + count - 1; asked for the share of one batch after the other."""
        ...

    def kill(self) -> None:
        """End the processes, from any thread: `images` need not wait for them any longer."""
        ...

    def close(self) -> None:
        """Stop the processes; the next batch may be anywhere."""
        ...


class FrameSource(Protocol):
    """Where images come from: a store of decoded frames (`stored.py`), or the video itself (`direct.py`)."""

    episode_start: Int64[np.ndarray, "e1"]

    def read(self, rows: Int64[np.ndarray, "b"], key: Int64[Tensor, "b"], augmentation: AugmentConfig) -> dict[str, Tensor]:
        """Camera -> uint8 [b t h w 3] at the policy's size, moved as the augmentation says, of any windows; and each depth camera, with
        `depth.PREFIX`, -> uint16 [b t h w] millimetres."""
        ...

    def feed(self, selection: Selection, seed: int, share: Share, augmentation: AugmentConfig, workers: int) -> Feed:
        """The images of an endless, shuffled stream of windows; `workers` processes prepare them, or with 0 this one."""
        ...


def maps_of(key: Int64[Tensor, "b"], augmentation: AugmentConfig, contract: Contract) -> Float32[np.ndarray, "cameras b 2 3"]:
    """The geometry of some samples, for the policy's cameras that this robot has (`warp.draw_maps`)."""
    names = tuple(contract.recorded_cameras())
    return draw_maps(key, names, [contract.role_of(name) for name in names], augmentation, contract.image_size, contract.frame_size)


def moved(
    frames: Mapping[str, UInt8[np.ndarray, "n s s 3"]],
    rows: Int64[np.ndarray, "b t"],
    key: Int64[Tensor, "b"],
    augmentation: AugmentConfig,
    contract: Contract,
    maps: Float32[np.ndarray, "cameras b 2 3"] | None = None,
) -> dict[str, Tensor]:
    """Camera that this robot has -> uint8 [b t h w 3]: rows of some frames (by their recorded names) under the geometry of an augmentation.

    A mirrored sample sees its partner camera. `maps` are these samples' `maps_of`, where somebody has drawn them already.
    """
    recorded, size = contract.recorded_cameras(), contract.image_size
    maps = maps_of(key, augmentation, contract) if maps is None else maps
    partners = contract.embodiment.mirror.cameras if contract.embodiment.mirror else {}
    mirrored = draw_mirrored(key, augmentation.mirror)
    images = {}
    for (name, source), part in zip(recorded.items(), maps, strict=True):
        partner = partners.get(source, source)
        if partner == source or not mirrored.any():
            images[name] = torch.from_numpy(warp(frames[source], rows, part, size))
        else:
            both = np.empty((*rows.shape, size, size, 3), np.uint8)
            for shown, chosen in ((source, ~mirrored), (partner, mirrored)):
                both[chosen] = warp(frames[shown], rows[chosen], part[chosen], size)
            images[name] = torch.from_numpy(both)
    return images


class Windows:
    """Row numbers to batches on the CPU: everything but pixels, which come from workers, and colour, which comes after transfer.

    In this order: gather in raw units, mirror; then, in the encoder: relative actions, normalise, tokenise, collate.
    """

    def __init__(
        self,
        columns: Columns,
        frames: FrameSource,
        encoder: ObservationEncoder,
        tasks: Sequence[str],
        augmenter: Augmenter | None = None,
        *,
        weights: Float[np.ndarray, "e"] | None = None,
        source: int = 0,
    ) -> None:
        """`tasks` are the dataset's sentences, `weights` what a sample of each episode counts in the loss (1 without them), `source` the
        dataset's number in a mixture."""
        self.columns, self.frames, self.encoder, self.weights, self.source = columns, frames, encoder, weights, source
        self.texts = Texts(tasks, encoder.tokens, augmenter)

    def build(
        self,
        rows: Int64[np.ndarray, "b"],
        key: Int64[Tensor, "b"],
        images: dict[str, Tensor],
        augmentation: AugmentConfig = OFF,
        *,
        reword: bool = False,
    ) -> Batch:
        """The windows whose current frames are `rows`, with the images that `frames.read` gave for them; instructions in other words where
        `reword`."""
        contract, start = self.encoder.contract, self.frames.episode_start
        episode, at = locate(start, rows, contract.window)
        task = self.columns.task[rows].astype(np.int64)
        state, past, action = self.columns.state[at.observation], self.columns.action[at.past_action], self.columns.action[at.action]
        mirrored = draw_mirrored(key, augmentation.mirror)
        if mirrored.any():
            mirror = contract.embodiment.mirror
            assert mirror is not None, "the loader refuses a mirror that is not declared"
            state[mirrored] = mirror_state(state[mirrored], mirror)
            past[mirrored], action[mirrored] = mirror_action(past[mirrored], mirror), mirror_action(action[mirrored], mirror)
        gathered = Gathered(
            images={name: image.numpy() for name, image in images.items() if not name.startswith(PREFIX)},
            depth={one.name: images[PREFIX + one.name].numpy() for one in contract.depth},
            state=state,
            observation_is_pad=at.observation_is_pad,
            past_actions=past,
            past_action_is_pad=at.past_action_is_pad,
            text=self.texts.tokens(task, key, mirrored, reword=reword),
            key=key,
            task=task,
            episode=episode,
            frame=rows - start[episode],
            actions=action,
            action_is_pad=at.action_is_pad,
            weight=None if self.weights is None else self.weights[episode],
            source=self.source,
        )
        return self.encoder.collate(gathered)
