"""Left and right exchanged in a sentence: the words' part of a mirrored sample."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deftly.data.language.bank import BANK

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
_SPELLINGS = {"anticlockwise": "counterclockwise", "anti-clockwise": "counterclockwise", "counter-clockwise": "counterclockwise"}


def mirror_words(text: str, sides: Sequence[tuple[str, str]] = BANK.sides) -> str:
    """The sentence about the mirrored scene: left becomes right and clockwise counterclockwise, in the case that each word had.

    Twice gives the sentence back, except that anti-clockwise comes back as counterclockwise.
    """
    other = {**dict(sides), **{right: left for left, right in sides}}
    for spelling, word in _SPELLINGS.items():
        if word in other:
            other.setdefault(spelling, other[word])
    words = sorted((*_FIXED, *other), key=len, reverse=True)
    pattern = r"\b(?:" + "|".join(re.escape(word) for word in words) + r")\b"
    return re.sub(pattern, lambda match: _cased(other.get(match[0].lower(), match[0]), match[0]), text, flags=re.IGNORECASE)


def _cased(word: str, like: str) -> str:
    if word.lower() == like.lower():
        return like
    if like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
