"""Which line of the source a fault test proves: `@guards("data.tables.rows")` belongs to the `if` that ends in `# guard: data.tables.rows`.

`make mutants` turns each such `if` into `if False`, one at a time, and runs the tests that name it: at least one of them must fail.
"""

from __future__ import annotations

import pytest


def guards(*names: str) -> pytest.MarkDecorator:
    """Marks a test, or a `pytest.param(..., marks=guards("..."))`, as the proof of these guards."""
    return pytest.mark.guards(*names)
