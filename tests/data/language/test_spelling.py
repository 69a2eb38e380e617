"""Typing errors are single, mendable, and never another word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftly.data.language import LanguageConfig
from deftly.data.language.bank import BANK
from deftly.data.language.grammar import lexicon_of
from deftly.data.language.spelling import mend, mistype, neighbours

LEXICON = lexicon_of(BANK)
KNOWN, CLOSED = LEXICON.known, LEXICON.closed


@given(st.text("abcdefgh", min_size=1, max_size=8), st.integers(0, 1 << 32))
def test_an_error_is_one_step_away_and_can_be_undone_in_one(word: str, seed: int):
    wrong = mistype(word, np.random.default_rng(seed))
    assert wrong == word or wrong in set(neighbours(word))
    assert wrong == word or word in set(neighbours(wrong)) or not wrong


def test_all_four_kinds_happen():
    lengths = {len(mistype("carefully", np.random.default_rng(seed))) for seed in range(100)}
    assert lengths == {8, 9, 10}
    swapped = {mistype("ab", np.random.default_rng(seed)) for seed in range(200)}
    assert "ba" in swapped


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("carefuly", "carefully"),
        ("betwen", "between"),
        ("yellwo", "yellow"),
        ("yelow", "yellow"),
        ("teh", "teh"),
        ("page", "page"),
        ("gellow", "gellow"),
        ("botle", "botle"),
        ("cup", "cup"),
    ],
)
def test_what_is_one_closed_word_is_mended_and_nothing_else(wrong: str, right: str):
    assert mend(wrong, KNOWN, CLOSED) == right


def test_no_typing_error_becomes_a_word_of_the_language_or_the_data():
    sentence = "please put the yellow cup carefully between the plates"
    own = ["pleas do"]  # a dataset's own odd word
    config = LanguageConfig(probability=1, synonyms=0, phrases=0, insertions=0, deletions=0, paraphrases=0, typos=1, typo_characters=0.5)
    for typo_slots in (False, True):
        augmenter = config.replace(typo_slots=typo_slots).build(own)
        touched = set()
        for key in range(300):
            wording = augmenter(sentence, key).split()
            assert len(wording) == len(sentence.split())
            for before, after in zip(sentence.split(), wording, strict=True):
                if after != before:
                    touched.add(before)
                    assert after not in KNOWN
                    assert after not in ("pleas", "do")
        assert {"please", "carefully"} <= touched
        assert ("yellow" in touched) == typo_slots
        assert not {"cup", "plates"} & touched
