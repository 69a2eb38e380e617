"""`deftly demo`: four steps in order, each kept when it is there already."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deftly.cli import demo
from deftly.sim import opengl
from deftly.types import UsageError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    """What the demo asks of the four steps, which do nothing here."""
    seen: list[tuple] = []

    def generate(config, out, episodes, workers, seed):
        seen.append(("generate", out, episodes, workers, seed))
        return {"frames": 10, "frames_per_s": 5.0}

    def train(run, directory, *, resume, device):
        seen.append(("train", directory, resume, device, run.data.path, run.seed))
        (directory / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opengl, "probe", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=90e9))
    monkeypatch.delenv("DEFTLY_CACHE", raising=False)
    monkeypatch.setattr(demo, "generate", generate)
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr("deftly.cli.evaluate.main", lambda arguments: seen.append(("evaluate", *arguments)))
    monkeypatch.setattr("deftly.evaluation.report.write_report", lambda run: seen.append(("report", run)))
    return seen


def test_the_steps_and_their_order(calls, capsys):
    demo.main(["--workers", "3", "--seed", "5", "--device", "cpu"])
    out, err = capsys.readouterr()
    data, run = Path("datasets/demo"), Path("runs/demo")
    assert calls == [
        ("generate", data, demo.EPISODES, 3, 5),
        ("train", run, False, "cpu", data, 5),
        ("evaluate", "runs/demo", "--episodes", "100", "--seed", "5", "--workers", "3", "--name", "final"),
        ("report", run),
    ]
    assert out == "runs/demo/report.html\n", "the one line that a script wants"
    assert [line.split("]")[0] for line in err.splitlines() if line.startswith("[")] == [f"[{i}/4" for i in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert "done in " in err


def test_a_second_run_goes_on(calls):
    demo.main([])
    calls.clear()
    demo.main([])
    assert calls[1][2] is True, "training resumes"


def test_small_makes_few_demonstrations_but_the_number_may_be_given(calls):
    demo.main(["--small"])
    demo.main(["--small", "--demonstrations", "7", "--out", "other", "--data", "elsewhere"])
    generated = [call for call in calls if call[0] == "generate"]
    assert [call[2] for call in generated] == [demo.SMALL_EPISODES, 7]
    assert [call[1] for call in generated] == [Path("datasets/demo-small"), Path("elsewhere")]
    assert [call[1] for call in calls if call[0] == "train"] == [Path("runs/demo-small"), Path("other")]


def test_kept_demonstrations_are_said(calls, monkeypatch, capsys):
    monkeypatch.setattr(demo, "generate", lambda *arguments: {"frames": 0, "frames_per_s": 0.0})
    demo.main([])
    assert "datasets/demo: kept, all 900 demonstrations are there" in capsys.readouterr().err


def test_a_machine_that_cannot_draw_says_so_before_anything_is_written(calls, monkeypatch, tmp_path):
    def fail() -> None:
        raise opengl.RenderingUnavailable(f"no libEGL; remedy: {opengl.REMEDY}")

    monkeypatch.setattr(opengl, "probe", fail)
    with pytest.raises(UsageError, match="apt-get install"):
        demo.main([])
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_libegl_gets_one_line(tmp_path):
    """There `import mujoco` itself fails, with an AttributeError of PyOpenGL: that must not be what the user sees."""
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco" / "__init__.py").write_text("raise AttributeError(\"'NoneType' object has no attribute 'eglQueryString'\")\n")
    environment = {name: value for name, value in os.environ.items() if name != "DEFTLY_RENDERING_WORKS"} | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "deftly.cli.main", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(opengl.REMEDY)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "datasets").exists()


def test_nothing_to_judge_is_refused_before_the_first_step(calls):
    with pytest.raises(UsageError, match="--episodes 0"):
        demo.main(["--episodes", "0"])
    for number in ("0", "-1"):
        with pytest.raises(UsageError, match=f"--demonstrations {number}"):
            demo.main(["--demonstrations", number])
    assert calls == []


def test_a_disk_on_which_the_frames_would_not_fit_is_said_before_generating(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e9 if path == tmp_path else 90e9))
    with pytest.raises(UsageError, match=r"5.0 GB are free, 7.5 GB are wanted: .* 900 demonstrations take 1.5 GB") as caught:
        demo.main([])
    assert "\n" not in str(caught.value)
    assert calls == []
    demo.main(["--small"])
    monkeypatch.setenv("DEFTLY_CACHE", "/")
    demo.main([])
    monkeypatch.delenv("DEFTLY_CACHE")
    (tmp_path / "datasets/demo/meta").mkdir(parents=True)
    (tmp_path / "datasets/demo/meta/info.json").write_text("{}")
    demo.main([])
    assert len(calls) == 12, "what is there already is for the store to judge"


@pytest.mark.slow
def test_the_real_thing_killed_and_finished(tmp_path):
    """The small demo, killed hard in the middle, then run to its end: all that the README names is there, nothing was done twice."""
    command = [sys.executable, "-m", "deftly.cli.main", "demo", "--small", "--episodes", "2"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/demo-small/checkpoints/step-*")) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "kept, all 4 demonstrations are there" in done.stderr
    assert "resuming at step" in done.stderr
    summary = json.loads((tmp_path / "runs/demo-small/evaluation/final/summary.json").read_text())
    assert summary["episodes"] == 2
    assert set(summary["baselines"]) == {"no_op", "random", "blind", "deaf"}
    rows = (tmp_path / "runs/demo-small/evaluation/final/episodes.jsonl").read_text().splitlines()
    assert len(rows) == len({(row["arm"], row["episode"]) for row in map(json.loads, rows)}) == 10
    assert "<html" in (tmp_path / "runs/demo-small/report.html").read_text()[:500]
