"""deftly trains robots to follow instructions. `deftly.load(path).act(observation)` acts with a trained policy.

Importing it loads nothing heavy; the parts are imported by name (`from deftly.run import Run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from deftly.agent import Agent
    from deftly.own_code import Own

__version__ = "0.1.0"


def load(path: str | os.PathLike[str], device: str = "cpu", robot: str | None = None, own: Own = ()) -> Agent:
    """An agent from a policy directory, a checkpoint, or a run directory (its best checkpoint, else its last).

    A policy of several robots acts for the one named `robot`, by default for the first.
    `own`: the Python file that defines the policy ("my.py"), or its config's class, where it is not one of deftly's.
    Raises DataError, in one line, where a file is missing or differs from its recorded sha256.
    """
    from pathlib import Path

    from deftly.agent import load as load_agent

    return load_agent(Path(path), device, robot, own)
