"""Words to numbers: a vocabulary learnt from the data's own instructions, so that nothing is downloaded.

Policy: Unicode NFKC, lower case, everything but letters and digits separates words. A word is one token; the vocabulary is sorted, so it
depends on the set of sentences alone. `tokenizer.json` is the `tokenizers` library's own format; it is read as data and rebuilt, never
executed as the pipeline that a file declares.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from deftly import storage
from deftly.contract import fingerprint
from deftly.types import DataError, Tokens, UsageError

PAD, UNKNOWN = "[PAD]", "[UNK]"
POLICY = "words-1"  # part of the hash: a change of the rules above must change it
MAX_WORDS = 1 << 20
MAX_BYTES = 8 << 20  # of tokenizer.json, which is refused unread beyond: JSON takes twenty times its bytes of memory
MAX_SENTENCE = 10_000  # characters that are looked at; a sentence of a robot is shorter


class TextTokenizer:
    """Sentences to ids. `truncated` counts sentences that were cut and `unknown` the words that it did not know, since it was made."""

    def __init__(self, words: Sequence[str]) -> None:
        """`words` in the order of their ids, which start after [PAD] = 0 and [UNK] = 1."""
        self.words = tuple(words)
        vocabulary = {word: index for index, word in enumerate((PAD, UNKNOWN, *self.words))}
        if len(vocabulary) != len(self.words) + 2:
            raise DataError("the tokenizer's vocabulary holds a word twice")
        self._tokenizer = _pipeline(vocabulary)
        self.truncated = 0
        self.unknown = 0

    @classmethod
    def train(cls, sentences: Iterable[str], max_words: int = 8192) -> Self:
        """The most frequent `max_words` words (ties: alphabetical), sorted."""
        split = _pipeline({PAD: 0, UNKNOWN: 1})
        counts = Counter(word for sentence in sentences for word in _words(split, sentence))
        kept = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
        return cls(sorted(kept))

    @property
    def size(self) -> int:
        """Size of the vocabulary with its special tokens: what an embedding needs."""
        return len(self.words) + 2

    @property
    def hash(self) -> str:
        """sha256 of what decides the ids."""
        return fingerprint({"policy": POLICY, "words": self.words})

    def split(self, sentence: str) -> list[str]:
        """The words of a sentence, as the vocabulary would list them."""
        return _words(self._tokenizer, sentence)

    def unknown_words(self, sentence: str) -> list[str]:
        """The words of a sentence that training never saw."""
        known = set(self.words)
        return [word for word in self.split(sentence) if word not in known]

    def encode(self, sentences: Sequence[str], length: int) -> Tokens:
        """ids [b length] and is_pad [b length] on the CPU.

        A longer sentence is cut, and counted in `truncated`. A sentence without a word becomes one [UNK], so that attention always
        finds something that is not padding.
        """
        ids = np.zeros((len(sentences), length), np.int64)
        is_pad = np.ones((len(sentences), length), bool)
        for row, encoding in enumerate(self._tokenizer.encode_batch([sentence[:MAX_SENTENCE] for sentence in sentences])):
            found = encoding.ids or [1]
            self.truncated += len(found) > length or len(sentences[row]) > MAX_SENTENCE
            found = found[:length]
            self.unknown += found.count(1)
            ids[row, : len(found)] = found
            is_pad[row, : len(found)] = False
        return Tokens(ids=torch.from_numpy(ids), is_pad=torch.from_numpy(is_pad))

    def check_fits(self, sentences: Iterable[str], length: int, where: str) -> None:
        """Raise `UsageError` when a training sentence would be cut: the cut word may be the one that matters."""
        for sentence in sentences:
            count = len(self.split(sentence))
            if count > length or len(sentence) > MAX_SENTENCE:
                raise UsageError(
                    f"{where}: the instruction {sentence[:60]!r} has {count} words and text_length is {length}; set text_length to {count}"
                )

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`; the same vocabulary gives the same bytes."""
        text = json.dumps(json.loads(self._tokenizer.to_str()), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if len(text.encode()) > MAX_BYTES:  # guard: data.tokenizer.size
            raise UsageError(f"{path}: {len(self.words)} words are more than a tokenizer of deftly holds; check the instructions")
        storage.write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; a `DataError` in one line for anything else."""
        values = storage.read_json(path, MAX_BYTES)
        try:
            vocabulary = values["model"]["vocab"]
            words = sorted(vocabulary, key=lambda word: vocabulary[word])
            if len(words) > MAX_WORDS or words[:2] != [PAD, UNKNOWN] or [vocabulary[word] for word in words] != list(range(len(words))):
                raise ValueError("its ids are not 0 .. n-1 with [PAD] and [UNK] first")
            tokenizer = cls(words[2:])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: not a tokenizer of deftly ({error}); copy the file that was saved with the policy") from None
        expected = json.loads(tokenizer._tokenizer.to_str())
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if values.get(part) != expected.get(part):
                raise DataError(f"{path}: its {part} differs from deftly's word policy; copy the file that was saved with the policy")
        return tokenizer


def _pipeline(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    separate = normalizers.Replace(Regex(r"[^\p{L}\p{M}\p{N}]+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), separate])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return tokenizer


def _words(tokenizer: Tokenizer, sentence: str) -> list[str]:
    return tokenizer.normalizer.normalize_str(sentence[:MAX_SENTENCE]).split()  # type: ignore[union-attr]
