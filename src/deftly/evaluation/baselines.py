"""What stands beside every headline: actors that know less than the policy does.

    no_op    plays the world's idle action
    random   goes to a random point of the action space every second
    blind    the policy, shown black images
    deaf     the policy, told to handle ANOTHER object of the same scene, scored on the original one

If blind or deaf come near the policy, it does not look or does not listen.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from deftly.contract import Embodiment
from deftly.randomness import generator
from deftly.rollout import Actor, Sentence
from deftly.types import Observation, UsageError, World

POLICY = "policy"
Baseline = Literal["no_op", "random", "blind", "deaf"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
ARMS = (POLICY, *BASELINES)
_RENDERED = (POLICY, "deaf")  # the others never look: their worlds do not draw


def check_baselines(names: tuple[str, ...]) -> tuple[Baseline, ...]:
    """The names in canonical order; `UsageError` for an unknown one."""
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"there is no baseline {name!r}; choose from {', '.join(BASELINES)}")
    return tuple(name for name in BASELINES if name in names)


def needs_rendering(arm: str) -> bool:
    return arm in _RENDERED


def sentence_of(arm: str) -> Sentence:
    """Which sentence an arm is told."""
    return "swapped" if arm == "deaf" else "own"


def actor_of(arm: str, agent: Actor, world: World) -> Actor:
    """The actor that plays an arm in `world`."""
    match arm:
        case "no_op":
            return NoOp(world)
        case "random":
            return Random(world.embodiment)
        case "blind":
            return Blind(agent, world.embodiment)
        case _:
            return agent


class NoOp:
    """Holds the pose that the robot has at reset."""

    clipped = 0

    def __init__(self, world: World) -> None:
        self._world = world

    def reset(self, key: int) -> None:
        self._action = self._world.idle_action()

    def act(self, observation: Observation) -> np.ndarray:
        return self._action


class Random:
    """Uniform within the limits of the action space, a new point every second: long enough for an arm to get there."""

    clipped = 0

    def __init__(self, embodiment: Embodiment) -> None:
        low, high = embodiment.action.low, embodiment.action.high
        if low is None or high is None:
            raise UsageError(f"the random baseline needs limits of the action space, and {embodiment.name!r} has none; leave it out")
        self._low, self._high = np.asarray(low), np.asarray(high)
        self._hold = max(1, round(embodiment.rate_hz))
        self.reset(0)

    def reset(self, key: int) -> None:
        self._draws = generator("random baseline", key)
        self._steps = 0
        self._action = self._low

    def act(self, observation: Observation) -> np.ndarray:
        if self._steps % self._hold == 0:
            self._action = self._draws.uniform(self._low, self._high).astype(np.float32)
        self._steps += 1
        return self._action


class Blind:
    """An agent behind a closed eye."""

    def __init__(self, agent: Actor, embodiment: Embodiment) -> None:
        self._agent = agent
        self._black = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in embodiment.cameras}

    @property
    def clipped(self) -> int:
        return self._agent.clipped

    def reset(self, key: int) -> None:
        self._agent.reset(key)

    def act(self, observation: Observation) -> np.ndarray:
        return self._agent.act(Observation(images=dict(self._black), state=observation["state"], instruction=observation["instruction"]))
