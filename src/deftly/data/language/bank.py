"""Words and phrases that may stand for each other, and what a user adds to them.

Only exchanges that hold in every sentence are here. `take` is not `pick up` (take it to the kitchen), `move` is not `push`, `turn` is not
`rotate` (turn the page), and no adverb tells how fast to go: an exchange that changes the motion teaches a policy not to listen. What holds
in your own data and not everywhere belongs into your own file, which `LanguageConfig.bank` names:

    {"verbs": {"wipe": ["wipe", "mop"]}, "nouns": [["spanner", "wrench"]], "wrappers": ["be so kind as to {}"]}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pydantic

from deftly.config import Config
from deftly.data.language.contrasts import contrast
from deftly.types import UsageError

Groups = tuple[tuple[str, ...], ...]
OBJECT = "{}"  # where the object, or a wrapper's instruction, stands
_PHRASE = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*(?: [^\W_]+(?:['’-][^\W_]+)*)*")


class Bank(Config):
    """What may be said instead. All words in lower case; a phrase is words between single spaces."""

    verbs: dict[str, tuple[str, ...]] = pydantic.Field(default_factory=dict)
    """Meaning -> its forms. `{}` marks an object in the middle ("pick {} up"); elsewhere it follows the form."""
    read_verbs: dict[str, tuple[str, ...]] = pydantic.Field(default_factory=dict)
    """Meaning -> forms that are understood and reworded, but never written."""
    nouns: Groups = ()
    """Groups of single words for one thing."""
    attributes: Groups = ()
    """Groups of single adjectives for one property."""
    relations: Groups = ()
    """Groups of prepositions for one relation."""
    insertions: tuple[str, ...] = ()
    """Words that may be added and left out: they ask for nothing."""
    wrappers: tuple[str, ...] = ()
    """Sentences around an instruction, which stands at `{}`, at the end."""
    sides: tuple[tuple[str, str], ...] = ()
    """Words that a mirror exchanges."""

    @pydantic.model_validator(mode="after")
    def check_words(self) -> Self:
        plain = [word for group in (*self.nouns, *self.attributes) for word in group]
        plain += [*self.insertions, *(word for pair in self.sides for word in pair)]
        for word in plain:
            if not _PHRASE.fullmatch(word) or word != word.lower() or " " in word:
                raise ValueError(f"{word!r} must be one word in lower case")
        forms = [form for table in (self.verbs, self.read_verbs) for group in table.values() for form in group]
        for phrase in [*forms, *(phrase for group in self.relations for phrase in group)]:
            if not _PHRASE.fullmatch(phrase.replace(f" {OBJECT} ", " ", 1)) or phrase != phrase.lower():
                raise ValueError(f"{phrase!r} must be words in lower case between single spaces, with at most one ' {{}} ' inside")
        for wrapper in self.wrappers:
            if not wrapper.endswith(f" {OBJECT}") or not _PHRASE.fullmatch(wrapper[:-3]) or wrapper != wrapper.lower():
                raise ValueError(f"wrapper {wrapper!r} must be words in lower case that end in ' {{}}'")
        verbs = [(name, group) for table in (self.verbs, self.read_verbs) for name, group in table.items()]
        for groups, what in ((self.nouns, "noun"), (self.attributes, "attribute"), (self.relations, "relation"), (self.sides, "side")):
            _once([(", ".join(group), group) for group in groups], what)
        _once(verbs, "verb form")
        for table, groups in (("nouns", self.nouns), ("attributes", self.attributes), ("relations", self.relations)):
            for group in groups:
                _one_meaning(table, ", ".join(group), group)
        for name in dict.fromkeys(name for name, _ in verbs):
            _one_meaning("verbs", name, (*self.verbs.get(name, ()), *self.read_verbs.get(name, ())))
        return self

    def extended(self, more: Bank) -> Bank:
        """This bank with another's words; a group that shares a word with one of ours joins it. Raises `UsageError` where they disagree."""
        return self.replace(
            verbs=_joined_tables(self.verbs, more.verbs),
            read_verbs=_joined_tables(self.read_verbs, more.read_verbs),
            nouns=_joined_groups(self.nouns, more.nouns),
            attributes=_joined_groups(self.attributes, more.attributes),
            relations=_joined_groups(self.relations, more.relations),
            insertions=tuple(dict.fromkeys((*self.insertions, *more.insertions))),
            wrappers=tuple(dict.fromkeys((*self.wrappers, *more.wrappers))),
            sides=tuple(dict.fromkeys((*self.sides, *more.sides))),
        )


def load(path: Path | None) -> Bank:
    """The bank with a user's JSON file, where there is one; an error names the file and the word, in one line."""
    if path is None:
        return BANK
    more = Bank.load(path)
    try:
        return BANK.extended(more)
    except UsageError as error:
        # what it "got" would be the whole bank
        said = str(error).removeprefix("Bank: value: ").split(" (got ")[0]
        raise UsageError(f"{path}, joined to the words that deftly knows: {said}") from None


def _once(groups: Iterable[tuple[str, tuple[str, ...]]], what: str) -> None:
    """No word in two groups, which are given with their names."""
    seen: dict[str, str] = {}
    for name, group in groups:
        for word in group:
            if word in seen:
                where = f"in [{name}]" if seen[word] == name else f"in [{seen[word]}] and in [{name}]"
                raise ValueError(f"{what} {word!r} stands twice, {where}: it can mean one thing only")
            seen[word] = name


def _one_meaning(table: str, name: str, group: tuple[str, ...]) -> None:
    found = contrast(table, group)
    if found is not None:
        one, other, why = found
        raise ValueError(f"{table} [{name}]: {one!r} and {other!r} are {why}, and words of one group must mean the same; take one out")


def _joined_tables(ours: dict[str, tuple[str, ...]], more: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(dict.fromkeys((*ours.get(name, ()), *more.get(name, ())))) for name in (*ours, *more)}


def _joined_groups(ours: Groups, more: Groups) -> Groups:
    groups = [list(group) for group in ours]
    for addition in more:
        shared = next((group for group in groups if set(group) & set(addition)), None)
        if shared is None:
            groups.append(list(addition))
        else:
            shared += [word for word in addition if word not in shared]
    return tuple(tuple(group) for group in groups)


# Verbs with one form each: understood, never exchanged.
_SINGLE = """
    adjust align arrange assemble attach balance bend brush bring carry catch clean clear connect cover cut detach dial disconnect
    drag drop dry dump dunk empty erase exchange fetch fill flatten flick flip fold get give grind hammer hang hit hold hook insert
    install kick knock lay level load lock loosen lower mix mop mount move open organize pass peel play plug point pour press pull
    push reach remove return roll rub scoop screw separate serve shake slice slide sort spin spray spread squeeze stack stir store
    straighten stretch strike swap sweep switch take tap twist tie tighten tilt tip toggle touch transfer transport turn uncover
    unfold unload unlock unplug unscrew unstack untie unwrap unzip use wash wipe wrap write zip rearrange set swing topple
    thread lean nudge shift tuck wear
"""
# Verbs with a particle: it stands before the object or after it.
_PARTICLES = """
    put:away,back take:out,off,away,apart plug:in pull:out,up,down,open push:in,down,up pour:out knock:over,down tip:over
    clean:up tidy:up stack:up hang:up fold:up roll:up bring:back move:back place:back slide:out,in,open,closed push:open,closed
    throw:away screw:on,in line:up hand:over give:back take:down drop:off wipe:down,off,up fill:up open:up wrap:up set:up close:up
"""


def _single_forms() -> dict[str, tuple[str, ...]]:
    verbs: dict[str, tuple[str, ...]] = {word: (word,) for word in _SINGLE.split()}
    for entry in _PARTICLES.split():
        base, particles = entry.split(":")
        for particle in particles.split(","):
            verbs[f"{base} {particle}"] = (f"{base} {particle}", f"{base} {OBJECT} {particle}")
    return verbs


BANK = Bank(
    verbs=_single_forms()
    | {
        "pick": ("pick up", "pick {} up", "grab", "get hold of"),
        "lift": ("lift", "lift up", "lift {} up", "raise"),
        "grasp": ("grasp", "grip"),
        "place": ("put", "place"),
        "close": ("close", "shut"),
        "turn on": ("turn on", "turn {} on", "switch on", "switch {} on"),
        "turn off": ("turn off", "turn {} off", "switch off", "switch {} off"),
        "turn over": ("turn over", "turn {} over", "flip over", "flip {} over"),
        "set down": ("set down", "set {} down", "put down", "put {} down"),
        "toss": ("toss", "throw"),
        "release": ("release", "let go of"),
        "go": ("go", "navigate"),
    },
    read_verbs={
        "pick": ("pick", "grab hold of", "grab a hold of", "get a hold of"),
        "grasp": ("take hold of",),
        "turn": ("rotate",),
        "go": ("drive",),
    },
    nouns=(
        ("cup", "mug"),
        ("cups", "mugs"),
        ("cube", "block"),
        ("cubes", "blocks"),
        ("fridge", "refrigerator"),
        ("counter", "countertop"),
        ("faucet", "tap"),
        ("cabinet", "cupboard"),
        ("couch", "sofa"),
        ("eggplant", "aubergine"),
        ("zucchini", "courgette"),
        ("trash", "garbage"),
        ("middle", "center", "centre"),
    ),
    attributes=(("big", "large"), ("small", "little"), ("gray", "grey"), ("closest", "nearest"), ("furthest", "farthest")),
    relations=(
        ("in", "into", "inside", "inside of"),
        ("on", "onto"),
        ("next to", "beside"),
        ("near", "close to"),
        ("under", "underneath", "beneath"),
        ("towards", "toward"),
        ("off", "off of"),
        ("between", "in between"),
    ),
    insertions=("please", "carefully", "gently"),
    wrappers=(
        "could you {}",
        "can you {}",
        "would you {}",
        "could you please {}",
        "please {}",
        "now {}",
        "robot please {}",
        "i want you to {}",
        "i would like you to {}",
        "i need you to {}",
        "your task is to {}",
        "go ahead and {}",
        "the robot should {}",
    ),
    sides=(
        ("left", "right"),
        ("leftmost", "rightmost"),
        ("lefthand", "righthand"),
        ("leftward", "rightward"),
        ("leftwards", "rightwards"),
        ("clockwise", "counterclockwise"),
    ),
)
