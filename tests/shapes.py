"""The type checker of the tests: every call into deftly is held to the shapes and types that its signature declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome where a float is declared


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under beartype; a method that mentions `Self` stays as it is: beartype wants the whole class for those."""
    try:
        return _check(function)
    except BeartypeDecorHintException:
        return function
