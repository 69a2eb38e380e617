"""Does data keep up with training? The trainer fed by the loader, beside the same trainer fed one batch over and over.

    python benchmarks/feed.py                          recipes on this machine's CPU: goal 95 %
    python benchmarks/feed.py --feed --device cuda     batches/s alone, at 256 x two 224 px cameras with 16 workers

`imitate` is what `deftly train imitate` trains; `demo` is the smallest policy that does anything, so its data weighs most.
Both streams take turns of 10 steps inside ONE run of the trainer, so that what else the machine does falls on both alike. The time of a
step is from one call of `next()` to the next one. The machine should be idle all the same: `load` says how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deftly.contract import Camera, Embodiment, Vector, Window
from deftly.data.augment import AugmentConfig
from deftly.data.generate import GenerateConfig, generate
from deftly.data.source import DataConfig
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.recipes.demo import demo
from deftly.recipes.imitate import imitate
from deftly.run import Run, build_policy, write_policy
from deftly.sim.tabletop import TabletopConfig
from deftly.training.config import TrainingConfig
from deftly.training.trainer import Trainer
from deftly.types import Batch, Stream

TURN = 10  # steps that one side gets before the other one's turn
SETTLE = 2  # steps at the beginning of a turn that do not count: the caches are still the other side's
RESULT = Path(__file__).parent / "results" / "feed.json"


class Turns(Stream):
    """A loader and one constant batch by turns; notes when each batch was asked for, and what it cost."""

    def __init__(self, loader: Stream) -> None:
        self.loader, self.constant = loader, loader.next()
        self.asked: list[float] = []
        self.cost_s: list[float] = []

    def next(self) -> Batch:
        self.asked.append(time.perf_counter())
        if len(self.asked) // TURN % 2:
            return self.constant
        began = time.process_time()
        batch = self.loader.next()
        self.cost_s.append(time.process_time() - began)
        return batch

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.loader.load_state(state)

    def steps_s(self) -> tuple[list[float], list[float]]:
        """Seconds of each step: (fed by the loader, fed the constant batch)."""
        sides: tuple[list[float], list[float]] = ([], [])
        for i, (begin, end) in enumerate(zip(self.asked[:-1], self.asked[1:], strict=True)):
            if i >= 2 * TURN and i % TURN >= SETTLE and i % TURN < TURN - 1:  # the last step of a turn ends in the other's
                sides[i // TURN % 2].append(end - begin)
        return sides


def train(run: Run, directory: Path) -> dict[str, Any]:
    """The run, with its loader and a constant batch by turns."""
    data = run.data.build(seed=run.seed, device="cpu", executed_steps=run.executed_steps, cache_dir=directory / "cache")
    turns = Turns(data.train)
    trainer = Trainer(
        run.objective.build(build_policy(run, data)),
        turns,
        run.training,
        directory=directory / "run",
        seed=run.seed,
        device="cpu",
        write_policy=lambda folder, state: write_policy(folder, state, run, data),
        run_json=run.to_dict(),
        dataset_hash="feed",
    )
    trainer.fit()
    data.close()
    fed, constant = (statistics.median(side) * 1e3 for side in turns.steps_s())
    return {
        "share": constant / fed,
        "fed_step_ms": fed,
        "constant_step_ms": constant,
        "next_cpu_ms": statistics.median(turns.cost_s) * 1e3,
        "steps": len(turns.asked),
        "batch": run.data.batch_size,
        "threads": torch.get_num_threads(),
    }


def feed(config: DataConfig, device: str, batches: int) -> dict[str, Any]:
    """Batches per second of the loader alone, once its workers have started."""
    data = config.build(seed=0, device=device, executed_steps=1)
    for _ in range(max(4, 2 * config.workers)):
        data.train.next()
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(batches):
        data.train.next()
    wait()
    seconds = time.perf_counter() - began
    data.close()
    return {"batches_per_s": batches / seconds, "batch": config.batch_size, "image_size": config.image_size, "workers": config.workers}


def pictures(root: Path, episodes: int, length: int, size: int) -> Path:
    """Two cameras of smooth pictures that move."""
    vector = Vector(names=tuple(f"joint_{i}" for i in range(7)), units=("rad",) * 7)
    cameras = tuple(Camera(name=name, height=size, width=size) for name in ("left", "right"))
    y, x = np.mgrid[:size, :size]
    draw = np.random.default_rng(0)
    with DatasetWriter(root, Embodiment(name="arm", rate_hz=30, cameras=cameras, state=vector, action=vector)) as writer:
        for episode in range(episodes):
            time_ = np.arange(length)[:, None, None]
            shot = np.stack([(x + time_ * 3 + episode * 7) % 256, (y + time_) % 256 + 0 * x, (x + y) % 256 + 0 * time_], -1).astype(
                np.uint8
            )
            numbers = draw.normal(size=(length, 7)).astype(np.float32)
            writer.add(EpisodeData(images={"left": shot, "right": shot[:, ::-1]}, state=numbers, action=numbers, task="follow the wave"))
        writer.finish()
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feed", action="store_true", help="the loader alone")
    parser.add_argument("--device", default="cpu", help="where the batches of --feed go")
    parser.add_argument("--steps", type=int, default=400, help="steps of the trainer, or batches of --feed")
    parser.add_argument("--episodes", type=int, default=40, help="demonstrations to generate")
    parser.add_argument("--batch", type=int, default=256, help="of --feed")
    parser.add_argument("--size", type=int, default=224, help="pixels, of --feed")
    parser.add_argument("--workers", type=int, default=16, help="of --feed")
    parser.add_argument("--quick", action="store_true", help="write no result")
    flags = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="feed-"))
    try:
        if flags.feed:
            root = pictures(place / "data", flags.episodes, 100, flags.size)
            config = DataConfig(
                path=root,
                image_size=flags.size,
                batch_size=flags.batch,
                workers=flags.workers,
                window=Window(chunk=16),
                augmentation=AugmentConfig(crop_scale=(0.8, 1.0), shift_pixels=0),
                validation_fraction=0,
            )
            result = {"feed": feed(config, flags.device, flags.steps)}
        else:
            generate(GenerateConfig(world=TabletopConfig(), boxes=False), place / "data", flags.episodes, 0, 0)
            result = {}
            for recipe, steps in ((imitate, flags.steps // 2), (demo, flags.steps)):
                run = recipe()
                training: TrainingConfig = run.training.replace(steps=steps, validate_every=None, checkpoint_every=None)
                run = run.replace(data=run.data.replace(path=place / "data"), training=training, world=None)
                result[run.name] = train(run, place / run.name)
    finally:
        shutil.rmtree(place)
    result["host"] = {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__, "load": os.getloadavg()[0]}
    print(json.dumps(result, indent=2))
    if not flags.quick:
        path = RESULT.with_name("feed_device.json") if flags.feed else RESULT
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
