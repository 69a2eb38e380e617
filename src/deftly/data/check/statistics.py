"""Do the statistics that the dataset brings along belong to its rows? Training measures its own; others who read the files use these."""

from __future__ import annotations

from typing import Any

import numpy as np

from deftly import storage
from deftly.data.check.findings import Finding
from deftly.data.check.rows import Rows, vectors
from deftly.data.dataset import Dataset
from deftly.data.schema import STATS_PATH
from deftly.types import DataError

NEEDED = ("min", "max", "mean", "std")
TOLERANCE = 1e-2  # of the range: the sums of others are in float32, and some round
MOST = 0.5  # of the dimensions
REMEDY = "training computes its own and never reads these, others would: `deftly data repair` computes them anew"


def check_statistics(rows: Rows, dataset: Dataset) -> list[Finding]:
    """Findings about meta/stats.json; none where the format keeps statistics elsewhere."""
    path = dataset.root / STATS_PATH
    if not path.is_file():
        return []
    try:
        stored = storage.read_json(path)
    except DataError as error:
        return [_finding("statistics_missing", None, str(error).removeprefix(f"{path}: "))]
    found: list[Finding] = []
    for name, (values, _) in vectors(rows, dataset).items():
        found += _check(name, stored.get(name) if isinstance(stored, dict) else None, values.astype(np.float64))
    return found


def _check(name: str, stored: Any, values: np.ndarray) -> list[Finding]:
    """Statistics of another kind of action differ nearly everywhere; of data that was edited since, in a dimension or two."""
    known = stored if isinstance(stored, dict) else {}
    missing = [key for key in NEEDED if key not in known]
    if missing:  # guard: data.check.statistics_missing
        return [_finding("statistics_missing", name, f"{', '.join(map(repr, missing))} is missing")]
    measured = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    reach = np.maximum(measured["max"] - measured["min"], 1e-6)
    differs = np.zeros(len(reach), dtype=bool)
    said = ""
    for key in NEEDED:
        try:
            given = np.asarray(known[key], np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            given = np.zeros(0)
        if given.shape != reach.shape:
            return [_finding("statistics_differ", name, f"{key!r} has {len(given)} numbers, the rows {len(reach)}")]
        wrong = ~(np.abs(given - measured[key]) <= TOLERANCE * reach)
        if wrong.any() and not said:
            dim = int(wrong.argmax())
            said = f"{key}[{dim}] is {given[dim]:.4g}, the rows give {measured[key][dim]:.4g}"
        differs |= wrong
    if differs.mean() > MOST:  # guard: data.check.statistics_differ
        return [_finding("statistics_differ", name, f"{said}: statistics of other data, or of another kind of action")]
    if said:
        message = f"{said}: the rows were changed since"
        return [Finding(code="statistics_stale", verdict="warn", file=STATS_PATH, field=name, message=message, remedy=REMEDY)]
    return []


def _finding(code: str, field: str | None, message: str) -> Finding:
    return Finding(code=code, verdict="refuse", file=STATS_PATH, field=field, message=message, remedy=REMEDY)
