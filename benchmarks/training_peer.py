"""lerobot's side of `end_to_end`, run in its environment by benchmarks/training.py: dataset, loader and update as in its script."""

from __future__ import annotations

import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, default_collate

sys.path.insert(0, str(Path(__file__).parent))

from accelerate import Accelerator
from act_names import noise_of
from lerobot.configs.types import FeatureType
from lerobot.datasets.factory import IMAGENET_STATS, resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import cycle, dataset_to_policy_features
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from process import serve
from steps import Shapes, without_dropout

NAME = "benchmark/training"


class PeerTraining:
    def setup(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: version(name) for name in ("lerobot", "torch", "torchvision", "av")}

    def start(
        self, root: str, chunk: int, batch_size: int, workers: int, weights: str, statistics: dict[str, dict[str, list[float]]]
    ) -> dict[str, int]:
        """What `train` of lerobot_train.py makes before its loop, with PyAV; the policy's weights go to the file `weights`."""
        probe = LeRobotDataset(NAME, root=root, video_backend="pyav")
        features = dataset_to_policy_features(probe.meta.features)
        config = ACTConfig(
            input_features={name: item for name, item in features.items() if item.type is not FeatureType.ACTION},
            output_features={name: item for name, item in features.items() if item.type is FeatureType.ACTION},
            chunk_size=chunk,
            n_action_steps=chunk,
            pretrained_backbone_weights=None,
            device="cpu",
        )
        deltas = resolve_delta_timestamps(config, probe.meta)
        self.dataset = LeRobotDataset(NAME, root=root, delta_timestamps=deltas, video_backend="pyav")
        for key in self.dataset.meta.camera_keys:
            self.dataset.meta.stats[key] |= {name: torch.tensor(values, dtype=torch.float32) for name, values in IMAGENET_STATS.items()}
        for key, values in statistics.items():
            self.dataset.meta.stats[key] |= {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
        torch.manual_seed(0)
        policy = ACTPolicy(config)
        save_file({name: tensor.contiguous() for name, tensor in policy.model.state_dict().items()}, weights)
        self.preprocessor, _ = make_pre_post_processors(policy_cfg=config, dataset_stats=self.dataset.meta.stats)
        preset = config.get_optimizer_preset()
        optimizer = preset.build(policy.get_optim_params())
        prefetch = 2 if workers else None
        loader = DataLoader(self.dataset, num_workers=workers, batch_size=batch_size, shuffle=True, prefetch_factor=prefetch)
        self.accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
        self.policy, self.optimizer, loader = self.accelerator.prepare(policy, optimizer, loader)
        self.batches, self.batch_size, self.clip_norm = cycle(loader), batch_size, preset.grad_clip_norm
        self.policy.train()
        meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
        frames, episodes = self.dataset.num_frames, self.dataset.num_episodes
        self.tracker = MetricsTracker(batch_size, frames, episodes, meters, initial_step=0, accelerator=self.accelerator)
        return {"parameters": sum(p.numel() for p in policy.parameters())}

    def loss(self, rows: list[int], keys: list[int]) -> float:
        """Of the samples of some rows, with the noise that ours draws for these keys."""
        batch = self.preprocessor(default_collate([self.dataset[row] for row in rows]))
        noise = Shapes(batch=len(rows)).random_batch()
        noise.key = torch.tensor(keys)
        with without_dropout(self.policy), noise_of(noise, 0), torch.no_grad():
            return float(self.policy.forward(batch)[0])

    def train(self, steps: int) -> dict[str, float]:
        """The time of so many turns of its loop, after one that is not counted."""
        self.turn()
        start = time.perf_counter()
        for _ in range(steps):
            self.turn()
        return {"seconds": time.perf_counter() - start, "samples": steps * self.batch_size}

    def turn(self) -> Any:
        began = time.perf_counter()
        batch = self.preprocessor(next(self.batches))
        self.tracker.dataloading_s = time.perf_counter() - began
        self.tracker, output = update_policy(self.tracker, self.policy, batch, self.optimizer, self.clip_norm, accelerator=self.accelerator)
        self.tracker.step()
        return output


if __name__ == "__main__":
    logging.disable(logging.INFO)
    serve(PeerTraining())
