"""Scenes: named apart, placed apart, a function of the generator alone."""

import numpy as np

from deftly.randomness import generator
from deftly.sim.randomization import Appearance, RandomizationConfig, sample_appearance
from deftly.sim.scene import AREA_HIGH, AREA_LOW, COLOURS, MIN_DISTANCE, TYPES, Scene, sample_scene


def scenes(count: int = 300) -> list[Scene]:
    return [sample_scene(generator("test/scene", seed), (2, 4)) for seed in range(count)]


def test_no_two_objects_are_alike_or_near() -> None:
    for scene in scenes():
        names = [item.name for item in scene.objects]
        assert len(set(names)) == len(names)
        places = np.array([(item.x, item.y) for item in scene.objects])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert gaps.min() >= MIN_DISTANCE
        assert (places >= AREA_LOW).all()
        assert (places <= AREA_HIGH).all()


def test_the_area_is_large_and_used() -> None:
    assert all(high - low >= 0.30 for low, high in zip(AREA_LOW, AREA_HIGH, strict=True))
    places = np.array([(item.x, item.y) for scene in scenes() for item in scene.objects])
    assert (np.ptp(places, axis=0) > 0.30).all()


def test_every_colour_type_and_index_is_a_target() -> None:
    targets = [(s.target, s.objects[s.target].colour, s.objects[s.target].type) for s in scenes(600)]
    assert {(colour, kind) for _, colour, kind in targets} == {(c, t) for c in COLOURS for t in TYPES}
    shares = np.bincount([index for index, _, _ in targets]) / len(targets)
    assert shares[0] < 0.45  # with 2 to 4 objects, evenly placed, a third of the targets come first
    assert len(shares) == 4


def test_same_generator_same_scene() -> None:
    assert sample_scene(generator("a", 1)) == sample_scene(generator("a", 1)) != sample_scene(generator("a", 2))


def test_changing_one_range_leaves_the_other_draws() -> None:
    mild, still = RandomizationConfig(), RandomizationConfig(light_intensity=0.0)
    first, second = (sample_appearance(config, generator("a", 3)) for config in (mild, still))
    for name in Appearance.__dataclass_fields__:
        same = np.array_equal(getattr(first, name), getattr(second, name))
        assert same == (name != "light_intensity"), name


def test_off_draws_nothing() -> None:
    draw = sample_appearance(RandomizationConfig.off(), generator("a", 3))
    assert all(not np.any(getattr(draw, name)) for name in Appearance.__dataclass_fields__)
