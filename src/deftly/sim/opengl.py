"""Whether this machine can draw without a display (EGL), and the one line that mends it where it cannot.

It is found out in a subprocess, because a broken driver may end the process instead of raising. No mujoco is imported here: where libEGL
is missing, that import already fails.
"""

from __future__ import annotations

import os
import subprocess
import sys

from deftly.types import UsageError

REMEDY = "apt-get install -y libegl1 libopengl0 libgl1-mesa-dri"
_PROBED = "DEFTLY_RENDERING_WORKS"  # in the environment, so that worker processes do not probe again
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""


class RenderingUnavailable(UsageError):
    """This machine cannot draw; the message says why and what to install."""


def probe(timeout_s: float = 60.0) -> None:
    """Draws one frame in a subprocess; raises `RenderingUnavailable` in one line when that fails. Remembered in the environment."""
    backend = os.environ.get("MUJOCO_GL", "glfw")
    if os.environ.get(_PROBED) == backend:
        return
    try:
        result = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise RenderingUnavailable(f"rendering with MUJOCO_GL={backend} hangs on this machine; remedy: {REMEDY}") from None
    if result.returncode != 0:
        lines = [line for line in result.stderr.strip().splitlines() if line.strip() and not line.startswith("Exception ignored")]
        errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
        reason = (errors or lines or [f"exit code {result.returncode}"])[-1].strip()[:160]
        raise RenderingUnavailable(f"rendering with MUJOCO_GL={backend} fails on this machine ({reason}); remedy: {REMEDY}")
    os.environ[_PROBED] = backend
