"""Sentences are written and read back, and mean exactly one object."""

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deftly.randomness import generator
from deftly.sim.language import ANY_TYPE, MAX_SENTENCE, TEMPLATES, VERBS, Request, parse, referents, resolve, sentence
from deftly.sim.scene import COLOURS, TYPES, ObjectSpec, Scene, sample_scene


def thing(colour: str, kind: str) -> ObjectSpec:
    return ObjectSpec(colour=colour, type=kind, x=0.4, y=0.0, yaw=0.0, scale=1.0)


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_every_template_parses_back(template: int) -> None:
    for colour in COLOURS:
        for kind in TYPES:
            assert parse(sentence(thing(colour, kind), template)) == Request("pick", colour, kind)


def test_there_are_enough_different_templates() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 8


def read(text: str) -> Request | None:
    """The request, or None where the text is refused, which must be in one line."""
    try:
        return parse(text)
    except ValueError as error:
        if "\n" in str(error):
            raise
        return None


@settings(max_examples=60)
@given(st.text(max_size=60))
@example("")
@example("pick up the red blue cup")
@example("ICK UP THE\nRED CUP\x00")
@example("a" * (MAX_SENTENCE + 1))
def test_parse_never_crashes(text: str) -> None:
    request = read(text)
    assert request is None or request.colour or request.type


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*VERBS, *COLOURS, *TYPES, *ANY_TYPE, "the", "please", "wombat"]), max_size=12).map(" ".join))
def test_parse_never_crashes_on_known_words(text: str) -> None:
    request = read(text)
    if request is not None:
        assert "wombat" not in text
        assert all(word in (request.colour, request.type) for word in text.split() if word in COLOURS or word in TYPES)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("the red cup", "no known verb"),
        ("pick up the purple cup", "unknown word 'purple'"),
        ("grab the botle", "did you mean 'bottle'"),
        ("grab the red and blue cup", "2 colours"),
        ("grab the cup and the ball", "2 types"),
        ("pick it up", "names no object"),
        ("pick up the red cup " * 40, "at most"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse(text)


def test_synonyms_and_half_descriptions() -> None:
    assert parse("Grab the yellow mug!") == Request("pick", "yellow", "cup")
    assert parse("take the cube") == Request("pick", None, "box")
    assert parse("lift the green one") == Request("pick", "green", None)


def test_referents_and_their_errors() -> None:
    scene = Scene((thing("red", "cup"), thing("red", "ball"), thing("blue", "ball")), target=0, other=1)
    assert referents(parse("grab the red one"), scene) == [0, 1]
    assert resolve("grab the cup", scene) == 0
    with pytest.raises(ValueError, match=r"fits 2 objects.*the red cup, the red ball, the blue ball"):
        resolve("grab the ball", scene)
    with pytest.raises(ValueError, match="fits no object"):
        resolve("grab the green cup", scene)


def test_every_sentence_of_a_scene_has_one_referent() -> None:
    for seed in range(300):
        scene = sample_scene(generator("test/scene", seed), (2, 4))
        for index, item in enumerate(scene.objects):
            assert resolve(sentence(item, seed), scene) == index


def test_neither_word_alone_is_enough() -> None:
    """The target always shares its colour or its type with another object: a policy that ignores one of the words must fail."""
    for seed in range(300):
        scene = sample_scene(generator("test/scene", seed), (2, 3))
        target, other = scene.objects[scene.target], scene.objects[scene.other]
        assert (target.colour == other.colour) != (target.type == other.type)


def test_language_and_scenes_need_no_simulator() -> None:
    code = """
import sys
import deftly.sim.language
from deftly.sim.tabletop import TabletopConfig
TabletopConfig().embodiment()
assert "mujoco" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
