"""What an instruction asks for: its verbs, objects, attributes and relations, read by a small grammar of the field's wording.

```
instruction = [opener] clause (link clause)*                     "please", "could you"; "and", "then", ", then", "to" (use X to ...)
clause      = verb [things] (particle | relation | direction)*   "pick up", "pick ... up"
things      = thing (("and" | "or" | ",") thing)*
thing       = [article | determiner] (attribute | noun)*  ["that is" attribute]
relation    = preposition things                                 a list in the order of the words: what belongs to what is not decided
```
Verbs, prepositions and the small words are closed classes; whatever else stands in a thing is a noun. A sentence that does not fit is not
guessed at: `parse` gives None. So do negations, conditions and more than `MAX_SENTENCE` characters.
"""

from __future__ import annotations

import re

from deftly.data.language import lexicon as words_of
from deftly.data.language.bank import BANK, Bank
from deftly.data.language.lexicon import Lexicon, Phrases
from deftly.data.language.meaning import PUNCTUATION, Clause, ClausePhrase, Instruction, NounPhrase, Reading, Relation, Thing
from deftly.data.language.spelling import mend

MAX_SENTENCE = 400  # characters
TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|\S")


class _Unread(Exception):
    """The sentence does not fit the grammar."""


def parse(text: str, bank: Bank = BANK) -> Instruction | None:
    """What a sentence asks for; None where the grammar does not reach."""
    reading = read(text, lexicon_of(bank))
    return None if reading is None else reading.meaning


def lexicon_of(bank: Bank) -> Lexicon:
    return words_of.compiled(bank.model_dump_json())


def read(text: str, lexicon: Lexicon) -> Reading | None:
    """The same with the place of every part."""
    if len(text) > MAX_SENTENCE:
        return None
    tokens = TOKEN.findall(text)
    while tokens and tokens[-1] in PUNCTUATION:
        tokens.pop()
    words = [mend(token.lower().replace("’", "'"), lexicon.known, lexicon.closed) for token in tokens]
    try:
        return _Reader(tokens, words, lexicon).sentence()
    except _Unread:
        return None


class _Reader:
    """One pass from left to right; every choice is the longest phrase that fits."""

    def __init__(self, tokens: list[str], words: list[str], lexicon: Lexicon) -> None:
        self.tokens, self.words, self.lexicon = tokens, words, lexicon
        self.at = 0
        self.openers: list[list[int]] = []
        self.fillers: list[list[int]] = []

    # ---- phrases ----

    def word(self, offset: int = 0) -> str:
        """The word that many places ahead; empty behind the end."""
        place = self.at + offset
        return self.words[place] if place < len(self.words) else ""

    def longest(self, phrases: Phrases, offset: int = 0) -> int:
        """Words of the longest phrase that stands there; 0 for none."""
        return phrases.length(self.words, self.at + offset)

    def take(self, count: int) -> list[int]:
        taken = list(range(self.at, self.at + count))
        self.at += count
        return taken

    def skip_fillers(self) -> None:
        while count := self.longest(self.lexicon.fillers):
            self.fillers.append(self.take(count))

    # ---- the sentence ----

    def sentence(self) -> Reading:
        while True:
            if count := self.longest(self.lexicon.openers):
                self.openers.append(self.take(count))
            elif count := self.longest(self.lexicon.fillers):
                self.fillers.append(self.take(count))
            elif (self.at and self.word() == ",") or (self.word() == "go" and self.starts_clause(1, True)):  # "go push the button"
                self.openers.append(self.take(1))
            else:
                break
        clauses = [self.clause([], "")]
        while self.at < len(self.words):
            count, word = self.link(clauses[-1].meaning == "use")
            if not count:
                raise _Unread
            clauses.append(self.clause(self.take(count), word))
        meaning = Instruction(tuple(self.clause_meaning(clause) for clause in clauses))
        return Reading(self.tokens, self.words, self.openers, self.fillers, clauses, meaning)

    def link(self, after_use: bool = False) -> tuple[int, str]:
        """(words, meaning) of the link that stands here and leads to a clause; (0, "") for none."""
        comma = 1 if self.word() in (",", ";", ".") else 0
        count = self.longest(words_of.LINK_PHRASES, comma)
        certain = comma + count >= 2 or self.word(comma) in ("then", "finally")
        if (count or comma) and self.starts_clause(comma + count, certain):
            return comma + count, "then"
        count = self.longest(words_of.PURPOSE_PHRASES)
        if count and (length := self.verb_length(count)):
            after = self.word(count + length)
            if after_use or count > 1 or after in words_of.ARTICLES or after in ("it", "them"):
                return count, "to"
        return 0, ""

    def starts_clause(self, offset: int, certain: bool) -> bool:
        while count := self.longest(self.lexicon.fillers, offset):
            offset += count
        length = self.verb_length(offset)
        if not length:
            return False
        after = self.word(offset + length)
        leads = after in words_of.ARTICLES or after in words_of.DETERMINERS or after in words_of.PRONOUNS or length > 1
        return certain or leads or self.word(offset) not in words_of.DOUBLE

    def verb_length(self, offset: int = 0) -> int:
        """Words of the verb form that stands there; what goes before the object of a split form is one too."""
        return self.longest(self.lexicon.verb_phrases, offset)

    # ---- a clause ----

    def clause(self, link: list[int], link_word: str) -> ClausePhrase:
        self.skip_fillers()
        count = self.verb_length()
        if not count:
            raise _Unread
        verb = self.take(count)
        clause = ClausePhrase(verb, self.lexicon.verbs.get(self.phrase(verb), ""), link, link_word)
        self.skip_fillers()
        if self.starts_things():
            clause.things = self.things()
        while self.at < len(self.words) and not self.link(clause.meaning == "use")[0]:
            self.part(clause)
        if not clause.meaning:
            raise _Unread
        clause.end = self.at
        return clause

    def part(self, clause: ClausePhrase) -> None:
        """One particle, relation, direction or filler behind the object."""
        if count := self.longest(self.lexicon.fillers):
            self.fillers.append(self.take(count))
        elif self.particle(clause):
            pass
        elif count := self.longest(words_of.RELATIVE_PHRASES):
            self.relative(clause, self.take(count))
        elif count := self.longest(words_of.ADVERB_PHRASES):
            clause.directions.append(self.take(count))
        elif (count := self.longest(self.lexicon.relation_phrases)) and self.starts_things(count):
            clause.relations.append((self.take(count), self.things()))
        elif self.word() in ("and", "or") and self.longest(self.lexicon.relation_phrases, 1):  # "behind the box and next to the cup"
            self.take(1)
        elif self.word() in words_of.DIRECTIONS:
            clause.directions.append(self.take(1))
        elif self.is_number(self.word()) and self.word(1) in words_of.UNITS:
            clause.directions.append(self.take(2))
        else:
            raise _Unread

    def particle(self, clause: ClausePhrase) -> bool:
        """The second half of a verb whose object stands in the middle, where it is not the start of a relation."""
        if clause.particle or clause.relations or not clause.things:
            return False
        for behind, meaning in self.lexicon.split_verbs.get(self.phrase(clause.verb), ()):
            count = len(behind)
            if behind == tuple(self.words[self.at : self.at + count]):
                relation = self.longest(self.lexicon.relation_phrases)
                # "over to me" is a particle and a relation, "off of the pot" is one relation
                is_both = relation > count and self.word(count) in words_of.PREPOSITIONS and self.word(count) != "of"
                if relation and not is_both and self.starts_things(relation) and not self.link_at(relation):
                    return False
                clause.particle, clause.meaning = self.take(count), meaning
                return True
        return False

    def link_at(self, offset: int) -> bool:
        self.at += offset
        found = bool(self.link()[0])
        self.at -= offset
        return found

    def relative(self, clause: ClausePhrase, _: list[int]) -> None:
        """ "that is red" adds to the thing before it; "which is in ..." goes on as a relation."""
        if self.longest(self.lexicon.relation_phrases) and self.starts_things(self.longest(self.lexicon.relation_phrases)):
            return
        phrases = clause.relations[-1][1] if clause.relations else clause.things
        found = []
        while self.word() in self.lexicon.attributes:
            found += self.take(1)
        if not found or not phrases:
            raise _Unread
        phrases[-1].attributes += found

    # ---- things ----

    def starts_things(self, offset: int = 0) -> bool:
        word = self.word(offset)
        if word in words_of.ARTICLES or word in words_of.DETERMINERS or word in words_of.PRONOUNS:
            return True
        return (
            self.is_noun(offset) and not self.longest(self.lexicon.fillers, offset) and not self.longest(words_of.RELATIVE_PHRASES, offset)
        )

    def is_noun(self, offset: int = 0) -> bool:
        """Whether the word there may be part of a thing: it is in none of the other classes, or it is an attribute of what follows."""
        word = self.word(offset)
        if not word or not word[0].isalnum() or word in words_of.REFUSED or word in ("and", "or", "then"):
            return False
        if word in words_of.POSITIONS or (word in words_of.NUMBERS or word.isdecimal()):
            return True
        if word in self.lexicon.attributes:
            ahead = self.word(offset + 1)  # "open" and "closed" end a thing and start one
            return word not in words_of.DIRECTIONS or (bool(ahead) and ahead not in words_of.DIRECTIONS and self.is_plain(offset + 1))
        return (word,) not in self.lexicon.relations and word not in words_of.DIRECTIONS and word not in words_of.ARTICLES

    def is_number(self, word: str) -> bool:
        return word in words_of.NUMBERS or word.isdecimal()

    def things(self) -> list[NounPhrase]:
        found = [self.thing()]
        while True:
            count = 2 if self.word() == "," and self.word(1) in ("and", "or") else 1
            joint = self.word(count - 1)
            if joint not in ("and", "or", ",") or self.link()[0] or not self.starts_things(count):
                return found
            self.take(count)
            found.append(self.thing())
            found[-1].joined = "or" if joint == "or" else "and"

    def thing(self) -> NounPhrase:
        phrase = NounPhrase()
        if self.word() in words_of.DETERMINERS and self.starts_things(1):
            phrase.attributes += self.take(1)
        if self.word() in words_of.ARTICLES:
            phrase.articles += self.take(1)
        if self.word() in words_of.PRONOUNS and not self.is_plain(1):
            phrase.nouns = self.take(1)
            phrase.end = self.at
            return phrase
        parts: list[int] = []
        while self.at < len(self.words) and self.continues(parts):
            if self.word() in ("and", "or"):
                self.take(1)
            parts += self.take(1)
        self.finish(phrase, parts)
        return phrase

    def continues(self, parts: list[int]) -> bool:
        """Whether the next word belongs to the thing whose words so far are `parts`."""
        if self.word() in ("and", "or"):  # "the yellow and white mug"
            return bool(parts) and all(self.words[i] in self.lexicon.attributes for i in parts) and self.word(1) in self.lexicon.attributes
        if not self.is_noun() or self.longest(self.lexicon.fillers) or self.longest(words_of.RELATIVE_PHRASES):
            return False
        named = any(self.words[i] not in self.lexicon.attributes and not self.is_number(self.words[i]) for i in parts)
        if named and (self.is_number(self.word()) or self.longest(words_of.ADVERB_PHRASES)):
            return False
        if self.longest(self.lexicon.relation_phrases) > 1:  # "next to", "close to"
            return False
        return not (named and self.word() in words_of.DIRECTIONS and self.word() in words_of.POSITIONS and not self.is_plain(1))

    def is_plain(self, offset: int) -> bool:
        """Whether a word there goes on with the same thing."""
        return (
            self.is_noun(offset) and not self.longest(self.lexicon.fillers, offset) and not self.longest(words_of.RELATIVE_PHRASES, offset)
        )

    def finish(self, phrase: NounPhrase, parts: list[int]) -> None:
        """The last word names the thing; attributes before it describe it, and other words are part of the name."""
        if not parts:
            raise _Unread
        described = [i for i in parts[:-1] if self.words[i] in self.lexicon.attributes or self.is_number(self.words[i])]
        phrase.attributes += described
        phrase.nouns = [i for i in parts if i not in described]
        phrase.end = self.at

    # ---- meaning ----

    def phrase(self, places: list[int]) -> tuple[str, ...]:
        return tuple(self.words[i] for i in places)

    def clause_meaning(self, clause: ClausePhrase) -> Clause:
        return Clause(
            verb=clause.meaning,
            things=tuple(map(self.thing_meaning, clause.things)),
            relations=tuple(
                Relation(self.lexicon.relations[self.phrase(places)], tuple(map(self.thing_meaning, things)))
                for places, things in clause.relations
            ),
            directions=tuple(" ".join(self.phrase(places)) for places in clause.directions),
            link=clause.link_word,
        )

    def thing_meaning(self, phrase: NounPhrase) -> Thing:
        names = self.phrase(phrase.nouns)
        noun = " ".join((*names[:-1], self.lexicon.nouns.get(names[-1], names[-1])))
        attributes = sorted(self.lexicon.attributes.get(self.words[i], self.words[i]) for i in phrase.attributes)
        return Thing(noun, tuple(attributes), phrase.joined)
