"""The benchmark of checkpoints does what it says, on a run of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from deftly.recipes import RECIPES
from small_data import write_dataset

REPOSITORY = Path(__file__).parents[2]


def test_it_compares_runs_that_end_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import page
    import saving

    recipe = RECIPES["imitate"](True)
    data = recipe.data.replace(path=write_dataset(tmp_path / "data", (6, 7)), validation_fraction=0.0, image_size=24)
    run, said = recipe.replace(data=data), []
    cost = saving.cost(run, tmp_path, 4, 2, 1, said.append)
    assert cost["equal"]
    assert (tmp_path / "saving/checkpoints/step-00000002").is_dir()
    assert [path.name for path in (tmp_path / "never/checkpoints").glob("step-*")] == ["step-00000004"]
    assert cost["ratio"] == cost["saving_s"] / cost["never_s"]
    assert said[0].startswith("round 0: ")
    resume = saving.resuming(run, tmp_path, 4, 2)
    assert resume["resume_s"] > resume["load_s"] > 0
    host = {"cores": 2, "cpu": "none", "load_before": 0.0}
    text = page.render_saving({"host": host, "measured_on": "today", "cost": cost, "resume": resume})
    assert "The weights are the same bits." in text.replace("\n", " ")
