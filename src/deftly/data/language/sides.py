"""Left and right exchanged in a sentence: the words' part of a mirrored sample."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deftly.data.language.bank import BANK
from deftly.data.language.lexicon import NOUNS, POSITIONS, listed

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
)
_REMAINING = r"left over(?! (?:the|a|an|its|your|my)\b)"
# "Grab the cup left on the table": it was left there; and "right on the table" is exactly there. So it is only where a thing is taken, by
# a verb that moves nothing to a side, and the word before is that thing. In doubt it is a side: unchanged words beside a mirrored picture
# lie. It starts at the side, never at the word before: a search that tries every start of a long word takes the square of its length.
_PLACE = re.compile(
    r"(?<= )(?:left|right)(?= (?:on|in|at|inside|under|underneath|beneath|behind|over|out|there|next to|beside|near)\b)", re.IGNORECASE
)
_WORD = re.compile(r"\w+")
_TAKING = listed("pick grab grasp wipe clean collect gather clear find remove touch count locate identify")
_MOVING = listed(
    """
    move push pull slide turn rotate shift nudge drag swing tilt lean bend point face steer go drive navigate walk look reach put place set
    lay drop return insert throw toss roll twist flip kick knock bring carry take sweep scoot shove transfer lift stretch wave guide scrape
    spread hold raise lower
    """
)
_TAKEN = (NOUNS | {"is", "are", "was", "were"}) - POSITIONS - {"corner", "side", "end", "edge", "hand", "arm"}
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
    pattern = r"\b(?:" + "|".join([_REMAINING, *(re.escape(word) for word in words)]) + r")\b"

    def exchanged(match: re.Match[str]) -> str:
        if match.start() in kept:
            return match[0]
        return _cased(other.get(match[0].lower(), match[0]), match[0])

    return re.sub(pattern, exchanged, text, flags=re.IGNORECASE)


def _places(text: str) -> set[int]:
    """Where a left or right starts that only says where a taken thing is ("grab NOUN left on ...")."""
    candidates = {match.start() for match in _PLACE.finditer(text)}
    places: set[int] = set()
    before, end, is_taken = "", -1, False
    for word in _WORD.finditer(text) if candidates else ():
        if word.start() in candidates and is_taken and end + 1 == word.start() and (before in _TAKEN or before.removesuffix("s") in _TAKEN):
            places.add(word.start())
        before, end = word[0].lower(), word.end()
        is_taken = is_taken or before in _TAKING
        if before in _MOVING:
            break
    return places


def _cased(word: str, like: str) -> str:
    if word.lower() == like.lower():
        return like
    if like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
