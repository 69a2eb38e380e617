"""The table of faults in docs/training/resuming.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "training" / "resuming.md"


def test_every_fault_names_tests_that_exist() -> None:
    table = PAGE.read_text().partition("## What survives what")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 24
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.M), f"{file}::{name}"
