"""The sentences of a batch as tokens: as they were recorded, mirrored, or reworded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from deftly.data.language.augment import Augmenter, LanguageConfig
from deftly.data.language.bank import BANK
from deftly.data.language.sides import mirror_words
from deftly.types import Tokens

MAX_KEPT = 1 << 16  # wordings whose tokens are kept: 16 MB at 16 words
Row = tuple[Int64[np.ndarray, "l"], Bool[np.ndarray, "l"]]


class Texts:
    """A dataset's sentences. A wording is made and tokenised once, so that rewording costs a batch a look into a table."""

    def __init__(self, tasks: Sequence[str], encode: Callable[[Sequence[str]], Tokens], augmenter: Augmenter | None = None) -> None:
        """`encode` is the tokenizer at the policy's text length; without an augmenter sentences are mirrored at most."""
        self.tasks, self.encode, self.augmenter = tuple(tasks), encode, augmenter
        self.sides = BANK.sides if augmenter is None else augmenter.bank.sides
        self.recorded = encode(self.tasks)
        self.sentence, self.row = functools.lru_cache(MAX_KEPT)(self._sentence), functools.lru_cache(MAX_KEPT)(self._row)

    def tokens(
        self, task: Int64[np.ndarray, "b"], key: Int64[Tensor, "b"], mirrored: Bool[np.ndarray, "b"], *, reword: bool = False
    ) -> Tokens:
        """ids and is_pad [b l] of the sentences number `task`, with left and right exchanged where `mirrored`; in other words, as each key
        says, where `reword`."""
        augmenter = self.augmenter if reword and self.augmenter is not None and self.augmenter.config.probability else None
        if augmenter is None and not mirrored.any():
            return Tokens(ids=self.recorded.ids[task], is_pad=self.recorded.is_pad[task])
        rows = []
        for number, sample, is_mirrored in zip(task.tolist(), key.tolist(), mirrored.tolist(), strict=True):
            wording = None if augmenter is None else augmenter.wording(self.sentence(number, is_mirrored), sample)
            rows.append(self.row(number, is_mirrored, wording))
        ids, is_pad = (np.stack(part) for part in zip(*rows, strict=True))
        return Tokens(ids=torch.from_numpy(ids), is_pad=torch.from_numpy(is_pad))

    def _sentence(self, task: int, mirrored: bool) -> str:
        return mirror_words(self.tasks[task], self.sides) if mirrored else self.tasks[task]

    def _row(self, task: int, mirrored: bool, wording: int | None) -> Row:
        sentence = self.sentence(task, mirrored)
        if wording is not None and self.augmenter is not None:
            sentence = self.augmenter.reworded(sentence, wording)
        tokens = self.encode([sentence])
        return tokens.ids[0].numpy(), tokens.is_pad[0].numpy()


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the policy will hear in training."""

    augmenter: Augmenter
    words: list[str]
    """All of them, for the tokenizer: those of the sentences, of their mirrored forms and of their other wordings."""
    notes: list[str]
    """What a person should know before training: sentences that are left as they are."""


def spoken(sentences: Sequence[str], config: LanguageConfig, *, mirrors: bool, max_words: int) -> Spoken:
    """Prepare to reword and mirror the training sentences, none of them to more than `max_words` words."""
    own = list(sentences)
    augmenter = config.build(own, max_words)
    heard = own + [mirror_words(sentence, augmenter.bank.sides) for sentence in own if mirrors]
    unread = augmenter.unread(own) if config.probability else []
    examples = ", ".join(repr(sentence[:40]) for sentence in unread[:2])
    notes = [f"language: {len(unread)} of {len(own)} instructions are not understood and keep their wording ({examples})"] if unread else []
    return Spoken(augmenter, augmenter.vocabulary(heard), notes)
