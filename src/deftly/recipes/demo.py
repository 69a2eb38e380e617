"""The demo: a robot arm that picks up the object that the sentence names, trained from pixels on two CPU cores.

    deftly demo                       generate, train, evaluate, report
    deftly train demo                 this page alone, on datasets/demo

Expected on two CPU cores of an AMD EPYC, with the 900 demonstrations of `deftly demo`: 230 s of training, held-out loss 0.073, 88/100
[80, 93] unseen scenes, and 95/100 [89, 98] others (docs/log.md).
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
from deftly.sim.tabletop import TabletopConfig
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig


def demo(small: bool = False) -> Run:
    return Run(
        name="demo",
        data=DataConfig(
            path=Path("datasets/demo"),
            image_size=96,
            window=Window(frames=1, chunk=8),
            batch_size=8 if small else 32,
            augmentation=AugmentConfig(shift_pixels=4),
            text_length=8,
        ),
        policy=PolicyConfig(
            vision=CNNConfig(stem_stride=4, widths=(32, 64)),
            wrist=CNNConfig(stem_stride=8, widths=(32, 64)),
            text=TextConfig(dim=64),
            head=RegressionConfig(),
        ),
        training=TrainingConfig(
            steps=6 if small else 3000,
            optimizer=AdamWConfig(learning_rate=2e-3),
            ema_decay=0.999,
            validate_every=500,
            checkpoint_every=500,
            channels_last=True,
            threads=2,
        ),
        executed_steps=4,
        world=TabletopConfig(),
    )
