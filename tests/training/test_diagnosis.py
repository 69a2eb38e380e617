"""What `diagnose` reads, what it refuses, and the verdicts that need no training to be shown."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import storage
from deftly.cli import diagnose as command
from deftly.training.diagnosis.data import lag_fits
from deftly.training.diagnosis.examine import diagnose
from deftly.training.diagnosis.verdicts import EXPLAINS, ORDER, Verdict, ranked
from deftly.types import DataError, UsageError
from guards import guards
from side_files import damaged, refusal
from training.toys import make_trainer, small_config


def verdict(code, severity):
    return Verdict(code=code, severity=severity, what="", evidence="seen", remedy="")


def codes(directory):
    return {one.code: one for one in diagnose(directory)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("diagnosis") / "run"
    make_trainer(directory, config=small_config(steps=60, log_every=5, checkpoint_every=None)).fit()
    lines = [{**line, "time": {**line["time"], "data": 0.0}} for line in storage.read_lines(directory / "metrics.jsonl")]  # a busy machine
    storage.write_text(directory / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def add(run, **line):
    storage.append_line(run / "metrics.jsonl", line, durable=False)


def rewrite(run, kind, change):
    lines = [change(line, index) if line["kind"] == kind else line for index, line in enumerate(storage.read_lines(run / "metrics.jsonl"))]
    storage.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


# -- ranking -----------------------------------------------------------------------------------------------------------------------------


def test_the_worst_comes_first_and_causes_before_their_symptoms():
    found = ranked(
        [verdict("overfitting", "warning"), verdict("too-short", "note"), verdict("dead-units", "fault"), verdict("spikes", "warning")]
    )
    assert [one.code for one in found] == ["dead-units", "spikes", "overfitting", "too-short"]


def test_what_a_cause_explains_becomes_a_note_and_a_note_explains_nothing():
    found = ranked([verdict("nothing-learnt", "warning"), verdict("frozen-module", "fault")])
    assert [(one.code, one.severity) for one in found] == [("frozen-module", "fault"), ("nothing-learnt", "note")]
    assert "follows from frozen-module" in found[1].evidence
    assert found[1].remedy == "mend frozen-module first"
    found = ranked([verdict("nothing-learnt", "warning"), verdict("frozen-module", "fault"), verdict("dead-units", "fault")])
    assert [one.evidence for one in found] == ["seen", "seen (follows from dead-units)", "seen (follows from dead-units)"]
    found = ranked([verdict("nothing-learnt", "warning"), verdict("frozen-module", "note")])
    assert found[0].severity == "warning"


def test_what_is_said_of_many_parts_is_one_verdict():
    many = [Verdict(code="frozen-by-choice", severity="note", what=f"{i} is frozen", evidence=f"{i} of 9", remedy="") for i in range(6)]
    (one,) = ranked(many)
    assert one.what == "0 is frozen (and 5 more)"
    assert one.evidence == "0 of 9; 1 is frozen: 1 of 9; 2 is frozen: 2 of 9; 3 is frozen: 3 of 9; and 2 more"
    assert ranked(many[:1]) == many[:1]


def test_every_code_that_is_explained_has_a_place():
    assert {code for symptoms in EXPLAINS.values() for code in symptoms} | set(EXPLAINS) <= set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


# -- what is read ------------------------------------------------------------------------------------------------------------------------


@guards("training.diagnose.directory", "training.diagnose.log")
def test_a_directory_without_a_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such directory"):
        diagnose(tmp_path / "none")
    with pytest.raises(UsageError, match=r"has no metrics\.jsonl"):
        diagnose(tmp_path)


@guards("training.diagnose.line")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"step": 61, "kind": "train"}', "not what deftly writes"),
        ('{"step": 61, "kind": "train", "loss": "low", "learning_rate": 0, "gradient_norm": 1}', "not what deftly writes"),
        ('{"step": 61, "kind": "modules", "modules": [1]}', "not what deftly writes"),
        ('{"step": 61, "kind": "detail", "terms": {"a": {"dimension": 3}}}', "not what deftly writes"),
        ("[1, 2]", "not a line that training writes"),
        ('{"step": "x", "kind": "train"}', "not a line that training writes"),
        ("{broken", "not valid JSON"),
    ],
)
def test_a_damaged_log_is_refused_in_one_line(run, line, says):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(line + "\n" + '{"step": 62, "kind": "other"}\n')
    with pytest.raises(DataError, match=says) as caught:
        diagnose(run)
    assert "\n" not in str(caught.value)


@guards("training.diagnose.file")
@pytest.mark.parametrize("name", ["run.json", "failure.json"])
def test_other_damaged_files_are_refused_in_one_line(run, name):
    (run / name).write_text("[]")
    with pytest.raises(DataError, match=name):
        diagnose(run)


def test_an_unfinished_log_is_read_as_far_as_it_goes(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 61, "ki')
    assert "non-finite" not in codes(run)


def test_a_log_of_before_there_were_norms_and_details_is_read(run):
    lines = [line for line in storage.read_lines(run / "metrics.jsonl") if line["kind"] in ("train", "validation")]
    storage.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    diagnose(run)


def test_the_command_prints_a_table_or_json_and_is_strict_when_asked(run, capsys):
    command.main([str(run)])
    assert "nothing above a note" in " ".join(capsys.readouterr().out.split())
    command.main([str(run), "--strict"])
    add(run, step=61, kind="skipped", reason="spike", loss=900.0, terms={}, gradient_norm=1.0, episodes="3, 5")
    capsys.readouterr()
    command.main([str(run)])
    assert "run: 1 warning" in "".join(capsys.readouterr().out.split("\n"))
    command.main([str(run), "--json"])
    (first, *_) = json.loads(capsys.readouterr().out)
    assert (first["code"], first["severity"]) == ("spikes", "warning")
    assert "episodes 3, 5" in first["evidence"]
    with pytest.raises(SystemExit) as ended:
        command.main([str(run), "--strict"])
    assert ended.value.code == 1


def test_every_fold_of_a_run_is_judged(run, tmp_path, capsys):
    for index in range(2):
        shutil.copytree(run, tmp_path / "all" / f"fold-{index}")
    add(tmp_path / "all" / "fold-1", step=61, kind="skipped", reason="spike", loss=900.0, terms={}, gradient_norm=1.0, episodes="3, 5")
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "all"), "--json", "--strict"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["fold-0", "fold-1"]
    assert not [one for one in found["fold-0"] if one["severity"] != "note"]
    assert found["fold-1"][0]["code"] == "spikes"
    command.main([str(tmp_path / "all")])
    assert "fold-0: nothing above a note" in "".join(capsys.readouterr().out.split("\n"))


def test_losses_that_come_again_are_a_warning_however_few_were_skipped(run):
    rewrite(run, "train", lambda line, index: {**line, "step": 100 * line["step"]})
    add(run, step=6001, kind="skipped", reason="spike", loss=900.0, terms={}, gradient_norm=1.0, episodes="3, 5")
    found = codes(run)["spikes"]
    assert (found.severity, "came again" in found.evidence) == ("note", False)
    add(run, step=6009, kind="recurring", loss=900.0, episodes="3, 8", keys=[])
    found = codes(run)["spikes"]
    assert found.severity == "warning"
    assert found.evidence.startswith(
        "1 of 6009 steps skipped (step 6001); such losses came again and again, and are learnt from since step 6009;"
    )
    assert "episodes 3 in 100% of them" in found.evidence


# -- verdicts ----------------------------------------------------------------------------------------------------------------------------


def test_waiting_for_data_is_a_habit_and_no_single_stall(run):
    def waits(seconds, every):
        def change(line, index):
            data = seconds if line["step"] % every == 0 else 0.0
            return {**line, "time": {"data": data, "forward_backward": 0.1, "optimizer": 0.0, "other": 0.0}}

        return change

    rewrite(run, "train", waits(30.0, 40))
    assert "data-bound" not in codes(run)
    rewrite(run, "train", waits(0.3, 5))
    assert codes(run)["data-bound"].evidence == "75% of the time of a step, 60.0 ms of 80.0 ms"


def test_a_run_that_gave_up_says_so_until_it_got_further(run):
    storage.write_json(run / "failure.json", {"step": 60, "bad_steps_in_a_row": 10, "rollbacks": [{}], "remedy": "look"})
    assert codes(run)["stopped"].severity == "fault"
    add(run, step=61, kind="other")
    assert "stopped" not in codes(run)


def test_a_loss_that_rises_again_has_diverged(run):
    rewrite(run, "train", lambda line, index: {**line, "loss": 1.0 - 0.01 * line["step"] if line["step"] < 45 else 3.0})
    assert codes(run)["diverged"].severity == "fault"


def test_weights_that_grow_without_end_are_named(run):
    def grow(line, index):
        modules = {name: dict(one) for name, one in line["modules"].items()}
        modules["policy.last"]["weight"] *= line["step"] ** 2
        return {**line, "modules": modules}

    rewrite(run, "modules", grow)
    assert "policy.last" in codes(run)["exploding-weights"].what


def test_a_module_that_the_optimizer_does_not_know_is_named(run):
    rewrite(
        run,
        "modules",
        lambda line, index: {**line, "modules": {**line["modules"], "policy.first": {**line["modules"]["policy.first"], "update": 0.0}}},
    )
    assert codes(run)["no-update"].what.startswith("policy.first")


def test_what_is_frozen_on_purpose_is_a_note(run):
    frozen = {"gradient": None, "update": None, "ratio": None}
    rewrite(
        run,
        "modules",
        lambda line, index: {**line, "modules": {**line["modules"], "policy.first": {**line["modules"]["policy.first"], **frozen}}},
    )
    assert codes(run)["frozen-by-choice"].severity == "note"


def moved_by(lag, episodes=8, frames=60, seed=0):
    """A state that follows its command, with labels that stand `lag` frames too late."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(episodes):
        action = draw.normal(size=(frames, 3)).cumsum(0) * 0.2
        state = np.zeros((frames, 3))
        for frame in range(frames - 1):
            state[frame + 1] = state[frame] + 0.5 * (action[frame] - state[frame]) + 0.01 * draw.normal(size=3)
        found.append((state.astype(np.float32), np.roll(action, lag, axis=0).astype(np.float32)))
    return found


def share(name, value):
    """Give every module this share, at every logged step."""
    return lambda line, index: {**line, "modules": {module: {**one, name: value} for module, one in line["modules"].items()}}


def test_updates_that_are_rounded_away_are_named_unless_there_was_no_rate(run):
    rewrite(run, "modules", share("lost", 0.4))
    assert "lost-updates" not in codes(run)
    rewrite(run, "modules", share("lost", 0.7))
    assert codes(run)["lost-updates"].severity == "warning"
    rewrite(run, "modules", share("lost", 0.95))
    assert codes(run)["lost-updates"].severity == "fault"
    rewrite(run, "train", lambda line, index: {**line, "learning_rate": 0.0})
    assert "lost-updates" not in codes(run)


def test_gradients_that_vanish_in_float16_are_named(run):
    rewrite(run, "modules", share("vanished", 0.3))
    assert "gradient-underflow" not in codes(run)
    rewrite(run, "modules", share("vanished", 0.8))
    assert "80% of the gradient" in codes(run)["gradient-underflow"].evidence


def test_a_loss_scale_that_keeps_falling_or_fell_to_its_floor_is_named(run):
    for step, scale in ((1, 2.0**15), (2, 2.0**14), (20, 2.0**13)):
        add(run, step=step, kind="overflow", loss_scale=scale)
    assert codes(run)["overflows"].severity == "note"
    assert "loss-scale" not in codes(run)
    for step in (30, 40, 50):
        add(run, step=step, kind="overflow", loss_scale=2.0**10)
    found = codes(run)
    assert "again and again" in found["loss-scale"].what
    assert "4 of them after the beginning" in found["loss-scale"].evidence
    assert "overflows" not in found
    rewrite(run, "overflow", lambda line, index: {**line, "step": 2, "loss_scale": 1.0})
    assert "its floor" in codes(run)["loss-scale"].evidence


def test_a_small_batch_is_a_note_and_a_warning_where_the_loss_suffers(run):
    def noise(ratio):
        return lambda line, index: {**line, "noise": {"squared_norm": 1.0, "variance": 8.0 * ratio, "samples": 8}}

    rewrite(run, "modules", noise(3))
    assert "gradient-noise" not in codes(run)
    rewrite(run, "modules", noise(20))
    found = codes(run)["gradient-noise"]
    assert (found.severity, "160 samples or more, the batch has 8: 20 times" in found.evidence) == ("note", True)
    for step in range(61, 121):
        add(run, step=step, kind="train", loss=0.1 * (1 + step % 2), terms={}, gradient_norm=1.0, learning_rate=1e-2, time={})
    found = codes(run)
    assert found["gradient-noise"].severity == "warning"
    assert "follows from gradient-noise" in found["oscillation"].evidence
    signal = lambda step: 300.0 * (-1) ** (step // 5)  # noqa: E731
    rewrite(run, "modules", lambda line, index: {**line, "noise": {**line["noise"], "squared_norm": signal(line["step"])}})
    assert "gradient-noise" not in codes(run)  # the signal may as well be large


@pytest.mark.parametrize("lag", [-4, 0, 1, 3])
def test_the_probe_finds_by_how_much_labels_are_shifted(lag):
    fits = lag_fits(moved_by(lag))
    assert max(fits, key=fits.__getitem__) == lag
    assert fits[lag] > 0.9


def test_the_probe_is_silent_where_nothing_can_be_told():
    draw = np.random.default_rng(0)
    noise = [(draw.normal(size=(60, 3)).astype(np.float32), draw.normal(size=(60, 3)).astype(np.float32)) for _ in range(8)]
    fits = lag_fits(noise)
    assert max(fits.values()) - fits[0] < 0.05
    assert lag_fits(noise[:3]) is None
    assert lag_fits([(state[:10], action[:10]) for state, action in noise]) is None


def test_names_of_a_dataset_are_text_and_not_markup(capsys, tmp_path):
    said = Verdict(code="spikes", severity="warning", what="a[/b]", evidence="joint[rad], grip[/b]", remedy="\x1b[31mlook")
    command.print_table([said], tmp_path / "run [/x]\x1b[31m")
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("a[/b]", "joint[rad], grip[/b]", "?[31mlook", "run [/x]?[31m: 1 warning"):
        assert text in printed


# -- files of others ---------------------------------------------------------------------------------------------------------------------

FAILURE = {"step": 60, "bad_steps_in_a_row": 9, "rollbacks": [], "remedy": "look"}


@pytest.mark.parametrize(
    ("file", "value"),
    [
        pytest.param("run.json", {"seed": 1.5}, marks=guards("training.diagnose.seed")),
        ("run.json", {"seed": "abc"}),
        ("run.json", {"seed": None}),
        ("run.json", {"seed": [1]}),
        ("run.json", {"seed": math.inf}),
        pytest.param("run.json", {"training": {"clip_norm": "x"}}, marks=guards("training.diagnose.figure")),
        ("run.json", {"training": {"optimizer": {"learning_rate": None}}}),
        pytest.param("run.json", {"training": {"optimizer": None}}, marks=guards("training.diagnose.part")),
        pytest.param("run.json", {"training": {"ema_decay": 1}}, marks=guards("training.diagnose.decay")),
        pytest.param("run.json", {"training": {"start": None}}, marks=guards("training.diagnose.start")),
        pytest.param("failure.json", {"step": 60}, marks=guards("training.diagnose.failure")),
        ("failure.json", {**FAILURE, "rollbacks": 7}),
    ],
)
def test_a_file_with_other_fields_than_training_writes_is_named(run, file, value):
    (run / file).write_text(json.dumps(value))
    with pytest.raises(DataError, match=file) as caught:
        diagnose(run)
    assert "\n" not in str(caught.value)


def test_a_huge_number_in_the_log_is_refused(run):
    add(run, step=10**400, kind="train", loss=1.0, terms={}, gradient_norm=1.0, learning_rate=1e-2, time={})
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        diagnose(run)


@settings(max_examples=150)
@given(data=st.data())
def test_no_damage_is_an_internal_error(trained, data):
    """One value of a good run is another: verdicts, or one line that names the file."""
    (trained / "failure.json").write_text(json.dumps(FAILURE))
    file = data.draw(st.sampled_from(["run.json", "failure.json", "metrics.jsonl"]))
    with damaged(trained / file, data):
        said = refusal(lambda: diagnose(trained))
    assert not said or file in said
    assert "\n" not in said
    (trained / "failure.json").unlink()
