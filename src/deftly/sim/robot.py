"""The robot and its table as MJCF text, and the numbers that describe them to everybody else. Imports no mujoco.

A six-joint arm on a base that is locked at the table, a parallel gripper, a `head` camera on a mast at the far edge and a `wrist`
camera. Primitive geometry only. With all joints at zero the arm points straight up; in use the gripper points down and its fingers close
along the table's y axis. The tip is the point between the finger pads.
"""

from __future__ import annotations

from deftly.contract import Camera, CameraRole, Embodiment, Mirror, Vector
from deftly.sim.scene import SHAPES
from deftly.types import UsageError

RATE_HZ = 10.0
TIMESTEP_S = 0.01
SERVO_UPDATES = 5  # of the joint set-points in one control step, along a straight line in joint space
SUBSTEPS = round(1.0 / (RATE_HZ * TIMESTEP_S * SERVO_UPDATES))  # physics steps between two of them
JOINTS = ("base_yaw", "shoulder", "elbow", "forearm_roll", "wrist_pitch", "tool_roll")
JOINT_LOW = (-2.8, -1.6, -0.1, -2.8, -0.3, -3.1)
JOINT_HIGH = (2.8, 1.9, 2.8, 2.8, 3.0, 3.1)
JOINT_HOME = (0.0, 0.15, 1.75, 0.0, 1.24, 0.0)
FINGER_TRAVEL_M = 0.045  # of each finger: the gripper opens to 9 cm
TIP_SPEED = 0.30  # metres per second of the Cartesian set-point
FINGER_SPEED = 0.15  # metres per second of each finger's set-point
WORKSPACE_LOW = (0.24, -0.25, 0.015)
WORKSPACE_HIGH = (0.70, 0.25, 0.34)
CAMERAS = ("head", "wrist")
HEAD_POSITION = (0.88, 0.0, 0.60)
HEAD_LOOK_AT = (0.465, 0.0, 0.070)
HEAD_FOV_DEG = 40.0
WRIST_FOV_DEG = 75.0
LATERAL = ("base_yaw", "forearm_roll", "tool_roll", "tip_y")  # what changes sign when y does; arm, table and both cameras are symmetric


def embodiment(image_size: int, cameras: tuple[str, ...]) -> Embodiment:
    """The demo robot with square images of `image_size` pixels. Actions are absolute tip targets in the base frame, and the gripper."""
    unknown = [name for name in cameras if name not in CAMERAS]
    if unknown:
        raise UsageError(f"the tabletop robot has no camera {unknown[0]!r}; it has {', '.join(CAMERAS)}")
    roles: dict[str, CameraRole] = {"head": "scene", "wrist": "wrist"}
    state, action = (*JOINTS, "tip_x", "tip_y", "tip_z", "gripper_opening"), ("tip_x", "tip_y", "tip_z", "gripper")
    return Embodiment(
        name="deftly_tabletop",
        rate_hz=RATE_HZ,
        cameras=tuple(Camera(name=name, height=image_size, width=image_size, role=roles[name]) for name in cameras),
        state=Vector(
            names=state,
            units=("rad",) * 6 + ("m",) * 3 + ("fraction",),
        ),
        action=Vector(
            names=action,
            units=("m", "m", "m", "fraction"),
            low=(*WORKSPACE_LOW, 0.0),
            high=(*WORKSPACE_HIGH, 1.0),
        ),
        action_kind="end_effector_target",
        mirror=Mirror(
            state_order=tuple(range(len(state))),
            state_sign=tuple(-1 if name in LATERAL else 1 for name in state),
            action_order=tuple(range(len(action))),
            action_sign=tuple(-1 if name in LATERAL else 1 for name in action),
            cameras={name: name for name in cameras},
        ),
    )


_ARM = """
    <body name="base" pos="0 0 0" gravcomp="1">
      <geom class="visual" type="cylinder" size="0.075 0.06" pos="0 0 0.06" rgba="0.25 0.26 0.29 1"/>
      <body name="link1" pos="0 0 0.12" gravcomp="1">
        <inertial pos="0 0 0.08" mass="1" diaginertia="0.004 0.004 0.003"/>
        <joint name="base_yaw" class="arm" axis="0 0 1" range="-2.8 2.8"/>
        <geom class="visual" type="box" size="0.05 0.05 0.08" pos="0 0 0.07" rgba="0.90 0.90 0.92 1"/>
        <body name="link2" pos="0 0 0.18" gravcomp="1">
          <inertial pos="0 0 0.21" mass="0.8" diaginertia="0.012 0.012 0.001"/>
          <joint name="shoulder" class="arm" axis="0 1 0" range="-1.6 1.9"/>
          <geom class="visual" type="cylinder" fromto="0 -0.075 0 0 0.075 0" size="0.055" rgba="0.25 0.26 0.29 1"/>
          <geom class="visual" type="box" size="0.036 0.040 0.18" pos="0 0 0.22" rgba="0.90 0.90 0.92 1"/>
          <body name="link3" pos="0 0 0.42" gravcomp="1">
            <inertial pos="0 0 0.2" mass="0.6" diaginertia="0.008 0.008 0.0006"/>
            <joint name="elbow" class="arm" axis="0 1 0" range="-0.1 2.8"/>
            <geom class="visual" type="cylinder" fromto="0 -0.06 0 0 0.06 0" size="0.046" rgba="0.25 0.26 0.29 1"/>
            <geom class="visual" type="box" size="0.029 0.032 0.17" pos="0 0 0.21" rgba="0.90 0.90 0.92 1"/>
            <body name="link4" pos="0 0 0.42" gravcomp="1">
              <inertial pos="0 0 0" mass="0.3" diaginertia="0.0006 0.0006 0.0004"/>
              <joint name="forearm_roll" class="arm" axis="0 0 1" range="-2.8 2.8"/>
              <body name="link5" gravcomp="1">
                <inertial pos="0 0 0.03" mass="0.2" diaginertia="0.0003 0.0003 0.0002"/>
                <joint name="wrist_pitch" class="arm" axis="0 1 0" range="-0.3 3.0"/>
                <geom class="visual" type="cylinder" fromto="0 -0.042 0 0 0.042 0" size="0.038" rgba="0.25 0.26 0.29 1"/>
                <body name="hand" pos="0 0 0.19" gravcomp="1">
                  <inertial pos="0 0 -0.1" mass="0.3" diaginertia="0.0006 0.0004 0.0005"/>
                  <joint name="tool_roll" class="arm" axis="0 0 1" range="-3.1 3.1"/>
                  <site name="tip" size="0.005" group="4"/>
                  %(hand)s
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
"""

# The hand's frame is the tip's: z points out of the gripper, so that the palm is at negative z. The fingers are dark, to stand out against
# the table and every object in the wrist image.
_HAND = """
                  <geom class="visual" type="box" size="0.024 0.026 0.04" pos="0 0 -0.15" rgba="0.90 0.90 0.92 1"/>
                  <geom name="palm" class="gripper" type="box" size="0.022 0.058 0.014" pos="0 0 -0.100" rgba="0.32 0.33 0.37 1"/>
                  <camera name="wrist" pos="-0.075 0 -0.105" xyaxes="0 1 0 0.81 0 -0.58" fovy="%(wrist_fov)s"/>
                  <body name="finger_left" pos="0 0.006 -0.038" gravcomp="1">
                    <inertial pos="0 0 0" mass="0.05" diaginertia="0.00004 0.00004 0.00001"/>
                    <joint name="finger_left" class="finger" axis="0 1 0"/>
                    <geom name="pad_left" class="gripper" type="box" size="0.011 0.006 0.048" rgba="0.13 0.13 0.15 1"/>
                  </body>
                  <body name="finger_right" pos="0 -0.006 -0.038" gravcomp="1">
                    <inertial pos="0 0 0" mass="0.05" diaginertia="0.00004 0.00004 0.00001"/>
                    <joint name="finger_right" class="finger" axis="0 -1 0"/>
                    <geom name="pad_right" class="gripper" type="box" size="0.011 0.006 0.048" rgba="0.13 0.13 0.15 1"/>
                  </body>
"""

_DEFAULTS = """
  <default>
    <default class="arm"><joint armature="0.02" damping="0.1" limited="true"/></default>
    <default class="visual"><geom contype="0" conaffinity="0" group="1" mass="0"/></default>
    <default class="gripper"><geom contype="2" conaffinity="0" group="1" mass="0" friction="1.2 0.02 0.002" condim="4"/></default>
    <default class="finger"><joint type="slide" limited="true" range="0 0.045" armature="0.05" damping="2"/></default>
    <default class="solid"><geom contype="1" conaffinity="3" group="2" friction="1.0 0.01 0.001" material="object"/></default>
    <default class="detail"><geom contype="0" conaffinity="0" group="2" material="object"/></default>
  </default>
"""

_ASSETS = '<asset><material name="object" specular="0.3" shininess="0.4"/></asset>'


def kinematic_xml() -> str:
    """The arm alone, for inverse kinematics: no fingers, no table, no cameras."""
    return f"""<mujoco model="arm"><compiler angle="radian"/>{_DEFAULTS}{_ASSETS}<worldbody>{_ARM % {"hand": ""}}</worldbody></mujoco>"""


def _slot_xml(index: int) -> str:
    """One free body that can be any type: the geoms of the others are switched off when the scene is set."""
    s, cup, box, ball, bottle = f"slot{index}", SHAPES["cup"], SHAPES["box"], SHAPES["ball"], SHAPES["bottle"]
    r, h = cup.width / 2, cup.height / 2
    base, top = -bottle.origin, bottle.height - bottle.origin
    shoulder, neck = base + 0.086, bottle.width * 0.22
    # The free joint's damping brakes rolling and spinning; at the speeds of a fall it takes away nothing that counts.
    return f"""
    <body name="{s}" pos="{index} 0 5" gravcomp="1">
      <inertial pos="0 0 -0.01" mass="0.08" diaginertia="0.00003 0.00003 0.00003"/>
      <joint name="{s}" type="free" damping="0.0002"/>
      <geom name="{s}/cup/body" class="solid" type="cylinder" size="{r} {h}"/>
      <geom name="{s}/cup/opening" class="detail" type="ellipsoid" size="{r * 0.82} {r * 0.82} 0.0015" pos="0 0 {h}"/>
      <geom name="{s}/cup/handle_top" class="detail" type="box" size="0.010 0.0045 0.0045" pos="{r + 0.010} 0 {h * 0.6}"/>
      <geom name="{s}/cup/handle_side" class="detail" type="box" size="0.0045 0.0045 {h * 0.6}" pos="{r + 0.0195} 0 {h * 0.05}"/>
      <geom name="{s}/cup/handle_bottom" class="detail" type="box" size="0.010 0.0045 0.0045" pos="{r + 0.010} 0 {-h * 0.5}"/>
      <geom name="{s}/box/body" class="solid" type="box" size="{box.width / 2} {box.width / 2} {box.height / 2}"/>
      <geom name="{s}/ball/body" class="solid" type="sphere" size="{ball.width / 2}" condim="6" friction="1.0 0.01 0.008"/>
      <geom name="{s}/bottle/body" class="solid" type="cylinder" size="{bottle.width / 2} 0.043" pos="0 0 {base + 0.043}"/>
      <geom name="{s}/bottle/neck" class="solid" type="cylinder" fromto="0 0 {shoulder} 0 0 {top - 0.012}" size="{neck}"/>
      <geom name="{s}/bottle/cap" class="detail" type="cylinder" fromto="0 0 {top - 0.014} 0 0 {top}" size="{neck * 1.25}"/>
    </body>"""


def model_xml(num_slots: int) -> str:
    """The whole world: table, arm, gripper, cameras, light, and slots for objects, which are parked out of sight until they are filled."""
    slots = "".join(_slot_xml(i) for i in range(num_slots))
    arm = _ARM % {"hand": _HAND % {"wrist_fov": WRIST_FOV_DEG}}
    gains = {"base_yaw": 1200, "shoulder": 1500, "elbow": 900, "forearm_roll": 120, "wrist_pitch": 200, "tool_roll": 80}
    servos = "".join(f'<position name="{j}" joint="{j}" kp="{k}" dampratio="1"/>' for j, k in gains.items())
    # An off-centre inertial frame keeps the compiler from taking short cuts that setting body_ipos later would break.
    # Bounding-volume midphase is compiled for scale 1 and is off: a slot has few geoms, and switched-off ones are filtered anyway.
    return f"""
<mujoco model="deftly_tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="5" iterations="20" ls_iterations="20">
    <flag midphase="disable"/>
  </option>
  <visual>
    <global offwidth="640" offheight="640"/>
    <quality offsamples="0" shadowsize="0" numslices="16" numstacks="5" numquads="1"/>
    <map znear="0.02" zfar="6"/>
    <headlight ambient="0.36 0.36 0.36" diffuse="0.22 0.22 0.22" specular="0 0 0"/>
  </visual>
  <statistic extent="1" center="0.4 0 0.2"/>
  {_ASSETS}
  {_DEFAULTS}
  <worldbody>
    <light name="lamp" directional="true" pos="0.4 0.3 1.5" dir="-0.2 -0.25 -1" diffuse="0.55 0.55 0.55" specular="0.25 0.25 0.25"
           castshadow="false"/>
    <camera name="head" pos="0.97 0 0.56" xyaxes="0 1 0 -0.7 0 0.7" fovy="{HEAD_FOV_DEG}"/>
    <geom name="table_contact" type="plane" size="2 2 0.1" contype="2" conaffinity="0" friction="1.0 0.01 0.001" group="4"/>
    <geom name="table" class="visual" type="box" size="0.42 0.46 0.02" pos="0.40 0 -0.0205" rgba="0.76 0.70 0.62 1"/>
    <geom name="floor" class="visual" type="plane" size="4 4 0.5" pos="0 0 -0.7" rgba="0.45 0.48 0.52 1"/>
    {arm}
    {slots}
  </worldbody>
  <equality><joint joint1="finger_left" joint2="finger_right" solref="0.005 1"/></equality>
  <actuator>
    {servos}
    <position name="finger" joint="finger_left" kp="900" dampratio="1" forcerange="-25 25"/>
  </actuator>
</mujoco>"""
