"""Sentences about the objects of a scene: written from templates, and read back. No physics, no mujoco."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deftly.sim.scene import COLOURS, TYPES, ObjectSpec, Scene
from deftly.types import UsageError

TEMPLATES = (
    "pick up the {object}",
    "grab the {object}",
    "please lift the {object}",
    "take the {object}",
    "lift up the {object}",
    "pick the {object} up",
    "raise the {object} off the table",
    "could you grab the {object}",
    "get hold of the {object}",
    "please pick up the {object}",
)
VERBS: dict[str, str] = dict.fromkeys(("pick", "grab", "lift", "take", "raise", "get", "grasp", "fetch", "hold"), "pick")
TYPE_WORDS = {**{name: name for name in TYPES}, "mug": "cup", "cube": "box", "block": "box", "sphere": "ball", "flask": "bottle"}
ANY_TYPE = frozenset({"one", "object", "thing", "item"})
_FILLER = frozenset(
    (
        *("a", "an", "the", "up", "of", "off", "from", "on", "table", "please", "could", "can", "would", "will", "you", "me", "for", "to"),
        *("it", "now", "carefully", "gently", "robot", "hey", "and", "just", "that", "this", "there", "is", "with", "your", "gripper"),
        *("i", "want", "need", "like", "task", "go", "ahead", "should"),  # "i want you to", "your task is to", "go ahead and"
    )
)
MAX_SENTENCE = 400  # characters; instructions come from users and from the network


@dataclass(frozen=True, slots=True)
class Request:
    """What a sentence asks for; None = not said."""

    verb: str
    colour: str | None
    type: str | None


def sentence(item: ObjectSpec, template_index: int = 0) -> str:
    """An instruction that names `item` by colour and type; the index counts modulo the number of templates."""
    return TEMPLATES[template_index % len(TEMPLATES)].format(object=item.name)


def parse(text: str) -> Request:
    """Reads one instruction about one object. Raises `UsageError` (a ValueError), in one line, when there is no single reading."""
    if len(text) > MAX_SENTENCE:
        raise UsageError(f"the instruction has {len(text)} characters; at most {MAX_SENTENCE} are read")
    words = re.findall(r"[a-z']+", text.lower())
    verbs = _found(words, VERBS)
    colours = _found(words, {name: name for name in COLOURS})
    kinds = _found(words, TYPE_WORDS)
    shown = _shorten(text)
    if not verbs:
        raise UsageError(f"no known verb in {shown}{_suggest(words, VERBS)}; verbs: {', '.join(VERBS)}")
    if len(colours) > 1:
        raise UsageError(f"{shown} names {len(colours)} colours ({', '.join(colours)}): name one object")
    if len(kinds) > 1:
        raise UsageError(f"{shown} names {len(kinds)} types ({', '.join(kinds)}): name one object")
    unknown = [word for word in words if not _known(word)]
    if unknown:
        raise UsageError(
            f"unknown word {_shorten(unknown[0])} in {shown}{_suggest(unknown, (*COLOURS, *TYPE_WORDS))}; "
            f"colours: {', '.join(COLOURS)}; objects: {', '.join(TYPE_WORDS)}"
        )
    if not colours and not kinds:
        raise UsageError(f"{shown} names no object; colours: {', '.join(COLOURS)}; objects: {', '.join(TYPE_WORDS)}")
    return Request(verb=verbs[0], colour=colours[0] if colours else None, type=kinds[0] if kinds else None)


def referents(request: Request, scene: Scene) -> list[int]:
    """Indices of the objects that fit the request, in the order of the scene."""
    return [i for i, item in enumerate(scene.objects) if request.colour in (None, item.colour) and request.type in (None, item.type)]


def resolve(text: str, scene: Scene) -> int:
    """The index of the one object that `text` means; raises `UsageError` that lists the objects when there is none or more than one."""
    found = referents(parse(text), scene)
    if len(found) != 1:
        reason = "fits no object" if not found else f"fits {len(found)} objects"
        raise UsageError(f"{_shorten(text)} {reason} of this scene, which has {scene.names()}")
    return found[0]


def _found(words: list[str], table: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(table[word] for word in words if word in table))


def _known(word: str) -> bool:
    return word in VERBS or word in COLOURS or word in TYPE_WORDS or word in ANY_TYPE or word in _FILLER


def _suggest(words: list[str], known: object) -> str:
    for word in words:
        near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)  # type: ignore[call-overload]
        if near:
            return f" (did you mean {near[0]!r}?)"
    return ""


def _shorten(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
