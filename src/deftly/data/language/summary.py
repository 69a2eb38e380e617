"""What a dataset's instructions are about, for people: which verbs, nouns and attributes, and how many of them are understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deftly.data.language.augment import words
from deftly.data.language.grammar import parse

MAX_READ = 2000  # instructions, evenly spaced: reading one takes some 50 us


@dataclass(frozen=True, slots=True)
class LanguageSummary:
    """Counts are of instructions, most frequent first."""

    instructions: int
    """How many were looked at."""
    understood: int
    words: int
    """Different ones."""
    longest: int
    """Words of the longest instruction: what `text_length` must reach."""
    verbs: dict[str, int]
    nouns: dict[str, int]
    attributes: dict[str, int]
    examples: list[str]
    """Instructions that are not understood, and so are never reworded."""


def summarise(tasks: Sequence[str]) -> LanguageSummary:
    """Read at most `MAX_READ` different instructions."""
    every = list(dict.fromkeys(tasks))
    chosen = every if len(every) <= MAX_READ else [every[i] for i in np.arange(MAX_READ) * len(every) // MAX_READ]
    verbs: Counter[str] = Counter()
    nouns: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    unread = []
    for task in chosen:
        meaning = parse(task)
        if meaning is None:
            unread.append(task)
            continue
        things = [thing for clause in meaning.clauses for thing in clause.things]
        things += [thing for clause in meaning.clauses for relation in clause.relations for thing in relation.things]
        verbs.update({clause.verb for clause in meaning.clauses})
        nouns.update({thing.noun for thing in things})
        attributes.update({attribute for thing in things for attribute in thing.attributes})
    said = [words(task) for task in chosen]
    return LanguageSummary(
        instructions=len(chosen),
        understood=len(chosen) - len(unread),
        words=len(set().union(*said)),
        longest=max(map(len, said), default=0),
        verbs=_ranked(verbs),
        nouns=_ranked(nouns),
        attributes=_ranked(attributes),
        examples=unread[:3],
    )


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
