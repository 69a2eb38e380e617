"""Inverse kinematics reaches the workspace, gripper down."""

import numpy as np

from deftly.sim.kinematics import DOWN, Kinematics
from deftly.sim.robot import JOINT_HIGH, JOINT_LOW, WORKSPACE_HIGH, WORKSPACE_LOW


def test_reaches_random_points_of_the_workspace() -> None:
    arm, rng = Kinematics(), np.random.default_rng(0)
    for target in rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH, size=(200, 3)):
        joints = arm.reach(target)
        position, rotation = arm.forward(joints)
        assert np.linalg.norm(position - target) < 1e-4
        assert np.abs(rotation - DOWN).max() < 1e-4
        assert (joints > JOINT_LOW).all()
        assert (joints < JOINT_HIGH).all()


def test_follows_a_line_in_small_steps() -> None:
    """Two iterations from the last solution are enough for the 3 cm of one control step."""
    arm = Kinematics()
    joints = arm.reach(np.array([0.30, -0.20, 0.30]))
    for share in np.linspace(0.0, 1.0, 20):
        target = np.array([0.30 + 0.36 * share, -0.20 + 0.40 * share, 0.30 - 0.27 * share])
        joints = arm.solve(target, joints)
        assert np.linalg.norm(arm.forward(joints)[0] - target) < 3e-3


def test_an_unreachable_target_stays_within_the_limits() -> None:
    joints = Kinematics().reach(np.array([3.0, 0.0, 0.0]))
    assert np.isfinite(joints).all()
    assert (joints >= JOINT_LOW).all()
    assert (joints <= JOINT_HIGH).all()
