"""Imitation on any LeRobot dataset (v3.0, v2.1, v2.0): your own robot's demonstrations, two lines to change.

    deftly train imitate --data.path DIR

At the end the error on held-out episodes is printed beside two baselines, the mean action and the last action repeated: a policy that does
not beat both has learnt nothing that your robot needs. There is no world, so nothing is said about success: that takes your robot. Time
depends on your cameras and grows with `--training.steps`; the rate and the time left are shown from the first steps on.
"""

from __future__ import annotations

from pathlib import Path

from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.source import DataConfig
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.run import Run
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig


def imitate(small: bool = False) -> Run:
    return Run(
        name="imitate",
        data=DataConfig(
            path=Path("DATASET"),  # give --data.path
            image_size=32 if small else 96,
            window=Window(frames=1, chunk=16),
            batch_size=8 if small else 64,
            augmentation=AugmentConfig(),
        ),
        policy=PolicyConfig(head=FlowMatchingConfig()),
        training=TrainingConfig(steps=6 if small else 5000, optimizer=AdamWConfig(learning_rate=1e-3)),
        executed_steps=8,
    )
