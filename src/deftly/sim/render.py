"""Off-screen pictures of a world, drawn only when somebody looks. Needs OpenGL without a display: see `opengl`."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator, Mapping

import mujoco
import numpy as np

from deftly.sim.opengl import probe


class Pictures:
    """Draws the cameras of one model, as square images of `size` pixels."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self._model, self._size = model, size
        self._gl: mujoco.GLContext | None = None
        self._context: mujoco.MjrContext | None = None
        self._scene: mujoco.MjvScene | None = None
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self.drawn = 0  # images so far: a world that nobody looks at must not draw

    def color(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self._draw(data, camera)

    def geoms(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The index of the geom that is seen in each pixel, -1 for none: int32 [size, size]."""
        self._open()
        assert self._scene is not None
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            pixels = self._draw(data, camera).astype(np.int32)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        table = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                table[geom.segid + 1] = geom.objid
        return table[pixels[..., 0] + (pixels[..., 1] << 8) + (pixels[..., 2] << 16)]

    def close(self) -> None:
        """Frees the drawing context; the next picture opens a new one."""
        if self._context is not None:
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = self._scene = None

    def _open(self) -> None:
        if self._context is not None:
            return
        probe()
        context = self._gl = mujoco.GLContext(self._size, self._size)
        context.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # Registered after the EGL display's own exit hook and therefore run before it: freeing later prints errors.
        atexit.register(_close, weakref.ref(self))
        scene = self._scene = mujoco.MjvScene(self._model, maxgeom=200)
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def _draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        self._open()
        assert self._gl is not None
        self._gl.make_current()
        self._camera.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        self.drawn += 1
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest


def _close(pictures: weakref.ref[Pictures]) -> None:
    alive = pictures()
    if alive is not None:
        alive.close()


class LazyImages(Mapping[str, np.ndarray]):
    """Camera -> uint8 [h w 3]; an image is drawn when it is first read, and shows the moment of its observation however late that is.

    It turns into a plain dict of arrays when it is pickled or copied.
    """

    def __init__(self, cameras: tuple[str, ...], draw: Callable[[str], np.ndarray]) -> None:
        self._cameras, self._draw = cameras, draw
        self._drawn: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._cameras:
            raise KeyError(name)
        if name not in self._drawn:
            self._drawn[name] = self._draw(name)
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, np.ndarray]]]:
        return dict, (dict(self),)
