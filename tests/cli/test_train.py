"""`deftly train`: recipes, repeated runs, the user's own file, leaves changed on the command line, mistakes in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deftly.cli.train import TRACKERS, default_directory, find_run, main, override, own_recipe, print_summary, report
from deftly.models.heads import FlowMatchingConfig
from deftly.recipes import RECIPES
from deftly.run import Run
from deftly.training.schedule import WSDConfig
from deftly.types import UsageError
from small_data import write_dataset


def test_leaves_change_and_unions_stay() -> None:
    run = override(RECIPES["imitate"](True), ["--policy.vision.keypoints", "5", "--training.steps", "3", "--data.path", "somewhere"])
    assert run.policy.vision.keypoints == 5
    assert run.training.steps == 3
    assert run.data.path == Path("somewhere")
    assert isinstance(run.policy.head, FlowMatchingConfig)
    assert override(run, []) == run


def test_finds_recipes_files_and_directories(tmp_path: Path) -> None:
    run = RECIPES["demo"](True)
    (tmp_path / "run.json").write_text(run.to_json())
    assert find_run(str(tmp_path), False) == find_run(str(tmp_path / "run.json"), False) == find_run("demo", True) == run
    with pytest.raises(UsageError, match="did you mean 'bridge'"):
        find_run("bridg", False)


def test_own_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from deftly.recipes.imitate import imitate\ndef recipe():\n    return imitate(True)\ndef wrong():\n    return 3\n")
    assert find_run(f"{file}:recipe", False) == RECIPES["imitate"](True)
    for function, message in (("nothing", "has no function 'nothing'"), ("wrong", "a recipe returns a deftly.run.Run")):
        with pytest.raises(UsageError, match=message):
            own_recipe(str(file), function, small=False)
    with pytest.raises(UsageError, match="no such file"):
        own_recipe(str(tmp_path / "other.py"), "recipe", small=False)


def test_trains_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", lengths=(6, 7, 6))
    flags = ["--data.path", str(tmp_path / "data"), "--training.steps", "2", "--data.validation-fraction", "0.3", "--data.image-size", "24"]
    main(["imitate", "--small", "--out", str(tmp_path / "run"), "--device", "cpu", *flags])
    printed = capsys.readouterr().out
    assert "mean action" in printed
    assert str(tmp_path / "run") in printed.replace("\n", "")


def test_a_tracker_is_asked_for_and_stays_when_other_fields_change(tmp_path: Path) -> None:
    path, out = tmp_path / "run.json", tmp_path / "run"
    given = RECIPES["imitate"](True)
    tracked = given.replace(training=given.training.replace(trackers=(TRACKERS["wandb"], TRACKERS["tensorboard"])))
    path.write_text(tracked.to_json())
    changed = override(find_run(str(path), small=False), ["--training.steps", "3"])
    assert changed.training == tracked.training.replace(steps=3)
    write_dataset(tmp_path / "data")
    flags = [
        "--data.path",
        str(tmp_path / "data"),
        "--data.validation-fraction",
        "0.5",
        "--training.steps",
        "2",
        "--training.log-every",
        "1",
    ]
    main(["imitate", "--small", "--out", str(out), "--device", "cpu", "--track", "tensorboard", *flags])
    assert Run.load(out / "run.json").training.trackers == (TRACKERS["tensorboard"],)
    assert [path.suffix for path in (out / "tensorboard").iterdir()] == [".deftly"]
    assert "Error on held-out demonstrations" in (out / "report.html").read_text()


def test_a_report_that_cannot_be_written_is_said_and_the_run_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{")
    report(tmp_path)
    assert capsys.readouterr().err.startswith(f"WARNING: no report: {tmp_path / 'run.json'}")


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "demo, imitate, bridge, g1, act" in capsys.readouterr().out


def test_verdict_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"policy": 0.5, "mean_action": 0.4}]
    print_summary({"folds": rows, "mean": rows[0], "policy_beats_both_baselines": False}, tmp_path)
    assert "does NOT beat" in capsys.readouterr().out


def test_resuming_goes_on_where_the_run_lies(tmp_path: Path) -> None:
    run = RECIPES["demo"](True)
    (tmp_path / "run.json").write_text(run.to_json())
    assert default_directory(str(tmp_path), run, resume=True) == default_directory(str(tmp_path / "run.json"), run, resume=True) == tmp_path
    assert default_directory(str(tmp_path), run, resume=False) == default_directory("demo", run, resume=True) == Path("runs/demo")


def test_the_same_command_starts_and_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", lengths=(6, 7, 6))
    flags = ["--data.path", str(tmp_path / "data"), "--training.steps", "2", "--data.validation-fraction", "0"]
    again = ["imitate", "--small", "--resume", "--out", str(tmp_path / "run"), "--device", "cpu", *flags]
    with pytest.raises(UsageError, match=r"no run in .* that could change"):
        main([*again, "--allow-change", "training.steps"])
    assert not (tmp_path / "run").exists()
    main(again)
    assert f"there is no run in {tmp_path / 'run'} yet, so it begins at its first step" in capsys.readouterr().err
    main(again)
    printed = capsys.readouterr().err
    assert "resuming at step 2 of 2" in printed
    assert "no run" not in printed


def test_small_without_effect_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(RECIPES["demo"](True).to_json())
    with pytest.raises(UsageError, match="--small shrinks a recipe"):
        find_run(str(tmp_path), True)
    file = tmp_path / "mine.py"
    file.write_text("def recipe():\n    return 3\n")
    with pytest.raises(UsageError, match="--small changes nothing"):
        own_recipe(str(file), "recipe", small=True)


def test_a_run_without_held_out_episodes_says_that_nothing_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"steps": 3}, tmp_path)
    assert "no episode was held out" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("flags", [["--training.steps", "0"], ["--training.stepz", "3"], ["--seed", "many"]])
def test_a_wrong_field_is_one_line(flags: list[str]) -> None:
    with pytest.raises(UsageError, match="command line: ") as caught:
        override(RECIPES["demo"](True), flags)
    line = str(caught.value)
    assert "\n" not in line
    assert "│" not in line
    assert "http" not in line
    assert flags[0].lstrip("-").split(".")[-1] in line
    assert line.count("Unrecognized options") <= 1


def test_fields_of_the_recipes_own_kind_of_policy_can_be_changed() -> None:
    run = override(RECIPES["act"](False), ["--policy.width", "256", "--policy.pretrained", "resnet18.safetensors"])
    assert run.policy == RECIPES["act"](False).policy.replace(width=256, pretrained=Path("resnet18.safetensors"))
    assert override(RECIPES["imitate"](False), ["--policy.width", "64"]).policy.width == 64
    with pytest.raises(UsageError):
        override(RECIPES["act"](False), ["--policy.depth", "3"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--training.keep-last", "1"], "command line: training.keep_last: Input should be greater than or equal to 2; `deftly"),
        (["--training.start.weights", "x"], "command line: training.start: start.weights chooses among the weights of start.path"),
        (["--training.nope", "1"], "command line: Unrecognized options: --training.nope, 1"),
    ],
)
def test_a_value_that_cannot_be_is_one_readable_line(words: list[str], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        override(RECIPES["imitate"](True), words)
    assert str(refused.value).startswith(line)


REPOSITORY = Path(__file__).parents[2]
NOT_ON_THE_COMMAND_LINE = [
    "--training.early-stop.patience",
    "--training.lora.rank",
    "--training.schedule.decay-fraction",
    "--training.groups.0.parameters",
]


@pytest.mark.parametrize("flags", [["--training.schedule.kind", "wsd"], *([flag, "3"] for flag in NOT_ON_THE_COMMAND_LINE)])
def test_what_a_recipe_chooses_is_not_denied(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    """The remedy leads to the page that shows how, and no line says that there is no other schedule."""
    with pytest.raises(UsageError, match="`deftly train --help`") as refused:
        override(RECIPES["imitate"](True), flags)
    assert "Expected one of" not in str(refused.value)
    main(["--help"])
    usage = " ".join(capsys.readouterr().out.split())
    assert "training.schedule" in usage.split("recipe of your own")[0]
    assert "docs/training/optimisation.md" in usage


def test_another_schedule_is_named_with_the_recipes() -> None:
    with pytest.raises(UsageError) as refused:
        override(RECIPES["imitate"](True), ["--training.schedule.kind", "wsd"])
    assert str(refused.value).startswith(
        "command line: --training.schedule.kind is 'warmup_cosine' by the recipe; another ('wsd') is chosen in"
    )


def test_the_documented_recipe_has_another_schedule(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/training/optimisation.md").read_text().split("## Another schedule")[1].split("## ")[0]
    (tmp_path / "my.py").write_text(page.split("```python\n")[1].split("```")[0])
    run = find_run(f"{tmp_path / 'my.py'}:recipe", small=True)
    assert run == RECIPES["imitate"](True).replace(training=run.training)
    assert run.training == RECIPES["imitate"](True).training.replace(schedule=WSDConfig())
    (flag,) = re.findall(r"deftly train my.py:recipe --data.path DIR (--\S+ \S+)`", page)
    assert override(run, flag.split()).training.schedule == WSDConfig(decay_fraction=0.1)
    assert {recipe(True).training.schedule.kind for recipe in RECIPES.values()} == {"warmup_cosine"}
