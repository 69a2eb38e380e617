"""Several datasets, of one robot or of many, in one stream of batches: how much of each, and what they have in common.

Every batch holds the same number of samples of each dataset, so each dataset's own stream (order, keys, epochs) is what it would be alone:
adding one changes nothing of the others but how many of their samples a batch has, and what those weigh. Numbers are normalised by each
robot's own statistics; a camera or a dimension that a robot does not have is masked. How a dataset is prepared does not belong here
(`source.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deftly.contract import CameraRole, Embodiment, MixedCamera
from deftly.data.loader import Loader, Made
from deftly.data.measure import Part
from deftly.data.prefetch import Prefetch, is_core_free
from deftly.data.windows import Share
from deftly.types import Batch, DataError, Stream, Tokens, UsageError

Balance = Literal["frame", "episode", "task"]


class Common(NamedTuple):
    """What the policy of several robots sees of each."""

    cameras: dict[str, CameraRole]
    """The policy's cameras, in order."""
    widths: tuple[int, int]
    """Dimensions of state and action."""

    def on(self, recorded: Mapping[str, str]) -> dict[str, MixedCamera]:
        """The policy's cameras on a robot; `recorded` are those that it has, by the policy's names."""
        return {name: MixedCamera(recorded=recorded.get(name), role=role) for name, role in self.cameras.items()}


def in_common(robots: Sequence[Embodiment], recorded: Sequence[Mapping[str, str]]) -> Common:
    """Every camera of any robot, and room for the largest state and action. `recorded`: each robot's cameras, by the policy's names.

    Raises `UsageError` where a name is a wrist camera on one robot and a scene camera on another.
    """
    cameras: dict[str, CameraRole] = {}
    for robot, names in zip(robots, recorded, strict=True):
        for name, own in names.items():
            role = robot.camera(own).role
            if cameras.setdefault(name, role) != role:  # guard: data.mixture.camera_roles
                raise UsageError(
                    f"camera {name!r} is a {cameras[name]} camera on one robot and a {role} camera on {robot.name!r}; "
                    "give them different names in the mixture's `cameras`"
                )
    return Common(cameras, (max(len(robot.state) for robot in robots), max(len(robot.action) for robot in robots)))


def robots_of(robots: Sequence[Embodiment]) -> list[int]:
    """The number of each dataset's robot: datasets of the same embodiment share it. `UsageError` for two robots of one name."""
    seen: dict[str, tuple[int, Embodiment]] = {}
    for robot in robots:
        if seen.setdefault(robot.name, (len(seen), robot))[1] != robot:  # guard: data.mixture.robot_names
            raise UsageError(
                f"two different robots of the mixture are called {robot.name!r}; name the second one with the source's `robot`"
            )
    return [seen[robot.name][0] for robot in robots]


def sizes_of(balance: Balance, parts: Sequence[Part]) -> list[int]:
    """How much each dataset counts before its weight: its training frames, episodes or instructions."""
    if balance == "episode":
        return [len(part.episodes) for part in parts]
    if balance == "task":
        return [len(np.unique(first_task(part)[part.episodes])) for part in parts]
    return [int((part.episode_start[part.episodes + 1] - part.episode_start[part.episodes]).sum()) for part in parts]


def first_task(part: Part) -> Int64[np.ndarray, "e"]:
    """The instruction of each episode's first frame; -1 where the episode is empty."""
    start, end = part.episode_start[:-1], part.episode_start[1:]
    found = np.full(len(start), -1, np.int64)
    found[end > start] = part.numbers.task[start[end > start]]
    return found


def sample_weights(balance: Balance, part: Part) -> Float[np.ndarray, "e"] | None:
    """What a sample of each episode counts in the loss, 1 in the mean over the training frames, so that each episode, or each instruction,
    counts the same however many frames it has. None where all frames do."""
    if balance == "frame":
        return None
    length = np.diff(part.episode_start)
    group = np.arange(len(length)) if balance == "episode" else first_task(part)
    chosen = np.zeros(len(length), bool)
    chosen[part.episodes] = length[part.episodes] > 0
    _, place = np.unique(group, return_inverse=True)
    frames = np.bincount(place[chosen], length[chosen], minlength=place.max() + 1)
    groups = int((frames > 0).sum())
    share = frames.sum() / groups / np.maximum(frames, 1)
    return np.where(frames > 0, share, 1.0)[place].astype(np.float32)  # an instruction that is only held out counts as usual


def counts_of(shares: Sequence[float], batch_size: int) -> list[int]:
    """Samples of each dataset in a batch: shares in whole samples, by largest remainder, and at least one of each."""
    if batch_size < len(shares):
        raise UsageError(f"a batch of {batch_size} cannot hold a sample of each of {len(shares)} datasets; raise batch_size")
    exact = np.asarray(shares, np.float64) / np.sum(shares) * batch_size
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() < batch_size:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > batch_size:  # many small ones were raised to one
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.tolist()


def factors_of(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, ...]:
    """What a sample of each dataset weighs in the loss, 1 in the mean over a batch, so that whole samples add up to the exact shares."""
    total, size = sum(shares), sum(counts)
    return tuple(share / total * size / count for share, count in zip(shares, counts, strict=True))


def spread(counts: Sequence[int]) -> Int64[np.ndarray, "b"]:
    """The samples of a batch, numbered dataset by dataset, in their order in it: each dataset's lie evenly, so that micro-batches are
    alike."""
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.argsort(place, kind="stable")


def shares_of(counts: Sequence[int], whole: Share) -> list[Share]:
    """What of each dataset's samples lies in a share of the whole batch; nothing, for a small one."""
    mine = np.sort(spread(counts)[whole.first : whole.stop])
    ends = np.cumsum(counts)
    edges = np.searchsorted(mine, np.concatenate([[0], ends]))
    starts = (int(mine[edge]) if edge < len(mine) else 0 for edge in edges[:-1])
    return [
        Share(count, first - int(end) + count if size else 0, int(size))
        for count, end, first, size in zip(counts, ends, starts, np.diff(edges), strict=True)
    ]


def order_of(shares: Sequence[Share]) -> Int64[np.ndarray, "b"]:
    """In which order the samples of each dataset's share, one dataset after the other, stand in the joined batch."""
    counts = [share.batch for share in shares]
    begins = np.cumsum([0, *counts[:-1]])
    have = np.concatenate([begin + np.arange(share.first, share.stop) for begin, share in zip(begins, shares, strict=True)])
    order = spread(counts)
    return np.searchsorted(have, order[np.isin(order, have)])


def join(batches: Sequence[Batch], order: Int64[np.ndarray, "b"]) -> Batch:
    """One batch out of several with the same fields: the samples of all, one batch after the other, put in an order."""
    there = torch.from_numpy(order).to(batches[0].key.device)
    return Batch(**{item.name: _joined([getattr(batch, item.name) for batch in batches], there) for item in fields(Batch)})


def _joined(values: list[Any], order: Int64[Tensor, "b"]) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tokens):
        return Tokens(ids=_joined([v.ids for v in values], order), is_pad=_joined([v.is_pad for v in values], order))
    if isinstance(first, dict):
        assert all(value.keys() == first.keys() for value in values), "robots of a mixture have the same cameras and labels, masked"
        return {name: _joined([value[name] for value in values], order) for name in first}
    if first.dim() == 5:  # images lie channels last in memory, and stay so
        return torch.cat([value.permute(0, 1, 3, 4, 2) for value in values])[order].permute(0, 1, 4, 2, 3)
    return torch.cat(values)[order]


class MadeParts(NamedTuple):
    """What each loader made that has a part in the batch, and the batch where it needs nothing of a device."""

    parts: list[Made]
    joined: Batch | None


class Mixture(Stream):
    """Batches with a fixed number of samples from each loader's own stream, whose weights are multiplied by its factor.

    Loaders with a share (`shares_of`) make the same share of the joined batch.
    """

    def __init__(self, loaders: Sequence[Loader], factors: Sequence[float]) -> None:
        self.loaders, self.factors = tuple(loaders), tuple(factors)
        self._order = order_of([loader.share for loader in loaders])
        self._given = [(loader, factor) for loader, factor in zip(loaders, factors, strict=True) if loader.share.count]
        # one for all: where one of them starts worker processes, no other one computes
        self._prefetch = Prefetch(self._make, functools.partial(is_core_free, self.loaders[0].device))

    def __len__(self) -> int:
        """Windows of all datasets together."""
        return sum(map(len, self.loaders))

    def next(self) -> Batch:
        for loader in self.loaders:
            loader.check_unchanged()
        starts = [loader.consumed for loader, _ in self._given]
        following = [loader.consumed + loader.batch_size for loader, _ in self._given]
        made = self._prefetch.take(starts, following)
        batch = made.joined
        if batch is None:
            batch = self._join([loader.finish(part) for (loader, _), part in zip(self._given, made.parts, strict=True)])
        for loader in self.loaders:
            loader.count()
        return batch

    def _make(self, starts: Sequence[int]) -> MadeParts:
        parts = [loader.make(start) for (loader, _), start in zip(self._given, starts, strict=True)]
        is_ready = all(part.colours is None for part in parts)
        return MadeParts(parts, self._join([part.batch for part in parts]) if is_ready else None)

    def _join(self, batches: Sequence[Batch]) -> Batch:
        weighed = [replace(batch, weight=batch.weight * factor) for batch, (_, factor) in zip(batches, self._given, strict=True)]
        return join(weighed, self._order)

    def state(self) -> dict[str, Any]:
        return {"sources": [loader.state() for loader in self.loaders]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Each dataset continues where it was; `DataError` when the state is of another mixture."""
        self.close()
        sources = state.get("sources")
        if not isinstance(sources, list) or len(sources) != len(self.loaders):
            raise DataError(f"the saved stream is not one of {len(self.loaders)} datasets: resume with the same mixture")
        for loader, kept in zip(self.loaders, sources, strict=True):
            loader.load_state(kept)

    def close(self) -> None:
        for loader in self.loaders:
            loader.feed.kill()  # the thread may wait for them
        self._prefetch.close()
        for loader in self.loaders:
            loader.close()
