"""What an evaluation is going to do, written and hashed before its first episode, so that it cannot be chosen afterwards."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pydantic

from deftly import __version__, storage
from deftly.config import Config
from deftly.contract import differences, fingerprint
from deftly.randomness import seed_of
from deftly.types import DataError, UsageError

PLAN, EPISODES, SUMMARY, VIDEOS = "plan.json", "episodes.jsonl", "summary.json", "videos"
_LIBRARIES = ("torch", "numpy", "mujoco")


class Plan(Config):
    """Everything that decides the rows of an evaluation."""

    format_version: int = 1
    policy: str
    """sha256 of the policy's manifest, which lists the sha256 of every file."""
    world: dict[str, Any]
    episodes: int = pydantic.Field(gt=0)
    seed: int = pydantic.Field(ge=0)
    baselines: tuple[str, ...]
    robot: str | None = None
    """Which of the policy's robots acts, where it is not the first."""
    versions: dict[str, str]

    def hash(self) -> str:
        return fingerprint(self.to_dict())

    def episode_seed(self, episode: int) -> int:
        """The initial state of an episode is a function of this number alone; every arm gets the same one."""
        return seed_of("evaluate", self.seed, episode)

    def jobs(self) -> list[tuple[str, int]]:
        """(arm, episode), in canonical order."""
        return [(arm, episode) for arm in ("policy", *self.baselines) for episode in range(self.episodes)]

    def check_disjoint(self, training_seeds: frozenset[int]) -> None:
        """Refuse scenes that were demonstrated in training."""
        shared = [episode for episode in range(self.episodes) if self.episode_seed(episode) in training_seeds]
        if shared:
            first = f"the first: episode {shared[0]} of seed {self.seed}"
            raise DataError(f"{len(shared)} evaluation scenes ({first}) are in the training data; use another --seed")


def versions() -> dict[str, str]:
    """Of everything that can change the outcome of an episode."""
    found = {"deftly": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_or_match(plan: Plan, directory: Path) -> None:
    """Write the plan, or make sure that the one which is there is the same and unedited. Raises `UsageError` with the remedy."""
    path = directory / PLAN
    if not path.exists():
        storage.write_json(path, {**plan.to_dict(), "hash": plan.hash()})
        return
    lines = differences(read(directory), plan)
    if lines:
        more = f" (+{len(lines) - 2} more)" if len(lines) > 2 else ""
        raise UsageError(f"{directory} holds another evaluation: {'; '.join(lines[:2])}{more}; give this one another --name, or remove it")


def read(directory: Path) -> Plan:
    """The plan of an evaluation; `DataError` when it was edited after it was written."""
    path = directory / PLAN
    values = storage.read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a plan")
    stored = values.pop("hash", None)
    if stored != fingerprint(values):
        raise DataError(f"{path} was edited after it was written: its episodes no longer follow it; evaluate under another --name")
    return Plan.parse(values, str(path))


def name_for(root: Path, seed: int, episodes: int, robot: str | None = None) -> str:
    """The name of an evaluation for which none was given: `final` for the first, the seed (and episodes) for others.

    `root` is the run's `evaluation` directory. A name is taken when its plan has another seed, another number of episodes or another robot.
    """
    for name in ("final", f"seed-{seed}", f"seed-{seed}-episodes-{episodes}"):
        if not (root / name / PLAN).exists():
            return name
        plan = read(root / name)
        if (plan.seed, plan.episodes, plan.robot) == (seed, episodes, robot):
            return name
    raise UsageError(f"{root}: every automatic name for seed {seed} with {episodes} episodes is taken; give one with --name")
