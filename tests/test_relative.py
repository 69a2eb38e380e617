"""Relative actions from the loader to the robot: the same bits for training and acting, the recorded actions back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deftly.agent import load, save_policy
from deftly.contract import Window, fingerprint
from deftly.data.actions import ActionsConfig, past_to_relative, to_relative
from deftly.data.encoding import ObservationEncoder
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig
from deftly.evaluation.offline import predictors
from deftly.models.policy import PolicyConfig
from deftly.types import DataError
from guards import guards
from small_data import recorded, write_dataset

WINDOW = Window(frames=3, chunk=4, past_actions=True)
CONFIG = PolicyConfig(width=16, depth=1)
STATE_OF = {"target_0": "joint_2", "target_3": "joint_0"}


@pytest.fixture(scope="module", params=["relative", "delta"])
def data(request, tmp_path_factory) -> TrainingData:
    root = write_dataset(tmp_path_factory.mktemp("relative") / "data")
    actions = ActionsConfig(kind=request.param, state_of=STATE_OF)
    config = DataConfig(path=root, image_size=16, batch_size=4, window=WINDOW, validation_fraction=0.25, text_length=8, actions=actions)
    return config.build(seed=0, device="cpu", executed_steps=2)


@pytest.fixture
def saved(data, tmp_path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    policy = CONFIG.build(data.contract, data.tokenizer.size)
    save_policy(folder, data.contract, data.statistics, data.tokenizer, CONFIG, policy.state_dict(), {})
    return folder


def test_the_agent_shows_the_policy_the_loaders_bits(data, saved):
    agent = load(saved)
    checked = 0
    for loader in (data.train, data.validation):
        for batch in loader.batches():
            for i, (episode, frame) in enumerate(zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)):
                observations, actions = recorded(data, episode)
                one = agent.encode(observations[: frame + 1], [None, *actions][: frame + 1])
                assert torch.equal(one.state[0], batch.state[i])
                assert torch.equal(one.past_actions[0], batch.past_actions[i])
                assert torch.equal(one.past_action_is_pad[0], batch.past_action_is_pad[i])
                checked += 1
    assert checked == data.dataset.num_frames


def test_batches_hold_what_the_contract_says_and_decode_to_what_was_recorded(data):
    relative = data.contract.actions
    for batch in data.train.batches():
        raw = data.encoder.raw_actions(batch.actions, batch)
        last = data.encoder.raw_last_action(batch)
        for i, (episode, frame) in enumerate(zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)):
            row = int(data.dataset.episode_start[episode]) + frame
            valid = int((~batch.action_is_pad[i]).sum())
            actions, state = data.dataset.action[row : row + valid], data.dataset.state[row]
            wanted = data.encoder.action.normalize(to_relative(actions, state, relative))
            assert np.array_equal(batch.actions[i, :valid].numpy(), wanted)
            assert np.allclose(raw[i, :valid], actions, atol=1e-5)
            if frame:
                before = data.dataset.action[row - 1 : row]
                assert np.array_equal(
                    batch.past_actions[i, -1:].numpy(), data.encoder.past.normalize(past_to_relative(before, state, relative))
                )
                assert np.allclose(last[i], before[0], atol=1e-5)


def test_a_perfect_policy_plays_the_recorded_actions(data, saved):
    """What the loader gives as labels, played by the agent, is what was recorded."""
    agent = load(saved)
    observations, actions = recorded(data, 2)
    labels = {
        (int(e), int(f)): batch.actions[i]
        for loader in (data.train, data.validation)
        for batch in loader.batches()
        for i, (e, f) in enumerate(zip(batch.episode, batch.frame, strict=True))
    }
    played = []

    def sample(features, key):
        return labels[2, len(played)][None]

    agent.policy.sample = sample
    agent.reset(0)
    for observation in observations:
        played.append(agent.act(observation))
    assert np.allclose(played, np.clip(actions, -3, 3), atol=1e-5)


def test_baselines_are_in_raw_units(data):
    batch = next(iter(data.train.batches()))
    mean = torch.tensor(data.statistics["action"]["mean"])
    found = predictors(CONFIG.build(data.contract, data.tokenizer.size), mean, data.encoder)
    assert torch.equal(found["mean_action"](batch)[1, 2], mean)
    at = int((~batch.past_action_is_pad[:, -1]).nonzero()[0])
    row = int(data.dataset.episode_start[batch.episode[at]] + batch.frame[at])
    assert np.allclose(found["repeat_last"](batch)[at, 3], data.dataset.action[row - 1], atol=1e-5)


@guards("data.encoding.action_statistics")
def test_statistics_of_another_kind_of_actions_are_refused(data):
    absolute = {name: values for name, values in data.statistics.items() if "(" not in name}
    other = data.contract.actions.replace(kind={"relative": "delta", "delta": "relative"}[data.contract.actions.kind])
    for contract, statistics in (
        (data.contract, absolute),
        (data.contract.replace(actions=None), data.statistics),
        (data.contract.replace(actions=other), data.statistics),
        (data.contract.replace(window=WINDOW.replace(chunk=5)), data.statistics),
        (data.contract, {}),
    ):
        with pytest.raises(DataError, match="measured for another kind of actions") as caught:
            ObservationEncoder(contract.replace(statistics_hash=fingerprint(statistics)), statistics, data.tokenizer)
        assert "\n" not in str(caught.value)
