"""Which episodes train and which judge: by episode, and by scene where the dataset names scenes. Never by frame."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np
import torch

from deftly.randomness import permute
from deftly.types import DataError, UsageError

SCENE = "scene"
Split = tuple[np.ndarray, np.ndarray]
"""Sorted int64 episode ids: (training, validation)."""


class Episodes(Protocol):
    """What a split needs to know of a dataset."""

    @property
    def num_episodes(self) -> int: ...

    @property
    def extra(self) -> Callable[[str], list[Any]]: ...


def split_episodes(dataset: Episodes, validation_fraction: float, seed: int) -> Split:
    """Whole scenes, in a shuffle of `seed`, until at least the fraction of episodes is held out; at least one scene stays to train on.

    A fraction of 0 holds nothing out. Raises `UsageError` when there is only one scene to split.
    """
    groups = shuffled_scenes(dataset, seed)
    if not validation_fraction:
        return _sorted(groups), np.zeros(0, np.int64)
    if len(groups) < 2:
        raise UsageError(f"{dataset.num_episodes} episode(s) in {len(groups)} scene(s) cannot be split; set validation_fraction to 0")
    wanted = validation_fraction * dataset.num_episodes
    count, held = 0, 0
    while held < wanted and count < len(groups) - 1:
        held += len(groups[count])
        count += 1
    return _sorted(groups[count:]), _sorted(groups[:count])


def fold_episodes(dataset: Episodes, folds: int, seed: int) -> list[Split]:
    """Cross-validation: every episode is held out in exactly one of the `folds`, scenes kept together."""
    groups = shuffled_scenes(dataset, seed)
    if not 2 <= folds <= len(groups):
        raise UsageError(f"{folds} folds of {len(groups)} scene(s): give a number of folds from 2 to {len(groups)}")
    parts: list[list[np.ndarray]] = [[] for _ in range(folds)]
    for group in groups:
        min(parts, key=lambda part: sum(map(len, part))).append(group)  # the first smallest: balanced, and the same every time
    return [(_sorted([group for other in parts if other is not part for group in other]), _sorted(part)) for part in parts]


def shuffled_scenes(dataset: Episodes, seed: int) -> list[np.ndarray]:
    """Episode ids grouped by scene, the groups in a counted shuffle. An episode without a scene is a scene of its own."""
    scenes = dataset.extra(SCENE)
    groups: dict[Hashable, list[int]] = {}
    for episode in range(dataset.num_episodes):
        scene = scenes[episode] if scenes else None
        groups.setdefault(("episode", episode) if scene is None else ("scene", scene), []).append(episode)
    found = [np.asarray(group, np.int64) for group in groups.values()]
    place = permute(torch.arange(len(found)), len(found), seed, 0).tolist()
    return [group for _, group in sorted(zip(place, found, strict=True), key=lambda pair: pair[0])]


def check_split(dataset: Episodes, training: np.ndarray, validation: np.ndarray) -> Split:
    """A split that somebody gave: sorted, within the dataset, nothing on both sides, no scene on both sides.

    Raises `DataError` that names the episode or the scene.
    """
    sides = np.asarray(training, np.int64), np.asarray(validation, np.int64)
    for side, name in zip(sides, ("training", "validation"), strict=True):
        if len(np.unique(side)) != len(side):
            raise DataError(f"{name} split: an episode is listed twice")
        if len(side) and (side.min() < 0 or side.max() >= dataset.num_episodes):
            raise DataError(f"{name} split: episode {side.max()} is outside of the dataset's {dataset.num_episodes}")
    if not len(sides[0]):
        raise DataError("training split: no episode to train on; lower validation_fraction or add data")
    both = np.intersect1d(*sides)
    if len(both):
        raise DataError(f"episode {both[0]} is in the training AND the validation split; take it out of one")
    scenes = dataset.extra(SCENE)
    if scenes:
        known = {scenes[episode] for episode in sides[0].tolist() if scenes[episode] is not None}
        for episode in sides[1].tolist():
            if scenes[episode] is not None and scenes[episode] in known:
                raise DataError(
                    f"scene {scenes[episode]!r} (episode {episode}) is in the training AND the validation split; keep a scene on one side"
                )
    return np.sort(sides[0]), np.sort(sides[1])


def _sorted(groups: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(groups)) if groups else np.zeros(0, np.int64)
