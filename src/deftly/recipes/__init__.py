"""Complete runs, one readable page each. A recipe is a function that returns a `Run`; `small=True` shrinks it to seconds."""

from __future__ import annotations

from collections.abc import Callable

from deftly.recipes.act import act
from deftly.recipes.bridge import bridge
from deftly.recipes.demo import demo
from deftly.recipes.g1 import g1
from deftly.recipes.imitate import imitate
from deftly.run import Run

RECIPES: dict[str, Callable[[bool], Run]] = {"demo": demo, "imitate": imitate, "bridge": bridge, "g1": g1, "act": act}
"""What `deftly train NAME` knows; the user's own is `deftly train my.py:recipe`."""
