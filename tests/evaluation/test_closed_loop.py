"""The closed loop: planned before, idempotent during, a pure function of its rows after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deftly import storage
from deftly.contract import Embodiment
from deftly.evaluation import closed_loop, summary
from deftly.evaluation.baselines import BASELINES
from deftly.evaluation.closed_loop import Job, WorldConfig, check_limits, evaluate
from deftly.evaluation.plan import Plan, name_for, read
from deftly.randomness import seed_of
from deftly.sim import processes
from deftly.types import DataError, UsageError
from evaluation.toy import ToyAgent, ToyConfig, embodiment, load_toy, save_toy
from guards import guards

EPISODES = 8
ARMS = ("policy", *BASELINES)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy") / "policy")


def judge(policy: Path, directory: Path, world: WorldConfig | None = None, **changes: Any) -> dict[str, Any]:
    return evaluate(
        policy,
        world or ToyConfig(difficulty=0.25),
        directory,
        **{"episodes": EPISODES, "workers": 0, "videos": 0, "load": load_toy, **changes},
    )


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation, with videos; tests that change it copy it."""
    directory = tmp_path_factory.mktemp("whole") / "final"
    judge(policy, directory, videos=1)
    return directory


def rows(directory: Path) -> list[dict[str, Any]]:
    """Everything but the wall clock."""
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in storage.read_lines(directory / "episodes.jsonl")]


def faulty(fault: str, *episodes: int, **changes: Any) -> ToyConfig:
    seeds = tuple(seed_of("evaluate", 0, episode) for episode in episodes)
    return ToyConfig.parse({"fault": fault, "fault_episodes": seeds, **changes}, "test")


# What comes out --------------------------------------------------------------------------------------------------------------------------


def test_a_summary_holds_headline_failures_and_every_baseline(whole: Path) -> None:
    found = storage.read_json(whole / "summary.json")
    good = [row for row in rows(whole) if row["arm"] == "policy" and row["success"]]
    assert found["successes"] == len(good) > EPISODES / 2
    assert found["episodes"] == EPISODES
    assert found["success_rate"] == len(good) / EPISODES
    assert found["wilson_low"] < found["success_rate"] < found["wilson_high"]
    assert found["per_skill"].keys() == {"pick"}
    assert list(found["failures"]) == ["wrong_object", "missed_grasp", "timeout", "invalid_action", "crashed"]
    assert sum(found["failures"].values()) == found["failures"]["missed_grasp"] == EPISODES - len(good)
    assert tuple(found["baselines"]) == BASELINES
    for baseline in found["baselines"].values():
        assert {"successes", "episodes", "success_rate", "wilson_low", "wilson_high"} <= baseline.keys()
        assert baseline["successes"] <= 1
    assert found["baselines"]["deaf"]["obeyed"] == len(good)
    assert found["baselines"]["no_op"]["p_value"] < 0.1
    assert (
        sum(item["episodes"] for item in found["per_type"].values())
        == sum(item["episodes"] for item in found["per_colour"].values())
        == EPISODES
    )
    assert found["notes"] == []


def test_every_arm_starts_from_the_same_states_and_rows_are_in_order(whole: Path) -> None:
    found = rows(whole)
    assert [(row["arm"], row["episode"]) for row in found] == [(arm, episode) for arm in ARMS for episode in range(EPISODES)]
    for episode in range(EPISODES):
        mine = [row for row in found if row["episode"] == episode]
        assert len({row["state_hash"] for row in mine}) == 1
        assert {row["seed"] for row in mine} == {seed_of("evaluate", 0, episode)}
    assert len({row["state_hash"] for row in found}) == EPISODES


def test_a_few_successes_and_failures_are_drawn(whole: Path) -> None:
    names = sorted(path.name.split("-")[-1] for path in (whole / "videos").iterdir())
    assert names == ["missed_grasp.mp4", "success.mp4"]


def test_two_processes_write_the_same_rows_as_none(whole: Path, policy: Path, tmp_path: Path) -> None:
    judge(policy, tmp_path / "b", workers=2)
    assert rows(tmp_path / "b") == rows(whole)
    assert (tmp_path / "b" / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


def test_another_seed_plays_other_scenes(whole: Path, policy: Path, tmp_path: Path) -> None:
    judge(policy, tmp_path / "b", seed=7, baselines=())
    assert not {row["state_hash"] for row in rows(tmp_path / "b")} & {row["state_hash"] for row in rows(whole)}


def test_the_summary_is_a_pure_function_of_the_files(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").unlink()
    summary.write_summary(tmp_path / "copy")
    assert (tmp_path / "copy" / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


# Stopped and started again ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 13, 39])
def test_a_killed_evaluation_plays_what_is_missing_and_nothing_twice(whole: Path, policy: Path, tmp_path: Path, kept: int) -> None:
    directory = tmp_path / "killed"
    shutil.copytree(whole, directory)
    (directory / "summary.json").unlink()
    lines = (directory / "episodes.jsonl").read_text().splitlines(keepends=True)
    (directory / "episodes.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])  # the last line was being written
    judge(policy, directory)
    assert rows(directory) == rows(whole)
    assert (directory / "episodes.jsonl").read_text().splitlines()[:kept] == [line.rstrip("\n") for line in lines[:kept]]
    assert (directory / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


@pytest.mark.slow
def test_kill_nine_at_any_moment_loses_nothing(whole: Path, policy: Path, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    code = (
        "from pathlib import Path; from evaluation.toy import ToyConfig, load_toy; from deftly.evaluation.closed_loop import evaluate\n"
        "if __name__ == '__main__':\n"
        f"    evaluate(Path({str(policy)!r}), ToyConfig(difficulty=0.25, pause_s=0.01), Path({str(directory)!r}), "
        f"episodes={EPISODES}, workers=2, videos=0, load=load_toy)\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for enough in (5, 20, 40):
        process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment)
        while process.poll() is None and len(list(storage.read_lines(directory / "episodes.jsonl"))) < enough:
            time.sleep(0.02)
        if enough < 40:
            process.kill()
        process.wait(timeout=120)
    assert process.returncode == 0
    assert rows(directory) == rows(whole)


def test_a_finished_evaluation_is_not_played_again(whole: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.setattr(closed_loop, "play", None)
    assert judge(policy, tmp_path / "copy") == storage.read_json(whole / "summary.json")


# Refusals --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"seed": 1}, {"episodes": 9}, {"world": ToyConfig(difficulty=0.4)}, {"baselines": ("deaf",)}])
def test_another_plan_in_the_same_directory_is_refused(whole: Path, policy: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"holds another evaluation: .*another --name") as error:
        judge(policy, whole, **changes)
    assert "\n" not in str(error.value)


def test_another_policy_in_the_same_directory_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds another evaluation: policy: expected"):
        judge(save_toy(tmp_path / "other", mistake="nan"), whole)


def test_an_edited_plan_is_refused(whole: Path, policy: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    values = storage.read_json(whole / "plan.json")
    storage.write_json(tmp_path / "copy" / "plan.json", {**values, "seed": 3})
    with pytest.raises(DataError, match="edited"):
        judge(policy, tmp_path / "copy")
    storage.write_json(tmp_path / "copy" / "plan.json", [])
    with pytest.raises(DataError, match="not a plan"):
        read(tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 1}, "does not belong"), ({"policy": "x"}, "does not belong"), ({"episode": 99}, "does not belong"), ({}, "there twice")],
)
def test_rows_from_elsewhere_are_refused(whole: Path, policy: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "episodes.jsonl"
    storage.append_line(path, {**next(storage.read_lines(path)), **change})
    with pytest.raises(DataError, match=words):
        judge(policy, tmp_path / "copy")


def test_a_row_that_is_none_is_refused(whole: Path, tmp_path: Path) -> None:
    storage.append_line(tmp_path / "episodes.jsonl", {"arm": "policy"})
    with pytest.raises(DataError, match="not a row"):
        summary.read_rows(read(whole), tmp_path)


def test_an_unfinished_evaluation_has_no_summary(whole: Path) -> None:
    plan = read(whole)
    found = summary.read_rows(plan, whole)
    del found["blind", 3]
    with pytest.raises(DataError, match="1 of 40 episodes are missing"):
        summary.summarise(plan, found)


def test_a_world_that_does_not_match_the_contract_is_refused_before_any_episode(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cameras\[0\].height: expected 8, found 9"):
        judge(policy, tmp_path / "x", world=ToyConfig(size=9))
    assert not (tmp_path / "x").exists()


def test_unknown_baselines_are_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no baseline 'mute'"):
        judge(policy, tmp_path, baselines=("mute",))


def test_scenes_of_the_training_data_are_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 evaluation scenes \(the first: episode 3"):
        judge(policy, tmp_path, training_seeds=frozenset([seed_of("evaluate", 0, 3), 17]))
    train = {seed_of("train", 0, i, 0) for i in range(1000)}
    assert not train & {seed_of("evaluate", 0, i) for i in range(1000)}


def test_two_evaluations_cannot_share_a_directory(whole: Path, policy: Path) -> None:
    with storage.lock(whole / ".lock", wait=False), pytest.raises(UsageError, match="another evaluation"):
        judge(policy, whole)


# Faults ----------------------------------------------------------------------------------------------------------------------------------


def test_crashes_count_as_failures_and_stand_apart(policy: Path, tmp_path: Path) -> None:
    found = judge(policy, tmp_path, faulty("crash", 2, 5), baselines=("no_op",))
    assert found["failures"]["crashed"] == 2
    assert found["successes"] == EPISODES - 2
    assert found["baselines"]["no_op"]["crashed"] == 2
    assert [row["error"] for row in rows(tmp_path) if row["episode"] == 2] == ["RuntimeError: the physics exploded"] * 2


def test_an_episode_that_kills_its_process_is_a_crash_and_the_others_are_played(policy: Path, tmp_path: Path) -> None:
    found = judge(policy, tmp_path, faulty("die", 1), baselines=(), episodes=3, workers=1)
    assert (found["successes"], found["failures"]["crashed"]) == (2, 1)
    assert "died" in rows(tmp_path)[1]["error"]


@guards("evaluation.another_policy")
def test_a_worker_that_finds_another_policy_at_the_path_is_refused(policy: Path, tmp_path: Path) -> None:
    """Its machine has a folder of the same name."""
    plan = Plan(policy=storage.sha256(policy / storage.MANIFEST), world={}, episodes=1, seed=0, baselines=(), versions={})
    assert closed_loop.Task(policy, ToyConfig(), plan, load_toy).agent().embodiment == embodiment()
    with pytest.raises(DataError, match="another policy than the one that is being evaluated"):
        closed_loop.Task(save_toy(tmp_path / "other", mistake="nan"), ToyConfig(), plan, load_toy).agent()


def test_when_no_process_can_start_no_episode_is_blamed(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: Any, **__: Any) -> Any:
        raise processes.WorkerDied("it could not start")
        yield

    monkeypatch.setattr(processes, "run", dead)
    task = closed_loop.Task(policy, ToyConfig(), Plan(policy="", world={}, episodes=1, seed=0, baselines=(), versions={}), load_toy)
    with pytest.raises(processes.WorkerDied):
        next(closed_loop.play(task, [Job("policy", 0)], workers=1))


def test_invalid_actions_are_failures(tmp_path: Path) -> None:
    found = judge(save_toy(tmp_path / "policy", mistake="nan"), tmp_path / "x", baselines=("no_op",))
    assert (found["successes"], found["failures"]["invalid_action"]) == (0, EPISODES)
    assert found["baselines"]["no_op"]["episodes"] == EPISODES


def test_a_success_at_reset_voids_the_headline(policy: Path, tmp_path: Path) -> None:
    found = judge(policy, tmp_path, faulty("success_at_reset", 4), baselines=())
    assert (found["success_rate"], found["wilson_low"], found["wilson_high"]) == (None, None, None)
    assert found["success_at_reset"] == [4]
    assert "no headline" in found["notes"][0]


def test_a_world_that_is_no_function_of_its_seed_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="episode 0 started differently for policy and no_op"):
        judge(policy, tmp_path, faulty("unseeded", 0), baselines=("no_op", "random"))


def test_a_policy_that_does_not_listen_is_noted(whole: Path) -> None:
    plan = read(whole)
    found = {job: {**row, "success": True} if job[0] == "deaf" else row for job, row in summary.read_rows(plan, whole).items()}
    assert "hardly listens" in summary.summarise(plan, found)["notes"][0]


# Names -----------------------------------------------------------------------------------------------------------------------------------


def test_names_of_evaluations(whole: Path, tmp_path: Path) -> None:
    assert name_for(tmp_path, 0, EPISODES) == "final"
    shutil.copytree(whole, tmp_path / "final")
    assert name_for(tmp_path, 0, EPISODES) == "final"  # the same again: it is continued
    assert name_for(tmp_path, 7, EPISODES) == "seed-7"
    assert name_for(tmp_path, 0, 50) == "seed-0"
    shutil.copytree(whole, tmp_path / "seed-0")
    assert name_for(tmp_path, 0, 50) == "seed-0-episodes-50"
    shutil.copytree(whole, tmp_path / "seed-0-episodes-50")
    with pytest.raises(UsageError, match="taken"):
        name_for(tmp_path, 0, 50)


def test_plans_know_what_decides_the_rows(whole: Path) -> None:
    values = json.loads((whole / "plan.json").read_text())
    assert values["world"]["difficulty"] == 0.25
    assert {"deftly", "python", "torch", "numpy"} <= values["versions"].keys()
    assert values["hash"] == read(whole).hash()


# Limits ----------------------------------------------------------------------------------------------------------------------------------


def limited(low: tuple[float, ...] | None, high: tuple[float, ...] | None) -> Embodiment:
    toy = embodiment()
    return toy.replace(action=toy.action.replace(low=low, high=high))


def test_a_world_that_allows_less_than_the_policy_needs_is_refused(policy: Path, tmp_path: Path) -> None:
    class Bold(ToyAgent):
        def check(self, found: Embodiment) -> None:
            """Blind to limits, as the agent is."""

    def bold(path: Path) -> Bold:
        return Bold(limited((0.0, 0.0), (1.0, 2.0)))

    with pytest.raises(DataError, match=r"action\.high of lift is 1 fraction, but the policy was trained to reach 2") as caught:
        judge(policy, tmp_path / "a", load=bold)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_more_room_and_unknown_limits_are_no_fault() -> None:
    known, wide, unknown = limited((0, 0), (1, 1)), limited((-1, 0), (1, 5)), limited(None, None)
    for trained, found in ((known, known), (known, wide), (known, unknown), (unknown, known)):
        check_limits(trained, found)
    with pytest.raises(DataError, match=r"action\.low of x is 0 m"):
        check_limits(wide, known)


def test_a_negative_number_of_videos_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="videos must be 0 or more"):
        judge(policy, tmp_path / "a", videos=-1)
    assert not (tmp_path / "a").exists()
