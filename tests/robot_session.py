"""A robot session as a process of its own: it records until it is killed. `python robot_session.py ROOT EPISODES [KILL_AT]`.

KILL_AT is the number of the durable operation (fsync, rename, removal) before which the process sends itself SIGKILL; without it, it lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from deftly.data.recorder import Recorder
from small_data import picture, robot

EXTRA = {"force": ("x", "y")}


def length_of(number: int) -> int:
    return 3 + number % 4


def frame_of(number: int, i: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """(images, state, action, force): every value is a function of episode and frame."""
    draw = np.random.default_rng([number, i])
    images = {camera: picture(20 * number + i, camera, 32, 32) for camera in ("head", "wrist")}
    return images, *(draw.normal(size=size).astype(np.float32) for size in (5, 4, 2))


def record(recorder: Recorder, number: int) -> int:
    for i in range(length_of(number)):
        images, state, action, force = frame_of(number, i)
        recorder.add_frame(images, state, action, {"force": force})
    return recorder.save_episode(f"task {number % 3}", {"seed": number})


def die_at(count: int) -> None:
    left = [count]

    def counted(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
        setattr(module, name, counted(getattr(module, name)))


def main(root: Path, episodes: int, kill_at: int | None) -> None:
    if kill_at is not None:
        die_at(kill_at)
    with Recorder(root, robot(), extra=EXTRA, images={"wrist": "image"}, resume=True) as recorder:
        while recorder.num_episodes < episodes:
            print("saved", record(recorder, recorder.num_episodes), flush=True)
        recorder.finish()
    print("finished", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
