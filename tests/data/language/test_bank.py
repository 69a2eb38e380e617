"""A bank is data: read strictly, and extended by a user's file."""

import json
import re
from pathlib import Path

import pytest

from deftly.data.language import Bank, LanguageConfig, parse
from deftly.data.language import bank as bank_of
from deftly.data.language.augment import words
from deftly.data.language.bank import BANK
from deftly.data.language.lexicon import NOUNS
from deftly.types import UsageError


def written(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(values))
    return path


def test_a_user_s_words_are_read_and_said(tmp_path):
    path = written(
        tmp_path,
        {
            "verbs": {"pick": ["snatch"], "juggle": ["juggle", "juggle with"]},
            "nouns": [["cup", "beaker"], ["spanner", "wrench"]],
            "insertions": ["kindly"],
            "wrappers": ["be so kind as to {}"],
        },
    )
    augmenter = LanguageConfig(probability=1, bank=path, synonyms=0.6, phrases=0.8, insertions=0.8, paraphrases=0.8, typos=0).build()
    sentence = "pick up the cup and juggle the wrench"
    said = [augmenter(sentence, key) for key in range(300)]
    assert all(
        any(word in wording for wording in said)
        for word in ("snatch", "beaker", "mug", "juggle with", "spanner", "kindly", "be so kind as to")
    )
    assert {word for wording in said for word in words(wording)} <= set(augmenter.vocabulary([sentence]))
    assert parse(sentence) is None, "without the file the verb is unknown"
    assert augmenter.rejected == 0


def test_words_join_the_group_that_they_share_a_word_with():
    both = BANK.extended(Bank(nouns=(("mug", "tankard"), ("saw", "handsaw"))))
    assert ("cup", "mug", "tankard") in both.nouns
    assert ("saw", "handsaw") in both.nouns
    assert BANK.extended(Bank()) == BANK


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nouns": [["Cup", "mug"]]}, "'Cup' must be one word in lower case"),
        ({"nouns": [["coffee cup", "mug"]]}, "'coffee cup' must be one word"),
        ({"nouns": [["a", "b"], ["b", "c"]]}, "noun 'b' stands twice"),
        ({"verbs": {"x": ["pick {}"]}}, "'pick {}' must be words in lower case"),
        ({"verbs": {"x": ["pick {} up {} now"]}}, "must be words in lower case between single spaces"),
        ({"verbs": {"lift": ["grab"]}}, "verb form 'grab' stands twice"),
        ({"wrappers": ["please do {} now"]}, "must be words in lower case that end in ' {}'"),
        ({"wrappers": ["{0.__class__} {}"]}, "must be words in lower case that end in ' {}'"),
        ({"sides": [["left", "east"]]}, "side 'left' stands twice"),
        ({"sides": [["left", "left"]]}, "side 'left' stands twice, in [left, left]"),
        ({"verbs": {"wipe": ["close"]}}, "verb form 'close' stands twice, in [wipe] and in [close]"),
        ({"nouns": [["cup", "cube"]]}, "noun 'cube' stands twice, in [cup, mug, cube] and in [cube, block]"),
        ({"verb": {}}, "did you mean 'verbs'"),
        ([1], "expected a JSON object"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path, values, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        bank_of.load(written(tmp_path, values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attributes": [["red", "blue"]]}, "attributes [red, blue]: 'red' and 'blue' are different colours"),
        ({"attributes": [["scarlet", "navy", "red"]]}, "attributes [scarlet, navy, red]: 'navy' and 'red' are different colours"),
        ({"attributes": [["light-blue", "dark-blue"]]}, "'light-blue' and 'dark-blue' are opposites"),
        ({"attributes": [["upper-left", "upper-right"]]}, "'upper-left' and 'upper-right' are different places"),
        ({"attributes": [["big", "dark"], ["large", "pale"]]}, "attributes [big, large, dark, pale]: 'dark' and 'pale' are opposites"),
        (
            {"relations": [["next to", "left of"], ["beside", "right of"]]},
            "relations [next to, beside, left of, right of]: 'left of' and 'right of' are different places",
        ),
        ({"attributes": [["two", "three"]]}, "'two' and 'three' are different numbers"),
        ({"attributes": [["2", "7"]]}, "'2' and '7' are different numbers"),
        ({"attributes": [["first", "last"]]}, "are different places in a row"),
        ({"attributes": [["ripe", "unripe"]]}, "'ripe' and 'unripe' are opposites"),
        ({"attributes": [["big", "tiny"]]}, "attributes [big, tiny]: 'big' and 'tiny' are opposites"),
        ({"nouns": [["left", "right"]]}, "nouns [left, right]: 'left' and 'right' are different places"),
        ({"nouns": [["middle", "top"]]}, "nouns [middle, top]: 'middle' and 'top' are different places"),
        ({"relations": [["left of", "to the right of"]]}, "'left of' and 'to the right of' are different places"),
        ({"relations": [["above", "beneath"]]}, "relations [above, beneath]: 'above' and 'beneath' are different places"),
        ({"relations": [["beside", "far from"]]}, "relations [beside, far from]: 'beside' and 'far from' are opposites"),
        ({"relations": [["into", "out of"]]}, "'into' and 'out of' are opposites"),
        ({"verbs": {"open": ["open", "close"]}}, "verbs [open]: 'open' and 'close' are opposites"),
        ({"verbs": {"dial": ["turn left", "turn right"]}}, "verbs [dial]: 'turn left' and 'turn right' are different sides"),
        ({"verbs": {"nudge": ["nudge {} up", "nudge {} down"]}}, "'nudge {} up' and 'nudge {} down' are opposites"),
        ({"verbs": {"velcro": ["velcro", "unvelcro"]}}, "'velcro' and 'unvelcro' are opposites"),
        ({"verbs": {"close": ["swing open"]}}, "verbs [close]: 'close' and 'swing open' are opposites"),
        ({"verbs": {"x": ["power on"]}, "read_verbs": {"x": ["power off"]}}, "verbs [x]: 'power on' and 'power off' are opposites"),
    ],
)
def test_words_that_differ_are_not_joined(tmp_path, values, message):
    """Neither in a user's group nor in what it becomes beside the built-in words."""
    path = written(tmp_path, values)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        bank_of.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("[") < 4, "what was typed is shown, not the whole bank"


@pytest.mark.parametrize(
    "values",
    [
        {"attributes": [["gray", "greyish"], ["golden", "gold"], ["purple", "violet"], ["top-left", "upper-left"], ["2", "two"]]},
        {"attributes": [["green", "blue-green"], ["tiny", "wee"], ["little", "miniature"]]},
        {"relations": [["on the left of", "to the left of"], ["out of", "from inside"], ["beside", "right next to"], ["above", "atop"]]},
        {"verbs": {"clean": ["tidy {} away", "brush down", "wash up"], "place": ["pick and place"]}},
        {"nouns": [["bottle", "flask"], ["blueberry", "berry"]]},
    ],
)
def test_words_that_may_be_equal_are_the_user_s_to_judge(tmp_path, values):
    loaded, built_in = bank_of.load(written(tmp_path, values)), BANK
    for table, more in values.items():
        before, after = getattr(built_in, table), getattr(loaded, table)
        words = [word for group in (more.values() if isinstance(more, dict) else more) for word in group]
        known = [word for group in (after.values() if isinstance(after, dict) else after) for word in group]
        assert set(words) <= set(known)
        assert before != after


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.json"):
        LanguageConfig(bank=tmp_path / "nothing.json").build()


def test_every_form_of_the_built_in_bank_is_read_as_what_it_means():
    for meaning, forms in BANK.verbs.items():
        for form in forms:
            sentence = form.replace("{}", "the box") if "{}" in form else f"{form} the box"
            found = parse(sentence + (" to the left" if meaning == "go" else ""))
            assert found is not None, sentence
            assert found.verb == meaning or meaning == "go", sentence


def test_no_noun_of_the_list_is_a_colour_but_orange():
    from deftly.data.language.lexicon import COLOURS

    assert set(NOUNS) & COLOURS == {"orange"}
