"""Pictures: drawn when looked at, of the moment that they belong to, and different where the config says so."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from deftly.sim import opengl
from deftly.sim.expert import Expert
from deftly.sim.randomization import RandomizationConfig
from deftly.sim.tabletop import Tabletop, TabletopConfig
from deftly.types import UsageError


@pytest.fixture(scope="module")
def world() -> Tabletop:
    return TabletopConfig(image_size=64).build()


def pictures(world: Tabletop, seed: int) -> np.ndarray:
    observation, _ = world.reset(seed=seed)
    return np.stack([observation["images"][name] for name in ("head", "wrist")])


def test_images_have_the_declared_shape(world: Tabletop) -> None:
    observation, _ = world.reset(seed=1)
    assert set(observation["images"]) == {"head", "wrist"}
    for camera in world.embodiment.cameras:
        image = observation["images"][camera.name]
        assert image.shape == (camera.height, camera.width, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10
    assert world.observation_space.contains({**observation, "images": dict(observation["images"])})


def test_nothing_is_drawn_for_who_does_not_look(world: Tabletop) -> None:
    before = world.images_drawn
    world.reset(seed=2)
    for _ in range(5):
        world.step(world.idle_action())
    assert world.images_drawn == before
    world.observe()["images"]["head"]
    assert world.images_drawn == before + 1


def test_a_world_without_rendering_has_no_images() -> None:
    world = TabletopConfig(image_size=64).build(render=False)
    observation, _ = world.reset(seed=1)
    assert observation["images"] == {}
    assert world.images_drawn == 0


def test_an_image_read_late_shows_its_own_moment(world: Tabletop) -> None:
    early = pictures(world, 3)[0]
    observation, _ = world.reset(seed=3)
    expert = Expert(world)
    for _ in range(6):
        later, *_ = world.step(expert.act())
    assert np.array_equal(observation["images"]["head"], early)
    assert not np.array_equal(later["images"]["head"], early)
    world.reset(seed=4)
    with pytest.raises(ValueError, match="earlier episode"):
        later["images"]["wrist"]
    assert np.array_equal(observation["images"]["head"], early)


def test_images_copy_and_pickle_as_arrays(world: Tabletop) -> None:
    observation, _ = world.reset(seed=3)
    for twin in (copy.deepcopy(observation), pickle.loads(pickle.dumps(observation))):
        assert type(twin["images"]) is dict
        assert np.array_equal(twin["images"]["head"], observation["images"]["head"])


def test_boxes_hold_the_objects(world: Tabletop) -> None:
    for seed in range(6):
        observation, info = world.reset(seed=seed)
        boxes = world.boxes()
        image = observation["images"]["head"].astype(int)
        for item, (x0, y0, x1, y1) in zip(info["scene"]["objects"], boxes["head"], strict=True):
            if x0 < 0:
                continue
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64
            red, green, blue = image[(y0 + y1) // 2, (x0 + x1) // 2]
            wanted = {"red": red > 1.5 * max(green, blue), "blue": blue > 1.3 * max(red, green), "green": green > 1.2 * max(red, blue)}
            hidden = max(red, green, blue) < 60  # by a finger, or the dark part of a cup or bottle
            assert hidden or wanted.get(item["colour"], min(red, green) > 1.5 * blue), (seed, item, (red, green, blue))
    assert np.array_equal(observation["images"]["head"], world.observe()["images"]["head"])


def test_objects_are_nearly_always_seen_by_the_head_camera(world: Tabletop) -> None:
    seen = []
    for seed in range(30):
        world.reset(seed=seed)
        seen += [box[0] >= 0 for box in world.boxes()["head"]]
    assert np.mean(seen) > 0.95


def range_matters(name: str) -> bool:
    """Whether the range `name` alone changes a pixel, or the physical state, of any of four episodes."""
    still = RandomizationConfig.off()
    limit = {"friction": 0.4, "mass": 0.5}.get(name, getattr(RandomizationConfig(), name))
    for seed in range(4):
        worlds = [TabletopConfig(image_size=64, randomization=r).build() for r in (still, still.replace(**{name: limit}))]
        if name in ("friction", "mass"):
            hashes = {w.reset(seed=seed)[1]["state_hash"] for w in worlds}
            if len(hashes) == 2:
                return True
        elif not np.array_equal(*(pictures(w, seed) for w in worlds)):
            return True
    return False


@pytest.mark.parametrize("name", list(RandomizationConfig.model_fields))
def test_every_declared_range_changes_something(name: str) -> None:
    assert range_matters(name), name


def test_strong_is_stronger_everywhere() -> None:
    mild, strong = RandomizationConfig(), RandomizationConfig.strong()
    assert all(getattr(strong, name) > getattr(mild, name) for name in RandomizationConfig.model_fields)


def test_no_rendering_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(opengl.RenderingUnavailable, match=r"MUJOCO_GL=osmesa fails.*apt-get install -y libegl1") as caught:
        opengl.probe()
    assert "\n" not in str(caught.value)


def test_the_process_ends_quietly_after_drawing() -> None:
    code = "from deftly.sim.tabletop import TabletopConfig as C; w = C(image_size=32).build(); w.reset(seed=0)[0]['images']['head']"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("error", [ImportError("libEGL.so.1"), AttributeError("'NoneType' object has no attribute 'eglQueryString'")])
def test_a_mujoco_that_cannot_be_loaded_has_the_same_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Without libEGL it is PyOpenGL's AttributeError that comes out of `import mujoco`."""

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "deftly.sim.physics":
                raise error

    monkeypatch.delitem(sys.modules, "deftly.sim.physics", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(UsageError, match="mujoco cannot be loaded") as caught:
        TabletopConfig().build(render=False)
    assert str(caught.value).endswith(opengl.REMEDY)
