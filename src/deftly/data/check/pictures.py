"""Does the first picture of an episode already say what its instruction is? Then a policy need not listen, and will not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from deftly.data.check.findings import Finding
from deftly.data.dataset import Dataset

SIDE = 8  # pixels of a thumbnail: layout and colours of the scene, nothing finer
FEW = 20  # episodes, from which a share means something
TELLS = 0.9  # of the episodes whose instruction the nearest other picture gives away
CHANCE = 0.6  # above this share of one instruction, guessing is as good


def thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "d"]:
    """A picture as few numbers."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).reshape(-1)


def check_pictures(dataset: Dataset, first: dict[int, np.ndarray]) -> list[Finding]:
    """Guess the instruction of each episode from that of the most similar other picture; a warning where that nearly always works."""
    if len(first) < FEW:
        return []
    pictures = np.stack(list(first.values()))
    task = dataset.task_of_frame[dataset.episode_start[:-1][list(first)]]
    chance = float(np.bincount(task).max()) / len(task)
    right = 0
    for i, picture in enumerate(pictures):
        away = np.square(pictures - picture).sum(1)
        away[i] = np.inf
        right += int(task[int(away.argmin())] == task[i])
    share = right / len(task)
    if chance > CHANCE or share < TELLS:
        return []
    message = f"the first picture gives the instruction away: {share:.0%} are guessed from the most similar picture (chance {chance:.0%})"
    remedy = "record several instructions in one scene, or the policy will not listen"
    return [Finding(code="picture_tells", verdict="warn", field="task", message=message, remedy=remedy)]
