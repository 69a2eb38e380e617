"""One actor in one world, from reset to end: an `Episode`. Whatever goes wrong ends the episode and is written down; nothing is repaired.

What does not belong here: loops over episodes, processes, files, and how a policy turns observations into actions.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from deftly.contract import Embodiment
from deftly.types import DataError, Observation, World

Sentence = Literal["own", "swapped"]
HORIZON_S = 120.0
"""Worlds end their own episodes; this is for one that does not."""


class Actor(Protocol):
    """Whatever acts: a trained agent or a baseline. `clipped` counts the actions that it had to bring back into the limits."""

    @property
    def clipped(self) -> int: ...

    def reset(self, key: int) -> None: ...

    def act(self, observation: Observation) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """What happened, as it is stored: plain values, the same for the same (actor, world, seed) but for `wall_s`."""

    seed: int
    state_hash: str  # of the scene and the robot's state at reset; "" when the world could not be reset
    instruction: str  # what success means
    told: str  # what the actor was told; another sentence only for the deaf baseline
    outcome: str  # "success", or why not: the world's own words, "invalid_action" or "crashed"
    success: bool
    success_at_reset: bool = False  # a flaw of the world or its seed: such an episode measures nothing
    obeyed: bool | None = None  # told the swapped sentence: did it do with that object what success asks for with the target?
    steps: int = 0
    clipped: int = 0
    error: str | None = None  # of a crash or an invalid action, one line
    labels: dict[str, str] = field(default_factory=dict)  # skill, type and colour of the target, where the world says so
    wall_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class InvalidAction(Exception):
    """An action that must not reach a robot."""


def rollout(
    actor: Actor,
    world: World,
    seed: int,
    *,
    sentence: Sentence = "own",
    options: dict[str, Any] | None = None,
    horizon_s: float = HORIZON_S,
) -> Episode:
    """Play one episode; never raises for what actor or world do wrong, only for wrong arguments.

    The world starts from `seed` (and `options`), and whatever the actor draws is a function of it too. `sentence="swapped"` tells the actor
    to handle the scene's other object while success stays with the original one.

    Raises:
        UsageError: `options` are refused by the world (an instruction without a referent).
    """
    started = time.perf_counter()
    found: dict[str, Any] = {"seed": seed, "state_hash": "", "instruction": "", "told": "", "steps": 0, "success": False}
    clipped = actor.clipped
    try:
        _play(found, actor, world, sentence, options, horizon_s)
    except InvalidAction as error:
        found.update(outcome="invalid_action", error=_line(error))
    except Exception as error:
        if options is not None and not found["state_hash"] and isinstance(error, ValueError):
            raise  # the caller's own options, not a fault of the world
        found.update(outcome="crashed", error=f"{type(error).__name__}: {_line(error)}")
    if sentence == "swapped":
        found.setdefault("obeyed", False)
    return Episode(**found, clipped=actor.clipped - clipped, wall_s=time.perf_counter() - started)


def _play(
    found: dict[str, Any],
    actor: Actor,
    world: World,
    sentence: Sentence,
    options: dict[str, Any] | None,
    horizon_s: float,
) -> None:
    """Fill in `found` while the episode goes, so that a crash leaves what was known until then."""
    observation, info = world.reset(seed=found["seed"], options=options)
    scene = info.get("scene") or {}
    other = scene.get("other")
    instruction = told = observation["instruction"]
    if sentence == "swapped":
        told = world.sentence_for(other) if other is not None else instruction
    found.update(
        state_hash=info.get("state_hash") or state_hash(observation, scene), instruction=instruction, told=told, labels=labels(info, scene)
    )
    if world.outcome() == "success":
        found.update(outcome="success", success=True, success_at_reset=True)
        return
    actor.reset(found["seed"])
    limit = round(horizon_s * world.embodiment.rate_hz)
    done = False
    while not done and found["steps"] < limit:
        observation = Observation(images=observation["images"], state=observation["state"], instruction=told)
        observation, _, terminated, truncated, info = world.step(_action(actor, observation, world.embodiment))
        found["steps"] += 1
        done = terminated or truncated
        if sentence == "swapped":  # the same feat with the other object: it was lifted first, and carried for as long as success takes
            found["obeyed"] = other is not None and info.get("lifted") == info.get("carried") == other
    outcome = world.outcome()
    outcome = "timeout" if outcome == "running" else outcome
    found.update(outcome=outcome, success=outcome == "success")


def _action(actor: Actor, observation: Observation, embodiment: Embodiment) -> np.ndarray:
    """The actor's next action, checked; it is never brought into range here, because the actor's owner should know."""
    try:
        action = np.asarray(actor.act(observation))
    except DataError as error:
        raise InvalidAction(str(error)) from error
    return check_action(action, embodiment)


def check_action(action: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """The action as float32 [a]; raises `InvalidAction` for a wrong shape, anything that is not a number, or outside of the limits."""
    names = embodiment.action.names
    if action.shape != (len(names),):
        raise InvalidAction(f"an action of shape {list(action.shape)}, the robot wants [{len(names)}] ({', '.join(names)})")
    if not np.issubdtype(action.dtype, np.number) or not np.isfinite(action).all():
        raise InvalidAction(f"an action that is not finite: {action.tolist()}")
    action = action.astype(np.float32)
    for limits, sign in ((embodiment.action.low, -1.0), (embodiment.action.high, 1.0)):
        if limits is None:
            continue
        # float32 rounding of a limit is not a violation
        beyond = sign * (action.astype(np.float64) - np.asarray(limits)) > 1e-6 * np.maximum(1.0, np.abs(limits))
        if beyond.any():
            index = int(beyond.argmax())
            raise InvalidAction(f"action {names[index]} = {action[index]:g} is beyond its limit {limits[index]:g}")
    return action


def state_hash(observation: Observation, scene: dict[str, Any]) -> str:
    """sha256 of where everything stands before the first action, for worlds that give none of their own. Images are left out: it must be
    the same without rendering."""
    digest = hashlib.sha256(json.dumps(scene, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(observation["state"], dtype=np.float32).tobytes())
    digest.update(observation["instruction"].encode())
    return digest.hexdigest()[:32]


def labels(info: dict[str, Any], scene: dict[str, Any]) -> dict[str, str]:
    """Which strata an episode belongs to, as far as the world says: skill, and the target's type and colour."""
    found = {"skill": str(info["skill"])} if "skill" in info else {}
    objects, target = scene.get("objects"), scene.get("target")
    if objects and target is not None:
        found |= {name: str(objects[target][name]) for name in ("type", "colour") if name in objects[target]}
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
