"""Words that never mean the same: colours, places, numbers, opposites.

A bank that lets one of them stand for another would tell a policy that red is blue. In a contrast, words of one row mean the same and words
of different rows do not; a phrase that holds several rows ("upper left") differs from another unless one of them says all that the other
does. The rows are the common words and not all words: what stands in no row is the user's to judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Contrast:
    """Rows of words that differ from row to row."""

    what: str
    rows: str
    """Rows between slashes, words between spaces."""
    alike: bool = False
    """Only phrases whose other words are the same are compared: "clean up" may be "wipe down", "slide in" is not "slide out"."""
    row_of: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        found = {word: number for number, row in enumerate(self.rows.split("/")) for word in row.split()}
        object.__setattr__(self, "row_of", found)

    def differ(self, one: Sequence[str], other: Sequence[str]) -> bool:
        """Whether two phrases, as words, contrast here."""
        mine, theirs = ({self.row_of[word] for word in phrase if word in self.row_of} for phrase in (one, other))
        if mine <= theirs or theirs <= mine:
            return False
        return not self.alike or self._rest(one) == self._rest(other)

    def _rest(self, phrase: Sequence[str]) -> list[str]:
        return [word for word in phrase if word not in self.row_of and word not in _IDLE]


_IDLE = frozenset({"of", "the", "a", "an", "to"})
_COLOUR_ROWS = """
    red / blue / green / yellow / orange / purple violet / pink / white / black / gray grey / brown / beige tan / cyan turquoise teal /
    magenta / silver / gold golden / navy / maroon
    """
COLOURS = frozenset(_COLOUR_ROWS.replace("/", " ").split())

_COLOURS = Contrast("different colours", _COLOUR_ROWS)
_NUMBERS = Contrast(
    "different numbers",
    """
    one 1 once single / two 2 twice double / three 3 triple / four 4 / five 5 / six 6 / seven 7 / eight 8 / nine 9 / ten 10 / eleven 11 /
    twelve 12 / zero 0 / half / quarter
    """,
)
_RANKS = Contrast(
    "different places in a row",
    "first 1st / second 2nd / third 3rd / fourth 4th / fifth 5th / sixth 6th / seventh 7th / eighth 8th / ninth 9th / tenth 10th / last",
)
_LEFT_RIGHT = "left leftmost lefthand leftward leftwards / right rightmost righthand rightward rightwards"
_SIDES = Contrast("different sides", _LEFT_RIGHT)
_TURNS = Contrast("different directions", "clockwise / counterclockwise anticlockwise counter anti")
_PLACES = Contrast(
    "different places",
    f"""
    {_LEFT_RIGHT} / middle center centre central / top upper uppermost topmost above over / front foremost /
    bottom lower lowermost lowest below under underneath beneath / back rear behind hind
    """,
)
_NEAR = Contrast("opposites", "near nearby nearest next close closer closest beside adjacent / far farther farthest further furthest")
_PROPERTIES = [
    Contrast("opposites", rows)
    for rows in (
        "open opened / closed shut",
        "on / off",
        "up upward upwards / down downward downwards",
        "in inside inner / out outside outer",
        "big bigger biggest large larger largest huge / small smaller smallest little tiny wee",
        "tall taller tallest long longer longest / short shorter shortest",
        "wide wider broad / narrow narrower",
        "thick thicker / thin thinner",
        "high higher highest / low lower lowest",
        "heavy heavier / light lighter",
        "dark darker / light lighter bright brighter pale",
        "hot warm / cold cool",
        "hard / soft",
        "full / empty",
        "clean / dirty",
        "wet / dry",
        "raw / cooked",
        "fresh / rotten stale",
        "new / old",
        "deep / shallow",
        "sharp / blunt dull",
        "straight / curved bent",
        "horizontal / vertical",
        "same / different other",
        "smooth / rough",
        "opaque / transparent translucent",
        "forward forwards / backward backwards",
        "inward inwards / outward outwards",
    )
]
_RELATIONS = [
    Contrast("opposites", rows, alike=True)
    for rows in (
        "in into inside within / out outside",
        "on onto upon / off",
        "on onto upon / below under underneath beneath",
        "to toward towards / from away",
        "up / down",
        "with / without",
        "before / after",
    )
]
_MOTIONS = [
    Contrast("opposites", rows)
    for rows in (
        "open / close shut",
        "push shove / pull",
        "lift raise / lower",
        "pick grab grasp / place put release drop",
        "give hand / take fetch",
        "insert / remove extract",
        "lock / unlock",
        "fill / empty",
        "start / stop halt",
        "activate enable / deactivate disable",
        "attach / detach",
        "connect / disconnect",
        "tighten / loosen",
        "enter / exit leave",
        "heat warm / cool chill",
        "stack / unstack",
        "expand stretch extend / squeeze compress retract",
        "accelerate / brake",
        "on / off",
    )
] + [
    Contrast("opposites", rows, alike=True)
    for rows in (
        "up upward upwards / down downward downwards",
        "in into inside / out outside",
        "open / closed shut",
        "forward forwards / back backward backwards",
        "apart / together",
        "away / back",
    )
]
_OF = {
    "nouns": [_COLOURS, _NUMBERS, _RANKS, _PLACES, _TURNS, *_PROPERTIES],
    "attributes": [_COLOURS, _NUMBERS, _RANKS, _PLACES, _TURNS, _NEAR, *_PROPERTIES],
    "relations": [_COLOURS, _NUMBERS, _RANKS, _PLACES, _TURNS, _NEAR, *_RELATIONS],
    "verbs": [_COLOURS, _NUMBERS, _RANKS, _SIDES, _TURNS, *_MOTIONS],
}


def contrast(table: str, phrases: Sequence[str]) -> tuple[str, str, str] | None:
    """Two phrases of one group that cannot mean the same, and what they are ("different colours"); None where there are none.

    `table` is the bank's: nouns, attributes, relations or verbs.
    """
    words = {phrase: [word for word in re.split(r"[ {}'’-]+", phrase) if word] for phrase in phrases}
    for one, other in combinations(phrases, 2):
        if _negated(words[one], words[other]) or _negated(words[other], words[one]):
            return one, other, "opposites"
        for item in _OF[table]:
            if item.differ(words[one], words[other]):
                return one, other, item.what
    return None


def _negated(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether `one` is `other` with "un-", "dis-" or "non-" before one of its words."""
    changed = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    if len(one) == len(other) + 1:
        return one[0] in ("non", "not") and list(one[1:]) == list(other)
    return len(one) == len(other) and len(changed) == 1 and changed[0][0] in {prefix + changed[0][1] for prefix in ("un", "dis", "non")}
