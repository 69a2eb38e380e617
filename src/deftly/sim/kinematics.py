"""Inverse kinematics of the arm by damped least squares (Wampler, 1986; Nakamura and Hanafusa, 1986)."""

from __future__ import annotations

import functools

import mujoco
import numpy as np

from deftly.sim.robot import JOINT_HIGH, JOINT_HOME, JOINT_LOW, kinematic_xml

DAMPING = 0.02  # in metres and radians: small beside the workspace, large enough that no singular pose makes the joints jump
MAX_JOINT_STEP = 0.3  # radians in one iteration
_REGULARIZER = DAMPING**2 * np.eye(6)
_CLOSE_ENOUGH = 1e-14  # squared error in metres and radians
_LOW, _HIGH = np.array(JOINT_LOW), np.array(JOINT_HIGH)
DOWN = np.diag([-1.0, 1.0, -1.0])  # tool x back, y left, z down


@functools.cache
def _model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(kinematic_xml())


class Kinematics:
    """Joint angles that bring the tip to a point with the gripper pointing down and its fingers along y."""

    def __init__(self) -> None:
        self._model = _model()
        self._data = mujoco.MjData(self._model)
        self._tip = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_SITE, "tip")
        self._jacobian = np.zeros((6, 6))
        self._error = np.zeros(6)
        self._solution = np.zeros(6)

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tip position [3] in metres and orientation [3, 3] in the base frame."""
        self._data.qpos[:] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._tip].copy(), self._data.site_xmat[self._tip].reshape(3, 3).copy()

    def solve(self, target: np.ndarray, start: np.ndarray, iterations: int = 2) -> np.ndarray:
        """Joint angles [6] after `iterations` damped steps from `start` [6] toward the tip at `target` [3], within the joint limits."""
        model, data, error = self._model, self._data, self._error
        joints = np.array(start, dtype=np.float64)
        for _ in range(iterations):
            data.qpos[:] = joints
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._tip)
            error[:3] = target - data.site_xpos[self._tip]
            r = data.site_xmat[self._tip]  # row-major; the columns are the tool's axes
            # Half the sum of (current axis) x (wanted axis): the rotation vector that is still missing.
            error[3] = -0.5 * (r[7] + r[5])
            error[4] = 0.5 * (r[2] - r[6])
            error[5] = 0.5 * (r[3] + r[1])
            if error @ error < _CLOSE_ENOUGH:
                break
            j = self._jacobian
            normal = j @ j.T + _REGULARIZER
            mujoco.mju_cholFactor(normal, 0.0)
            mujoco.mju_cholSolve(self._solution, normal, error)
            step = self._solution @ j
            largest = max(step.max(), -step.min())
            if largest > MAX_JOINT_STEP:
                step *= MAX_JOINT_STEP / largest
            joints = np.minimum(np.maximum(joints + step, _LOW), _HIGH)
        return joints

    def reach(self, target: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """Joint angles for a target far from `start` (by default the home pose): many iterations."""
        return self.solve(target, np.array(JOINT_HOME) if start is None else start, iterations=60)
