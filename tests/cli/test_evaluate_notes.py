"""`deftly evaluate`: what it refuses at once, and what it admits not to have checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from deftly import storage
from deftly.cli import evaluate
from deftly.types import UsageError
from evaluation.small_run import small_run

FLAGS = ["--episodes", "1", "--workers", "0", "--videos", "0", "--baselines", "no_op"]


def test_unknown_training_seeds_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path / "run")
    evaluate.main([str(tmp_path / "run"), *FLAGS])
    assert f"note: {evaluate.SEEDS_UNKNOWN}" in capsys.readouterr().out
    assert evaluate.SEEDS_UNKNOWN not in storage.read_json(tmp_path / "run/evaluation/final/summary.json")["notes"]
    monkeypatch.setattr(evaluate, "training_seeds", lambda run: frozenset([1]))
    evaluate.main([str(tmp_path / "run"), *FLAGS])
    assert evaluate.SEEDS_UNKNOWN not in capsys.readouterr().out


def test_a_negative_number_of_videos_is_refused(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    with pytest.raises(UsageError, match="--videos -1"):
        evaluate.main([str(tmp_path / "run"), "--videos", "-1"])
