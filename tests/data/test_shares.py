"""Several processes with a share of every batch see, together, exactly what one process sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftly.contract import Camera, Embodiment, Vector, Window
from deftly.data.augment import AugmentConfig
from deftly.data.mixture import order_of, shares_of, spread
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig, Source
from deftly.data.windows import share_of
from deftly.types import Batch, UsageError
from guards import guards
from small_data import write_dataset


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    other = Embodiment(
        name="other",
        rate_hz=5,
        cameras=(Camera(name="front", height=24, width=32),),
        state=Vector(names=("s0", "s1"), units=("m", "m")),
        action=Vector(names=("s0",), units=("m",)),
        action_kind="joint_target",
    )
    return write_dataset(folder / "one", (7, 5, 9, 6)), write_dataset(folder / "two", (4, 8, 3), embodiment=other)


def build(roots: tuple[Path, Path], rank: int, ranks: int, *, mixed: bool = False, **changes) -> TrainingData:
    fields = {"image_size": 16, "batch_size": 6, "validation_fraction": 0.25, "window": Window(frames=2, chunk=4), "text_length": 8}
    augmentation = AugmentConfig(mixup=0.0, noise=0.01)
    mixture = (Source(path=roots[1], weight=0.3, cameras={"head": "front"}),) if mixed else ()
    config = DataConfig(path=roots[0], mixture=mixture, **{**fields, "augmentation": augmentation, **changes})
    return config.build(seed=3, device="cpu", executed_steps=2, share=(rank, ranks))


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def same(parts: list[Batch], whole: Batch) -> bool:
    joined = [torch.cat(pieces) for pieces in zip(*map(tensors, parts), strict=True)]
    return all(torch.equal(a, b) for a, b in zip(joined, tensors(whole), strict=True))


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (2, {"workers": 1}),
        (3, {"mixed": True}),  # one of the three has no sample of the second dataset
        (2, {"mixed": True, "frames": "video", "shuffled_together": 8}),
    ],
)
def test_shares_put_together_are_the_batch(roots, ranks, changes):
    whole, shares = build(roots, 0, 1, **changes), [build(roots, rank, ranks, **changes) for rank in range(ranks)]
    batches = [whole.train.next() for _ in range(6)]
    for batch in batches[:4]:
        assert same([share.train.next() for share in shares], batch)
    states = [share.train.state() for share in shares]
    assert all(state == states[0] for state in states)
    alone = build(roots, 0, 1, **changes)
    alone.train.load_state(states[0])  # another number of processes goes on with the same samples
    assert same([alone.train.next()], batches[4])
    shares[0].train.load_state(alone.train.state())
    shares[1].train.load_state(alone.train.state())
    if ranks == 2:
        assert same([share.train.next() for share in shares], batches[5])
    for data in (whole, alone, *shares):
        data.close()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_shares_of_a_mixture_cover_every_sample_once_in_its_place(counts, ranks):
    counts[0] += -sum(counts) % ranks
    order, begins, found = spread(counts), np.cumsum([0, *counts[:-1]]), []
    for rank in range(ranks):
        shares = shares_of(counts, share_of(sum(counts), rank, ranks))
        assert [share.batch for share in shares] == counts
        mine = np.concatenate([begin + np.arange(share.first, share.stop) for begin, share in zip(begins, shares, strict=True)])
        found += mine[order_of(shares)].tolist()
    assert found == order.tolist()


@guards("data.share.divides")
def test_a_batch_that_does_not_divide_is_refused(roots):
    with pytest.raises(UsageError, match=r"data\.batch_size 6 does not divide into 4 processes"):
        build(roots, 0, 4)


@guards("data.share.mixup")
def test_mixup_is_refused_where_no_process_has_the_whole_batch(roots):
    with pytest.raises(UsageError, match=r"augmentation\.mixup looks for partners"):
        build(roots, 0, 2, augmentation=AugmentConfig(mixup=0.4))


def test_any_stretch_of_a_held_out_batch_is_made_by_itself(roots):
    data = build(roots, 0, 2, mixed=True, validation_fraction=0.5)
    made = []
    for samples in data.held_out():
        whole, middle = samples.stretch(0, len(samples)), len(samples) // 2
        assert len(whole) == len(samples)
        assert same([samples.stretch(0, middle), samples.stretch(middle, len(samples))], whole)
        made.append(whole)
    assert sum(map(len, made)) == sum(len(part.validation) for part in data.parts if part.validation is not None)
