"""ACT (Zhao et al., 2023) on any LeRobot dataset: a transformer with a ResNet-18, 52 M parameters, told by a sentence what to do.

    deftly train act --data.path DIR [--policy.pretrained resnet18.safetensors]

It is meant for a GPU; for two cores `imitate` is the recipe. The ResNet starts from scratch unless a safetensors file with torchvision's
names is given, and training from scratch takes ten times the learning rate of the paper. At the end the error on held-out episodes is
printed beside two baselines. How fast it trains, beside lerobot's ACT: docs/benchmarks.md.
"""

from __future__ import annotations

from pathlib import Path

from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.source import DataConfig
from deftly.models.act import ACTConfig
from deftly.models.language import TextConfig
from deftly.models.resnet import ResNetConfig
from deftly.run import Run
from deftly.training.config import TrainingConfig
from deftly.training.optim import AdamWConfig


def act(small: bool = False) -> Run:
    tiny = ACTConfig(
        vision=ResNetConfig(widths=(8, 16), blocks=1), text=TextConfig(dim=16), width=32, heads=2, hidden=64, encoder_layers=1, vae_layers=1
    )
    return Run(
        name="act",
        data=DataConfig(
            path=Path("DATASET"),  # give --data.path
            image_size=32 if small else 224,
            window=Window(frames=1, chunk=8 if small else 100),
            batch_size=8,
            normalization="mean_std",
            augmentation=AugmentConfig(),
        ),
        policy=tiny if small else ACTConfig(),
        training=TrainingConfig(
            steps=6 if small else 100_000, optimizer=AdamWConfig(learning_rate=1e-4, weight_decay=1e-4, betas=(0.9, 0.999)), clip_norm=10.0
        ),
        executed_steps=4 if small else 50,
    )
