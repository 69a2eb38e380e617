"""One typing error made in a word, and mended again."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST = 5  # letters of what is mended: a shorter word is near to too many others, and may well be a noun (page, pale)


def neighbours(word: str) -> Iterator[str]:
    """Every word that is one swap of two letters, deletion, substitution or insertion away; some come twice."""
    for i in range(len(word) + 1):
        before, after = word[:i], word[i:]
        if len(after) > 1:
            yield before + after[1] + after[0] + after[2:]
        if after:
            yield before + after[1:]
        for letter in LETTERS:
            if after:
                yield before + letter + after[1:]
            yield before + letter + after


@functools.lru_cache(maxsize=1 << 16)
def mend(word: str, known: frozenset[str], mendable: frozenset[str]) -> str:
    """The one known word that is a single typing error away, if it is mendable; else `word` itself, as where it is known or short."""
    if word in known or len(word) < SHORTEST or not word.isascii() or not word.isalpha():
        return word
    found = {near for near in known.intersection(neighbours(word)) if near[0] == word[0]}  # the first letter is seldom wrong
    return next(iter(found)) if len(found) == 1 and found <= mendable else word


def mistype(word: str, draw: np.random.Generator) -> str:
    """`word` in lower case with one swap, insertion, deletion or substitution at a drawn place."""
    kind, at, letter = int(draw.integers(4)), int(draw.integers(len(word))), LETTERS[draw.integers(26)]
    if kind == 0 and len(word) > 1:
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + letter + word[at:]
    if kind == 2:
        return word[:at] + word[at + 1 :]
    return word[:at] + letter + word[at + 1 :]
