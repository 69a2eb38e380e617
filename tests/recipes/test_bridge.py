"""The bridge recipe on real recordings: what its page promises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deftly.data.importers.rlds import import_rlds
from deftly.recipes.bridge import bridge
from deftly.run import train

REAL = Path(os.environ.get("DEFTLY_REAL_DATA", "")) / "bridge_sample"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="DEFTLY_REAL_DATA does not name a folder with bridge_sample")
def test_the_policy_beats_both_baselines_on_held_out_episodes(tmp_path: Path) -> None:
    import_rlds(REAL, tmp_path / "data")
    run = bridge()
    table = train(run.replace(data=run.data.replace(path=tmp_path / "data")), tmp_path / "run", device="cpu")
    for name, row in [*((f"fold {i}", fold) for i, fold in enumerate(table["folds"])), ("mean", table["mean"])]:
        print(f"{name:<7}", "  ".join(f"{arm} {value:.3f}" for arm, value in row.items()))
    assert len(table["folds"]) == run.folds
    assert table["mean"]["policy"] < table["mean"]["mean_action"]
    assert table["mean"]["policy"] < table["mean"]["repeat_last"]
    assert table["policy_beats_both_baselines"] is True
