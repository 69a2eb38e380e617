"""`deftly runs`: every state is told apart, a damaged run is one line, a comparison names what differs."""

import json
import os
import shutil

import pytest

from deftly import storage
from deftly.cli.main import main
from deftly.training.guard import TrainingError
from deftly.training.runs import compare, find_runs, look, tail
from deftly.training.stopping import EarlyStopConfig
from deftly.types import DataError, UsageError
from guards import guards
from training.toys import ToyStream, make_trainer, small_config


def train(directory, config, **changes):
    storage.write_json(directory / "summary.json", make_trainer(directory, config=config, **changes).fit())


def stop():
    os.kill(os.getpid(), 15)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each kind below a directory."""
    root = tmp_path_factory.mktemp("runs")
    config = small_config(steps=8, validate_every=4)
    train(root / "finished", config)
    hopeless = config.replace(early_stop=EarlyStopConfig(patience=1, min_delta=1e6))
    train(root / "group" / "early", hopeless.replace(steps=30))
    with pytest.raises(SystemExit):
        train(root / "stopped", config, stream=ToyStream(calls={4: stop}))
    with pytest.raises(TrainingError):
        train(root / "failed", config.replace(max_bad_steps=1), stream=ToyStream(poison={2: float("nan")}))
    shutil.copytree(root / "stopped", root / "killed")
    lines = (root / "killed" / "sessions.jsonl").read_text().splitlines(keepends=True)
    (root / "killed" / "sessions.jsonl").write_text(lines[0])
    shutil.copytree(root / "stopped", root / "running")
    for number in range(2):
        shutil.copytree(root / "finished", root / "folds" / f"fold-{number}")
    storage.write_json(root / "folds" / "fold-0" / "offline.json", {"policy": {"l1_per_spread": 0.25}})
    storage.write_json(root / "folds" / "run.json", {"name": "folds", "folds": 2, "training": {"steps": 8}})
    (root / "prepared").mkdir()
    shutil.copy(root / "finished" / "run.json", root / "prepared")
    (root / "not a run").mkdir()
    return root


def states(root):
    return {str(path.relative_to(root)): look(path)["state"] for path in find_runs(root)}


def test_every_state_is_told_apart(runs):
    with storage.lock(runs / "running" / ".lock", wait=False):
        assert states(runs) == {
            "failed": "failed", "finished": "finished", "folds": "stopped", "folds/fold-0": "finished", "folds/fold-1": "finished",
            "group/early": "finished", "killed": "stopped", "prepared": "prepared", "running": "running", "stopped": "stopped",
        }  # fmt: skip
    assert look(runs / "running")["state"] == "stopped"
    assert look(runs / "failed")["why"].startswith("TrainingError: step 3")
    assert look(runs / "killed")["why"] == "killed"
    assert look(runs / "group" / "early")["why"].startswith("stopped early")


def test_figures_are_those_of_the_run(runs):
    row, summary = look(runs / "finished"), storage.read_json(runs / "finished" / "summary.json")
    assert (row["step"], row["total"]) == (8, 8)
    assert (row["validation"], row["best_step"], row["loss"]) == (summary["best"]["loss"], summary["best"]["step"], summary["loss"])
    assert row["samples_per_s"] > 0
    assert 0 <= row["age_s"] < 600
    assert look(runs / "folds")["step"] == 1


def test_successes_and_offline_errors_where_it_was_judged(runs, tmp_path):
    run = tmp_path / "judged"
    shutil.copytree(runs / "finished", run)
    for name, successes in (("a", 1), ("final", 7), ("z", 3)):
        storage.write_json(run / "evaluation" / name / "summary.json", {"successes": successes, "episodes": 10})
    storage.write_json(run / "offline.json", {"policy": {"l1_per_spread": 0.5}})
    row = look(run)
    assert (row["success"], row["offline"]) == ({"successes": 7, "episodes": 10}, 0.5)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"name": "x"}'),
        ("run.json", '{"name": "x", "training": {"steps": "many"}}'),
        ("run.json", None),
        ("metrics.jsonl", '{"step": 1}\nnonsense\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("metrics.jsonl", "7\n"),
        ("metrics.jsonl", '{"kind": "train", "step": null}\n'),
        ("sessions.jsonl", "\x00\n"),
        ("summary.json", '{"steps": "all"}'),
        ("offline.json", "{}"),
        pytest.param("offline.json", '{"policy": {"l1_per_spread": "low"}}', marks=guards("training.runs.figures")),
        ("metrics.jsonl", '{"step": 1, "kind": "train", "loss": {"action": 1}}\n'),
        pytest.param("summary.json", '{"stopped_early": {"because": 1}}', marks=guards("training.runs.why")),
        ("evaluation/final/summary.json", '{"successes": 5, "episodes": 2}'),
        ("checkpoints/last", "../../../etc"),
        ("checkpoints/last", "step-99999999"),
    ],
)
def test_a_damaged_run_is_one_line(runs, tmp_path, capsys, file, content):
    shutil.copytree(runs / "finished", tmp_path / "a" / "broken")
    shutil.copytree(runs / "finished", tmp_path / "a" / "sound")
    path = tmp_path / "a" / "broken" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink() if content is None else path.write_text(content)
    main(["runs", str(tmp_path / "a"), "--json"])
    broken, sound = json.loads(capsys.readouterr().out)
    assert (broken["state"], sound["state"]) == ("damaged", "finished")
    assert "broken" in broken["why"]
    assert "\n" not in broken["why"]
    main(["runs", str(tmp_path / "a")])
    assert "damaged" in capsys.readouterr().out
    with pytest.raises(UsageError, match="broken"):
        compare([tmp_path / "a" / "sound", tmp_path / "a" / "broken"])


def test_a_torn_last_line_is_no_damage(runs, tmp_path):
    shutil.copytree(runs / "finished", tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "ki')
    assert look(tmp_path / "run")["state"] == "finished"


def test_only_the_end_of_a_long_log_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("deftly.training.runs.TAIL_BYTES", 100)
    (tmp_path / "log").write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    assert [line["step"] for line in tail(tmp_path / "log")] == list(range(994, 1000)) or tail(tmp_path / "log")[-1] == {"step": 999}
    assert len(tail(tmp_path / "log")) < 10
    assert tail(tmp_path / "no log") == []
    (tmp_path / "log").write_text("7\n")
    with pytest.raises(DataError, match="no object"):
        tail(tmp_path / "log")


def test_a_comparison_names_what_differs(runs, capsys):
    paths = [runs / "finished", runs / "group" / "early"]
    found = compare(paths)
    assert found["config"]["training.steps"] == [8, 30]
    assert json.loads(found["config"]["training.early_stop"][1])["patience"] == 1
    assert set(found["config"]) == {"training.steps", "training.early_stop"}
    main(["runs", "compare", *map(str, paths)])
    printed = capsys.readouterr().out
    assert "training.steps" in printed
    assert "best validation loss" in printed
    main(["runs", "compare", *map(str, paths), "--json"])
    assert json.loads(capsys.readouterr().out)["config"] == found["config"]
    main(["runs", "compare", str(paths[0]), str(paths[0])])
    assert "the same settings" in capsys.readouterr().out


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    for words in (["runs", str(tmp_path / "nowhere")], ["runs", "compare", str(runs / "finished")]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    main(["runs", str(tmp_path)])
    assert "no runs below" in capsys.readouterr().out


def test_looking_takes_no_lock_away(tmp_path):
    assert not storage.is_locked(tmp_path / ".lock")
    with storage.lock(tmp_path / ".lock", wait=False):
        assert storage.is_locked(tmp_path / ".lock")
        with pytest.raises(UsageError, match="another"), storage.lock(tmp_path / ".lock", wait=False):
            pass
    assert not storage.is_locked(tmp_path / ".lock")


def test_nothing_that_a_run_directory_holds_is_waited_for(tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    storage.write_json(many / "run.json", {"name": "many", "folds": 10**12, "training": {"steps": 8}})
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    storage.write_json(pipe / "run.json", {"name": "pipe", "training": {"steps": 8}})
    os.mkfifo(pipe / ".lock")
    assert [look(path)["state"] for path in (many, pipe)] == ["stopped", "prepared"]


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", '{"kind":"train","step":1e999,"loss":1,"samples":1,"time":{"elapsed":1}}\n'),
        ("metrics.jsonl", f'{{"kind":"train","step":1,"loss":1,"samples":{HUGE},"time":{{"elapsed":0.5}}}}\n'),
        pytest.param("metrics.jsonl", f'{{"kind":"train","step":1,"loss":{HUGE}}}\n', marks=guards("training.runs.figures")),
        ("metrics.jsonl", '{"kind":"train","step":1,"loss":NaN}\n'),
        ("run.json", '{"name": "x", "training": {"steps": Infinity}}'),
        ("run.json", '{"name": "x", "folds": Infinity, "training": {"steps": 8}}'),
        ("evaluation/final/summary.json", '{"successes": 1e999, "episodes": 1e999}'),
        pytest.param("evaluation/final/summary.json", f'{{"successes": {HUGE}, "episodes": {HUGE}}}', marks=guards("training.runs.counts")),
        pytest.param("offline.json", f'{{"policy": {{"l1_per_spread": {HUGE}}}}}', marks=guards("training.runs.figures")),
    ],
)
def test_what_is_no_finite_number_hides_no_other_run(runs, tmp_path, capsys, file, content):
    for name in ("broken", "sound"):
        shutil.copytree(runs / "finished", tmp_path / name)
    (tmp_path / "broken" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "broken" / file).write_text(content)
    main(["runs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "damaged" in printed
    assert "finished" in printed
    assert look(tmp_path / "broken")["state"] == "damaged"


def test_a_terminal_obeys_nothing_that_a_run_says(runs, tmp_path, capsys):
    paths = [tmp_path / "wide [/b] \x1b[31m", tmp_path / "other"]
    for path in paths:
        shutil.copytree(runs / "failed", path)
    config = storage.read_json(paths[0] / "run.json")
    storage.write_json(paths[0] / "run.json", {**config, "name": "\x1b]0;title\x07 [/red]"})
    for path in paths:
        storage.append_line(path / "sessions.jsonl", {"kind": "end", "how": "failed", "why": "\x1b[31mhello [/b]\nnext"})
    for words in (["runs", str(tmp_path)], ["runs", "compare", *map(str, paths)]):
        main(words)
        printed = capsys.readouterr().out
        assert not [character for character in printed if not character.isprintable() and character != "\n"]
        assert "[/" in printed
    main(["runs", str(tmp_path)])
    assert "?[31mhello [/b]?next" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runs", "{run}/run.json"], "give the directory that it is in"),
        (["runs", "compare", "{run}", "/nope"], "/nope: no directory of a run; give some that `deftly runs` lists"),
        (["train", "imitate", "--track", "nope"], "`deftly train --help` says"),
    ],
)
def test_a_mistyped_word_is_one_line_with_a_remedy(runs, capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        main([word.format(run=runs / "finished") for word in words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
