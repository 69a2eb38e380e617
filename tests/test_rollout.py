"""One episode: what is recorded when it goes well, and when it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deftly.rollout import InvalidAction, check_action, labels, rollout, state_hash
from evaluation.toy import ToyAgent, ToyConfig, embodiment

ROBOT = embodiment()


def agent(mistake: str = "") -> ToyAgent:
    return ToyAgent(ROBOT, mistake)


def faulty(fault: str, **changes: object) -> ToyConfig:
    return ToyConfig.parse({"fault": fault, "fault_episodes": (5,), **changes}, "test")


def test_a_good_episode_is_a_success_with_its_strata() -> None:
    episode = rollout(agent(), ToyConfig().build(), 5)
    assert episode.success
    assert episode.outcome == "success"
    assert episode.error is None
    assert episode.told == episode.instruction
    assert episode.obeyed is None
    assert episode.steps == 4
    assert set(episode.labels) == {"skill", "type", "colour"}
    assert episode.labels["colour"] in episode.instruction
    assert set(episode.to_dict()) == {item.name for item in dataclasses.fields(episode)}


def test_an_episode_is_a_function_of_its_seed() -> None:
    world, actor = ToyConfig().build(), agent()
    first = rollout(actor, world, 5)
    rollout(actor, world, 6)
    again = rollout(actor, world, 5)
    assert dataclasses.replace(again, wall_s=first.wall_s) == first
    assert rollout(actor, world, 6).state_hash != first.state_hash


def test_the_deaf_obey_the_swapped_sentence_and_fail_at_their_own() -> None:
    episode = rollout(agent(), ToyConfig().build(), 5, sentence="swapped")
    assert episode.told != episode.instruction
    assert episode.obeyed is True
    assert episode.outcome == "wrong_object"
    assert not episode.success


def test_who_hears_nothing_does_not_obey() -> None:
    class Still(ToyAgent):
        def act(self, observation: object) -> np.ndarray:
            return np.zeros(2, np.float32)

    assert rollout(Still(ROBOT), ToyConfig().build(), 5, sentence="swapped").obeyed is False


def test_a_world_that_crashes_is_a_failure_and_flagged() -> None:
    episode = rollout(agent(), faulty("crash").build(), 5)
    assert (episode.outcome, episode.success, episode.steps) == ("crashed", False, 1)
    assert episode.error == "RuntimeError: the physics exploded"
    assert episode.state_hash  # what was known before the crash stays


def test_a_world_that_crashes_at_reset_is_a_failure() -> None:
    class Broken(type(ToyConfig().build())):
        def reset(self, **_: object) -> object:
            raise OSError("no display")

    episode = rollout(agent(), Broken(ToyConfig(), True), 5)
    assert (episode.outcome, episode.state_hash, episode.steps) == ("crashed", "", 0)


def test_a_world_that_never_ends_meets_the_horizon() -> None:
    episode = rollout(agent(), faulty("endless").build(), 5, horizon_s=3)
    assert (episode.outcome, episode.steps) == ("timeout", 30)


def test_a_success_at_reset_is_flagged_and_not_played() -> None:
    episode = rollout(agent(), faulty("success_at_reset").build(), 5)
    assert episode.success_at_reset
    assert episode.steps == 0


@pytest.mark.parametrize(
    ("mistake", "words"),
    [("nan", "not finite"), ("shape", "wants [2] (x, lift)"), ("range", "x = 1.5 is beyond its limit 1"), ("refuse", "output")],
)
def test_an_invalid_action_ends_the_episode(mistake: str, words: str) -> None:
    episode = rollout(agent(mistake), ToyConfig().build(), 5)
    assert (episode.outcome, episode.success, episode.steps) == ("invalid_action", False, 1)
    assert episode.error is not None
    assert words in episode.error


def test_an_actor_that_breaks_is_a_crash() -> None:
    episode = rollout(agent("anything"), ToyConfig().build(), 5)
    assert (episode.outcome, episode.error) == ("crashed", "UsageError: anything")


def test_clipped_actions_are_counted_per_episode() -> None:
    class Clipping(ToyAgent):
        def act(self, observation: object) -> np.ndarray:
            self.clipped += 1
            return np.zeros(2, np.float32)

    actor, world = Clipping(ROBOT), ToyConfig().build()
    assert [rollout(actor, world, seed).clipped for seed in (1, 2)] == [12, 12]


def test_a_limit_rounded_to_float32_is_within_the_limit() -> None:
    limits = ROBOT.replace(action=ROBOT.action.replace(high=(0.34, 1.0)))
    assert float(np.float32(0.34)) > 0.34
    assert check_action(np.array([0.34, 1.0], np.float32), limits).dtype == np.float32
    with pytest.raises(InvalidAction, match=r"x = 0.341 is beyond its limit 0.34"):
        check_action(np.array([0.341, 1.0]), limits)
    with pytest.raises(InvalidAction, match=r"lift = -0\.5"):
        check_action(np.array([0.1, -0.5]), limits)
    unlimited = ROBOT.replace(action=ROBOT.action.replace(low=None, high=None))
    assert check_action(np.array([100, -100]), unlimited).tolist() == [100, -100]


def test_the_users_own_sentence_is_refused_by_name_and_not_counted() -> None:
    world = ToyConfig().build()
    with pytest.raises(ValueError, match="nothing on the table"):
        rollout(agent(), world, 5, options={"instruction": "pick up the purple ball"})
    wanted = world.sentence_for(1)
    assert rollout(agent(), world, 5, options={"instruction": wanted}).instruction == wanted


def test_hash_and_labels_depend_on_what_they_should() -> None:
    observation, info = ToyConfig().build().reset(seed=3)
    blank, _ = ToyConfig().build(render=False).reset(seed=3)
    assert state_hash(observation, info["scene"]) == state_hash(blank, info["scene"])
    assert state_hash({**observation, "state": observation["state"] + 1}, info["scene"]) != state_hash(observation, info["scene"])
    assert labels({}, {}) == {}
    assert labels({"skill": "pick"}, {"objects": [{"type": "cup"}], "target": 0}) == {"skill": "pick", "type": "cup"}
