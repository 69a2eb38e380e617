"""Demonstrations from the simulator: the scripted expert acts, what it saw and did becomes a dataset.

The work is cut into fixed shards of episodes. A shard is a small dataset under OUT/.shards, committed whole; when all are there they are
merged into OUT. Episode i is a function of (seed, i), so neither the number of workers nor any interruption changes a byte.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from deftly import randomness, storage
from deftly.config import Config
from deftly.contract import differences, fingerprint
from deftly.data.merge import described, merge
from deftly.data.schema import INFO_PATH
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.progress import Progress
from deftly.sim.expert import DisturbanceConfig, Expert
from deftly.sim.processes import LOCAL, Executor
from deftly.sim.tabletop import Tabletop, TabletopConfig
from deftly.types import DataError, UsageError

SHARDS = ".shards"
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")  # metres, unit quaternion; all zero where a scene has fewer objects
BOX = ("x0", "y0", "x1", "y1")  # pixels, ends exclusive; -1 where nothing of the object is seen
ELSEWHERE = "choose another folder (deftly data generate --out, deftly demo --data)"
UNSEEN_S = 90.0  # NFS keeps a folder's listing for up to 60 s
VERSIONED = ("deftly", "mujoco", "numpy", "av", "pyarrow")  # other versions may give other bytes


class GenerateConfig(Config):
    """What is demonstrated, and how."""

    world: TabletopConfig = TabletopConfig()
    disturbance: DisturbanceConfig = DisturbanceConfig()
    boxes: bool = True
    """Record where each object is seen in each image; this draws every image a second time."""
    shard_episodes: int = pydantic.Field(default=20, ge=1)
    """Episodes that are made, stored and recovered together."""
    attempts: int = pydantic.Field(default=20, ge=1)
    """Scenes that are tried until the expert succeeds in one; it is a fault when none does."""


def generate(
    config: GenerateConfig, out: Path, episodes: int, workers: int = 0, seed: int = 0, executor: Executor = LOCAL
) -> dict[str, Any]:
    """Make `episodes` successful demonstrations and leave a dataset in `out`; continues where an earlier call was interrupted.

    `executor` says whose `workers` make the shards: they write them into `out` themselves.
    Returns {"episodes", "frames", "seconds", "frames_per_s", "shards_reused"}: time and rate are those of this call's own shards.
    Raises `UsageError` when `out` holds something else, or another process is generating into it.
    """
    if episodes < 1 or workers < 0 or seed < 0:
        raise UsageError(f"episodes must be 1 or more, workers and seed 0 or more; got {episodes}, {workers}, {seed}")
    out = Path(out)
    plan = _plan(config, episodes, seed)
    if (out / INFO_PATH).is_file():
        if (stored := described(out).get("generation")) != plan:
            raise UsageError(f"{out}: holds another dataset already: {_what_differs(stored, plan)}; {ELSEWHERE}, or remove this one")
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        return {"episodes": episodes, "frames": 0, "seconds": 0.0, "frames_per_s": 0.0, "shards_reused": len(_ranges(config, episodes))}
    with _claimed(out, plan):
        return _fill(config, out, plan, episodes, workers, seed, executor)


def _plan(config: GenerateConfig, episodes: int, seed: int) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"config": config.to_dict(), "episodes": episodes, "seed": seed, "versions": versions}


def _ranges(config: GenerateConfig, episodes: int) -> list[tuple[int, int]]:
    """Episode ranges of the shards."""
    size = config.shard_episodes
    return [(begin, min(begin + size, episodes)) for begin in range(0, episodes, size)]


@contextlib.contextmanager
def _claimed(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold `out` for this process, refusing a folder that holds anything but our own unfinished work."""
    shards = out / SHARDS
    if out.exists() and not shards.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not an unfinished generation; {ELSEWHERE}")
    storage.make_directory(shards)
    with storage.lock(shards / "lock", wait=False, who="generation", remedy=f"wait for it, or {ELSEWHERE}"):
        if (shards / "plan.json").is_file() and (stored := storage.read_json(shards / "plan.json")) != plan:
            what = f"an unfinished generation with other settings or versions: {_what_differs(stored, plan)}"
            raise UsageError(f"{out}: holds {what}; repeat those, {ELSEWHERE}, or remove this one")
        storage.write_json(shards / "plan.json", plan)
        for leftover in [*shards.glob(".*.tmp"), *shards.glob(".*.old")]:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield


def _what_differs(stored: Any, plan: dict[str, Any]) -> str:
    """The first differences in one line."""
    if not isinstance(stored, dict):
        return "it was not generated"
    lines = differences(stored, plan)
    more = f" (+{len(lines) - 3} more)" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _fill(
    config: GenerateConfig, out: Path, plan: dict[str, Any], episodes: int, workers: int, seed: int, executor: Executor
) -> dict[str, Any]:
    ranges = _ranges(config, episodes)
    paths = {begin: out / SHARDS / f"shard-{begin:08d}" for begin, _ in ranges}
    missing = [(begin, end) for begin, end in ranges if not _is_whole(paths[begin])]
    frames, started = 0, time.monotonic()
    reused = len(ranges) - len(missing)
    with Progress("generate", episodes, "episodes") as progress:
        progress.advance(episodes - sum(end - begin for begin, end in missing))
        shards = (out / SHARDS).absolute()  # workers may stand in another folder
        make = functools.partial(_shard_maker, config, seed, shards)
        counts = executor.run(make, missing, workers=workers, name=_shard_name, folder=shards)
        for (begin, end), count in zip(missing, counts, strict=True):
            frames += count
            progress.advance(end - begin, note=f"{frames / (time.monotonic() - started):.0f} frames/s")
        _await_shards(list(paths.values()))
        merge([paths[begin] / "dataset" for begin, _ in ranges], out, {"generation": plan})
    shutil.rmtree(out / SHARDS)
    seconds = time.monotonic() - started
    return {"episodes": episodes, "frames": frames, "seconds": seconds, "frames_per_s": frames / seconds, "shards_reused": reused}


def _await_shards(paths: list[Path]) -> None:
    """Wait until this machine sees what others have committed: a network file system may remember for a while that a file was not there.

    Changing the folder makes it ask again. Raises `DataError` when a shard does not appear.
    """
    until = time.monotonic() + UNSEEN_S
    while unseen := [path for path in paths if not path.is_dir()]:
        if time.monotonic() > until:  # guard: generate.unseen
            raise DataError(f"{unseen[0]}: made, but not seen here after {UNSEEN_S:g} s: is the folder shared? repeat the command")
        (unseen[0].parent / ".look").touch()
        (unseen[0].parent / ".look").unlink()
        time.sleep(0.2)


def _is_whole(shard: Path) -> bool:
    if not shard.is_dir():
        return False
    try:
        storage.verify(shard)
    except DataError:
        return False  # it is made again
    return True


def _shard_name(job: tuple[int, int]) -> str:
    return f"episodes {job[0]}..{job[1] - 1}"


def _shard_maker(config: GenerateConfig, seed: int, shards: Path) -> Callable[[tuple[int, int]], int]:
    """Runs once in each worker process: the world is built once, its shards follow."""
    # Mesa's software renderer would hand small images to threads of its own, which is slower than drawing them; pixels are the same.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return functools.partial(_make_shard, config, seed, shards, config.world.build())


def _make_shard(config: GenerateConfig, seed: int, shards: Path, world: Tabletop, job: tuple[int, int]) -> int:
    """Episodes begin..end-1 as a committed dataset; returns the number of frames."""
    frames = 0

    def fill(directory: Path) -> None:
        nonlocal frames
        with DatasetWriter(directory / "dataset", world.embodiment, extra=_extra_features(config)) as writer:
            for number in range(*job):
                writer.add(demonstrate(config, world, seed, number))
            frames = writer.num_frames
            writer.finish()

    storage.commit(shards / f"shard-{job[0]:08d}", fill, {"episodes": list(job)})
    return frames


def _extra_features(config: GenerateConfig) -> dict[str, tuple[str, ...]]:
    count = config.world.num_objects[1]
    features = {
        "executed_action": config.world.embodiment().action.names,
        "object_poses": tuple(f"object{i}_{axis}" for i in range(count) for axis in POSE),
    }
    if config.boxes:
        names = tuple(f"object{i}_{edge}" for i in range(count) for edge in BOX)
        features |= {f"object_boxes.{camera}": names for camera in config.world.cameras}
    return features


def demonstrate(config: GenerateConfig, world: Tabletop, seed: int, number: int) -> EpisodeData:
    """Episode `number` of a generation: the first of its scenes in which the expert succeeds.

    Each frame pairs what was seen with the expert's label (`action`) and with what was executed after disturbance (`executed_action`).
    Raises `DataError` when the expert fails in every scene that it may try.
    """
    outcomes = []
    for attempt in range(config.attempts):
        episode_seed = randomness.seed_of("train", seed, number, attempt)
        episode = _attempt(config, world, episode_seed)
        if world.outcome() == "success":
            provenance = {"seed": episode_seed, "attempt": attempt, **episode.extra_episode}
            return EpisodeData(
                images=episode.images,
                state=episode.state,
                action=episode.action,
                task=episode.task,
                extra_frame=episode.extra_frame,
                extra_episode=provenance,
            )
        outcomes.append(world.outcome())
    raise DataError(f"episode {number}: the expert failed in all {config.attempts} scenes ({', '.join(sorted(set(outcomes)))})")


def _attempt(config: GenerateConfig, world: Tabletop, seed: int) -> EpisodeData:
    observation, info = world.reset(seed=seed)
    scene = json.dumps(info["scene"], sort_keys=True)
    skill, template = info["skill"], info["template"]
    expert, disturbance = Expert(world), config.disturbance.build(seed)
    count = config.world.num_objects[1]
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in config.world.cameras}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("state", "action", *_extra_features(config))}
    while world.outcome() == "running":
        for camera, pixels in observation["images"].items():
            images[camera].append(pixels)
        rows["state"].append(observation["state"])
        rows["object_poses"].append(_padded(info["object_poses"], count, 0.0))
        if config.boxes:
            for camera, boxes in world.boxes().items():
                rows[f"object_boxes.{camera}"].append(_padded(boxes, count, -1.0))
        label = expert.act()
        executed = disturbance(label)
        rows["action"].append(label)
        rows["executed_action"].append(executed)
        observation, _, _, _, info = world.step(executed)
    columns = {name: np.stack(values).astype(np.float32) for name, values in rows.items()}
    return EpisodeData(
        images={camera: np.stack(frames) for camera, frames in images.items()},
        state=columns.pop("state"),
        action=columns.pop("action"),
        task=world.instruction,
        extra_frame=columns,
        extra_episode={
            "skill": skill,
            "scene": fingerprint(json.loads(scene))[:16],
            "scene_json": scene,
            "template": template,
            "disturbed": disturbance.active,
        },
    )


def _padded(values: np.ndarray, count: int, fill: float) -> np.ndarray:
    """[n d] as one vector [count * d]."""
    padded = np.full((count, values.shape[1]), fill, dtype=np.float32)
    padded[: len(values)] = values
    return padded.reshape(-1)
