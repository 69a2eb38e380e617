"""Real robot data: BridgeData V2 (WidowX), five folds by episode, offline error beside the mean action and the last action.

    deftly data import rlds SRC datasets/bridge
    deftly train bridge

Expected, on the 25 trajectories of octo's debug dataset (40 s on two CPU cores): L1 per spread 0.57 in the mean over folds, where the mean
action gives 0.77 and repeating the last action 0.73. The policy sees the past action; with so little data a small encoder, dropout and
strong weight decay matter more than anything else.
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


def bridge(small: bool = False) -> Run:
    return Run(
        name="bridge",
        data=DataConfig(
            path=Path("datasets/bridge"),
            cameras=("image_0",),
            image_size=32 if small else 64,
            window=Window(frames=1, chunk=4, past_actions=True),
            batch_size=8 if small else 32,
            augmentation=AugmentConfig(),
            text_length=32,
        ),
        policy=PolicyConfig(
            vision=CNNConfig(widths=(16, 32), keypoints=8), text=TextConfig(dim=32), width=128, dropout=0.2, head=RegressionConfig()
        ),
        training=TrainingConfig(
            steps=6 if small else 400, optimizer=AdamWConfig(learning_rate=1e-3, weight_decay=0.1), ema_decay=0.98, validate_every=None
        ),
        executed_steps=2,
        folds=2 if small else 5,
    )
