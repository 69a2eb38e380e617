"""A real humanoid: Unitree G1 with Inspire hands, 26 joints at 30 Hz, five folds by episode, offline error beside two baselines.

    deftly train g1 --data.path DIR

DIR is a LeRobot folder, v2.1 as it was published or v3.0. Expected, on ten of its episodes (45 s on two CPU cores): L1 per spread
0.21 in the mean over folds for chunks of 32 actions, where the mean action gives 1.05 and repeating the last action 0.25.

Ten episodes are few, and some look like no other: in one fold of five repeating stays better (0.26 against 0.24). So the policy predicts
the change from the last action, beginning with none, which is a strong start for a robot that tracks its commands; the rest is a small
encoder, much dropout and few steps.
"""

from __future__ import annotations

from pathlib import Path

from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.source import DataConfig
from deftly.models.heads import RegressionConfig
from deftly.models.language import TextConfig
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.run import Run
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig


def g1(small: bool = False) -> Run:
    return Run(
        name="g1",
        data=DataConfig(
            path=Path("datasets/g1"),
            image_size=32 if small else 96,
            window=Window(frames=1, chunk=4 if small else 32, past_actions=True),
            batch_size=8 if small else 32,
            augmentation=AugmentConfig(shift_pixels=4),
        ),
        policy=PolicyConfig(
            vision=CNNConfig(stem_stride=4, widths=(16, 32), keypoints=8),
            text=TextConfig(dim=16),
            width=128,
            depth=1,
            dropout=0.5,
            residual=True,
            head=RegressionConfig(zero_start=True),
        ),
        training=TrainingConfig(
            steps=6 if small else 200, optimizer=AdamWConfig(learning_rate=1e-3, weight_decay=0.1), ema_decay=0.98, validate_every=None
        ),
        executed_steps=4 if small else 8,
        folds=2 if small else 5,
    )
