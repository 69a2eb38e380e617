"""Tensors that several ranks wrote are read by any number of ranks, row by row; parts that are not of one set are refused."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from deftly.training import shards
from deftly.types import DataError
from guards import guards

NAME = "objective.safetensors"


def rows(size: int, rank: int, ranks: int) -> slice:
    each = -(-size // ranks)
    return slice(min(rank * each, size), min((rank + 1) * each, size))


def is_shared(name: str) -> bool:
    return name.startswith("buffer")


def read(directory, piece=shards.everything):
    return shards.read(shards.files_of(directory, NAME, os.listdir(directory)), piece)


def write(directory, tensors, ranks):
    for rank in range(ranks):
        mine = {key: value if is_shared(key) or not value.ndim else value[rows(len(value), rank, ranks)] for key, value in tensors.items()}
        shards.write(directory, NAME, mine, rank, ranks, is_shared)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 5))
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path_factory, sizes, writers, readers):
    directory = tmp_path_factory.mktemp("shards")
    tensors = {f"weight.{i}": torch.randn(size, 2) for i, size in enumerate(sizes)}
    tensors |= {"step.weight.0": torch.tensor(3.0), "buffer": torch.arange(5)}
    write(directory, tensors, writers)
    whole = read(directory)
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[key], tensors[key]) for key in tensors)
    for rank in range(readers):
        wanted = {
            key: None if is_shared(key) else rows(len(tensor) if tensor.ndim else 1, rank, readers) for key, tensor in tensors.items()
        }
        found = read(directory, wanted.get)
        for key, tensor in tensors.items():
            assert torch.equal(found[key], tensor[wanted[key]] if wanted[key] and tensor.ndim else tensor), key


@guards("training.shards.complete")
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_part_that_is_missing_is_named(tmp_path, gone):
    write(tmp_path, {"weight": torch.randn(6, 2)}, 3)
    (tmp_path / shards.name_of(NAME, gone, 3)).unlink()
    with pytest.raises(DataError, match=r"objective.safetensors: of its parts there are .*not one whole set"):
        read(tmp_path)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    (tmp_path / shards.name_of(NAME, 0, 2)).write_bytes(b"not weights")
    save_file({"weight": torch.randn(2)}, tmp_path / shards.name_of(NAME, 1, 2))
    with pytest.raises(DataError, match="not a safetensors file"):
        read(tmp_path)
    save_file({"weight": torch.randn(2, 3)}, tmp_path / shards.name_of(NAME, 0, 2))
    with pytest.raises(DataError, match="the other parts do not fit each other"):
        read(tmp_path)
