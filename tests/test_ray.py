"""Ray itself, on this machine: the same bytes and rows as with local workers, a lost worker, and nothing left running."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deftly import storage
from deftly.data.generate import GenerateConfig, generate
from deftly.evaluation.closed_loop import evaluate
from deftly.sim.tabletop import TabletopConfig
from evaluation.toy import ToyConfig, load_toy, save_toy

# not by importing it: deftly has to, so that it stays on this machine
pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")]

CONFIG = GenerateConfig(world=TabletopConfig(image_size=32), shard_episodes=2)
SCRIPT = """
import json, os, sys
from pathlib import Path

from deftly.data.generate import GenerateConfig, generate
from deftly.evaluation.closed_loop import evaluate
from deftly.sim.cluster import Ray
from deftly.sim.processes import WorkerDied
from evaluation.toy import ToyConfig, load_toy
from test_ray import dying

root = Path(sys.argv[1])
with Ray() as executor:
    assert list(executor.run(dying, [2, 3, 4], workers=2, folder=root)) == [4, 9, 16]
    files = sorted(root.glob(".probe*"))
    generate(GenerateConfig.load(root / "config.json"), root / "ray", 5, workers=2, seed=3, executor=executor)
    evaluate(root / "policy", ToyConfig.load(root / "world.json"), root / "rows-ray", episodes=4, workers=2, videos=1, load=load_toy,
             executor=executor)
    try:
        list(executor.run(dying, [1, 2, 300, 4], workers=2, name="job {}".format))
    except WorkerDied as error:
        print(json.dumps({"died": str(error), "probes": len(files)}))
    os.system("ss -ltnp > " + str(root / "sockets"))
"""


def square(job: int) -> int:
    if job == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def dying() -> Any:
    return square


def files_of(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): storage.sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in storage.read_lines(directory / "episodes.jsonl")]


def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own, because nothing may be written there."""
    (tmp_path / "home").mkdir()
    return {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'src'}", "HOME": str(tmp_path / "home")}


def processes_of(group: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == group:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (ProcessLookupError, FileNotFoundError):
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_ray_workers_give_the_same_bytes_and_rows_as_local_ones(tmp_path: Path) -> None:
    policy = save_toy(tmp_path / "policy")
    world = ToyConfig(difficulty=0.25)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "world.json").write_text(world.to_json())
    for workers in (0, 1, 2):
        generate(CONFIG, tmp_path / f"local-{workers}", 5, workers=workers, seed=3)
        evaluate(policy, world, tmp_path / f"rows-{workers}", episodes=4, workers=workers, videos=1, load=load_toy)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stderr
    for workers in (0, 1, 2):
        assert files_of(tmp_path / f"local-{workers}") == files_of(tmp_path / "ray")
        assert rows_of(tmp_path / f"rows-{workers}") == rows_of(tmp_path / "rows-ray")
        assert files_of(tmp_path / f"rows-{workers}" / "videos") == files_of(tmp_path / "rows-ray" / "videos")
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["died"].startswith("a Ray worker died while it did job 300: ")
    assert said["probes"] == 0
    assert not list((tmp_path / "home").iterdir())
    listening = [line.split() for line in (tmp_path / "sockets").read_text().splitlines() if "ray" in line or "gcs" in line]
    assert all("127.0.0.1" in words[3] for words in listening), listening


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_process_and_the_same_command_continues(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "data"
    command = [sys.executable, "-c", "from deftly.cli.main import main; main()", "data", "generate", "--episodes", "2000"]
    command += ["--image-size", "16", "--no-boxes", "--executor", "ray", "--workers", "2", "--out", str(out)]
    home = environment(tmp_path)
    with subprocess.Popen(command, env=home, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        until = time.monotonic() + 200
        while not list((out / ".shards").glob("shard-*")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(timeout=60)
        until = time.monotonic() + 150  # after SIGKILL two helpers of Ray notice it within a minute or so; its workers go at once
        while (left := processes_of(process.pid)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not left
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert list((out / ".shards").glob("shard-*"))
