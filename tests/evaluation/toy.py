"""A tabletop without physics, an agent that looks and listens, and ways for both of them to go wrong.

A scene has two objects on a line. Column i of the picture says what object i is and where; the agent finds in it what the sentence names,
and goes there. A world with `difficulty` d makes the object slip in a fraction d of the episodes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deftly import storage
from deftly.config import Config
from deftly.contract import Camera, Embodiment, Vector, require_same
from deftly.randomness import generator
from deftly.types import DataError, Observation, UsageError, World

COLOURS = ("red", "green", "blue", "yellow")
TYPES = ("ball", "cup")
Fault = Literal["none", "crash", "success_at_reset", "endless", "die", "unseeded"]


def embodiment(size: int = 8) -> Embodiment:
    return Embodiment(
        name="toy",
        rate_hz=10,
        cameras=(Camera(name="head", height=size, width=size),),
        state=Vector(names=("x", "height"), units=("m", "m")),
        action=Vector(names=("x", "lift"), units=("m", "fraction"), low=(0.0, 0.0), high=(1.0, 1.0)),
        action_kind="end_effector_target",
    )


class ToyConfig(Config):
    fault: Fault = "none"
    fault_episodes: tuple[int, ...] = ()
    """Seeds at which the fault strikes."""
    difficulty: float = 0.0
    horizon: int = 12
    size: int = 8
    pause_s: float = 0.0
    """Of every step, so that there is time to kill it."""

    def build(self, *, render: bool = True) -> ToyWorld:
        return ToyWorld(self, render)


class ToyWorld(World):
    def __init__(self, config: ToyConfig, render: bool) -> None:
        self.config, self.draws_pictures = config, render
        self.embodiment = embodiment(config.size)
        self._restless = 0

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        draws = generator("toy", seed)
        self._fault = self.config.fault if seed in self.config.fault_episodes else "none"
        pairs = [(c, t) for c in COLOURS for t in TYPES]
        chosen = [pairs[int(i)] for i in draws.permutation(len(pairs))[:2]]
        self._objects = [{"colour": c, "type": t, "x": float(draws.uniform(0.1, 0.9))} for c, t in chosen]
        self._target = int(draws.integers(2))
        if self._fault == "unseeded":
            self._restless += 1
            self._objects[0]["x"] = 0.001 * self._restless
        if options:
            self._target = self._referent(options["instruction"])
        self._slips = draws.random() < self.config.difficulty
        self._tip = np.array([0.5, 0.0], np.float32)
        self._steps, self._held, self._lifted = 0, None, None
        return self._observe(), self._info()

    def _referent(self, text: str) -> int:
        named = [i for i in range(2) if text.endswith(self._name(i))]
        if not named:
            raise ValueError(f"nothing on the table is named by {text!r}; there are {' and '.join(map(self._name, range(2)))}")
        return named[0]

    def _name(self, index: int) -> str:
        return f"{self._objects[index]['colour']} {self._objects[index]['type']}"

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        time.sleep(self.config.pause_s)
        if self._fault == "crash" and self._steps == 2:
            raise RuntimeError("the physics\nexploded")
        if self._fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._tip = np.asarray(action, np.float32)
        near = [i for i in range(2) if abs(self._objects[i]["x"] - self._tip[0]) < 0.02]
        self._held = self._held if self._held is not None else next(iter(near), None)
        if self._held is not None and self._tip[1] > 0.5 and self._fault != "endless" and not self._slips:
            self._lifted = self._held
        ended = self.outcome() in ("success", "wrong_object")
        late = self._steps >= self.config.horizon and self._fault != "endless"
        return self._observe(), 0.0, ended, late, self._info()

    def outcome(self) -> str:
        if self._fault == "success_at_reset":
            return "success"
        if self._lifted is not None:
            return "success" if self._lifted == self._target else "wrong_object"
        if self._steps < self.config.horizon or self._fault == "endless":
            return "running"
        return "missed_grasp" if self._held is not None else "timeout"

    def sentence_for(self, index: int) -> str:
        return f"pick up the {self._name(index)}"

    def idle_action(self) -> np.ndarray:
        return self._tip.copy()

    def _observe(self) -> Observation:
        images = {}
        if self.draws_pictures:
            image = np.zeros((self.config.size, self.config.size, 3), np.uint8)
            for i, item in enumerate(self._objects):
                image[0, i] = (50 + 50 * COLOURS.index(item["colour"]), 50 + 50 * TYPES.index(item["type"]), round(255 * item["x"]))
            image[1:, :] = 40 * self._steps % 256
            images = {"head": image}
        return Observation(images=images, state=self._tip.copy(), instruction=self.sentence_for(self._target))

    def _info(self) -> dict[str, Any]:
        scene = {"objects": [dict(item) for item in self._objects], "target": self._target, "other": 1 - self._target}
        return {"scene": scene, "skill": "pick", "lifted": self._lifted, "carried": self._lifted}


class ToyAgent:
    """Goes to what the sentence names, if it sees it, and lifts it."""

    def __init__(self, made_for: Embodiment, mistake: str = "") -> None:
        self.embodiment, self.mistake = made_for, mistake
        self.clipped = 0

    def check(self, found: Embodiment) -> None:
        require_same(self.embodiment, found, "the world", "use the world that the policy was trained for")

    def reset(self, key: int) -> None:
        self._steps = 0

    def act(self, observation: Observation) -> np.ndarray:
        self._steps += 1
        if self._steps == 2 and self.mistake:
            return self._wrong()
        image = observation["images"]["head"]
        words = observation["instruction"].split()
        wanted = (50 + 50 * COLOURS.index(words[-2]), 50 + 50 * TYPES.index(words[-1]))
        for i in range(2):
            if tuple(image[0, i, :2]) == wanted:
                return np.array([image[0, i, 2] / 255, 1.0 if self._steps > 3 else 0.0], np.float32)
        return np.zeros(2, np.float32)

    def _wrong(self) -> np.ndarray:
        match self.mistake:
            case "nan":
                return np.array([np.nan, 0], np.float32)
            case "shape":
                return np.zeros(3, np.float32)
            case "range":
                return np.array([1.5, 0], np.float32)
            case "refuse":
                raise DataError("the policy's output is not finite")
        raise UsageError(self.mistake)


def save_toy(directory: Path, mistake: str = "", size: int = 8) -> Path:
    """A policy directory for `load_toy`."""
    directory.mkdir(parents=True)
    storage.write_json(directory / "toy.json", {"mistake": mistake, "size": size})
    storage.write_json(directory / "contract.json", {})  # by this file a policy directory is known
    storage.write_manifest(directory, {"format_version": 1})
    return directory


def load_toy(path: Path) -> ToyAgent:
    values = storage.read_json(path / "toy.json")
    return ToyAgent(embodiment(values["size"]), values["mistake"])
