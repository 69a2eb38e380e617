import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftly.data import tokenizer as module
from deftly.data.tokenizer import TextTokenizer
from deftly.types import DataError, UsageError
from guards import guards

SENTENCES = ["Pick up the red cup.", "pick up the blue cup", "grab the GREEN box!"]


def test_case_and_punctuation_do_not_matter():
    tokenizer = TextTokenizer.train(SENTENCES)
    tokens = tokenizer.encode(["Pick up, the RED cup!?", "pick  up the red cup"], 8)
    assert torch.equal(tokens.ids[0], tokens.ids[1])
    assert tokenizer.unknown == 0


def test_the_vocabulary_is_sorted_and_independent_of_the_order_of_sentences():
    one, two = TextTokenizer.train(SENTENCES), TextTokenizer.train(SENTENCES[::-1] * 2)
    assert list(one.words) == sorted(one.words)
    assert (one.words, one.hash) == (two.words, two.hash)
    assert one.size == len(one.words) + 2
    assert TextTokenizer.train(["other words"]).hash != one.hash


def test_the_rarest_words_are_left_out_when_the_vocabulary_is_bounded():
    assert TextTokenizer.train(SENTENCES, max_words=3).words == ("cup", "pick", "the")


def test_ids_and_padding_stand_together():
    tokenizer = TextTokenizer.train(SENTENCES)
    tokens = tokenizer.encode(["the cup", "grab the zebra"], 4)
    assert tokens.is_pad.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert (tokens.ids[tokens.is_pad] == 0).all()
    assert tokens.ids[1, 2] == 1, "an unknown word is [UNK]"
    assert tokenizer.unknown == 1
    assert tokenizer.unknown_words("grab the Zebra") == ["zebra"]


def test_a_sentence_without_words_is_one_unknown_so_that_attention_finds_something():
    tokens = TextTokenizer.train(SENTENCES).encode(["", " ?! "], 3)
    assert tokens.ids[:, 0].tolist() == [1, 1]
    assert tokens.is_pad.sum().item() == 4


def test_cutting_is_counted_when_acting_and_refused_for_training_sentences():
    tokenizer = TextTokenizer.train(SENTENCES)
    assert not tokenizer.encode(SENTENCES, 3).is_pad.any()
    assert tokenizer.truncated == 3
    tokenizer.check_fits(SENTENCES, 5, "here")
    with pytest.raises(UsageError, match="set text_length to 5"):
        tokenizer.check_fits(SENTENCES, 4, "here")


def test_saving_is_stable_and_loading_gives_the_same_ids(tmp_path):
    tokenizer = TextTokenizer.train(SENTENCES)
    tokenizer.save(tmp_path / "a.json")
    loaded = TextTokenizer.load(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert loaded.hash == tokenizer.hash
    assert torch.equal(loaded.encode(SENTENCES, 8).ids, tokenizer.encode(SENTENCES, 8).ids)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("model"),
        lambda values: values["model"]["vocab"].update(cup=99),
        lambda values: values["model"].update(vocab=["a"]),
        lambda values: values["model"]["vocab"].pop("[PAD]"),
        lambda values: values.update(normalizer=None),
        lambda values: values.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    TextTokenizer.train(SENTENCES).save(path)
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"tokenizer\.json") as caught:
        TextTokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_word_twice_is_refused():
    with pytest.raises(DataError):
        TextTokenizer(["a", "a"])


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_encodes_and_training_text_has_no_unknown_words(sentences):
    tokenizer = TextTokenizer.train(sentences)
    tokens = tokenizer.encode(sentences, 64)
    assert tokens.ids.shape == tokens.is_pad.shape == (len(sentences), 64)
    assert int(tokens.ids.max()) < tokenizer.size
    for sentence, ids in zip(sentences, tokens.ids, strict=True):
        words = tokenizer.split(sentence)
        assert [tokenizer.words[i - 2] for i in ids.tolist() if i > 1] == words[:64]
        assert tokenizer.unknown_words(sentence) == []


@guards("data.tokenizer.size")
def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="more than a tokenizer of deftly holds"):
        TextTokenizer([f"word{number}" for number in range(100)]).save(tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())
