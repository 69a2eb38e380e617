"""The page of measured tables says what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RESULTS = json.loads((REPOSITORY / "benchmarks/results/data.json").read_text())


def test_the_page_is_a_function_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import page

    assert (REPOSITORY / "docs/benchmarks.md").read_text() == page.whole(REPOSITORY / "benchmarks/results")


def test_every_row_was_equal_and_says_what_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import page

    assert {"host", "versions", "measured_on", *page.WHAT} == set(RESULTS)
    for name in page.WHAT:
        row = RESULTS[name]
        assert {"ratio", "ours", "peer", "unit", "equal", "goal", "settings"} <= set(row)
        assert row["equal"] is True
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"] if row["unit"].endswith("/s") else row["peer"] / row["ours"])
