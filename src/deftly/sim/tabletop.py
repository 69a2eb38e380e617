"""The demo world: an arm at a table picks up the object that a sentence names. The gymnasium API around `physics` and `render`."""

from __future__ import annotations

from typing import Annotated, Any

import gymnasium
import numpy as np
import pydantic

from deftly.config import Config
from deftly.contract import Embodiment
from deftly.randomness import generator
from deftly.sim import language, robot
from deftly.sim.opengl import REMEDY
from deftly.sim.randomization import RandomizationConfig, sample_appearance
from deftly.sim.scene import COLOURS, MAX_OBJECTS, TYPES, Scene, sample_scene
from deftly.types import Observation, UsageError, World

LIFT_HEIGHT_M = 0.10  # success: this far above its resting height ...
HOLD_S = 1.0  # ... for this long
FIRST_LIFT_M = 0.05  # the first object this far up is the one that was chosen: any but the target is a failure
NEAR_M = 0.07  # closing the gripper within this distance of an object counts as an attempt
START_LOW, START_HIGH = (0.30, -0.20, 0.17), (0.66, 0.20, 0.32)  # of the tip; always above the tallest object


class TabletopConfig(Config):
    """The world in which the demo policy is trained and judged."""

    image_size: int = pydantic.Field(default=96, ge=16, le=640)
    cameras: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = robot.CAMERAS
    horizon_s: float = pydantic.Field(default=15.0, gt=0, le=600)
    num_objects: tuple[int, int] = (2, 3)
    """Fewest and most objects of a scene, both included."""
    target_types: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = TYPES
    colours: Annotated[tuple[str, ...], pydantic.Field(min_length=2)] = COLOURS
    randomization: RandomizationConfig = RandomizationConfig()

    @pydantic.model_validator(mode="after")
    def check(self) -> TabletopConfig:
        low, high = self.num_objects
        if not 2 <= low <= high <= MAX_OBJECTS:
            raise ValueError(f"num_objects must be a range within 2..{MAX_OBJECTS} (one of them is a distractor), got {low}..{high}")
        for label, values, known in (
            ("type", self.target_types, TYPES),
            ("colour", self.colours, COLOURS),
            ("camera", self.cameras, robot.CAMERAS),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ValueError(f"unknown {label} {unknown[0]!r}; known: {', '.join(known)}")
            if len(set(values)) != len(values):
                raise ValueError(f"a {label} is listed twice: {', '.join(values)}")
        return self

    def embodiment(self) -> Embodiment:
        return robot.embodiment(self.image_size, self.cameras)

    def build(self, *, render: bool = True) -> Tabletop:
        """A world; with `render=False` its observations have no images and nothing is ever drawn."""
        return Tabletop(self, render=render)


class Tabletop(World):
    """Pick up the named object. Everything about an episode is a function of its seed.

    Observation: images {camera: uint8 [h w 3]}, drawn when read; state float32 [10]; instruction. Action float32 [4]: tip target x y z
    in metres in the robot base frame, and the gripper (0 open, 1 closed); the robot moves toward the target at bounded speed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": robot.RATE_HZ}  # noqa: RUF012  (gymnasium's own attribute)
    render_mode = "rgb_array"

    def __init__(self, config: TabletopConfig, *, render: bool = True) -> None:
        try:
            from deftly.sim.physics import Physics  # mujoco is loaded with the first world, not with its config
        except (ImportError, AttributeError) as error:  # the latter is how PyOpenGL says that there is no libEGL
            raise UsageError(f"mujoco cannot be loaded ({error}); remedy: pip install mujoco, or {REMEDY}") from error

        self.config = config
        self.embodiment = config.embodiment()
        self.physics = Physics(config.num_objects[1])
        self.horizon = round(config.horizon_s * robot.RATE_HZ)  # control steps
        self._cameras = config.cameras if render else ()
        self._pictures: Any = None
        self._snapshot: Any = None
        self._low = np.array(self.embodiment.action.low)
        self._high = np.array(self.embodiment.action.high)
        self._episode = 0
        self.scene: Scene | None = None
        self.instruction = ""
        self._spaces()

    def _spaces(self) -> None:
        size = self.config.image_size
        picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(self._low.astype(np.float32), self._high.astype(np.float32), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Dict(dict.fromkeys(self._cameras, picture)),
            state=gymnasium.spaces.Box(-np.inf, np.inf, (len(self.embodiment.state),), np.float32),
            instruction=gymnasium.spaces.Text(language.MAX_SENTENCE, charset="abcdefghijklmnopqrstuvwxyz "),
        )

    # gymnasium -------------------------------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:  # type: ignore[override]
        """Start the episode of `seed`.

        `options={"instruction": text}` asks for the one object that `text` means instead; `{"mirrored": True}` exchanges left and right in
        everything that the seed gives: objects, start, lamp and cameras.

        Raises ValueError when the options are unknown, or when the text has no single referent in this scene.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise UsageError(f"reset needs a seed, an integer >= 0, got {seed!r}: the whole episode is a function of it")
        unknown = [name for name in options or {} if name not in ("instruction", "mirrored")]
        if unknown:
            raise UsageError(f"unknown reset option {unknown[0]!r}; known: 'instruction', 'mirrored'")
        config = self.config
        self.scene = sample_scene(generator("tabletop/scene", seed), config.num_objects, config.target_types, config.colours)
        appearance = sample_appearance(config.randomization, generator("tabletop/appearance", seed))
        start = generator("tabletop/start", seed)
        tip = start.uniform(START_LOW, START_HIGH)
        opening = 1.0 if start.random() < 0.7 else float(start.uniform(0.0, 1.0))
        if options and options.get("mirrored"):
            self.scene, appearance, tip = self.scene.mirrored(), appearance.mirrored(), tip * (1.0, -1.0, 1.0)
        self.target = self.scene.target
        self.template = int(generator("tabletop/sentence", seed).integers(len(language.TEMPLATES)))
        self.instruction = self.sentence_for(self.target)
        if options and "instruction" in options:
            self.target = language.resolve(str(options["instruction"]), self.scene)
            self.instruction = str(options["instruction"])
        self.physics.place(self.scene, appearance, tip, opening)
        self._episode += 1
        self._steps = self._clipped = 0
        self._held = np.zeros(len(self.scene.objects), dtype=int)  # control steps that each object has been up
        self._lifted: int | None = None
        self._carried: int | None = None
        self._attempted = self._succeeded = False
        scene = {**self.scene.to_dict(), "target": self.target}
        if self.target == self.scene.other:
            scene["other"] = self.scene.target
        info = {
            "seed": int(seed),
            "scene": scene,
            "skill": "pick",
            "template": self.template,
            "state_hash": self.physics.fingerprint(),
            "success": bool(self.physics.heights()[self.target] >= LIFT_HEIGHT_M),
            "object_poses": self.physics.object_poses(),
        }
        return self.observe(), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 0.1 s. Reward 1 at success. Raises ValueError for a wrong shape or a value that is not finite."""
        self._require_episode()
        if self.outcome() != "running":
            raise UsageError(f"the episode is over ({self.outcome()}): call reset(seed=...)")
        command = self._check(action)
        self.physics.move(command[:3], float(command[3]))
        self._steps += 1
        self._judge(float(command[3]))
        info = {
            "success": self._succeeded,
            "lifted": self._lifted,
            "carried": self._carried,
            "attempted": self._attempted,
            "clipped": self._clipped,
            "object_poses": self.physics.object_poses(),
            "outcome": self.outcome(),
        }
        terminated = self._carried is not None
        return self.observe(), float(self._succeeded), terminated, not terminated and self._steps >= self.horizon, info

    def render(self) -> np.ndarray:
        """The first camera's image, uint8 [h w 3]."""
        if not self._cameras:
            raise UsageError("this world was built with render=False")
        return self._draw(self._cameras[0])

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()

    # Observing -------------------------------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """The current observation."""
        self._require_episode()
        return Observation(images=self._images(), state=self.physics.state(), instruction=self.instruction)

    def _images(self) -> Any:
        """A mapping that behaves as the dict of images that it becomes when it is copied."""
        if not self._cameras:
            return {}
        from deftly.sim.render import LazyImages

        episode, positions = self._episode, self.physics.data.qpos.copy()
        return LazyImages(self._cameras, lambda name: self._draw_past(name, episode, positions))

    def _draw_past(self, camera: str, episode: int, positions: np.ndarray) -> np.ndarray:
        if episode != self._episode:
            raise UsageError("this observation is of an earlier episode and its images were never read: read them before reset")
        if np.array_equal(positions, self.physics.data.qpos):
            return self._draw(camera)
        import mujoco

        if self._snapshot is None:
            self._snapshot = mujoco.MjData(self.physics.model)
        self._snapshot.qpos[:] = positions
        self._place_frames(self._snapshot)
        return self._painter().color(self._snapshot, camera)

    def _draw(self, camera: str) -> np.ndarray:
        self._place_frames(self.physics.data)
        return self._painter().color(self.physics.data, camera)

    def _place_frames(self, data: Any) -> None:
        import mujoco

        mujoco.mj_kinematics(self.physics.model, data)
        mujoco.mj_comPos(self.physics.model, data)
        mujoco.mj_camlight(self.physics.model, data)

    def _painter(self) -> Any:
        if self._pictures is None:
            from deftly.sim.render import Pictures

            self._pictures = Pictures(self.physics.model, self.config.image_size)
        return self._pictures

    @property
    def images_drawn(self) -> int:
        """How many images this world has drawn."""
        return 0 if self._pictures is None else self._pictures.drawn

    def boxes(self) -> dict[str, np.ndarray]:
        """Per camera the pixel box of what is seen of each object: int32 [n, 4] x0 y0 x1 y1, ends exclusive, -1 where nothing is seen."""
        self._require_episode()
        assert self.scene is not None
        owner = np.append(self.physics.geom_owner(), -1)  # so that geom -1, the background, belongs to nobody
        self._place_frames(self.physics.data)
        result = {}
        for camera in self._cameras:
            seen = owner[self._painter().geoms(self.physics.data, camera)]
            boxes = np.full((len(self.scene.objects), 4), -1, dtype=np.int32)
            for index in range(len(boxes)):
                rows, columns = np.nonzero(seen == index)
                if len(rows):
                    boxes[index] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            result[camera] = boxes
        return result

    # The task --------------------------------------------------------------------------------------------------------------------------

    def sentence_for(self, index: int) -> str:
        """The instruction of this episode as it would be for object `index`; changes nothing."""
        return language.sentence(self._object(index), self.template)

    def idle_action(self) -> np.ndarray:
        """The action [4] that keeps the robot where it is: the set-point that it already follows."""
        self._require_episode()
        return np.clip(self.physics.command(), self._low, self._high).astype(np.float32)

    def outcome(self) -> str:
        """`running`, `success`, `wrong_object`, `missed_grasp` (time over after an attempt) or `timeout`.

        An episode ends when an object, whichever, has been carried for as long as success takes, or when time is over.
        """
        self._require_episode()
        if self._succeeded:
            return "success"
        if self._carried is None and self._steps < self.horizon:
            return "running"
        if self._wrong():
            return "wrong_object"
        return "missed_grasp" if self._attempted else "timeout"

    def _wrong(self) -> bool:
        return self._lifted is not None and self._lifted != self.target

    def _judge(self, gripper: float) -> None:
        heights = self.physics.heights()
        if self._lifted is None and heights.max() >= FIRST_LIFT_M:
            self._lifted = int(heights.argmax())
        self._held = np.where(heights >= LIFT_HEIGHT_M, self._held + 1, 0)
        if self._held.max() >= round(HOLD_S * robot.RATE_HZ):
            self._carried = int(self._held.argmax())
        self._succeeded = self._carried == self.target and not self._wrong()
        if gripper > 0.5 and not self._attempted:
            gaps = np.linalg.norm(self.physics.object_poses()[:, :3] - self.physics.tip(), axis=1)
            self._attempted = bool(gaps.min() <= NEAR_M)

    def _check(self, action: np.ndarray) -> np.ndarray:
        command = np.asarray(action, dtype=np.float64)
        if command.shape != self._low.shape:
            raise UsageError(f"an action has shape {self._low.shape} ({', '.join(self.embodiment.action.names)}), got {command.shape}")
        if not np.isfinite(command).all():
            raise UsageError(f"the action at step {self._steps} is not finite: {command.tolist()}")
        clipped = np.clip(command, self._low, self._high)
        self._clipped += int(np.any(np.abs(clipped - command) > 1e-6))  # float32 of a limit may lie outside it
        return clipped

    def _object(self, index: int) -> Any:
        self._require_episode()
        assert self.scene is not None
        if not 0 <= index < len(self.scene.objects):
            raise UsageError(f"no object {index}: this scene has {len(self.scene.objects)} ({self.scene.names()})")
        return self.scene.objects[index]

    def _require_episode(self) -> None:
        if self.scene is None:
            raise UsageError("call reset(seed=...) first")
