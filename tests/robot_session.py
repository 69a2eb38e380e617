"""Robot sessions, each a process of its own, that record until they are killed. `python robot_session.py SOCKET` forks them.

The process that forks has imported everything and started nothing, so that a session costs no start of Python (2 s of imports). Over SOCKET
(a file descriptor) it is sent `[root, episodes, kill_at]` as JSON with the descriptor for the session's stdout, and answers with two lines:
the session's process id, and how it ended. KILL_AT is the number of the durable operation (fsync, rename, removal) before which the session
sends itself SIGKILL; null: it lives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import traceback
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


def serve(channel: socket.socket) -> None:
    """One session after another, each in a fork, until the other end is closed."""
    while (message := socket.recv_fds(channel, 4096, 1))[0]:
        root, episodes, kill_at = json.loads(message[0])
        (output,) = message[1]
        session = os.fork()
        if session == 0:
            code = 1
            try:
                channel.close()
                os.dup2(output, 1)
                os.close(output)
                main(Path(root), episodes, kill_at)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(output)
        channel.sendall(f"{session}\n".encode())
        channel.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(session, 0)[1])}\n".encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
