"""Several datasets in one stream: each is what it would be alone, only masked and widened."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batches import random_batch
from deftly.contract import Camera, Embodiment, Vector, Window
from deftly.data.actions import ActionsConfig
from deftly.data.augment import OFF, AugmentConfig
from deftly.data.mixture import Mixture, counts_of, factors_of, first_task, join, robots_of, sample_weights, sizes_of, spread
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig, Source
from deftly.types import Batch, DataError, UsageError
from guards import guards
from small_data import FakeDataset, everything, robot, write_dataset

LENGTHS = {"one": (7, 5, 9, 6), "two": (4, 8, 3), "more": (6, 5)}


def other_robot() -> Embodiment:
    """Another robot: fewer cameras, more state, fewer actions, another rate."""
    return Embodiment(
        name="other",
        rate_hz=5,
        cameras=(Camera(name="front", height=24, width=32),),
        state=Vector(names=tuple(f"s{i}" for i in range(7)), units=("m",) * 7),
        action=Vector(names=("s0", "s3"), units=("m", "m")),
        action_kind="joint_target",
    )


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    return {
        "one": write_dataset(folder / "one", LENGTHS["one"]),
        "two": write_dataset(folder / "two", LENGTHS["two"], embodiment=other_robot()),
        "more": write_dataset(folder / "more", LENGTHS["more"]),
    }


def config(roots, *sources: Source, **changes) -> DataConfig:
    fields = {"image_size": 16, "batch_size": 6, "validation_fraction": 0.25, "window": Window(frames=2, chunk=4), "text_length": 8}
    return DataConfig(path=roots["one"], mixture=sources, **{**fields, "augmentation": AugmentConfig(), **changes})


def build(roots, *sources: Source, **changes) -> TrainingData:
    return config(roots, *sources, **changes).build(seed=3, device="cpu", executed_steps=2)


def two(roots, **changes) -> Source:
    return Source(path=roots["two"], **{"cameras": {"head": "front"}, **changes})


def of(batch: Batch, source: int) -> dict[tuple[int, int], int]:
    """(episode, frame) -> place in the batch, of one dataset's samples."""
    chosen = (batch.domain == source).nonzero()[:, 0].tolist()
    return {(int(batch.episode[i]), int(batch.frame[i])): i for i in chosen}


def test_another_robot_changes_no_bit_of_the_first_ones_numbers(roots):
    alone, mixed = build(roots, batch_size=4), build(roots, two(roots, weight=1.5), batch_size=6, balance="task")
    assert [part.train.batch_size for part in mixed.parts] == [3, 3]
    assert mixed.statistics == alone.statistics
    plain = {(int(b.episode[i]), int(b.frame[i])): (b, i) for b in alone.train.batches() for i in range(len(b))}
    for _ in range(5):
        batch = mixed.train.next()
        for place, i in of(batch, 0).items():
            one, j = plain[place]
            assert torch.equal(batch.state[i, :, :5], one.state[j])
            assert torch.equal(batch.actions[i, :, :4], one.actions[j])
            assert torch.equal(batch.past_actions[i, :, :4], one.past_actions[j])


def test_the_first_datasets_order_and_keys_are_what_they_are_without_the_others(roots):
    alone, mixed = build(roots, batch_size=4), build(roots, two(roots))
    wanted = torch.cat([alone.train.next().key for _ in range(9)])
    batches = [mixed.train.next() for _ in range(7)]
    found = torch.cat([batch.key[batch.domain == 0] for batch in batches])
    assert torch.equal(found, wanted[: len(found)])
    assert len(found) > 20
    others = torch.cat([batch.key[batch.domain == 1] for batch in batches])
    assert not set(others.tolist()) & set(wanted.tolist())


def test_what_a_robot_does_not_have_is_masked(roots):
    batch = build(roots, two(roots, weight=1.5), balance="task", augmentation=OFF).train.next()
    first, second = batch.domain == 0, batch.domain == 1
    assert batch.state.shape[2] == 7
    assert batch.actions.shape[2] == 4
    assert batch.state_dim_is_pad[first].tolist() == [[False] * 5 + [True] * 2] * 3
    assert batch.action_dim_is_pad[second].tolist() == [[False] * 2 + [True] * 2] * 3
    assert (batch.state[first][:, :, 5:] == 0).all()
    assert (batch.actions[second][:, :, 2:] == 0).all()
    assert (batch.valid_actions()[second][:, :, 2:] == 0).all()
    assert list(batch.images) == ["head", "wrist"]
    assert batch.camera_is_missing["wrist"].tolist() == second.tolist()
    assert not batch.camera_is_missing["head"].any()
    assert (batch.images["wrist"][second] == 0).all()
    assert batch.images["head"][second].float().std() > 1
    assert batch.embodiment.tolist() == batch.domain.tolist()


def test_each_window_of_each_dataset_comes_once_per_its_epoch(roots):
    data = build(roots, two(roots, weight=3), batch_size=5)
    seen: dict[int, list] = {0: [], 1: []}
    for _ in range(40):
        batch = data.train.next()
        for source in seen:
            order = torch.argsort(batch.key[batch.domain == source])
            chosen = (batch.domain == source).nonzero()[:, 0][order]
            seen[source] += [(int(batch.episode[i]), int(batch.frame[i])) for i in chosen]
    for source, part in enumerate(data.parts):
        windows, size = len(part.train), part.train.batch_size
        assert size == (2 if source == 0 else 3)
        for epoch in range(40 * size // windows):
            # a batch may straddle two epochs: what counts is how often each has come by the end of each
            done = seen[source][: (epoch + 1) * windows // size * size]
            counts = np.unique([f"{e}/{f}" for e, f in done], return_counts=True)[1]
            assert counts.max() - counts.min() <= 1
            assert counts.max() == epoch + 1
        assert len(set(seen[source])) == windows


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_goes_on_where_it_was(roots, workers):
    whole = build(roots, two(roots), workers=workers)
    batches = [whole.train.next() for _ in range(5)]
    state = build(roots, two(roots)).train.state()
    other = build(roots, two(roots))
    for _ in range(3):
        other.train.next()
    resumed = build(roots, two(roots), workers=workers)
    resumed.train.load_state(other.train.state())
    for wanted in batches[3:]:
        found = resumed.train.next()
        assert torch.equal(found.key, wanted.key)
        assert all(torch.equal(found.images[name], wanted.images[name]) for name in wanted.images)
        assert torch.equal(found.actions, wanted.actions)
    with pytest.raises(DataError, match="not one of 2 datasets"):
        resumed.train.load_state({"sources": state["sources"][:1]})
    whole.close()
    resumed.close()


def test_a_mixture_straight_from_video_shows_the_same(roots):
    stored, streamed = build(roots, two(roots), augmentation=OFF), build(roots, two(roots), augmentation=OFF, frames="video")
    for one, other in zip(stored.parts, streamed.parts, strict=True):
        wanted = {(int(b.episode[i]), int(b.frame[i])): (b, i) for b in one.train.batches() for i in range(len(b))}
        batch = streamed.train.next()
        found = of(batch, streamed.parts.index(other))
        assert found
        for place, i in found.items():
            b, j = wanted[place]
            assert all(torch.equal(batch.images[name][i], b.images[name][j]) for name in batch.images)
            assert torch.equal(batch.actions[i], b.actions[j])
    streamed.close()


def test_datasets_of_one_robot_share_its_statistics(roots):
    data = build(roots, Source(path=roots["more"]))
    assert data.parts[0].encoder is data.parts[1].encoder
    assert data.contract.num_robots == 1
    rows = [part.dataset.action[np.r_[tuple(slice(*part.dataset.episode_start[[e, e + 1]]) for e in part.split[0])]] for part in data.parts]
    wanted = np.concatenate(rows).astype(np.float64)
    assert np.allclose(data.statistics["action"]["q99"], np.quantile(wanted, 0.99, axis=0), rtol=1e-12)
    batch = data.train.next()
    assert set(batch.domain.tolist()) == {0, 1}
    assert set(batch.embodiment.tolist()) == {0}


def test_each_robot_counts_its_actions_in_its_own_way(roots):
    data = build(roots, two(roots, actions=ActionsConfig(kind="delta")))
    first, second = data.robots
    assert first.contract.actions is None
    assert second.contract.actions.state_of == (0, 3)
    assert set(second.statistics) - set(first.statistics)


def test_the_summary_and_the_words_are_of_all_datasets(roots):
    data = build(roots, two(roots))
    summary = data.summary()
    assert summary["mixture"][0]["path"] == str(roots["two"])
    assert summary["mixture"][0]["cameras"] == ["head"]
    assert summary["samples_per_batch"] + summary["mixture"][0]["samples_per_batch"] == 6
    assert data.contract.dataset_hash != data.dataset.hash
    validation = [samples.stretch(0, len(samples)) for samples in data.held_out()]
    assert {int(source) for batch in validation for source in batch.domain} == {0, 1}


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ({"cameras": {"head": "fornt"}}, {}, "no camera 'fornt'; did you mean 'front'"),
        ({"cameras": {}}, {}, "at least one camera"),
        ({"cameras": {"head": "front", "rear": "front"}}, {}, "each once"),
        ({"robot": "toy"}, {}, "two different robots of the mixture are called 'toy'"),
        ({}, {"batch_size": 1}, "cannot hold a sample of each of 2"),
        ({"actions": ActionsConfig(kind="relative", state_of={"s9": "s0"})}, {}, "no action dimension 's9'"),
        pytest.param({"cameras": {"wrist": "front"}}, {}, "'wrist' is a wrist camera on one", marks=guards("data.mixture.camera_roles")),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_one_line(roots, source, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(roots, two(roots, **source), **changes)
    assert "\n" not in str(caught.value)


def test_datasets_of_one_robot_must_be_seen_alike(roots):
    with pytest.raises(UsageError, match="'toy' must have the same `cameras`"):
        build(roots, Source(path=roots["more"], cameras={"head": "head"}))
    with pytest.raises(UsageError, match="split by hand"):
        config(roots, two(roots)).build(seed=0, device="cpu", executed_steps=2, episodes=(np.array([0, 1]), np.array([2])))


@guards("data.mixture.robot_names")
def test_robots_are_told_apart_by_name():
    assert robots_of([robot(), other_robot(), robot()]) == [0, 1, 0]
    with pytest.raises(UsageError, match="called 'toy'"):
        robots_of([robot(), robot(state=3)])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.integers(1, 80))
def test_counts_fill_the_batch_and_are_near_the_shares(shares, size):
    if size < len(shares):
        with pytest.raises(UsageError):
            counts_of(shares, size)
        return
    counts = counts_of(shares, size)
    assert sum(counts) == size
    assert min(counts) >= 1
    exact = np.array(shares) / sum(shares) * size
    if exact.min() >= 1:
        assert (np.abs(np.array(counts) - exact) <= 1 + 1e-9).all()
    assert np.allclose(np.array(counts) * factors_of(shares, counts), exact), "what they weigh adds up to the shares"


def test_balance_by_frames_episodes_or_instructions():
    part = everything(FakeDataset(lengths=(7, 5, 0, 9, 3)))._replace(episodes=np.array([0, 1, 2, 3]))
    assert first_task(part).tolist() == [0, 1, -1, 0, 1]
    assert [sizes_of(name, [part])[0] for name in ("frame", "episode", "task")] == [21, 4, 3]
    assert sample_weights("frame", part) is None
    length = np.array([7, 5, 0, 9])
    by_episode = sample_weights("episode", part)
    assert np.allclose((by_episode[:4] * length)[[0, 1, 3]], 7)
    assert by_episode[4] == 1
    by_task = sample_weights("task", part)
    assert np.allclose([by_task[0] * 16, by_task[1] * 5], 10.5)
    assert by_task[0] == by_task[3]
    for weights in (by_episode, by_task):
        assert np.isclose((weights[:4] * length).sum(), 21), "1 in the mean"


def test_a_balanced_dataset_weighs_its_samples(roots):
    batch = build(roots, balance="episode").train.next()
    length = torch.tensor(LENGTHS["one"])[batch.episode]
    assert np.allclose(batch.weight * length, (batch.weight * length)[0])
    assert torch.equal(build(roots).train.next().weight, torch.ones(6))


@pytest.mark.parametrize("weight", [0.001, 0.01, 1.0, 3.0])
def test_a_weight_counts_exactly_however_few_samples_a_batch_has(roots, weight):
    data = build(roots, two(roots, weight=weight))
    one, other = (len(part.train) for part in data.parts)
    for _ in range(3):
        batch = data.train.next()
        share = batch.weight[batch.domain == 1].sum() / batch.weight.sum()
        assert np.isclose(float(share), weight * other / (weight * other + one))
        assert np.isclose(float(batch.weight.mean()), 1)
    held_out = [samples.stretch(0, len(samples)) for samples in data.held_out()]
    assert all(torch.equal(batch.weight, torch.ones(len(batch))) for batch in held_out), "figures on held-out windows stay what they are"


def test_joined_batches_are_interleaved_and_keep_their_memory_layout():
    one, other = random_batch(4, seed=1), random_batch(2, seed=2)
    one, other = (
        b.map(lambda t: t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if t.dim() == 5 else t) for b in (one, other)
    )
    joined = join([one, other], spread([len(one), len(other)]))
    assert joined.key.tolist() == [*one.key[:1].tolist(), other.key[0], *one.key[1:3].tolist(), other.key[1], one.key[3]]
    assert torch.equal(joined.images["head"][1], other.images["head"][0])
    assert joined.images["head"].stride() == one.images["head"].stride()
    assert torch.equal(joined.text.ids[0], one.text.ids[0])


def test_a_mixture_is_as_long_as_its_datasets(roots):
    data = build(roots, two(roots))
    assert isinstance(data.train, Mixture)
    assert len(data.train) == sum(len(part.train) for part in data.parts)
