"""`deftly evaluate`, `deftly play` and `deftly report` in the demo's world, with a policy that has learnt nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deftly import agent, storage
from deftly.cli import evaluate, play, report
from deftly.contract import Vector
from deftly.evaluation.closed_loop import Bench, Job, Task
from deftly.evaluation.plan import Plan, name_for
from deftly.randomness import seed_of
from deftly.rollout import Episode
from deftly.sim.tabletop import TabletopConfig
from deftly.types import DataError, UsageError
from evaluation.small_run import small_run
from small_data import write_dataset

FLAGS = ["--workers", "0", "--videos", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "small"
    small_run(directory)
    return directory


def test_evaluate_writes_every_file_and_prints_the_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(run), "--episodes", "2", *FLAGS])
    printed = capsys.readouterr().out
    for words in ("0/2 [0, 66]", "no-op", "deaf", "obeyed", "failures: 2", str(run / "evaluation" / "final" / "summary.json")):
        assert words in printed
    directory = run / "evaluation" / "final"
    assert {path.name for path in directory.iterdir() if not path.name.startswith(".")} == {
        "plan.json",
        "episodes.jsonl",
        "summary.json",
        "videos",
    }
    rows = list(storage.read_lines(directory / "episodes.jsonl"))
    assert len(rows) == 10
    assert len({row["state_hash"] for row in rows}) == 2
    assert all(row["told"] != row["instruction"] for row in rows if row["arm"] == "deaf")
    assert len(list((directory / "videos").glob("*.mp4"))) == 1


def test_another_seed_takes_another_name(run: Path) -> None:
    evaluate.main([str(run), "--episodes", "2", *FLAGS])
    evaluate.main([str(run), "--episodes", "1", "--seed", "7", "--baselines", "no_op", *FLAGS])
    assert storage.read_json(run / "evaluation" / "seed-7" / "summary.json")["episodes"] == 1
    evaluate.main([str(run), "--episodes", "1", "--name", "mine", "--baselines", "no_op", *FLAGS])
    assert storage.read_json(run / "evaluation" / "mine" / "plan.json")["baselines"] == ["no_op"]


def test_a_checkpoint_belongs_to_its_run(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000001"
    assert evaluate.open_run(run) == evaluate.open_run(checkpoint) == evaluate.open_run(checkpoint / "policy")
    with pytest.raises(UsageError, match="no such directory"):
        evaluate.open_run(run / "nothing")
    with pytest.raises(UsageError, match="not a run"):
        evaluate.open_run(run.parent)


def test_a_robot_is_chosen_by_its_name(run: Path) -> None:
    name = agent.load(run).embodiment.name
    evaluate.main([str(run), "--episodes", "1", "--seed", "3", "--robot", name, "--baselines", "no_op", *FLAGS])
    assert storage.read_json(run / "evaluation" / name_for(run / "evaluation", 3, 1, name) / "plan.json")["robot"] == name
    assert name_for(run / "evaluation", 3, 1) != name_for(run / "evaluation", 3, 1, name), "two robots are two evaluations"
    before = sorted((run / "evaluation").iterdir())
    for command in ([evaluate, str(run), "--name", "other"], [play, str(run), "pick up the red cup"]):
        with pytest.raises(UsageError, match="does not act for a robot 'nobody'; it knows") as caught:
            command[0].main([*command[1:], "--robot", "nobody"])
        assert "\n" not in str(caught.value)
    assert sorted((run / "evaluation").iterdir()) == before


def test_a_policy_of_a_mixture_is_judged_and_played_as_the_robot_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first robot is another one, with fewer joints: the world is that of the second."""
    demo = TabletopConfig(image_size=24).embodiment()
    narrow = Vector(names=demo.action.names[:2], units=demo.action.units[:2])
    run = tmp_path / "run"
    small_run(run, before=[demo.replace(name="crane", action=narrow, state=narrow, mirror=None)])
    assert agent.load(run).embodiment.name == "crane"
    assert len(agent.load(run, robot=demo.name).embodiment.action) == len(demo.action)
    commands = {
        evaluate: [str(run), "--episodes", "1", "--baselines", "no_op", *FLAGS],
        play: [str(run), "pick up the red cup", "--out", str(tmp_path / "played.gif"), "--no-window"],
    }
    for command, arguments in commands.items():
        for robot in ([], ["--robot", "crane"]):
            with pytest.raises(DataError, match="does not match") as caught:
                command.main([*arguments, *robot])
            assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=f"does not act for a robot 'arm7'; it knows crane, {re.escape(demo.name)}"):
            command.main([*arguments, "--robot", "arm7"])
    assert not (tmp_path / "played.gif").exists()
    evaluate.main([*commands[evaluate], "--robot", demo.name])
    assert "0/1 [0, 79]" in capsys.readouterr().out
    (plan,) = (run / "evaluation").glob("*/plan.json")
    assert storage.read_json(plan)["robot"] == demo.name
    rows = list(storage.read_lines(plan.parent / "episodes.jsonl"))
    assert {row["outcome"] for row in rows} <= {"timeout", "success", "wrong_object"}
    assert not any(row.get("error") for row in rows)
    play.main([*commands[play], "--robot", demo.name])
    assert (tmp_path / "played.gif").stat().st_size


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "a/b", "/tmp/x"])
def test_a_name_stays_in_the_run(run: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plain directory name"):
        evaluate.main([str(run), "--name", name, *FLAGS])


def test_a_run_without_a_world_is_refused(tmp_path: Path) -> None:
    small_run(tmp_path / "run", world=None)
    with pytest.raises(UsageError, match="world is null"):
        evaluate.main([str(tmp_path / "run"), *FLAGS])
    with pytest.raises(UsageError, match="world is null"):
        play.main([str(tmp_path / "run"), "pick up the red cup"])


def test_a_world_that_does_not_fit_the_policy_is_refused(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run")
    assert config.world is not None
    changed = config.replace(world=config.world.replace(image_size=32))
    storage.write_text(tmp_path / "run" / "run.json", changed.to_json())
    with pytest.raises(DataError, match=r"does not match .*head.height: expected 24, found 32"):
        evaluate.main([str(tmp_path / "run"), *FLAGS])


def test_training_seeds_are_read_where_they_are_known(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run")
    assert evaluate.training_seeds(config) == frozenset()
    write_dataset(tmp_path / "data", lengths=(5, 6))
    found = evaluate.training_seeds(config.replace(data=config.data.replace(path=tmp_path / "data")))
    assert all(isinstance(seed, int) for seed in found)


def test_worlds_without_looking_actors_draw_nothing(run: Path) -> None:
    config = evaluate.open_run(run)[1]
    policy = evaluate.find_policy(run)
    plan = Plan(policy=storage.sha256(policy / storage.MANIFEST), world={}, episodes=1, seed=0, baselines=(), versions={})
    bench = Bench(Task(policy, config.world, plan, evaluate_load()))
    for arm in ("no_op", "random", "blind"):
        assert bench(Job(arm, 0)).outcome in ("timeout", "missed_grasp", "wrong_object")
    assert list(bench._worlds) == [False]
    assert bench._worlds[False].images_drawn == 0
    assert bench(Job("policy", 0)).seed == seed_of("evaluate", 0, 0)
    assert bench._worlds[True].images_drawn > 0


def evaluate_load():
    from deftly.agent import load

    return load


# play ------------------------------------------------------------------------------------------------------------------------------------


def test_play_answers_a_sentence_with_a_gif(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    play.main([str(run), "Grab the blue cube!"])
    printed = capsys.readouterr()
    line, path = printed.out.splitlines()
    assert "never learnt 'cube'" in printed.err
    told = re.search(r"it is told '([a-z ]+)'", printed.err)
    assert told is not None
    assert "blue box" in told[1]
    assert line.startswith(f"{told[1]!r}: ")
    assert "after 1.5 s; scene --seed" in line
    assert Path(path).parent == run / "play"
    with Image.open(path) as picture:
        assert picture.size == (644, 320)
        assert picture.n_frames > 1


def test_play_takes_a_scene_and_a_file(run: Path, tmp_path: Path) -> None:
    world = small_world(run)
    observation, _ = world.reset(seed=4)
    play.main([str(run), observation["instruction"], "--seed", "4", "--out", str(tmp_path / "x.gif"), "--no-window"])
    assert (tmp_path / "x.gif").stat().st_size > 1000
    with pytest.raises(UsageError, match="0 or more"):
        play.main([str(run), "pick up the red cup", "--seed", "-1"])


def small_world(run: Path):
    world = evaluate.open_run(run)[1].world
    assert world is not None
    return world.build(render=False)


@pytest.mark.parametrize(
    ("sentence", "words"), [("sing a song", "no known verb"), ("grab the purple cup", "'purple'"), ("grab it", "names no object")]
)
def test_what_cannot_be_understood_is_said(run: Path, sentence: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        play.main([str(run), sentence])
    assert not list((run / "play").glob(f"{play.slug(sentence)}*"))


def test_what_is_not_on_the_table_is_said_with_what_is(run: Path) -> None:
    world = small_world(run)
    _, info = world.reset(seed=4)
    there = {(item["colour"], item["type"]) for item in info["scene"]["objects"]}
    colour, kind = next((c, t) for c in ("red", "blue", "green") for t in ("cup", "box", "ball") if (c, t) not in there)
    with pytest.raises(UsageError, match="fits no object of this scene, which has the ") as error:
        play.main([str(run), f"pick up the {colour} {kind}", "--seed", "4"])
    assert all(f"the {c} {t}" in str(error.value) for c, t in there)


def test_the_first_scene_that_fits_is_found(run: Path) -> None:
    world = small_world(run)
    seed = play.find_scene(world, "grab the yellow bottle")
    world.reset(seed=seed, options={"instruction": "grab the yellow bottle"})
    for earlier in range(seed):
        with pytest.raises(ValueError, match="fits no object"):
            world.reset(seed=earlier, options={"instruction": "grab the yellow bottle"})


def test_small_things(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert play.slug("Pick up   the ../Blue ball!") == "pick-up-the-blue-ball"
    assert play.slug("日本") == "sentence"
    assert len(play.slug("ball " * 50)) <= play.MAX_NAME
    known = {"seed": 3, "state_hash": "", "instruction": "lift it", "told": "lift it", "success": False, "steps": 12}
    assert play.describe(Episode(**known, outcome="invalid_action", error="nan"), 10) == (
        "'lift it': invalid action after 1.2 s (nan); scene --seed 3"
    )
    monkeypatch.setattr(play.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    assert play.has_display()
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not play.has_display()
    assert play.show([np.zeros((4, 4, 3), np.uint8)], 10, "title") is False  # tests draw without a toolkit
    assert "no window" in capsys.readouterr().err


# report ----------------------------------------------------------------------------------------------------------------------------------


def test_report_prints_where_the_page_is(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report.main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    report.main([str(run), "--out", str(tmp_path / "page.html")])
    assert "small" in (tmp_path / "page.html").read_text()


def test_a_summary_is_printed_with_its_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"successes": 3, "episodes": 4, "success_rate": None, "baselines": {}, "failures": {"timeout": 0}, "notes": ["[bold]flawed"]}
    evaluate.show(summary, tmp_path)
    printed = capsys.readouterr().out
    assert "refused" in printed
    assert "failures: none" in printed
    assert "note: [bold]flawed" in printed
