"""Instructions that are no text, or more text than anybody says: D23 and D24 from the file to the batch."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest

from damage import META, TASKS, edit, set_column, write_six
from deftly.data.check.findings import CheckConfig
from deftly.data.check.run import check
from deftly.data.dataset import Dataset
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.language import LanguageConfig, mirror_words, parse
from deftly.data.source import DataConfig
from deftly.data.tokenizer import TextTokenizer
from deftly.types import DataError
from recordings_v2 import lines, write_v21

FOREIGN = "ארוז את הכוס 🥤 \u202eplease \U0001f468\u200d\U0001f373"
LONG = "pick up the cup " * 65_536


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_six(tmp_path / "data")


def say(root: Path, text: str) -> str:
    """Give the episodes of the second task another instruction."""
    edit(
        root / TASKS,
        lambda table: set_column(table, "task", [table.column("task").to_pylist()[0], text, table.column("task").to_pylist()[2]]),
    )
    return text


def config(root: Path, **check_values: object) -> DataConfig:
    return DataConfig(
        path=root,
        image_size=16,
        batch_size=4,
        validation_fraction=0.0,
        check=CheckConfig.parse({"full": False, "budget": 0.5, **check_values}, "test"),
        language=LanguageConfig(probability=1),
    )


def test_d23_an_empty_instruction_is_refused_and_where_it_is_allowed_becomes_one_token(root: Path):
    say(root, "")
    with pytest.raises(DataError, match="the instruction is empty"):
        config(root).build(seed=0, device="cpu", executed_steps=1)
    training = config(root, allow_empty_instruction=True).build(seed=0, device="cpu", executed_steps=1)
    for _ in range(5):
        assert not training.train.next().text.is_pad.all(1).any()
    training.close()


def test_d24_bytes_that_are_not_utf8_leave_the_episodes_out(root: Path):
    def spoil(table: pa.Table) -> pa.Table:
        names = [name.encode() for name in table.column("task").to_pylist()]
        names[1] = b"pick up the \xff\xfe cup"
        at = table.schema.get_field_index("task")
        return table.set_column(at, "task", pa.array(names, pa.binary()).cast(pa.string(), safe=False))

    edit(root / TASKS, spoil)
    assert Dataset.open(root).tasks[1] == "pick up the \ufffd\ufffd cup"
    assert check(root, CheckConfig.parse({"full": False, "budget": 0.5}, "test")).quarantined.tolist() == [1, 4]


@pytest.mark.parametrize("text", ["cup \ud800", "\udfff", "a\udc80b", "\ude00\ud83d"])
def test_d24_half_a_character_leaves_the_episodes_out(tmp_path: Path, text: str):
    root = write_v21(tmp_path / "data")
    lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(["put it \U0001f964 away", text, "wait"])])
    tasks = Dataset.open(root).tasks
    assert tasks[0] == "put it \U0001f964 away"
    assert tasks[1] == "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    assert check(root, CheckConfig.parse({"full": False, "budget": 0.5}, "test")).quarantined.tolist() == [1]
    assert import_lerobot_v21(root, tmp_path / "copy").episodes == 3
    assert Dataset.open(tmp_path / "copy").tasks == tasks


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())])
def test_d24_bytes_that_are_not_utf8_in_provenance_end_nothing(root: Path, kind: pa.DataType):
    def spoil(table: pa.Table) -> pa.Table:
        values = pa.array([b"\xff\xfe"] * len(table), pa.binary()).cast(pa.string(), safe=False)
        return table.append_column("origin", values if kind == pa.string() else pa.ListArray.from_arrays(range(len(table) + 1), values))

    edit(root / META, spoil)
    if kind == pa.string():
        assert Dataset.open(root).extra("origin") == ["\ufffd\ufffd"] * 6
    else:
        with pytest.raises(DataError, match="not UTF-8"):
            Dataset.open(root).extra("origin")


def test_d24_any_script_is_trained_on_as_it_stands(root: Path):
    say(root, FOREIGN)
    training = config(root).build(seed=0, device="cpu", executed_steps=1)
    assert FOREIGN in training.dataset.tasks
    assert [note for note in training.notes if "not understood" in note]
    assert training.tokenizer.unknown_words(FOREIGN) == []
    training.close()


@pytest.mark.parametrize("text", [LONG, "x" * (1 << 20), "left " * 50_000, "\x00" * 1000, FOREIGN * 1000])
def test_d24_a_megabyte_is_cut_the_same_each_time_and_counted_and_nothing_takes_long(text: str):
    started = time.monotonic()
    one, two = TextTokenizer.train(["pick up the cup", text]), TextTokenizer.train(["pick up the cup", text])
    assert one.words == two.words
    assert one.encode([text], 16).ids.tolist() == two.encode([text], 16).ids.tolist()
    assert one.truncated == (1 if len(one.split(text)) > 16 or len(text) > 10_000 else 0)
    assert parse(text) is None
    augmenter = LanguageConfig(probability=1).build([text], 16)
    assert augmenter(text, 1) == text
    assert augmenter.unread([text]) == [text]
    assert len(mirror_words(text)) >= len(text)
    assert time.monotonic() - started < 10
