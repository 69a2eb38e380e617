"""Mixup for actions: two samples of one task that ask for nearly the same action become their weighted mean.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, mixes any two samples and their labels. For actions that would be
wrong: the mean of "left of the cup" and "right of it" runs into the cup, and the mean of two tasks is no task. So partners are of the same
task, both mirrored or neither, with the same padding, and their normalised action chunks lie near each other; then image, state, past and
future actions are averaged with one weight, and the instruction, being the same, needs no mixing. A sample that has no such partner in its
batch stays as it is.

An objective says that its loss means something on averaged actions (`Objective.mixes_actions`); a run of any other refuses mixup. Classes
and matched pairs need mixed labels instead, which is their objectives' own business.

Letters: b batch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.special import betaincinv
from torch import Tensor

from deftly.data.augment import AugmentConfig
from deftly.data.mirror import draw_mirrored
from deftly.randomness import uniform
from deftly.types import Batch, Objective, UsageError

ONE = 256  # weights are whole numbers of this: the same pixels on every device


def check_mixup(config: AugmentConfig, objective: Objective) -> None:
    """Raise a `UsageError` when samples are to be mixed and the objective does not say that it may be."""
    if config.mixup and not objective.mixes_actions:
        raise UsageError(
            f"augmentation.mixup: {type(objective).__name__} does not declare that it may learn from averaged actions "
            "(Objective.mixes_actions), and averages of what it learns from need not mean anything; set mixup to 0"
        )


def mixup(batch: Batch, config: AugmentConfig) -> Batch:
    """The batch with some samples averaged with a partner; the batch itself where nothing is configured or nobody has a partner."""
    if not config.mixup:
        return batch
    index, partner, weight = draw_partners(batch, config)
    if not len(index):
        return batch
    here = [part.to(batch.state.device) for part in (index, partner, weight)]
    return replace(
        batch,
        images={name: _mixed(image, *here) for name, image in batch.images.items()},
        state=_mixed(batch.state, *here),
        past_actions=_mixed(batch.past_actions, *here),
        actions=None if batch.actions is None else _mixed(batch.actions, *here),
    )


def draw_partners(batch: Batch, config: AugmentConfig) -> tuple[Int64[Tensor, "m"], Int64[Tensor, "m"], Int64[Tensor, "m"]]:
    """(samples that are mixed, the partner of each, the sample's own weight in 1/256, at least half)."""
    may = _near(batch, config.mixup_distance) & _alike(batch)
    mirrored = torch.from_numpy(draw_mirrored(batch.key.cpu(), config.mirror))
    may &= mirrored[:, None] == mirrored[None]  # a mirrored sample of a task may say the other side
    may.fill_diagonal_(False)
    count = may.sum(1)
    draw = uniform(batch.key.cpu(), "augment.mixup", (2,))
    chosen = (draw[:, 0] * count).long().clamp(max=may.shape[1] - 1)  # the how-manieth of the possible partners
    partner = ((may.cumsum(1) == chosen[:, None] + 1) & may).int().argmax(1)
    share = beta(draw[:, 1], config.mixup)
    weight = (torch.maximum(share, 1 - share) * ONE).round().long()
    index = ((count > 0) & (weight < ONE)).nonzero()[:, 0]
    return index, partner[index], weight[index]


def beta(draw: Float[Tensor, "b"], alpha: float) -> Float[Tensor, "b"]:
    """Uniform draws to Beta(alpha, alpha), by its inverse distribution function."""
    return torch.from_numpy(betaincinv(alpha, alpha, draw.double().numpy()).astype(np.float32))


def _near(batch: Batch, distance: float) -> Tensor:
    """Which pairs of samples [b b] have action chunks within a root mean square distance of each other, in normalised units."""
    assert batch.actions is not None
    assert batch.action_is_pad is not None
    valid = (~(batch.action_is_pad[:, :, None] | batch.action_dim_is_pad[:, None, :])).flatten(1).cpu().double()
    actions = batch.actions.flatten(1).cpu().double() * valid
    square = (actions**2).sum(1)
    gap = (square[:, None] + square[None] - 2 * actions @ actions.T).clamp(min=0)
    return gap <= distance**2 * valid.sum(1)[:, None].clamp(min=1)


def _alike(batch: Batch) -> Tensor:
    """Which pairs of samples [b b] are of one robot and one task and have the same padding, labels and cameras, and no depth."""
    size = len(batch)
    parts = [batch.embodiment, batch.task, batch.action_is_pad, batch.past_action_is_pad, batch.observation_is_pad]
    parts += [*batch.camera_is_missing.values(), *batch.labels.values()]
    same = torch.full((size, size), not batch.depth)  # the mean of two depths is a place where nothing is
    for part in parts:
        if part is not None:
            flat = part.cpu().reshape(size, -1)
            same &= (flat[:, None] == flat[None]).all(2)
    return same


def _mixed(values: Tensor, index: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """A copy in which values[index] is its mean with values[partner]; pixels are rounded."""
    own = weight.view(-1, *[1] * (values.dim() - 1))
    result = values.clone()
    if values.dtype == torch.uint8:
        result[index] = ((values[index].int() * own + values[partner].int() * (ONE - own) + ONE // 2) // ONE).to(torch.uint8)
    else:
        result[index] = values[index] * (own / ONE) + values[partner] * (1 - own / ONE)
    return result
