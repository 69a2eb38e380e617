"""Left and right exchanged in a sentence: the words' part of a mirrored sample."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deftly.data.language.bank import BANK
from deftly.data.language.lexicon import ARTICLES, DETERMINERS, DIRECTIONS, NUMBERS, POSITIONS, PREPOSITIONS, UNITS, listed

# Where the word is not a side. Whole words only, so that upright, leftover and copyright stay.
_FIXED = (
    "right now",
    "right away",
    "right side up",
    "right-side up",
    "right-side-up",
    "right angle",
    "right angles",
    "all right",
    "right here",
    "right there",
    "left over",
)
# "The cup left on the table" was left there, and "right on the table" is exactly there: no sides, unless something is to go that way.
# It starts at the side, never at the word before: a search that tries every start of a long word takes the square of its length.
_PLACE = re.compile(
    r"(?<= )(?:left|right)(?= (?:on|in|at|inside|under|underneath|beneath|behind|over|out|there|next to|beside|near)\b)", re.IGNORECASE
)
_WORD = re.compile(r"\w+")
_MOVING = listed(
    """
    move push pull slide turn rotate shift nudge drag swing tilt lean bend point face steer go drive navigate walk look reach put place set
    lay drop return insert throw toss roll twist flip kick knock
    """
)
_BEFORE_SIDE = (
    ARTICLES | DETERMINERS | POSITIONS | DIRECTIONS | PREPOSITIONS | UNITS | NUMBERS | {"and", "or", "more", "further", "bit"}
) - {
    "this",
    "that",
}
_SPELLINGS = {"anticlockwise": "counterclockwise", "anti-clockwise": "counterclockwise", "counter-clockwise": "counterclockwise"}


def mirror_words(text: str, sides: Sequence[tuple[str, str]] = BANK.sides) -> str:
    """The sentence about the mirrored scene: left becomes right and clockwise counterclockwise, in the case that each word had.

    Twice gives the sentence back, except that anti-clockwise comes back as counterclockwise.
    """
    other = {**dict(sides), **{right: left for left, right in sides}}
    for spelling, word in _SPELLINGS.items():
        if word in other:
            other.setdefault(spelling, other[word])
    kept = _places(text)
    words = sorted((*_FIXED, *other), key=len, reverse=True)
    pattern = r"\b(?:" + "|".join(re.escape(word) for word in words) + r")\b"

    def exchanged(match: re.Match[str]) -> str:
        if match.start() in kept:
            return match[0]
        return _cased(other.get(match[0].lower(), match[0]), match[0])

    return re.sub(pattern, exchanged, text, flags=re.IGNORECASE)


def _places(text: str) -> set[int]:
    """Where a left or right starts that only says where something is ("NOUN left on ..."): nothing before it goes anywhere."""
    candidates = {match.start() for match in _PLACE.finditer(text)}
    places: set[int] = set()
    before, end = "", -1
    for word in _WORD.finditer(text) if candidates else ():
        if word.start() in candidates and end + 1 == word.start() and before not in _BEFORE_SIDE:
            places.add(word.start())
        before, end = word[0].lower(), word.end()
        if before in _MOVING:
            break
    return places


def _cased(word: str, like: str) -> str:
    if word.lower() == like.lower():
        return like
    if like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
