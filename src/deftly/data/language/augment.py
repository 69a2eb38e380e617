"""The same instruction in other words: exchanged, added and left out words, typing errors. Counted: a function of sentence and key.

An edit knows the role of every word that it touches (`grammar.read`), so verbs, objects, attributes, relations and directions survive by
construction; what comes out is read again all the same, and where its meaning moved the sentence is given back as it was. A sentence that
the grammar does not understand is left alone. What may be exchanged is `rewording.py`'s, how often is decided here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydantic

from deftly.config import Config
from deftly.data.language import bank as bank_of
from deftly.data.language.bank import Bank
from deftly.data.language.grammar import TOKEN, lexicon_of, read
from deftly.data.language.meaning import Reading
from deftly.data.language.rewording import THAT_IS, Choice, Draft, Options
from deftly.data.language.spelling import SHORTEST, mend, mistype
from deftly.randomness import generator, seed_of, stream_id

TRIES = 4  # typing errors that are drawn for a word until one can be mended
MAX_LOOKED_AT = 10_000  # characters of a sentence
_WORD = re.compile(r"[^\W_]+")


class LanguageConfig(Config):
    """How often and how instructions are reworded in training; never at validation or when acting."""

    probability: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Share of the samples whose instruction is reworded at all; the shares below are of those."""
    synonyms: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Of the single words that have a synonym."""
    phrases: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Of the phrases that have another form: "pick up" and "grab", "next to" and "beside", "and" and "and then"."""
    insertions: float = pydantic.Field(default=0.2, ge=0, le=1)
    """Of the sentences that get a word that asks for nothing."""
    deletions: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Of the words that ask for nothing: articles, "please", "could you"."""
    paraphrases: float = pydantic.Field(default=0.3, ge=0, le=1)
    """Of the sentences that are put into another one: "your task is to ...", or whose colour moves: "the cup that is red"."""
    typos: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Of the sentences that get typing errors."""
    typo_characters: float = pydantic.Field(default=0.05, ge=0, le=1)
    """Of the characters of such a sentence; at most one error in a word."""
    typo_slots: bool = False
    """Also in words that carry the meaning. To a tokenizer of whole words a mistyped colour is an unknown word, and its sample asks for
    nothing in particular; for tokenizers that see letters."""
    variants: int = pydantic.Field(default=64, ge=1, le=1 << 20)
    """How many wordings of a sentence there are at most; they are made once and kept."""
    bank: Path | None = None
    """A JSON file with words of your own, beside the built-in ones."""

    def build(self, sentences: Iterable[str] = (), max_words: int | None = None) -> Augmenter:
        """`sentences` are the data's own: where they say both "cup" and "mug", the two may be two things and are not exchanged. A wording
        of more than `max_words` words is not used."""
        return Augmenter(self, bank_of.load(self.bank), sentences, max_words)


NOT_REWORDED = LanguageConfig(probability=0)


class Augmenter:
    """`augmenter(sentence, key)` is a pure function. `total` counts the sentences it reworded, `rejected` those it took back."""

    def __init__(self, config: LanguageConfig, bank: Bank, sentences: Iterable[str] = (), max_words: int | None = None) -> None:
        self.config, self.bank, self.max_words = config, bank, max_words
        self.lexicon = lexicon_of(bank)
        self.own = frozenset(word for sentence in sentences for word in words(sentence))
        self.options = Options(bank, self.own)
        self.read = functools.lru_cache(maxsize=4096)(self._read)
        self.rejected = self.total = 0

    def __call__(self, sentence: str, key: int) -> str:
        """The sentence as the sample of this key hears it."""
        number = self.wording(sentence, key)
        return sentence if number is None else self.reworded(sentence, number)

    def wording(self, sentence: str, key: int) -> int | None:
        """Which wording the sample of this key hears; None: what was recorded."""
        draw = seed_of("language", key, stream_id(sentence[:MAX_LOOKED_AT]))
        return draw % self.config.variants if (draw >> 20) * 2.0**-43 < self.config.probability else None

    def reworded(self, sentence: str, number: int) -> str:
        """Wording `number` of a sentence: the sentence itself where nothing could be changed."""
        found = self.read(sentence)
        if found is None:
            return sentence
        reading, choices = found
        self.total += 1
        draw = generator("language.wording", number, stream_id(sentence[:MAX_LOOKED_AT]))
        result = self._edit(reading, choices, draw).written(sentence)
        if draw.random() < self.config.typos:
            result = self._mistyped(result, draw)
        if result == sentence:
            return sentence
        again = read(result, self.lexicon)
        if again is None or again.meaning != reading.meaning or (self.max_words is not None and len(words(result)) > self.max_words):
            self.rejected += 1
            return sentence
        return result

    def unread(self, sentences: Iterable[str]) -> list[str]:
        """The sentences that are left alone, because the grammar does not reach."""
        return [sentence for sentence in sentences if self.read(sentence) is None]

    def vocabulary(self, sentences: Iterable[str]) -> list[str]:
        """Every word that the augmenter may say instead of these sentences, their own included, sorted. Typing errors are none."""
        found: set[str] = set()
        for sentence in sentences:
            found.update(words(sentence))
            read_ = self.read(sentence)
            if read_ is not None and self.config.probability:
                texts = (text for choice in read_[1] for edits in choice.alternatives for text in edits.values())
                found.update(word for text in (*texts, *self.bank.insertions, *self.bank.wrappers, THAT_IS) for word in words(text))
        return sorted(found)

    def _read(self, sentence: str) -> tuple[Reading, list[Choice]] | None:
        reading = read(sentence, self.lexicon)
        return None if reading is None else (reading, self.options.of(reading))

    def _edit(self, reading: Reading, choices: list[Choice], draw: np.random.Generator) -> Draft:
        config, draft = self.config, Draft(reading)
        for choice in choices:
            if draw.random() < (config.phrases if choice.is_phrase else config.synonyms):
                draft.exchange(choice.alternatives[int(draw.integers(len(choice.alternatives)))])
        if draw.random() < config.paraphrases:
            movable = self.options.movable_attributes(reading)
            at = int(draw.integers(len(self.bank.wrappers) + len(movable))) if self.bank.wrappers or movable else -1
            if at >= len(self.bank.wrappers):
                draft.move_attribute(*movable[at - len(self.bank.wrappers)])
            elif at >= 0:
                draft.wrap(self.bank.wrappers[at])
        if draw.random() < config.insertions:
            possible = self.options.insertions(reading, draft)
            if possible:
                draft.insert(possible[int(draw.integers(len(possible)))], at_end=bool(draw.integers(2)))
        for places in self.options.deletable(reading):
            if draw.random() < config.deletions:
                draft.delete(places)
        return draft

    def _mistyped(self, text: str, draw: np.random.Generator) -> str:
        """Typing errors in words of letters. None becomes another known word, and each can be mended."""
        reading = read(text, self.lexicon)
        if reading is None:
            return text
        carries = reading.carriers()
        places = iter(range(len(reading.tokens)))

        def changed(match: re.Match[str]) -> str:
            token, place = match[0], next(places, len(reading.tokens))
            is_hit = draw.random() < 1 - (1 - self.config.typo_characters) ** len(token)
            if not is_hit or place >= len(carries) or (carries[place] and not self.config.typo_slots):
                return token
            return self._one_error(token, draw)

        return TOKEN.sub(changed, text)

    def _one_error(self, token: str, draw: np.random.Generator) -> str:
        word = token.lower()
        if len(word) < SHORTEST - 1 or not (word.isascii() and word.isalpha()) or word not in self.lexicon.closed:
            return token
        for _ in range(TRIES):
            wrong = mistype(word, draw)
            if wrong not in self.lexicon.known and wrong not in self.own and mend(wrong, self.lexicon.known, self.lexicon.closed) == word:
                return wrong[:1].upper() + wrong[1:] if token[:1].isupper() else wrong
        return token


def words(text: str) -> list[str]:
    """The words of a text as the tokenizer separates them."""
    return _WORD.findall(text[:MAX_LOOKED_AT].lower())
