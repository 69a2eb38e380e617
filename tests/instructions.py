"""Sentences with their meanings: written by hand in the field's wording, and generated from slots by the thousand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deftly.data.language import Clause, Instruction, Relation, Thing
from deftly.randomness import generator

FIELD = Path(__file__).parent / "data" / "language" / "field_sentences.tsv"


def noted(meaning: Instruction | None) -> str:
    """A meaning on one line, the notation of `field_sentences.tsv`.

    `place: red,small/cup and lid @on left/plate !gently ; then close: it` is a clause with two things, the first with two attributes, one
    relation and one direction, and a clause that follows it.
    """
    if meaning is None:
        return "not understood"
    return " ; ".join(map(_clause, meaning.clauses))


def _clause(clause: Clause) -> str:
    parts = [clause.link, clause.verb + ":", *map(_thing, clause.things)]
    for relation in clause.relations:
        parts += ["@" + relation.word.replace(" ", "_"), *map(_thing, relation.things)]
    return " ".join(part for part in (*parts, *("!" + direction for direction in clause.directions)) if part)


def _thing(thing: Thing) -> str:
    named = f"{','.join(thing.attributes)}/{thing.noun}" if thing.attributes else thing.noun
    return f"{thing.joined} {named}" if thing.joined else named


def field_sentences() -> list[tuple[str, str]]:
    """(sentence, noted meaning) of the hand-written ones."""
    return [tuple(line.split("\t")) for line in FIELD.read_text().splitlines()]  # type: ignore[misc]


# What is said -> what is meant. Only words whose meaning is a class of its own in the bank, or known to be in one.
COLOURS = {word: word for word in ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "grey")} | {
    "grey": "gray"
}
SIZES = {"big": "big", "large": "big", "small": "small", "little": "small", "tall": "tall"}
PLACES = {word: word for word in ("left", "right", "top", "bottom", "middle", "front", "back")}
NOUNS = {
    word: word for word in ("bowl", "plate", "bottle", "spoon", "soup spoon", "towel", "can", "banana", "tea pot", "screwdriver", "toy car")
}
NOUNS |= {
    "cup": "cup",
    "mug": "cup",
    "cube": "cube",
    "block": "cube",
    "eggplant": "eggplant",
    "aubergine": "eggplant",
    "wine bottle": "wine bottle",
}
GOALS = {word: word for word in ("basket", "tray", "drawer", "sink", "box", "shelf", "rack")} | {
    "cupboard": "cabinet",
    "counter": "counter",
}
WHERE = {"next to": "next to", "beside": "next to", "behind": "behind", "near": "near", "close to": "near", "under": "under"}
PICK = {"pick up {}": "pick", "grab {}": "pick", "pick {} up": "pick", "get hold of {}": "pick", "lift {}": "lift", "raise {}": "lift"}
PUT = {"put": "place", "place": "place", "drop": "drop", "move": "move", "slide": "slide", "push": "push"}
INTO = {"in": "in", "into": "in", "inside": "in", "on": "on", "onto": "on"}
OTHER = {
    "open": "open",
    "close": "close",
    "shut": "close",
    "wipe": "wipe",
    "push": "push",
    "turn": "turn",
    "rotate": "turn",
    "unfold": "unfold",
}
SWITCH = {"turn on {}": "turn on", "turn {} on": "turn on", "switch off {}": "turn off", "switch {} off": "turn off"}
OPENERS = ("", "", "please ", "could you ", "can you please ", "robot, ", "now ", "your task is to ", "I want you to ")
LINKS = (" and ", " then ", " and then ", ", then ", ", and ")
ENDS = ("", "", ".", " please", " now", "!")


def generated(seed: int, count: int) -> Iterator[tuple[str, Instruction]]:
    """(sentence, what it means), endlessly different; the meaning comes from the slots, not from the parser."""
    for number in itertools.islice(itertools.count(), count):
        draw = generator("test/sentences", seed, number)
        clauses, texts = [], []
        for position in range(int(draw.choice([1, 1, 1, 2, 2, 3]))):
            text, clause = _generated_clause(draw, "then" if position else "")
            texts.append(text)
            clauses.append(clause)
        sentence = texts[0] + "".join(_one(draw, LINKS) + text for text in texts[1:])
        sentence = _one(draw, OPENERS) + sentence + _one(draw, ENDS)
        yield sentence[0].upper() + sentence[1:] if draw.random() < 0.3 else sentence, Instruction(tuple(clauses))


def _generated_clause(draw: np.random.Generator, link: str) -> tuple[str, Clause]:
    kind = int(draw.integers(6))
    said, thing = _generated_thing(draw, NOUNS)
    if kind == 0:
        form, verb = _pair(draw, PICK)
        where, relations = _generated_where(draw) if "{} up" not in form else ("", ())
        return form.format(said) + where, Clause(verb, (thing,), relations, (), link)
    if kind in (1, 2):
        form, verb = _pair(draw, PUT)
        word, meant = _pair(draw, INTO)
        goal, target = _generated_thing(draw, GOALS)
        return f"{form} {said} {word} {goal}", Clause(verb, (thing,), (Relation(meant, (target,)),), (), link)
    if kind == 3:
        side = _one(draw, ("left", "right"))
        goal, target = _generated_thing(draw, NOUNS)
        relations = (Relation("to", (Thing(side),)), Relation("of", (target,)))
        return f"move {said} to the {side} of {goal}", Clause("move", (thing,), relations, (), link)
    if kind == 4:
        form, verb = _pair(draw, SWITCH)
        said, thing = _generated_thing(draw, {"stove": "stove", "lamp": "lamp", "faucet": "faucet", "tap": "faucet"})
        return form.format(said), Clause(verb, (thing,), (), (), link)
    form, verb = _pair(draw, OTHER)
    other, second = _generated_thing(draw, NOUNS)
    joined = Thing(second.noun, second.attributes, "and")
    things, both = ((thing, joined), f"{said} and {other}") if draw.random() < 0.3 else ((thing,), said)
    return f"{form} {both}", Clause(verb, things, (), (), link)


def _generated_where(draw: np.random.Generator) -> tuple[str, tuple[Relation, ...]]:
    if draw.random() < 0.5:
        return "", ()
    word, meant = _pair(draw, WHERE)
    said, thing = _generated_thing(draw, NOUNS)
    return f" {word} {said}", (Relation(meant, (thing,)),)


def _generated_thing(draw: np.random.Generator, nouns: dict[str, str]) -> tuple[str, Thing]:
    tables = [table for table, share in ((PLACES, 0.2), (SIZES, 0.3), (COLOURS, 0.5)) if draw.random() < share]
    adjectives = [_pair(draw, table) for table in tables]
    noun, meant = _pair(draw, nouns)
    said = " ".join(("the", *(word for word, _ in adjectives), noun))
    return said, Thing(meant, tuple(sorted(attribute for _, attribute in adjectives)))


def _one(draw: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(draw.integers(len(choices)))]


def _pair(draw: np.random.Generator, table: dict[str, str]) -> tuple[str, str]:
    word = _one(draw, tuple(table))
    return word, table[word]
