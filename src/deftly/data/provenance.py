"""What an episode says about itself beyond the format (seed, scene, operator ...): names and values, a column each of meta/episodes.

A column of parquet holds values of one kind, so an episode that breaks the kind of the ones before is refused before any of it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deftly.types import DataError

RESERVED = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")  # columns of meta/episodes
EXACT = 1 << 53  # whole numbers beyond it are no float64
TOGETHER = (
    {"text"},
    {"yes or no"},
    {"a whole number", "a large whole number"},
    {"a whole number", "a number"},
)
Kinds = Mapping[str, frozenset[str]]
"""Name -> the kinds of value that it had so far."""


def join(kinds: Kinds, values: Mapping[str, Any], where: str) -> Kinds:
    """`kinds` after one more episode, with these values. Raises `DataError` when a name or a value cannot stand in its column."""
    joined = dict(kinds)
    for name, value in values.items():
        if not isinstance(name, str) or not name or name in RESERVED or "/" in name or not _is_text(name):
            raise DataError(f"{where}: the extra column {shown(name)} has the name of one of the format, or one of no column; rename it")
        kind = _kind(value)
        if kind is None:  # guard: data.provenance.value
            raise DataError(f"{where}: the extra column {name!r} is {shown(value)}; it may be text, a number of 64 bits or a yes or no")
        before = joined.get(name, frozenset())
        joined[name] = before | {kind}
        if not any(joined[name] <= fitting for fitting in TOGETHER):  # guard: data.provenance.kind
            found = f"is {shown(value)}, which is {kind}; in the episodes before it is {' or '.join(sorted(before))}"
            raise DataError(f"{where}: the extra column {name!r} {found}; use another name or the same kind")
    return joined


def shown(value: Any, most: int = 60) -> str:
    """The beginning of a value, quoted."""
    try:
        return repr(str(value)[:most])
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _kind(value: Any) -> str | None:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, int):
        fits = -(1 << 63) <= value < 1 << 63
        return None if not fits else "a whole number" if abs(value) <= EXACT else "a large whole number"
    if isinstance(value, float):
        return "a number"
    return "text" if isinstance(value, str) and _is_text(value) else None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
