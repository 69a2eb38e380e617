"""Sentences are read as they are meant, before and after rewording.

DEFTLY_LANGUAGE_SEED chooses other generated sentences and other rewordings of all of them.
"""

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deftly.data.language import Bank, LanguageConfig, parse
from deftly.data.language.grammar import MAX_SENTENCE
from instructions import field_sentences, generated, noted

SEED = int(os.environ.get("DEFTLY_LANGUAGE_SEED", "0"))
FIELD = field_sentences()
HARSH = LanguageConfig(
    probability=1, synonyms=0.6, phrases=0.6, insertions=0.5, deletions=0.5, paraphrases=0.5, typos=0.3, typo_slots=True, variants=4096
)


@pytest.mark.parametrize(("sentence", "meaning"), FIELD, ids=[sentence for sentence, _ in FIELD])
def test_the_field_s_wording_is_read(sentence: str, meaning: str):
    assert noted(parse(sentence)) == meaning


def test_there_are_enough_sentences_and_few_are_not_understood():
    assert len(dict(FIELD)) == len(FIELD) >= 230
    assert sum(meaning == "not understood" for _, meaning in FIELD) <= 5


@pytest.mark.parametrize("config", [LanguageConfig(probability=1, variants=4096), HARSH], ids=["default", "harsh"])
def test_rewording_keeps_the_meaning_of_the_field_s_sentences(config: LanguageConfig):
    augmenter = config.build()
    for number, (sentence, meaning) in enumerate(FIELD):
        for key in range(6):
            wording = augmenter(sentence, key + 1000 * (number + SEED))
            assert noted(parse(wording)) == meaning, wording
    assert augmenter.rejected == 0, "edits hold by themselves: reading again is the second guard"


@pytest.mark.parametrize(
    ("seed", "count"), [(SEED, 1000), *(pytest.param(SEED + offset, 10_000, marks=pytest.mark.slow) for offset in range(2))]
)
def test_rewording_keeps_the_meaning_of_generated_sentences(seed: int, count: int):
    augmenters = [LanguageConfig(probability=1, variants=4096).build(), HARSH.build()]
    changed = 0
    for number, (sentence, meaning) in enumerate(generated(seed, count)):
        assert parse(sentence) == meaning, sentence
        wording = augmenters[number % 2](sentence, number)
        assert parse(wording) == meaning, f"{sentence} -> {wording}"
        changed += wording != sentence
    assert changed > 0.8 * count
    assert sum(augmenter.rejected for augmenter in augmenters) == 0


@settings(max_examples=200)
@given(st.text(max_size=80))
@example("")
@example("pick up the")
@example("put the cup to")
@example("\x00\x00")
@example("pick up " + "the red " * (MAX_SENTENCE // 8))
@example("and and and , then")
@example("🤖 pick up the cup")
@example("\u202egrab the cup")
def test_any_text_is_read_or_left_alone(text: str):
    parse(text)
    assert isinstance(LanguageConfig(probability=1).build()(text, 1), str)


WORDS = [
    "pick",
    "up",
    "put",
    "the",
    "a",
    "red",
    "cup",
    "on",
    "in",
    "and",
    "then",
    "to",
    "left",
    "of",
    ",",
    "it",
    "both",
    "that is",
    "please",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), st.integers(0, 50))
def test_whatever_is_understood_keeps_its_meaning(text: str, key: int):
    meaning = parse(text)
    assert parse(HARSH.build()(text, key)) == meaning


def test_a_long_text_costs_nothing():
    assert parse("pick up the cup " * 100_000) is None
    assert parse("pick up " + "x" * MAX_SENTENCE) is None


@pytest.mark.parametrize(
    ("sentence", "meant"),
    [
        ("plese pick up the yellwo cup", "pick up the yellow cup"),
        ("unfodl the towel besdie the box", "unfold the towel beside the box"),
        ("plese put the cup carefuly on the plate", "put the cup on the plate"),
    ],
)
def test_typing_errors_in_verbs_colours_and_small_words_are_mended(sentence: str, meant: str):
    assert parse(sentence) == parse(meant) is not None


def test_what_may_be_two_words_is_not_mended_and_nouns_are_not_typing_errors():
    assert noted(parse("pick up teh cup")) == "pick: teh cup", "too short: the, or tea"
    assert noted(parse("turn the page")) == "turn: page"
    assert noted(parse("pick up the cap")) == "pick: cap"
    assert noted(parse("connect the gable to the fort")) == "connect: gable @to fort"


def test_a_sentence_says_one_thing_of_its_first_clause():
    meaning = parse("put the small red cup and the lid on the left plate and close the door")
    assert meaning is not None
    assert (meaning.verb, meaning.object, meaning.attributes) == ("place", "cup and lid", ("red", "small"))
    assert [(relation.word, relation.things[0].noun) for relation in meaning.relation] == [("on", "plate")]
    assert meaning.clauses[1].link == "then"


def test_a_bank_teaches_verbs_and_nouns():
    bank = Bank(verbs={"juggle": ("juggle",)}, nouns=(("spanner", "wrench"),))
    from deftly.data.language.bank import BANK

    both = BANK.extended(bank)
    assert parse("juggle the wrench") is None
    assert parse("juggle the wrench", both) == parse("juggle the spanner", both) is not None
