"""What may be exchanged, moved, added and left out in one sentence, and the sentence while that happens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deftly.data.language.bank import OBJECT, Bank
from deftly.data.language.lexicon import COLOURS, DIRECTIONS, DOUBLE, POSITIONS, PRONOUNS
from deftly.data.language.meaning import PUNCTUATION, ClausePhrase, NounPhrase, Reading

THAT_IS = "that is"
# Where an object is part of something larger it is held, not picked up.
FIXTURES = frozenset(
    (
        "handle",
        "knob",
        "door",
        "drawer",
        "lever",
        "edge",
        "corner",
        "end",
        "side",
        "rim",
        "zipper",
        "switch",
        "wheel",
        "valve",
        "faucet",
        "rope",
    )
)
# "Put it in(to)": these verbs lead somewhere; behind others "in" says where something is.
PLACING = frozenset({"place", "insert", "drop", "put back", "place back", "toss", "pour", "dump"})
GOALS = frozenset({"in", "on"})
SIDES = POSITIONS | {"side", "corner", "end", "edge", "it"}
# Nothing gentle about these.
ROUGH = frozenset({"toss", "hit", "kick", "knock", "knock over", "strike", "hammer", "shake", "throw away", "dunk"})
GENTLE = frozenset({"carefully", "gently"})
# "Hold the cup and pour" is one moment, not one after the other.
LASTING = frozenset({"hold", "use", "grasp", "press", "keep"})
LINKS = ("and", "then", "and then", ", then")
TAIL = 1 << 16  # an edit of place p + TAIL adds behind token p

Edits = dict[int, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """One place of a sentence that can be worded in several ways."""

    is_phrase: bool
    alternatives: tuple[Edits, ...]


class Options:
    """What a bank allows. `own` are the words of the data, which never stand in for another of its nouns."""

    def __init__(self, bank: Bank, own: frozenset[str]) -> None:
        self.bank, self.own = bank, own
        self.nouns = {word: group for group in bank.nouns for word in group}
        self.attributes = {word: group for group in bank.attributes for word in group}
        self.relations = {phrase: group for group in bank.relations for phrase in group}

    def of(self, reading: Reading) -> list[Choice]:
        """Every place with another wording, in the order of the sentence's clauses."""
        found = []
        for i, clause in enumerate(reading.clauses):
            found.append(self._link(reading, i))
            found.append(self._verb(reading, clause))
            for things in (clause.things, *(things for _, things in clause.relations)):
                found += [choice for thing in things for choice in self._thing(reading, thing)]
            found += [self._relation(reading, clause, number) for number in range(len(clause.relations))]
        return [choice for choice in found if choice.alternatives]

    def _link(self, reading: Reading, number: int) -> Choice:
        clause = reading.clauses[number]
        now = " ".join(reading.tokens[i].lower() for i in clause.link)
        if clause.link_word != "then" or now not in LINKS or reading.clauses[number - 1].meaning in LASTING:
            return Choice(True, ())
        return Choice(True, tuple(_replaced(clause.link, link) for link in LINKS if link != now))

    def _verb(self, reading: Reading, clause: ClausePhrase) -> Choice:
        forms = self.bank.verbs.get(clause.meaning, ())
        verb = " ".join(reading.words[i] for i in clause.verb)
        now = verb if not clause.particle else " ".join((verb, OBJECT, *(reading.words[i] for i in clause.particle)))
        head = reading.words[clause.things[0].nouns[-1]] if clause.things else ""
        if not head and not (clause.meaning == "go" and clause.relations and reading.words[clause.relations[0][0][0]] == "to"):
            return Choice(False, ())
        if (clause.meaning == "place" and not clause.relations) or (clause.meaning == "pick" and head in FIXTURES):
            return Choice(False, ())
        possible = [form for form in forms if form != now and self._fits(form, clause, forms, head)]
        return Choice(" " in now, tuple(self._verb_edits(form, clause) for form in possible))

    def _fits(self, form: str, clause: ClausePhrase, forms: tuple[str, ...], head: str) -> bool:
        if OBJECT in form:  # a particle behind "the bowl next to the plate" would belong to the plate
            return not clause.relations or bool(clause.particle)
        particle = form.rpartition(" ")[2]
        has_twin = any(OBJECT in other and other.endswith(" " + particle) for other in forms)
        return not (head in PRONOUNS and has_twin)  # "pick it up", never "pick up it"

    def _verb_edits(self, form: str, clause: ClausePhrase) -> Edits:
        if OBJECT not in form:
            return _replaced(clause.verb, form) | dict.fromkeys(clause.particle, "")
        before, behind = (part.strip() for part in form.split(OBJECT))
        behind_object = _replaced(clause.particle, behind) if clause.particle else {clause.things[-1].end - 1 + TAIL: behind}
        return _replaced(clause.verb, before) | behind_object

    def _thing(self, reading: Reading, thing: NounPhrase) -> list[Choice]:
        found = []
        for place in thing.attributes:
            word = reading.tokens[place].lower()
            found.append(Choice(False, tuple({place: other} for other in self.attributes.get(word, ()) if other != word)))
        word = reading.tokens[thing.nouns[-1]].lower()
        if len(thing.nouns) == 1:  # a paper cup is no paper mug
            others = [other for other in self.nouns.get(word, ()) if other != word and other not in self.own]
            found.append(Choice(False, tuple({thing.nouns[0]: other} for other in others)))
        return found

    def _relation(self, reading: Reading, clause: ClausePhrase, number: int) -> Choice:
        places, things = clause.relations[number]
        now = " ".join(reading.tokens[i].lower() for i in places)
        group = self.relations.get(now, ())
        leads = clause.meaning in PLACING and number == 0 and reading.words[things[0].nouns[-1]] not in SIDES
        is_particle = group[:1] == ("off",) and not clause.things  # "hop off the box" may be one, "drop it off the box" is none
        if not group or is_particle or (group[0] in GOALS and not leads):
            return Choice(True, ())
        return Choice(True, tuple(_replaced(places, phrase) for phrase in group if phrase != now))

    def movable_attributes(self, reading: Reading) -> list[tuple[int, NounPhrase]]:
        """(attribute, its thing) where "the red cup" can be "the cup that is red": nothing may stand behind it that would join in."""
        found = []
        for clause in reading.clauses:
            things = clause.relations[-1][1] if clause.relations else clause.things
            if len(things) != 1 or things[0].end != clause.end or len(things[0].attributes) != 1 or not things[0].articles:
                continue
            place = things[0].attributes[0]
            if place < things[0].nouns[0] and reading.words[place] in COLOURS:
                found.append((place, things[0]))
        return found

    def insertions(self, reading: Reading, draft: Draft) -> list[str]:
        """The bank's words that this sentence has not got and that do not deny what it asks for."""
        is_rough = any(clause.meaning in ROUGH for clause in reading.clauses)
        there = " ".join((*draft.before, *reading.tokens)).lower().split()
        is_told_how = is_rough or bool(GENTLE.intersection(there))  # never "gently carefully"
        return [word for word in self.bank.insertions if word not in there and not (is_told_how and word in GENTLE)]

    def deletable(self, reading: Reading) -> list[list[int]]:
        """Groups of tokens that ask for nothing: each may go, whole."""
        found = [[place for group in reading.openers for place in group]] if reading.openers else []
        found += reading.fillers
        for clause in reading.clauses:
            # "... and wipe the plate": without its article the plate and what is before "and" would be one list
            is_anchor = bool(clause.link) and any(form.split()[0] in DOUBLE for form in self.bank.verbs.get(clause.meaning, ()))
            things = [thing for _, things in clause.relations for thing in things]
            for thing in (*clause.things[is_anchor or clause.link_word == "to" :], *things):
                # "put the back cup down" is not "put back cup down"
                is_free = reading.words[thing.nouns[-1]] not in SIDES | PRONOUNS
                if thing.articles and is_free and reading.words[thing.articles[0] + 1] not in DIRECTIONS:
                    found.append(thing.articles)
        return found


class Draft:
    """A sentence while it is edited, token by token."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.tokens = list(reading.tokens)
        self.tails: dict[int, str] = {}
        self.before: list[str] = []
        self.lead: list[str] = []
        self.after: list[str] = []
        self.is_changed = False

    def exchange(self, edits: Edits) -> None:
        self.is_changed = True
        for place, text in edits.items():
            if place >= TAIL:
                self.tails[place - TAIL] = text
            else:
                self.tokens[place] = text

    def delete(self, places: list[int]) -> None:
        self.exchange(dict.fromkeys(places, ""))

    def wrap(self, wrapper: str) -> None:
        """Another sentence around this one; polite words that it has already go."""
        self.delete([place for group in self.reading.openers for place in group])
        first = self.reading.clauses[0].verb[0]
        for group in self.reading.fillers:
            if group[0] < first or self.reading.words[group[0]] in wrapper.split():
                self.delete(group)
        self.before = wrapper.removesuffix(OBJECT).split()

    def move_attribute(self, place: int, thing: NounPhrase) -> None:
        if thing.end - 1 not in self.tails:
            self.exchange({place: "", thing.end - 1 + TAIL: f"{THAT_IS} {self.tokens[place]}"})

    def insert(self, word: str, *, at_end: bool) -> None:
        """A word before the first verb, or at the end."""
        self.is_changed = True
        (self.after if at_end else self.lead).append(word)

    def written(self, original: str) -> str:
        """The text; `original` itself where nothing was edited, else in its case at the start and with its punctuation at the end."""
        if not self.is_changed:
            return original
        tokens, verb = list(self.tokens), self.reading.clauses[0].verb[0]
        if (self.before or (self.lead and verb == 0)) and tokens[0][1:].islower():
            tokens[0] = tokens[0].lower()
        tokens[verb] = " ".join((*self.lead, tokens[verb]))
        parts = [part for i, token in enumerate(tokens) for part in (token, self.tails.get(i, "")) if part]
        text = re.sub(r" +([,.;:!?])", r"\1", " ".join((*self.before, *parts, *self.after)))
        text = re.sub(r"\b(an?) (\w)", _article, text, flags=re.IGNORECASE)
        end = original.rstrip()
        stop = end[len(end.rstrip("".join(PUNCTUATION))) :]
        return (text[:1].upper() + text[1:] if original.lstrip()[:1].isupper() else text) + stop


def _replaced(places: list[int], text: str) -> Edits:
    return {places[0]: text} | dict.fromkeys(places[1:], "")


def _article(match: re.Match[str]) -> str:
    fitting = "an" if match[2].lower() in "aeiou" else "a"
    return f"{match[1][0]}{fitting[1:]} {match[2]}"
