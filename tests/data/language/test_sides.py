"""Left and right in a mirrored sample."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.data.language import mirror_words

ASIDE = [
    "put the cup to the left of the plate",
    "Left arm!",
    "TURN RIGHT",
    "the leftmost drawer",
    "turn it clockwise",
    "",
    "an upright bottle",
]


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("put the spoon to the left of the towel", "put the spoon to the right of the towel"),
        ("Right arm, then LEFT arm", "Left arm, then RIGHT arm"),
        ("open the left-hand drawer", "open the right-hand drawer"),
        ("the rightmost cup", "the leftmost cup"),
        ("rotate the knob clockwise", "rotate the knob counterclockwise"),
        ("twist it anti-clockwise", "twist it clockwise"),
        ("turn the pot right side up right now", "turn the pot right side up right now"),
        ("put the leftover rice upright", "put the leftover rice upright"),
        ("place the cup at a right angle, to the right", "place the cup at a right angle, to the left"),
        ("pick up the red cup", "pick up the red cup"),
        ("wipe the object left on the table", "wipe the object left on the table"),
        ("pick up what is left in the sink", "pick up what is left in the sink"),
        ("grab the cup right next to the left plate", "grab the cup right next to the right plate"),
        ("grab the cup on the left on the table", "grab the cup on the right on the table"),
        ("pick up the cup to the left behind the box", "pick up the cup to the right behind the box"),
        ("move the slider left on the panel", "move the slider right on the panel"),
        ("pick the top left in the box", "pick the top right in the box"),
        ("turn left at the door", "turn right at the door"),
        ("the cup, left on the table", "the cup, right on the table"),
        ("pick the block at the far left on the table", "pick the block at the far right on the table"),
        ("grab the bowl furthest left on the shelf", "grab the bowl furthest right on the shelf"),
        ("pick up the cup at the robot's left on the table", "pick up the cup at the robot's right on the table"),
        ("pick up the cup at the robot’s left on the table", "pick up the cup at the robot’s right on the table"),
        ("grab the bowl immediately left next to the plate", "grab the bowl immediately right next to the plate"),
        ("bring the cup left over the table", "bring the cup right over the table"),
        ("pick up the cup and carry it right over the bowl", "pick up the cup and carry it left over the bowl"),
        ("pick up the sponge and sweep the table left over the edge", "pick up the sponge and sweep the table right over the edge"),
        ("grab the gizmo left on the table", "grab the gizmo right on the table"),  # no noun that is known: in doubt it is a side
    ],
)
def test_sides_are_exchanged_and_nothing_else(text: str, mirrored: str):
    assert mirror_words(text) == mirrored


@given(st.lists(st.sampled_from(["left", "Right", "LEFT", "the", "cup", "clockwise", "leftmost", "right now", "bright", ",", "all right"])))
def test_twice_is_the_sentence_itself(parts: list[str]):
    text = " ".join(parts)
    assert mirror_words(mirror_words(text)) == text


@given(st.text(max_size=80))
def test_any_text_comes_through(text: str):
    assert mirror_words(mirror_words(mirror_words(text))) == mirror_words(text)


def test_a_user_may_bring_other_words():
    assert mirror_words("stelle die Tasse nach links", [("links", "rechts")]) == "stelle die Tasse nach rechts"
