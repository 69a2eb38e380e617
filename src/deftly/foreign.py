"""What somebody else may have written, taken with care: text on its way to a terminal, figures on their way into a table,
files that may hold anything.

A run directory, a dataset or a log may come from anybody. Nothing here decides what a file should hold; its reader does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape


def printable(text: object) -> str:
    """One line that a terminal does not obey: escapes, line breaks, text directions and halves of characters become question marks."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def printable_lines(text: object) -> str:
    """As `printable`, of text that may have several lines."""
    return "\n".join(map(printable, str(text).split("\n")))


def safe_markup(text: object) -> str:
    """As `printable`, where rich reads markup: brackets stay brackets."""
    return escape(printable(text))


def is_figure(value: Any) -> bool:
    """Whether this is a finite number, small enough to be printed as one: JSON also holds 1e999 and integers of 400 digits."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


@contextlib.contextmanager
def making_sense_of(path: Path, remedy: str = "restore the file, or train again") -> Iterator[None]:
    """Around code that takes a file's contents for what they should be: where they are not, a `DataError` of one line that names the file.

    Only such code belongs inside: whatever goes wrong there is blamed on the file.
    """
    from deftly.types import DataError, UsageError  # which load torch: a mistyped command is answered at once

    try:
        yield
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not what deftly writes ({type(error).__name__}: {said}); {remedy}") from None
