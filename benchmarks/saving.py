"""What do checkpoints cost? The demo's policy trained with one every 100 steps, beside the same run without any; and what a resume costs.

    make bench-saving                              into benchmarks/results/saving.json and docs/benchmarks.md
    .venv/bin/python benchmarks/saving.py --quick  the same path in a minute or two; prints, writes nothing

Rounds of whole runs, each side first in every other one; the ratio of each round's times, and their median. The time is the loop's own,
from the first batch to the end. A run that never saves is counted without its last checkpoint, which the other one does save.
Exit code 1: the weights are not equal.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from page import write_page

from data import host
from deftly import storage
from deftly.data.generate import GenerateConfig, generate
from deftly.recipes.demo import demo
from deftly.run import Run, build_policy, write_policy
from deftly.sim.tabletop import TabletopConfig
from deftly.training.checkpoint import read
from deftly.training.trainer import Trainer
from deftly.types import Batch, Stream

RESULTS = Path(__file__).parent / "results/saving.json"
GOAL, RESUME_GOAL_S = 1.05, 2.0


class Enough(Exception):
    """The first batch was all that was asked for."""


class Noted(Stream):
    """A loader that notes when its first batch was there, and ends the run there if it is to."""

    def __init__(self, loader: Stream, only_first: bool) -> None:
        self.loader, self.only_first = loader, only_first
        self.first: float | None = None

    def next(self) -> Batch:
        if self.first is not None and self.only_first:
            raise Enough
        batch = self.loader.next()
        self.first = self.first or time.perf_counter()
        return batch

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.loader.load_state(state)


def train(run: Run, directory: Path, *, resume: bool = False, only_first: bool = False) -> tuple[Trainer, float]:
    """The run in `directory`, and the seconds from the beginning of `fit` to its first batch."""
    data = run.data.build(seed=run.seed, device="cpu", executed_steps=run.executed_steps)
    stream = Noted(data.train, only_first)
    trainer = Trainer(
        run.objective.build(build_policy(run, data)),
        stream,
        run.training,
        directory=directory,
        seed=run.seed,
        device="cpu",
        write_policy=lambda folder, state: write_policy(folder, state, run, data),
        run_json={"name": run.name},
        dataset_hash=data.contract.dataset_hash,
        contract=data.contract,
    )
    began = time.perf_counter()
    try:
        with contextlib.suppress(Enough):
            trainer.fit(resume=resume)
    finally:
        data.close()
    assert stream.first is not None
    return trainer, stream.first - began


def weights(directory: Path) -> dict[str, str]:
    newest = max((directory / "checkpoints").glob("step-*"))
    return {path.name: storage.sha256(path) for path in newest.glob("*.safetensors")}


def cost(run: Run, place: Path, steps: int, every: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The loop's seconds with and without checkpoints, round by round."""
    sides = {"saving": every, "never": None}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    blocked, equal = [], True
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            training = run.training.replace(steps=steps, checkpoint_every=sides[name], validate_every=None)
            shutil.rmtree(place / name, ignore_errors=True)
            trainer, _ = train(run.replace(training=training), place / name)
            spent = trainer.time.state()
            seconds[name].append(sum(spent.values()) - (spent["checkpoint"] if name == "never" else 0.0))
            if name == "saving":
                blocked.append(spent["checkpoint"])
        equal = equal and weights(place / "saving") == weights(place / "never")
        say(f"round {number}: {seconds['saving'][-1]:.2f} s saving every {every}, {seconds['never'][-1]:.2f} s never")
    ratios = [saving / never for saving, never in zip(seconds["saving"], seconds["never"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "goal": GOAL,
        "saving_s": statistics.median(seconds["saving"]),
        "never_s": statistics.median(seconds["never"]),
        "waited_s": statistics.median(blocked),
        "checkpoint_mib": sum(path.stat().st_size for path in max((place / "saving/checkpoints").glob("step-*")).rglob("*")) / 2**20,
        "equal": equal,
        "steps": steps,
        "every": every,
        "rounds": rounds,
    }


def resuming(run: Run, place: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first batch: of a fresh run, of one that is resumed, and what of that is reading and checking its checkpoint."""
    longer = run.replace(training=run.training.replace(steps=steps + 10, checkpoint_every=None, validate_every=None))
    newest = max((place / "saving/checkpoints").glob("step-*"))
    found: dict[str, list[float]] = {"fresh_s": [], "resume_s": [], "load_s": []}
    for number in range(rounds):
        found["fresh_s"].append(train(longer, place / f"fresh-{number}", only_first=True)[1])
        found["resume_s"].append(train(longer, place / "saving", resume=True, only_first=True)[1])
        began = time.perf_counter()
        storage.verify(newest)
        read(newest)
        found["load_s"].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "beyond_load_s": medians["resume_s"] - medians["load_s"], "goal_s": RESUME_GOAL_S, "rounds": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=40, help="demonstrations to generate")
    parser.add_argument("--quick", action="store_true", help="100 steps, every 10, two rounds; nothing is written")
    flags = parser.parse_args()
    if flags.quick:
        flags.steps, flags.every, flags.rounds, flags.episodes = 100, 10, 2, 6
    results: dict[str, Any] = {"host": host(), "torch": torch.__version__}
    place = Path(tempfile.mkdtemp(prefix="saving-"))
    try:
        generate(GenerateConfig(world=TabletopConfig(), boxes=False), place / "data", flags.episodes, 0, 0)
        recipe = demo()
        run = recipe.replace(data=recipe.data.replace(path=place / "data", validation_fraction=0.0), world=None)
        results["cost"] = cost(run, place, flags.steps, flags.every, flags.rounds, lambda text: print(text, file=sys.stderr))
        results["resume"] = resuming(run, place, flags.steps, flags.rounds)
    finally:
        shutil.rmtree(place)
    results["measured_on"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(json.dumps(results, indent=2))
    if not flags.quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        write_page()
    return 0 if results["cost"]["equal"] else 1


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "egl")
    sys.exit(main())
