"""Worlds that policies act in, and the scripted experts that demonstrate in them.

Importing the package costs nothing: mujoco is imported by `tabletop`, `kinematics` and `render` alone, when they are used.
"""

import os
import sys

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # drawing without a display; mujoco reads it once, while it is imported
