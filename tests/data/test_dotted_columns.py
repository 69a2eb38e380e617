"""A column whose name begins with another's and a dot, as `action.original` beside `action`, is a column of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deftly.data.check.run import check
from deftly.data.dataset import Dataset
from deftly.data.writer import DatasetWriter
from deftly.types import DataError
from recordings import episode, png
from small_data import robot

DATA = "data/chunk-000/file-000.parquet"
EXTRA = {"action.original": tuple("abcdefg"), "observation.state.velocity": tuple("abcde")}
MASK = "observation.images.head.mask"


@pytest.fixture
def root(tmp_path) -> Path:
    with DatasetWriter(tmp_path / "data", robot(), images=dict.fromkeys(("head", "wrist"), "image"), extra=EXTRA) as writer:
        for number, length in enumerate((5, 6, 7)):
            plain = episode(number, length)
            writer.add(
                replace(
                    plain,
                    images={name: [png(image) for image in images] for name, images in plain.images.items()},
                    extra_frame={name: np.full((length, len(names)), number, np.float32) for name, names in EXTRA.items()},
                )
            )
        writer.finish()
    return tmp_path / "data"


def set_mask(root: Path, value: int) -> None:
    """A struct as images are, which info.json does not list: it is no part of what the dataset holds."""
    table = pq.read_table(root / DATA)
    masks = pa.array([{"bytes": bytes([value]) * 10, "path": None}] * len(table))
    names = [name for name in table.column_names if name != MASK]
    pq.write_table(table.select(names).append_column(MASK, masks), root / DATA)


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_columns_are_read_beside_those_that_their_names_begin_with(root, codec):
    pq.write_table(pq.read_table(root / DATA), root / DATA, compression=codec)
    assert [finding.line() for finding in check(root).findings] == []
    dataset = Dataset.open(root)
    expected = np.concatenate([episode(number, length).action for number, length in enumerate((5, 6, 7))])
    assert np.array_equal(dataset.column("action"), expected)
    assert dataset.column("observation.state").shape == (18, 5)
    assert np.array_equal(dataset.column("action.original")[:, 6], np.repeat([0, 1, 2], (5, 6, 7)))
    names = ["action", "observation.state", *EXTRA]
    pieces = [columns for _, columns in dataset.chunks(names)]
    assert [sum(piece[name].size for piece in pieces) for name in names] == [18 * 4, 18 * 5, 18 * 7, 18 * 5]


@pytest.mark.parametrize(("name", "most"), [("action", 72), ("action.original", 126)])
def test_each_of_them_has_a_limit_of_its_own(root, name, most):
    table = pq.read_table(root / DATA)
    lists = pa.ListArray.from_arrays(np.array([*range(18), 2_000_000], np.int32), pa.array(np.zeros(2_000_000, np.float32)))
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, lists), root / DATA)
    with pytest.raises(DataError, match=f": {name} holds 2000000 values in 18 rows, expected at most {most}"):
        Dataset.open(root).column(name)
    other = "action" if name == "action.original" else "action.original"
    assert len(Dataset.open(root).column(other)) == 18


def test_the_hash_takes_no_other_column_for_an_image(root):
    set_mask(root, 1)
    before = Dataset.open(root).hash
    set_mask(root, 2)
    assert Dataset.open(root).hash == before
