"""Parameters and modules chosen by regular expressions over their whole names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from deftly.types import UsageError


def check_pattern(pattern: str) -> str:
    """The pattern, for a config's validator; raises ValueError when it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def matching(pattern: str, names: Iterable[str], where: str, what: str) -> list[str]:
    """The names that `pattern` matches from end to end, in their order; `UsageError` names a near one when there is none.

    `where` is the config's field, `what` are the things named ("parameter of the objective").
    """
    names = list(names)
    found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:  # guard: training.names.matching
        raise UsageError(f"{where}: {pattern!r} matches the whole name of no {what}{near(pattern, names)}")
    return found


def near(pattern: str, names: Iterable[str]) -> str:
    """The end of an error: a name that may have been meant."""
    found = difflib.get_close_matches(re.sub(r"\\|[.]?[*+]|[$^()]", "", pattern), list(names), n=1, cutoff=0.3)
    return f"; a name near it is {found[0]!r}" if found else ""
