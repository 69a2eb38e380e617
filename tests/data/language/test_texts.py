"""The sentences of a batch: recorded, mirrored, reworded."""

import numpy as np
import pytest
import torch

from deftly.data.language import LanguageConfig, mirror_words
from deftly.data.language.augment import NOT_REWORDED
from deftly.data.language.texts import Texts, spoken
from deftly.data.tokenizer import TextTokenizer
from deftly.randomness import sample_keys

TASKS = ("put the red cup to the left of the plate", "grab the blue ball", "do not touch anything")
LENGTH = 12


def texts(config: LanguageConfig, mirrors: bool = True) -> tuple[Texts, TextTokenizer]:
    heard = spoken(TASKS, config, mirrors=mirrors, max_words=LENGTH)
    tokenizer = TextTokenizer.train([*TASKS, *heard.words])
    return Texts(TASKS, lambda sentences: tokenizer.encode(sentences, LENGTH), heard.augmenter), tokenizer


def keys(count: int) -> torch.Tensor:
    return sample_keys(3, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def said(tokenizer: TextTokenizer, tokens, row: int) -> str:
    return " ".join(tokenizer.words[i - 2] if i > 1 else "?" for i in tokens.ids[row][~tokens.is_pad[row]].tolist())


def test_recorded_sentences_are_what_the_tokenizer_says():
    source, tokenizer = texts(LanguageConfig())
    task = np.array([2, 0, 1, 0])
    tokens, expected = source.tokens(task, keys(4), np.zeros(4, bool)), tokenizer.encode([TASKS[i] for i in task], LENGTH)
    assert torch.equal(tokens.ids, expected.ids)
    assert torch.equal(tokens.is_pad, expected.is_pad)


@pytest.mark.parametrize("config", [NOT_REWORDED, LanguageConfig()])
def test_mirrored_samples_hear_the_mirrored_sentence_whether_reworded_or_not(config: LanguageConfig):
    source, tokenizer = texts(config)
    mirrored = np.arange(200) % 2 == 1
    tokens = source.tokens(np.zeros(200, np.int64), keys(200), mirrored, reword=True)
    for row in range(200):
        sentence = said(tokenizer, tokens, row).split()
        assert ("right" in sentence, "left" in sentence) == (mirrored[row], not mirrored[row])
    plain = source.tokens(np.zeros(1, np.int64), keys(1), np.ones(1, bool))
    assert said(tokenizer, plain, 0) == mirror_words(TASKS[0])


def test_a_sample_hears_what_its_key_says_in_any_batch():
    task, key = np.arange(60) % 3, keys(60)
    source, _ = texts(LanguageConfig(probability=1))
    whole = source.tokens(task, key, np.zeros(60, bool), reword=True)
    other, _ = texts(LanguageConfig(probability=1))
    for row in reversed(range(60)):
        alone = other.tokens(task[row : row + 1], key[row : row + 1], np.zeros(1, bool), reword=True)
        assert torch.equal(alone.ids[0], whole.ids[row])
        assert torch.equal(alone.is_pad[0], whole.is_pad[row])


def test_the_tokenizer_knows_every_word_but_typing_errors():
    source, _ = texts(LanguageConfig(probability=1, typos=0))
    assert not (source.tokens(np.arange(300) % 3, keys(300), np.arange(300) % 2 == 0, reword=True).ids == 1).any()
    source, _ = texts(LanguageConfig(probability=1, typos=1, typo_characters=0.3))
    assert (source.tokens(np.arange(300) % 3, keys(300), np.zeros(300, bool), reword=True).ids == 1).any()


def test_there_are_no_more_wordings_than_configured_and_each_is_made_once():
    source, _ = texts(LanguageConfig(probability=1, variants=8))
    tokens = source.tokens(np.zeros(400, np.int64), keys(400), np.zeros(400, bool), reword=True)
    assert 2 < len({tuple(row) for row in tokens.ids.tolist()}) <= 8
    assert source.row.cache_info().misses == 8, "each is made once"


def test_a_person_is_told_what_is_not_understood():
    assert spoken(TASKS, LanguageConfig(), mirrors=False, max_words=LENGTH).notes == [
        "language: 1 of 3 instructions are not understood and keep their wording ('do not touch anything')"
    ]
    assert spoken(TASKS, NOT_REWORDED, mirrors=False, max_words=LENGTH).notes == []


def test_without_rewording_the_vocabulary_is_the_data_s_own():
    assert texts(NOT_REWORDED, mirrors=False)[1].words == TextTokenizer.train(TASKS).words
    assert set(texts(NOT_REWORDED)[1].words) - set(TextTokenizer.train(TASKS).words) == {"right"}
