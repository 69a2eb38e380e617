"""A run directory in the demo's world with a policy that has learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deftly import storage
from deftly.agent import save_policy
from deftly.contract import Contract, Embodiment, Vector, fingerprint
from deftly.data.augment import OFF
from deftly.data.source import DataConfig
from deftly.data.tokenizer import TextTokenizer
from deftly.recipes import RECIPES
from deftly.run import Run
from deftly.sim.language import TEMPLATES, sentence
from deftly.sim.scene import COLOURS, TYPES, ObjectSpec
from deftly.sim.tabletop import TabletopConfig


def spread(part: Vector) -> dict[str, list[float]]:
    """Statistics as if a dimension filled its limits."""
    low, high = list(part.low or [-1.0] * len(part)), list(part.high or [1.0] * len(part))
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    quarter = [(b - a) / 4 for a, b in zip(low, high, strict=True)]
    return {
        "min": low,
        "max": high,
        "mean": middle,
        "std": quarter,
        "count": [9.0],
        "q01": low,
        "q10": low,
        "q50": middle,
        "q90": high,
        "q99": high,
    }


def small_run(directory: Path, before: Sequence[Embodiment] = (), **changes: Any) -> Run:
    """Write the run directory, with one checkpoint that is the best; returns its config.

    `before` are robots with the demo's cameras that the policy acts for too, and first.
    """
    world = TabletopConfig(image_size=24, horizon_s=1.5)
    recipe = RECIPES["imitate"](True)
    data: DataConfig = recipe.data.replace(path=directory / "no data", image_size=24, augmentation=OFF)
    run = recipe.replace(**{"name": "small", "world": world, "data": data, "executed_steps": 2, **changes})
    robot = world.embodiment()
    things = [ObjectSpec(colour=c, type=t, x=0, y=0, yaw=0, scale=1) for c in COLOURS for t in TYPES]
    tokenizer = TextTokenizer.train([sentence(thing, i) for thing in things for i in range(len(TEMPLATES))])
    robots = [*before, robot]
    statistics = [{"observation.state": spread(one.state), "action": spread(one.action)} for one in robots]
    widths = (max(len(one.state) for one in robots), max(len(one.action) for one in robots)) if before else None
    shared = Contract(
        embodiment=robots[0],
        cameras=("head", "wrist"),
        image_size=24,
        window=run.data.window,
        executed_steps=2,
        normalization="quantile",
        statistics_hash=fingerprint(statistics[0]),
        tokenizer_hash=tokenizer.hash,
        text_length=16,
        dataset_hash="none",
        widths=widths,
        num_robots=len(robots),
    )
    contracts = [
        shared.replace(embodiment=one, statistics_hash=fingerprint(own), robot_index=number)
        for number, (one, own) in enumerate(zip(robots, statistics, strict=True))
    ]
    torch.manual_seed(0)
    policy = run.policy.build(shared, tokenizer.size)
    folder = directory / "checkpoints" / "step-00000001" / "policy"
    folder.mkdir(parents=True)
    others = list(zip(contracts, statistics, strict=True))[1:]
    save_policy(folder, contracts[0], statistics[0], tokenizer, run.policy, policy.state_dict(), {}, robots=others)
    storage.write_text(directory / "checkpoints" / "best", "step-00000001\n")
    storage.write_text(directory / "run.json", run.to_json())
    return run
