"""The shape checker of the tests: each call into deftly is held to the `Float[Tensor, "b k a"]` of its signature.

Only those: what has no shape is pyright's business, and a test may hand in a stand-in of another class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def has_shape(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(has_shape(part) for part in get_args(hint))


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping calls with an empty function of the same signature as each of ours; that one is checked instead of ours."""
    signature.__annotations__ = {name: hint for name, hint in signature.__annotations__.items() if has_shape(hint)}
    return beartype(signature) if signature.__annotations__ else signature
