"""D34 and D35: what a recorder has saved survives its death, a full disk and a folder that cannot be written."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
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


def session(root: Path, episodes: int, *more: int) -> subprocess.Popen[str]:
    command = [sys.executable, robot_session.__file__, str(root), str(episodes), *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)})


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


def kill_and_open(tmp_path: Path, seed: int, kills: int, episodes: int) -> None:
    """Kill the session `kills` times at random moments; after each, a copy opens with everything that was reported as saved."""
    draw, root, saved = np.random.default_rng(seed), tmp_path / "data", 0
    for kill in range(kills):
        process = session(root, episodes)
        assert process.stdout is not None
        wanted, reported = int(draw.integers(0, 4)), saved
        while wanted >= 0 and (line := process.stdout.readline()):
            reported = reported + 1 if line.startswith("saved") else reported
            wanted -= 1
        time.sleep(float(draw.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        reported += sum(line.startswith("saved") for line in process.stdout)
        process.wait()
        process.stdout.close()
        copy = tmp_path / f"copy-{kill}"
        shutil.copytree(root, copy)
        there = Dataset.open(copy).num_episodes
        assert reported <= there <= reported + 1, "the one beyond was committed, and its number not yet printed"
        require_episodes(copy, there)
        shutil.rmtree(copy)
        saved = there
    process = session(root, saved + 2)
    process.communicate()
    assert process.returncode == 0
    require_episodes(root, saved + 2)


def test_episodes_survive_kill_9(tmp_path):
    kill_and_open(tmp_path, seed=0, kills=3, episodes=10_000)


@pytest.mark.slow
def test_episodes_survive_kill_9_at_20_moments(tmp_path):
    kill_and_open(tmp_path, seed=1, kills=20, episodes=10_000)


def die_before(tmp_path: Path, whole: Path, step: int) -> bool:
    """One session that dies before its durable operation `step`; False when it lived through all of them."""
    root = tmp_path / f"data-{step}"
    process = session(root, 4, step)
    output, _ = process.communicate()
    if process.returncode == 0:
        assert hashes(root) == hashes(whole)
        return False
    reported = output.count("saved")
    if reported:
        there = Dataset.open(root).num_episodes
        assert there in (reported, reported + 1)
        require_episodes(root, there)
        if there == 4:
            assert hashes(root) == hashes(whole), "finished by who opens it, to the same bytes"
    else:
        process = session(root, 4)
        process.communicate()
        assert process.returncode == 0
        assert hashes(root) == hashes(whole)
    shutil.rmtree(root)
    return True


def test_a_death_while_finishing_changes_nothing(tmp_path, whole):
    for step in (39, 62, 76):
        die_before(tmp_path, whole, step)


@pytest.mark.slow
def test_a_death_before_any_durable_operation_loses_at_most_one_episode(tmp_path, whole):
    step = 0
    while die_before(tmp_path, whole, step):
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
    with pytest.raises(DataError, match=r"rows\.parquet: differs from its sha256.*move .*episode-00000001 away"):
        Dataset.open(tmp_path / "data")
    shutil.rmtree(path.parent)
    require_episodes(tmp_path / "data", 1)
