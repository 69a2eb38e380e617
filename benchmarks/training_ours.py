"""Our side of `end_to_end`, driven by benchmarks/training.py: the trainer with its loader, from the same mp4 files."""

from __future__ import annotations

import contextlib
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

import fixtures
from act_names import load_peer, loss_as_the_peer_counts
from process import serve
from steps import OPTIMIZER, PEER_ACT, without_dropout

from deftly.data.augment import OFF
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig
from deftly.models.act import ACTConfig, ACTPolicy
from deftly.objectives.imitation import Imitation
from deftly.run import Run, build_policy, write_policy
from deftly.training.config import TrainingConfig
from deftly.training.schedule import ConstantConfig
from deftly.training.trainer import Trainer
from deftly.types import Batch, Clock, Stream


class Enough(Exception):
    """The steps that were asked for are done."""


class Counted(Stream):
    """Gives batches for one step that is not counted and `steps` that are, and notes when those began and ended."""

    def __init__(self, stream: Stream, steps: int) -> None:
        self.stream, self.steps = stream, steps
        self.asked: list[float] = []

    def next(self) -> Batch:
        self.asked.append(time.perf_counter())
        if len(self.asked) == self.steps + 2:
            raise Enough
        return self.stream.next()

    def state(self) -> dict[str, Any]:
        return self.stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.stream.load_state(state)


class OurTraining:
    def __init__(self) -> None:
        self.data: dict[str, TrainingData] = {}

    def setup(self, threads: int) -> dict[str, str]:
        torch.set_num_threads(threads)
        return {name: version(name) for name in ("deftly", "torch", "av")}

    def fixture(self, name: str, root: str, sizes: dict[str, int]) -> None:
        getattr(fixtures, name)(Path(root), **sizes)

    def start(
        self, root: str, work: str, image_size: int, chunk: int, batch_size: int, workers: int, policy: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A loader out of the store and one straight from the video, and a policy: the one that lerobot's weights fit, or `policy`."""
        values = {"path": root, "image_size": image_size, "batch_size": batch_size, "workers": workers, "validation_fraction": 0}
        values |= {"normalization": "mean_std", "window": {"frames": 1, "chunk": chunk}, "augmentation": OFF.to_dict()}
        for frames in ("video", "store"):
            config = DataConfig.parse({**values, "frames": frames}, "benchmark")
            began = time.perf_counter()
            self.data[frames] = config.build(seed=0, device="cpu", executed_steps=1, cache_dir=Path(work) / "cache")
        store_s = time.perf_counter() - began
        self.work, self.rounds = Path(work), 0
        self.run = Run(
            name="benchmark",
            data=config,
            policy=PEER_ACT if policy is None else ACTConfig.parse(policy, "benchmark"),
            training=TrainingConfig(
                steps=1_000_000,
                precision="fp32",
                optimizer=OPTIMIZER,
                schedule=ConstantConfig(warmup_fraction=0),
                clip_norm=10.0,
                ema_decay=None,
                validate_every=None,
                checkpoint_every=None,
                channels_last=True,
            ),
            executed_steps=1,
        )
        objective = self.run.objective.build(build_policy(self.run, self.data["store"]))
        self.objective: Imitation = objective
        encoder = self.data["store"].encoder
        parts = {"observation.state": encoder.state, "action": encoder.action}
        used = {key: {"mean": part.offset.tolist(), "std": part.scale.tolist()} for key, part in parts.items()}
        return {"store_s": store_s, "statistics": used, "parameters": sum(p.numel() for p in objective.parameters())}

    def sample(self, frames: str, weights: str) -> dict[str, Any]:
        """The loss of the next batch with the peer's weights; its rows, and its keys for the noise."""
        policy, data = self.objective.policy, self.data[frames]
        assert isinstance(policy, ACTPolicy)
        load_peer(policy, load_file(weights))
        batch = data.train.next()
        with without_dropout(self.objective.train()), torch.no_grad():
            loss = float(loss_as_the_peer_counts(self.objective, batch, Clock(0, 1)))
        rows = data.dataset.episode_start[batch.episode.numpy()] + batch.frame.numpy()
        return {"loss": loss, "rows": rows.tolist(), "keys": batch.key.tolist()}

    def train(self, frames: str, steps: int) -> dict[str, float]:
        """The time of so many steps of the trainer, data and everything else included."""
        stream, data = Counted(self.data[frames].train, steps), self.data[frames]
        self.rounds += 1
        trainer = Trainer(
            self.objective,
            stream,
            self.run.training,
            directory=self.work / f"round-{self.rounds}",
            seed=0,
            device="cpu",
            write_policy=lambda folder, state: write_policy(folder, state, self.run, data),
            run_json=self.run.to_dict(),
            dataset_hash="benchmark",
        )
        with contextlib.suppress(Enough):
            trainer.fit()
        return {"seconds": stream.asked[-1] - stream.asked[1], "samples": steps * self.run.data.batch_size}

    def close(self) -> None:
        for data in self.data.values():
            data.close()


if __name__ == "__main__":
    serve(OurTraining())
