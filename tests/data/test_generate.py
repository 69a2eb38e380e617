"""Generated demonstrations do not depend on the number of workers, nor on being killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deftly import randomness, storage
from deftly.data import generate as module
from deftly.data.dataset import Dataset
from deftly.data.generate import GenerateConfig, demonstrate, generate
from deftly.sim.expert import DisturbanceConfig
from deftly.sim.tabletop import TabletopConfig
from deftly.types import DataError, UsageError
from guards import guards

CONFIG = GenerateConfig(world=TabletopConfig(image_size=32), shard_episodes=2)
EPISODES = 5


def hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): storage.sha256(p) for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "data"
    report = generate(CONFIG, out, EPISODES, workers=0, seed=3)
    assert (report["episodes"], report["frames"], report["shards_reused"]) == (EPISODES, Dataset.open(out).num_frames, 0)
    assert report["frames_per_s"] > 0
    return out


def test_the_dataset_holds_what_was_seen_and_done(reference):
    dataset = Dataset.open(reference)
    assert dataset.embodiment == CONFIG.world.embodiment()
    assert dataset.num_episodes == EPISODES
    assert dataset.extra("skill") == ["pick"] * EPISODES
    assert len(set(dataset.extra("scene"))) == EPISODES
    assert dataset.extra("seed")[0] == randomness.seed_of("train", 3, 0, dataset.extra("attempt")[0])
    scene = json.loads(dataset.extra("scene_json")[1])
    target = scene["objects"][scene["target"]]
    sentence = dataset.tasks[dataset.task_of_frame[dataset.episode_start[1]]]
    assert target["colour"] in sentence
    assert target["type"] in sentence
    calm = [e for e in range(EPISODES) if not dataset.extra("disturbed")[e]]
    assert calm, "this seed has an undisturbed episode"
    rows = slice(*dataset.episode_start[calm[0] : calm[0] + 2])
    assert np.array_equal(dataset.column("executed_action")[rows], dataset.action[rows])
    low, high = (np.float32(limit) for limit in (dataset.embodiment.action.low, dataset.embodiment.action.high))
    assert ((dataset.action >= low) & (dataset.action <= high)).all()


def test_poses_and_boxes_follow_the_objects(reference):
    dataset = Dataset.open(reference)
    for episode in range(EPISODES):
        rows = slice(*dataset.episode_start[episode : episode + 2])
        scene = json.loads(dataset.extra("scene_json")[episode])
        poses = dataset.column("object_poses")[rows].reshape(-1, 3, 7)
        count = len(scene["objects"])
        assert np.allclose(poses[0, :count, 0], [item["x"] for item in scene["objects"]], atol=0.01)
        assert np.allclose(np.linalg.norm(poses[:, :count, 3:], axis=-1), 1, atol=1e-3)
        assert (poses[:, count:] == 0).all()
        assert poses[-1, scene["target"], 2] > poses[0, scene["target"], 2] + 0.05
        boxes = dataset.column("object_boxes.head")[rows].reshape(-1, 3, 4)
        assert (boxes[:, count:] == -1).all()
        seen = boxes[:, :count][(boxes[:, :count] >= 0).all(-1)]
        assert len(seen)
        assert (seen[:, :2] < seen[:, 2:]).all()
        assert seen.max() <= 32


def test_an_episode_is_a_function_of_its_number(reference):
    dataset = Dataset.open(reference)
    world = CONFIG.world.build()
    again = demonstrate(CONFIG, world, 3, 4)
    rows = slice(*dataset.episode_start[4:6])
    assert np.array_equal(dataset.action[rows], again.action)
    assert np.array_equal(dataset.state[rows], again.state)
    other = demonstrate(CONFIG, world, 4, 4)
    assert other.extra_episode["seed"] != again.extra_episode["seed"]


def test_two_workers_write_the_same_bytes(reference, tmp_path):
    generate(CONFIG, tmp_path / "data", EPISODES, workers=2, seed=3)
    assert hashes(tmp_path / "data") == hashes(reference)


@pytest.mark.slow
def test_one_worker_writes_the_same_bytes(reference, tmp_path):
    generate(CONFIG, tmp_path / "data", EPISODES, workers=1, seed=3)
    assert hashes(tmp_path / "data") == hashes(reference)


SCRIPT = """
import sys
from pathlib import Path
from deftly.data.generate import GenerateConfig, generate
if __name__ == "__main__":
    generate(GenerateConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), 5, workers=int(sys.argv[3]), seed=3)
"""


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_continued_it_ends_in_the_same_bytes(reference, tmp_path, workers):
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    out = tmp_path / "data"
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "config.json"), str(out), str(workers)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list((out / ".shards").glob("shard-*")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "meta/info.json").exists()
    with pytest.raises(DataError, match="run the same `deftly data generate` again"):
        Dataset.open(out)
    leftover = out / ".shards/.shard-00000004.1.tmp"
    leftover.mkdir(exist_ok=True)
    deadline = time.monotonic() + 30
    while True:  # the orphaned workers leave by themselves
        try:
            report = generate(CONFIG, out, EPISODES, workers=0, seed=3)
            break
        except UsageError as error:
            assert "another generation" in str(error)  # noqa: PT017
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert report["shards_reused"] >= 1
    assert hashes(out) == hashes(reference)


def test_an_interrupted_merge_is_repeated_from_the_shards(reference, tmp_path, monkeypatch):
    def fails(*arguments: object) -> None:
        (tmp_path / "data/meta").mkdir()
        (tmp_path / "data/meta/half").write_text("x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "merge", fails)
        with pytest.raises(KeyboardInterrupt):
            generate(CONFIG, tmp_path / "data", EPISODES, seed=3)
    damaged = tmp_path / "data/.shards/shard-00000002/dataset/meta/stats.json"
    damaged.write_text(damaged.read_text() + " ")  # a shard that differs from its checksums is made again
    report = generate(CONFIG, tmp_path / "data", EPISODES, seed=3)
    assert report["shards_reused"] == 2
    assert hashes(tmp_path / "data") == hashes(reference)


def test_what_is_there_is_neither_made_again_nor_overwritten(reference, tmp_path):
    before = hashes(reference)
    assert generate(CONFIG, reference, EPISODES, seed=3)["frames"] == 0
    changes = {"episodes: expected 5, found 6": {"episodes": 6}, "seed: expected 3, found 4": {"seed": 4}}
    changes["config.boxes: expected true, found false"] = {"config": CONFIG.replace(boxes=False)}
    for words, change in changes.items():
        arguments = {"config": CONFIG, "episodes": EPISODES, "seed": 3, **change}
        with pytest.raises(UsageError, match=f"holds another dataset already: {words}; .*--out, .*--data"):
            generate(out=reference, **arguments)
    assert hashes(reference) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an unfinished generation"):
        generate(CONFIG, tmp_path, EPISODES)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_other_settings_do_not_continue_an_unfinished_generation(tmp_path, monkeypatch):
    monkeypatch.setattr("deftly.sim.processes.run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generate(CONFIG, tmp_path / "data", EPISODES, seed=3)
    with pytest.raises(UsageError, match=r"other settings or versions: seed: expected 3, found 4; repeat those, .*--data"):
        generate(CONFIG, tmp_path / "data", EPISODES, seed=4)


def test_two_processes_do_not_share_a_folder(tmp_path):
    with module._claimed(tmp_path / "data", {"x": 1}), pytest.raises(UsageError, match="another generation"):
        generate(CONFIG, tmp_path / "data", EPISODES)


def test_an_expert_that_always_fails_is_a_fault_not_a_loop(tmp_path):
    hopeless = CONFIG.replace(world=CONFIG.world.replace(horizon_s=0.2), attempts=2, disturbance=DisturbanceConfig(share=0))
    with pytest.raises(DataError, match=r"episode 0: the expert failed in all 2 scenes \(timeout\)"):
        generate(hopeless, tmp_path / "data", 1)
    assert not (tmp_path / "data/meta").exists()
    with pytest.raises(UsageError, match="1 or more"):
        generate(CONFIG, tmp_path / "data", 0)


@guards("generate.unseen")
def test_shards_that_appear_late_are_waited_for_and_no_longer(tmp_path, monkeypatch):
    """A worker on another machine has committed it; the network file system of this one still says that it is not there."""
    monkeypatch.setattr(module, "UNSEEN_S", 2.0)
    late = tmp_path / "shard-00000000"
    timer = threading.Timer(0.3, late.mkdir)
    timer.start()
    module._await_shards([late])
    timer.join()
    assert list(tmp_path.iterdir()) == [late]
    monkeypatch.setattr(module, "UNSEEN_S", 0.3)
    with pytest.raises(DataError, match=r"shard-00000020: made, but not seen here after 0\.3 s"):
        module._await_shards([late, tmp_path / "shard-00000020"])
