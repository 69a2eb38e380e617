"""The recipes for real recordings: what their pages promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deftly.data.importers.rlds import import_rlds
from deftly.recipes import RECIPES
from deftly.run import train

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")).absolute()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bridge", "g1"])
def test_the_policy_beats_both_baselines_on_held_out_episodes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = REAL / f"{name}_sample"
    if not source.is_dir():
        pytest.skip(f"DEFTLY_REAL_DATA does not name a folder with {name}_sample")
    monkeypatch.setenv("DEFTLY_CACHE", str(tmp_path / "cache"))
    if name == "bridge":  # g1 is read where it lies, in v2.1
        import_rlds(source, tmp_path / "data")
        source = tmp_path / "data"
    run = RECIPES[name](False)
    table = train(run.replace(data=run.data.replace(path=source)), tmp_path / "run", device="cpu")
    for label, row in [*((f"fold {i}", fold) for i, fold in enumerate(table["folds"])), ("mean", table["mean"])]:
        print(f"{label:<7}", "  ".join(f"{arm} {value:.3f}" for arm, value in row.items()))
    assert len(table["folds"]) == run.folds
    assert table["mean"]["policy"] < table["mean"]["mean_action"]
    assert table["mean"]["policy"] < table["mean"]["repeat_last"]
    assert table["policy_beats_both_baselines"] is True
