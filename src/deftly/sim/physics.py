"""The simulated robot and table: one compiled model for all episodes, changed through its fields. Knows no tasks and no sentences."""

from __future__ import annotations

import hashlib
import math

import mujoco
import numpy as np

from deftly.sim import robot
from deftly.sim.kinematics import Kinematics
from deftly.sim.randomization import LIGHT_AZIMUTH_DEG, Appearance
from deftly.sim.scene import MAX_OBJECTS, SHAPES, TYPES, Scene

RGB = {"red": (0.84, 0.11, 0.10), "blue": (0.11, 0.27, 0.84), "green": (0.10, 0.58, 0.18), "yellow": (0.95, 0.78, 0.08)}
SETTLE_S = 0.3
HIDDEN_GROUP = 5  # not drawn by default
MAX_LEAD_M = 0.045  # how far the set-point may run ahead of the tip: a blocked arm does not wind up
_FINGER_RATE = robot.FINGER_SPEED / robot.RATE_HZ
_TIP_RATE = robot.TIP_SPEED / robot.RATE_HZ
_CHANGED = (
    *("geom_size", "geom_pos", "geom_rbound", "geom_rgba", "geom_friction", "geom_contype", "geom_conaffinity", "cam_pos"),
    *("body_mass", "body_subtreemass", "body_inertia", "body_ipos", "body_gravcomp"),
)
_LIGHT_TILT_DEG = 30.0


class Physics:
    """Sets up a scene, moves the arm toward a Cartesian target, and reports poses. Positions in metres in the robot base frame."""

    def __init__(self, num_slots: int = MAX_OBJECTS) -> None:
        self.model = mujoco.MjModel.from_xml_string(robot.model_xml(num_slots))
        self.data = mujoco.MjData(self.model)
        self.kinematics = Kinematics()
        self.scene: Scene | None = None
        model = self.model
        self._tip = _id(model, mujoco.mjtObj.mjOBJ_SITE, "tip")
        self._slots = [_id(model, mujoco.mjtObj.mjOBJ_BODY, f"slot{i}") for i in range(num_slots)]
        self._qpos = [int(model.jnt_qposadr[model.body_jntadr[body]]) for body in self._slots]
        self._geoms = {
            (i, kind): [g for g in range(model.ngeom) if model.geom(g).name.startswith(f"slot{i}/{kind}/")]
            for i in range(num_slots)
            for kind in TYPES
        }
        self._dark = {g for g in range(model.ngeom) if model.geom(g).name.endswith(("/opening", "/cap"))}
        self._nominal = {name: np.array(getattr(model, name)) for name in _CHANGED}
        self._ambient = np.array(model.vis.headlight.ambient)
        self._diffuse = np.array(model.light_diffuse[0])
        self._material = np.array([model.mat_specular[0], model.mat_shininess[0]])
        self._setpoint = np.zeros(3)
        self._finger = 0.0
        self._resting = np.zeros(0)

    # Setting up ------------------------------------------------------------------------------------------------------------------------

    def place(self, scene: Scene, appearance: Appearance, tip: np.ndarray, opening: float) -> None:
        """Start an episode: objects standing, the tip at `tip` [3], fingers at `opening` (fraction), everything at rest."""
        self.scene = scene
        mujoco.mj_resetData(self.model, self.data)
        for name, values in self._nominal.items():
            getattr(self.model, name)[:] = values  # or a type's sizes would linger in slots that now hold another, or nothing
        for index in range(len(self._slots)):
            self._fill_slot(index, appearance)
        self._light(appearance)
        self._cameras(appearance)
        joints = self.kinematics.reach(np.asarray(tip, dtype=np.float64))
        self._finger = opening * robot.FINGER_TRAVEL_M
        self.data.qpos[:6], self.data.qpos[6:8] = joints, self._finger
        self.data.ctrl[:6], self.data.ctrl[6] = joints, self._finger
        self._setpoint = self.kinematics.forward(joints)[0]
        mujoco.mj_step(self.model, self.data, round(SETTLE_S / robot.TIMESTEP_S))
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        self._resting = self.object_poses()[:, 2].copy()

    def _fill_slot(self, index: int, appearance: Appearance) -> None:
        model, scene, body, start = self.model, self.scene, self._slots[index], self._qpos[index]
        assert scene is not None
        item = scene.objects[index] if index < len(scene.objects) else None
        for kind in TYPES:
            used = item is not None and item.type == kind
            for g in self._geoms[index, kind]:
                model.geom_group[g] = 2 if used else HIDDEN_GROUP
                model.geom_contype[g] = self._nominal["geom_contype"][g] if used else 0
                model.geom_conaffinity[g] = self._nominal["geom_conaffinity"][g] if used else 0
        if item is None:
            return  # an empty slot floats where it is parked, weightless
        model.body_gravcomp[body] = 0.0
        shape, scale = SHAPES[item.type], item.scale
        mass = shape.mass * (1.0 + appearance.mass[index])
        radius, height = shape.width / 2 * scale, shape.height * scale
        across = mass * (3 * radius**2 + height**2) / 12
        model.body_mass[body] = model.body_subtreemass[body] = mass
        model.body_inertia[body] = (across, across, mass * radius**2 / 2)
        model.body_ipos[body] = (0.0, 0.0, -0.15 * height if item.type == "bottle" else 0.0)
        body_colour = np.clip(np.array(RGB[item.colour]) + appearance.object_colour[index], 0.0, 1.0)
        for g in self._geoms[index, item.type]:
            for name in ("geom_size", "geom_pos", "geom_rbound"):
                getattr(model, name)[g] = self._nominal[name][g] * scale
            model.geom_friction[g, 0] = self._nominal["geom_friction"][g, 0] * (1.0 + appearance.friction[index])
            model.geom_rgba[g, :3] = body_colour * 0.22 if g in self._dark else body_colour
        half = item.yaw / 2
        self.data.qpos[start : start + 7] = (item.x, item.y, item.origin, math.cos(half), 0.0, 0.0, math.sin(half))

    def _light(self, appearance: Appearance) -> None:
        model = self.model
        tilt = math.radians(_LIGHT_TILT_DEG + appearance.light_tilt_deg)
        azimuth = math.radians(LIGHT_AZIMUTH_DEG + appearance.light_azimuth_deg)
        model.light_dir[0] = (-math.sin(tilt) * math.cos(azimuth), -math.sin(tilt) * math.sin(azimuth), -math.cos(tilt))
        model.light_diffuse[0] = self._diffuse * (1.0 + appearance.light_intensity) * (1.0 + appearance.light_colour)
        model.vis.headlight.ambient[:] = self._ambient * (1.0 + appearance.ambient)
        gloss = np.clip(self._material + appearance.gloss, 0.0, 1.0)
        model.mat_specular[0], model.mat_shininess[0] = gloss
        for name, offset in (("table", appearance.table_colour), ("floor", appearance.floor_colour)):
            g = _id(model, mujoco.mjtObj.mjOBJ_GEOM, name)
            model.geom_rgba[g, :3] = np.clip(self._nominal["geom_rgba"][g, :3] + offset, 0.0, 1.0)

    def _cameras(self, appearance: Appearance) -> None:
        model = self.model
        head, wrist = (_id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) for name in ("head", "wrist"))
        model.cam_pos[head] = np.array(robot.HEAD_POSITION) + appearance.head_position_m
        model.cam_quat[head] = look_at(model.cam_pos[head], np.array(robot.HEAD_LOOK_AT) + appearance.head_look_at_m)
        model.cam_fovy[head] = robot.HEAD_FOV_DEG + appearance.head_fov_deg
        model.cam_pos[wrist] = self._nominal["cam_pos"][wrist] + appearance.wrist_position_m
        model.cam_fovy[wrist] = robot.WRIST_FOV_DEG + appearance.wrist_fov_deg

    # Moving ----------------------------------------------------------------------------------------------------------------------------

    def move(self, target: np.ndarray, gripper: float) -> None:
        """One control step (1 / RATE_HZ seconds) toward `target` [3] at bounded speed; `gripper` 0 = open, 1 = closed."""
        data = self.data
        offset = target - self._setpoint
        distance = math.sqrt(float(offset @ offset))
        setpoint = target if distance <= _TIP_RATE else self._setpoint + offset * (_TIP_RATE / distance)
        lead = setpoint - self.tip()
        ahead = math.sqrt(float(lead @ lead))
        if ahead > MAX_LEAD_M:
            setpoint = setpoint - lead * (1.0 - MAX_LEAD_M / ahead)
        self._setpoint = np.array(setpoint)
        start, start_finger = data.ctrl[:6].copy(), self._finger
        joints = self.kinematics.solve(self._setpoint, start)
        wanted = (1.0 - gripper) * robot.FINGER_TRAVEL_M
        self._finger += min(max(wanted - self._finger, -_FINGER_RATE), _FINGER_RATE)
        for i in range(1, robot.SERVO_UPDATES + 1):
            share = i / robot.SERVO_UPDATES
            data.ctrl[:6] = start + (joints - start) * share
            data.ctrl[6] = start_finger + (self._finger - start_finger) * share
            mujoco.mj_step(self.model, data, robot.SUBSTEPS)
        # mj_step leaves derived quantities one substep behind the positions; images and poses must belong to the same instant.
        mujoco.mj_kinematics(self.model, data)

    # Reporting -------------------------------------------------------------------------------------------------------------------------

    def tip(self) -> np.ndarray:
        """Position of the point between the finger pads [3]; a view, do not keep it."""
        return self.data.site_xpos[self._tip]

    def command(self) -> np.ndarray:
        """The set-point that the robot is following, as an action [4]: tip position (m) and gripper (0 open, 1 closed)."""
        return np.append(self._setpoint, 1.0 - self._finger / robot.FINGER_TRAVEL_M)

    def opening(self) -> float:
        """How far the gripper is open: 0 closed, 1 open."""
        return float(self.data.qpos[6] + self.data.qpos[7]) / (2.0 * robot.FINGER_TRAVEL_M)

    def object_poses(self) -> np.ndarray:
        """Position and quaternion (w x y z) of each object's body frame [n, 7], a copy."""
        assert self.scene is not None
        return np.array([self.data.qpos[start : start + 7] for start in self._qpos[: len(self.scene.objects)]])

    def heights(self) -> np.ndarray:
        """How far each object is above where it stood at the start [n], metres."""
        assert self.scene is not None
        return np.array([self.data.qpos[start + 2] for start in self._qpos[: len(self.scene.objects)]]) - self._resting

    def state(self) -> np.ndarray:
        """Proprioception [10] float32: joints (rad), tip position (m), opening (fraction)."""
        return np.concatenate([self.data.qpos[:6], self.tip(), [self.opening()]]).astype(np.float32)

    def geom_owner(self) -> np.ndarray:
        """For each geom the index of the object that it belongs to, or -1 [number of geoms]."""
        owner = np.full(self.model.ngeom, -1)
        for (index, _), geoms in self._geoms.items():
            owner[geoms] = index
        return owner

    def fingerprint(self) -> str:
        """sha256 of the physical state and of what differs physically between episodes: sizes, masses, friction, servo targets."""
        model, data = self.model, self.data
        parts = (data.qpos, data.qvel, data.ctrl, model.geom_size, model.geom_contype, model.geom_friction, model.body_mass)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quaternion [4] (w x y z) of a camera at `position` that looks at `target` with z up: a camera sees along its own -z, x is right."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.flatten())
    return quaternion


def _id(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> int:
    index = mujoco.mj_name2id(model, kind, name)
    assert index >= 0, name
    return index
