import numpy as np
import pytest
import torch

from deftly.contract import Window, fingerprint
from deftly.data.encoding import ObservationEncoder, Seen, plain_statistics
from deftly.data.tokenizer import TextTokenizer
from deftly.types import DataError, Observation
from small_data import FakeDataset, build_windows, robot


@pytest.fixture
def encoder(tmp_path) -> ObservationEncoder:
    dataset = FakeDataset(embodiment=robot(24, 32))
    return build_windows(dataset, tmp_path, Window(frames=3, chunk=4)).encoder


def observation(encoder: ObservationEncoder, value: int = 50) -> Observation:
    cameras = encoder.contract.embodiment.cameras
    images = {camera.name: np.full((camera.height, camera.width, 3), value, np.uint8) for camera in cameras}
    return Observation(images=images, state=np.full(5, value / 100, np.float32), instruction="pick up the red cup")


def test_a_short_history_is_padded_with_its_first_frame_and_says_so(encoder):
    action = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    batch = encoder.encode([observation(encoder, 10), observation(encoder, 20)], [None, action], key=7)
    assert batch.observation_is_pad.tolist() == [[True, False, False]]
    assert batch.past_action_is_pad.tolist() == [[True, True, False]]
    assert batch.images["head"].shape == (1, 3, 3, 16, 16)
    assert batch.images["head"][0, :, 0, 8, 8].tolist() == [10, 10, 20]
    assert torch.equal(batch.state[0, 0], batch.state[0, 1])
    assert (batch.past_actions[0, :2] == 0).all()
    assert np.allclose(encoder.action.unnormalize(batch.past_actions[0, 2].numpy()), action, atol=1e-6)
    assert batch.actions is None
    assert batch.action_is_pad is None
    assert batch.key.tolist() == [7]
    assert batch.weight.tolist() == [1]


def test_only_the_window_is_looked_at(encoder):
    history = [observation(encoder, value) for value in (1, 2, 3, 4, 5)]
    actions = [None, *(np.full(4, i, np.float32) for i in range(4))]
    long, short = encoder.encode(history, actions, 0), encoder.encode(history[-3:], actions[-3:], 0)
    assert torch.equal(long.images["wrist"], short.images["wrist"])
    assert torch.equal(long.past_actions, short.past_actions)
    assert not long.observation_is_pad.any()


def test_padding_is_zero_whatever_stands_there(encoder):
    images = encoder.images(observation(encoder))
    seen = Seen(images=[images], state=[np.zeros(5, np.float32)], past_actions=[None], depth=[{}])
    batch = encoder.encode_seen(seen, "grab the green box", 0)
    assert (batch.past_actions == 0).all()
    assert batch.past_action_is_pad.all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: o["images"].pop("wrist"), "camera 'wrist' is missing; it has head"),
        (lambda o: o["images"].update(head=np.zeros((32, 24, 3), np.uint8)), "'head' is 32 x 24 pixels .* trained on 24 x 32"),
        (lambda o: o["images"].update(head=np.zeros((24, 32, 3))), "'head': expected uint8"),
        (lambda o: o.update(state=np.zeros(4)), r"shape \[4\], the policy was trained on \[5\] \(joint_0"),
        (lambda o: o.update(state=np.array([0, 0, np.nan, 0, 0])), "state 'joint_2' is not finite"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_in_one_line(encoder, damage, message):
    wrong = observation(encoder)
    damage(wrong)
    with pytest.raises(DataError, match=message):
        encoder.encode([wrong], [None], 0)


def test_statistics_and_tokenizer_must_be_those_of_the_contract(encoder):
    other = {
        **encoder.statistics,
        "action": {name: [value + 1 for value in values] for name, values in encoder.statistics["action"].items()},
    }
    with pytest.raises(DataError, match="the set of statistics is not the contract's"):
        ObservationEncoder(encoder.contract, other, encoder.tokenizer)
    with pytest.raises(DataError, match="the tokenizer is not the contract's"):
        ObservationEncoder(encoder.contract, encoder.statistics, TextTokenizer.train(["other"]))


def test_adjusted_dimensions_are_listed_with_their_feature(tmp_path):
    dataset = FakeDataset()
    dataset.action[:, 2] = 4
    found = build_windows(dataset, tmp_path).encoder.adjusted
    assert found == ["action target_2: constant at 4, not scaled"]


def test_plain_statistics_are_lists_with_a_stable_hash():
    values = {"action": {"min": np.array([1.0, 2.0]), "count": np.array([3])}}
    assert plain_statistics(values) == {"action": {"min": [1.0, 2.0], "count": [3.0]}}
    assert fingerprint(plain_statistics(values)) == fingerprint(plain_statistics(plain_statistics(values)))
