"""What an instruction asks for, and where in the sentence its parts stand."""

from __future__ import annotations

from dataclasses import dataclass, field

PUNCTUATION = frozenset(".,!?;:")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that a sentence names, by the bank's word for it; attributes are sorted."""

    noun: str
    attributes: tuple[str, ...] = ()
    joined: str = ""
    """How it follows the thing before it: "and", "or", or nothing."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A preposition, by the bank's word for it, and what it leads to."""

    word: str
    things: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing to do."""

    verb: str
    things: tuple[Thing, ...] = ()
    relations: tuple[Relation, ...] = ()
    directions: tuple[str, ...] = ()
    link: str = ""
    """How it follows the clause before it: "then", "to" (what for), or nothing."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a sentence asks for. The properties speak of its first clause."""

    clauses: tuple[Clause, ...]

    @property
    def verb(self) -> str:
        return self.clauses[0].verb

    @property
    def object(self) -> str:
        """The nouns that are acted on; empty where there are none."""
        return " and ".join(thing.noun for thing in self.clauses[0].things)

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(attribute for thing in self.clauses[0].things for attribute in thing.attributes)

    @property
    def relation(self) -> tuple[Relation, ...]:
        return self.clauses[0].relations


@dataclass(slots=True)
class NounPhrase:
    """Where a thing stands: token numbers."""

    articles: list[int] = field(default_factory=list)
    attributes: list[int] = field(default_factory=list)
    nouns: list[int] = field(default_factory=list)
    end: int = 0
    joined: str = ""


@dataclass(slots=True)
class ClausePhrase:
    """Where a clause's parts stand: token numbers."""

    verb: list[int]
    meaning: str
    link: list[int]
    link_word: str
    particle: list[int] = field(default_factory=list)
    things: list[NounPhrase] = field(default_factory=list)
    relations: list[tuple[list[int], list[NounPhrase]]] = field(default_factory=list)
    directions: list[list[int]] = field(default_factory=list)
    end: int = 0


@dataclass(slots=True)
class Reading:
    """A sentence that was understood: its tokens as written, where everything stands, and what it means."""

    tokens: list[str]
    words: list[str]
    """The tokens in lower case, typing errors mended."""
    openers: list[list[int]]
    fillers: list[list[int]]
    clauses: list[ClausePhrase]
    meaning: Instruction

    def carriers(self) -> list[bool]:
        """By token: whether it carries the meaning, or asks for nothing: an article, "please", a stop."""
        idle = {place for group in (*self.openers, *self.fillers) for place in group}
        for clause in self.clauses:
            for thing in (*clause.things, *(thing for _, things in clause.relations for thing in things)):
                idle.update(thing.articles)
        return [place not in idle and token not in PUNCTUATION for place, token in enumerate(self.tokens)]
