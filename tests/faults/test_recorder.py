"""D34 and D35: what a recorder has saved survives its death, a full disk and a folder that cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import deftly
import robot_session
from deftly.data.dataset import Dataset
from deftly.data.recorder import Recorder, RecordingError
from deftly.data.recording import RECORDING
from deftly.types import DataError, UsageError
from robot_session import EXTRA, frame_of, length_of, record
from small_data import robot

PATHS = [str(Path(deftly.__file__).parents[1]), str(Path(robot_session.__file__).parent)]


class Session:
    """A process that records `episodes` into `root`; with `kill_at` it dies before that durable operation."""

    def __init__(self, station: socket.socket, root: Path, episodes: int, kill_at: int | None = None) -> None:
        read, write = os.pipe()
        socket.send_fds(station, [json.dumps([str(root), episodes, kill_at]).encode()], [write])
        os.close(write)
        self.stdout = os.fdopen(read)
        self._answers = station.makefile("r", buffering=1)
        self.pid = int(self._answers.readline())

    def wait(self) -> tuple[int, str]:
        """(exit code, the negative signal of a killed one; what it still said)."""
        with self.stdout, self._answers:
            said = self.stdout.read()
            return int(self._answers.readline()), said


@pytest.fixture(scope="module")
def station() -> Iterator[socket.socket]:
    """Where the sessions are forked, one at a time: see robot_session.py."""
    here, there = socket.socketpair()
    command = [sys.executable, robot_session.__file__, str(there.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    with here, subprocess.Popen(command, pass_fds=[there.fileno()], env=environment) as process:
        there.close()
        yield here
        here.close()
        assert process.wait(60) == 0


def require_episodes(root: Path, count: int) -> None:
    """The dataset opens, and each of its episodes holds what was recorded, to the last value."""
    dataset = Dataset.open(root)
    assert dataset.num_episodes == count
    assert dataset.episode_length.tolist() == [length_of(number) for number in range(count)]
    for number in range(count):
        rows = slice(*dataset.episode_start[number : number + 2])
        frames = [frame_of(number, i) for i in range(length_of(number))]
        assert np.array_equal(dataset.state[rows], np.stack([state for _, state, _, _ in frames]))
        assert np.array_equal(dataset.action[rows], np.stack([action for _, _, action, _ in frames]))
        assert np.array_equal(dataset.column("force")[rows], np.stack([force for *_, force in frames]))
        assert np.array_equal(dataset.frames(number, "wrist"), np.stack([images["wrist"] for images, *_ in frames])), "PNG is exact"
        head = np.stack([images["head"] for images, *_ in frames]).astype(int)
        assert np.abs(dataset.frames(number, "head").astype(int) - head).mean() < 4
    assert dataset.extra("seed") == list(range(count))
    assert not (root / RECORDING).exists()


def hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A recording that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole") / "data"
    with Recorder(root, robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        for number in range(4):
            record(recorder, number)
        recorder.finish()
    return root


def kill_and_open(station: socket.socket, tmp_path: Path, seed: int, kills: int, episodes: int) -> None:
    """Kill the session `kills` times at random moments; after each, a copy opens with everything that was reported as saved."""
    draw, root, saved = np.random.default_rng(seed), tmp_path / "data", 0
    for kill in range(kills):
        session = Session(station, root, episodes)
        wanted, reported = int(draw.integers(0, 4)), saved
        while wanted >= 0 and (line := session.stdout.readline()):
            reported = reported + 1 if line.startswith("saved") else reported
            wanted -= 1
        time.sleep(float(draw.uniform(0, 0.05)))
        os.kill(session.pid, signal.SIGKILL)
        code, said = session.wait()
        assert code == -signal.SIGKILL
        reported += said.count("saved")
        copy = tmp_path / f"copy-{kill}"
        shutil.copytree(root, copy)
        there = Dataset.open(copy).num_episodes
        assert reported <= there <= reported + 1, "the one beyond was committed, and its number not yet printed"
        require_episodes(copy, there)
        shutil.rmtree(copy)
        saved = there
    assert Session(station, root, saved + 2).wait()[0] == 0
    require_episodes(root, saved + 2)


def test_episodes_survive_kill_9(station, tmp_path):
    kill_and_open(station, tmp_path, seed=0, kills=3, episodes=10_000)


@pytest.mark.slow
def test_episodes_survive_kill_9_at_20_moments(station, tmp_path):
    kill_and_open(station, tmp_path, seed=1, kills=20, episodes=10_000)


def die_before(station: socket.socket, tmp_path: Path, whole: Path, step: int) -> bool:
    """One session that dies before its durable operation `step`; False when it lived through all of them."""
    root = tmp_path / f"data-{step}"
    code, said = Session(station, root, 4, step).wait()
    if code == 0:
        assert hashes(root) == hashes(whole)
        return False
    assert code == -signal.SIGKILL
    if reported := said.count("saved"):
        there = Dataset.open(root).num_episodes
        assert there in (reported, reported + 1)
        require_episodes(root, there)
        if there == 4:
            assert hashes(root) == hashes(whole), "finished by who opens it, to the same bytes"
    else:
        assert Session(station, root, 4).wait()[0] == 0
        assert hashes(root) == hashes(whole)
    shutil.rmtree(root)
    return True


def test_a_death_while_finishing_changes_nothing(station, tmp_path, whole):
    for step in (39, 62, 76):
        die_before(station, tmp_path, whole, step)


@pytest.mark.slow
def test_a_death_before_any_durable_operation_loses_at_most_one_episode(station, tmp_path, whole):
    step = 0
    while die_before(station, tmp_path, whole, step):
        step += 1
    print(f"\n{step} durable operations, killed before each of them: no saved episode lost")
    assert step > 50


def test_a_full_disk_leaves_what_was_saved(tmp_path):
    root = tmp_path / "data"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Recorder(root, robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        record(recorder, 0)
        for size in (0, 900):  # nothing can be written; the video fits in part
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
            with pytest.raises(RecordingError, match=r"cannot (record|save) \(File too large\); the 1 saved episodes are whole") as caught:
                record(recorder, 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert "\n" not in str(caught.value)
            assert recorder.num_frames == 0
        record(recorder, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, limit[1]))
        with pytest.raises(RecordingError, match="cannot finish"):
            recorder.finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        recorder.finish()
    require_episodes(root, 2)


def test_a_folder_that_cannot_be_written_is_said_at_once():
    with pytest.raises(RecordingError, match="cannot start recording"):
        Recorder(Path("/proc/nothing/data"), robot())


def test_an_unfinished_recording_on_a_disk_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    with Recorder(tmp_path / "data", robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        record(recorder, 0)
    (tmp_path / "data" / RECORDING / "lock").unlink()
    (tmp_path / "data" / RECORDING / "lock").mkdir()  # cannot be opened for writing, not even by root
    with pytest.raises(DataError, match="its recording cannot be put together"):
        Dataset.open(tmp_path / "data")


def test_a_recording_cannot_be_opened_while_it_is_made(tmp_path):
    with Recorder(tmp_path / "data", robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        record(recorder, 0)
        with pytest.raises(UsageError, match=r"another recorder .* finish that recording first"):
            Dataset.open(tmp_path / "data")
        with pytest.raises(UsageError, match="another recorder"):
            Recorder(tmp_path / "data", robot(), extra=EXTRA, images={"wrist": "image"}, resume=True)
        record(recorder, 1)
    require_episodes(tmp_path / "data", 2)


def test_a_damaged_episode_is_named(tmp_path):
    with Recorder(tmp_path / "data", robot(), extra=EXTRA, images={"wrist": "image"}) as recorder:
        record(recorder, 0)
        record(recorder, 1)
    path = tmp_path / "data" / RECORDING / "episode-00000001/rows.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"rows\.parquet: differs from manifest.*move .*episode-00000001 away"):
        Dataset.open(tmp_path / "data")
    shutil.rmtree(path.parent)
    require_episodes(tmp_path / "data", 1)
