"""What each baseline does, and does not know."""

from __future__ import annotations

import numpy as np
import pytest

from deftly.evaluation.baselines import BASELINES, actor_of, check_baselines, needs_rendering, sentence_of
from deftly.types import UsageError
from evaluation.toy import ToyAgent, ToyConfig, embodiment

AGENT = ToyAgent(embodiment())


def test_no_op_holds_the_pose_of_the_reset() -> None:
    world = ToyConfig().build(render=False)
    actor = actor_of("no_op", AGENT, world)
    observation, _ = world.reset(seed=1)
    actor.reset(1)
    for _ in range(3):
        action = actor.act(observation)
        assert action.tolist() == [0.5, 0.0]
        observation, *_ = world.step(action)
    assert actor.clipped == 0


def test_random_stays_in_its_limits_holds_for_a_second_and_is_a_function_of_its_key() -> None:
    world = ToyConfig().build(render=False)
    actor = actor_of("random", AGENT, world)
    observation, _ = world.reset(seed=1)

    def play(key: int) -> np.ndarray:
        actor.reset(key)
        return np.array([actor.act(observation) for _ in range(40)])

    first = play(7)
    assert (first >= 0).all()
    assert (first <= 1).all()
    assert len(np.unique(first, axis=0)) == 4  # of 40 steps at 10 Hz
    assert (play(7) == first).all()
    assert (play(8) != first).any()


def test_random_needs_limits() -> None:
    world = ToyConfig().build()
    world.embodiment = world.embodiment.replace(action=world.embodiment.action.replace(low=None))
    with pytest.raises(UsageError, match="leave it out"):
        actor_of("random", AGENT, world)


def test_blind_shows_black_images_and_everything_else() -> None:
    seen = []

    class Watching(ToyAgent):
        def act(self, observation):
            seen.append(observation)
            return super().act(observation)

    world = ToyConfig().build(render=False)
    actor = actor_of("blind", Watching(embodiment()), world)
    observation, _ = world.reset(seed=1)
    actor.reset(1)
    actor.act(observation)
    assert seen[0]["images"]["head"].shape == (8, 8, 3)
    assert not seen[0]["images"]["head"].any()
    assert seen[0]["instruction"] == observation["instruction"]
    assert actor.clipped == 0


def test_who_hears_what_and_who_looks() -> None:
    assert [arm for arm in ("policy", *BASELINES) if needs_rendering(arm)] == ["policy", "deaf"]
    assert [arm for arm in ("policy", *BASELINES) if sentence_of(arm) == "swapped"] == ["deaf"]
    assert actor_of("policy", AGENT, ToyConfig().build()) is actor_of("deaf", AGENT, ToyConfig().build()) is AGENT


def test_names_come_in_one_order() -> None:
    assert check_baselines(("deaf", "no_op")) == ("no_op", "deaf")
    assert check_baselines(()) == ()
    with pytest.raises(UsageError, match="no baseline 'mute'"):
        check_baselines(("mute",))
