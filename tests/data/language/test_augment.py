"""Rewording keeps what is asked for."""

import pytest

from deftly.data.language import Augmenter, LanguageConfig, parse
from deftly.data.language.augment import words

ALWAYS = LanguageConfig(probability=1, variants=4096)
SENTENCES = (
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "put both the alphabet soup and the tomato sauce in the basket",
    "turn on the stove and put the moka pot on it",
    "Move the yellow cloth from the bottom left corner to the top right.",
    "put cup from counter or drying rack into sink",
    "knock redbull can over",
    "take the silver lid off the pot",
    "Use the towel to wipe the table",
    "could you grab the red cup",
    "hand the big cup over to me",
)


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("typo_slots", [False, True])
def test_every_wording_means_the_same(sentence: str, typo_slots: bool):
    augmenter = ALWAYS.replace(typo_slots=typo_slots, typos=0.5).build()
    wordings = {augmenter(sentence, key) for key in range(100)}
    assert len(wordings) > 20
    assert {parse(wording) for wording in wordings} == {parse(sentence)}
    assert augmenter.rejected == 0, "edits keep the meaning by themselves: reading again is the second guard"


def test_the_sentence_and_the_key_decide_alone():
    one, two = ALWAYS.build(), ALWAYS.build()
    forward = [one(sentence, key) for sentence in SENTENCES for key in range(20)]
    backward = [two(sentence, key) for sentence in reversed(SENTENCES) for key in reversed(range(20))]
    assert forward == backward[::-1]


def test_the_share_of_reworded_samples_is_the_configured_one():
    augmenter = LanguageConfig(probability=0.3, typos=0).build()
    count = sum(augmenter(SENTENCES[0], key) != SENTENCES[0] for key in range(2000))
    assert 0.24 < count / 2000 < 0.32  # some edits leave a sentence as it was


def test_nothing_is_done_at_probability_zero_and_to_what_is_not_understood():
    off, on = LanguageConfig(probability=0).build(), ALWAYS.build()
    for sentence in (*SENTENCES, "", "do not touch the cup", "抓住红色的杯子", "\x00", "pick up " * 1000, "aaa" * 100_000):
        assert off(sentence, 3) == sentence
        if on.unread([sentence]):
            assert all(on(sentence, key) == sentence for key in range(20))
    assert on.unread(SENTENCES) == []
    assert on.unread(["", "do not touch the cup"]) == ["", "do not touch the cup"]


def test_the_vocabulary_holds_every_word_that_is_said():
    augmenter = ALWAYS.replace(typos=0).build(SENTENCES)
    vocabulary = set(augmenter.vocabulary(SENTENCES))
    said = {word for sentence in SENTENCES for key in range(300) for word in words(augmenter(sentence, key))}
    assert said <= vocabulary
    assert len(said) > 0.9 * len(vocabulary), "and hardly any that is not"


def test_words_of_the_data_do_not_stand_for_each_other():
    alone: Augmenter = ALWAYS.build(["grab the red cup"])
    assert any("mug" in alone("grab the red cup", key) for key in range(60))
    both = ALWAYS.build(["grab the red cup", "put the mug into the sink"])
    assert not any("mug" in both("grab the red cup", key) for key in range(60))


def test_no_wording_is_longer_than_the_policy_reads():
    augmenter = LanguageConfig(probability=1).build(max_words=8)
    lengths = {len(words(augmenter("put the red cup on the plate", key))) for key in range(200)}
    assert max(lengths) == 8


def test_no_wording_is_slower_or_rougher():
    augmenter = ALWAYS.build()
    for sentence in ("throw the ball into the basket", "knock the can over"):
        wordings = [augmenter(sentence, key) for key in range(200)]
        assert not any(word in wording for wording in wordings for word in ("gently", "carefully", "slow", "quick"))


@pytest.mark.parametrize(
    ("sentence", "never"),
    [
        ("grab a hold of the mug", ("hold of a hold", "up hold", "up a hold")),
        ("grab hold of the cup", ("up hold", "of hold")),
        ("drop off the ball", ("off of",)),
        ("climb off the box", ("off of",)),
        ("gently place the cup on the plate", ("carefully",)),
        ("put the cup carefully on the plate", ("gently",)),
    ],
)
def test_no_wording_trips_over_its_own_words(sentence: str, never: tuple[str, ...]):
    augmenter = ALWAYS.replace(typos=0, insertions=0.8, phrases=0.8).build()
    wordings = {augmenter(sentence, key).lower() for key in range(300)}
    assert not [wording for wording in wordings for words in never if words in wording]
    assert len({parse(wording) for wording in wordings}) == 1
