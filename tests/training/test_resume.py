"""Killed or stopped at any moment, the resumed run ends in the same bits; what is not the same run is refused."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from deftly import storage
from deftly.contract import Camera, Contract, Embodiment, Vector, Window
from deftly.types import DataError, UsageError
from guards import guards
from training.toys import ToyObjective, ToyStream, fingerprint, log_lines, make_trainer, small_config

STEPS = 30


def config(**changes):
    return small_config(steps=STEPS, accumulation=2, validate_every=9, checkpoint_every=None, **changes)


def stream(**changes):
    return ToyStream(curriculum=True, poison={4: float("nan"), 17: float("nan")}, **changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    trainer = make_trainer(directory, config=config(), stream=stream())
    trainer.fit()
    return fingerprint(trainer), log_lines(directory)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("first", [1, 2, 9, 16, 29])
def test_n_steps_and_the_rest_equal_one_run(tmp_path, uninterrupted, first):
    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, config=config(), stream=stream(calls={first - 1: stop})).fit()
    assert ended.value.code == 143
    assert (tmp_path / "checkpoints" / "last").read_text() == f"step-{first:08d}\n"
    torch.rand(5)  # the state of global generators must not matter
    trainer = make_trainer(tmp_path, config=config(), stream=stream())
    trainer.objective.requires_grad_(True)
    trainer.fit(resume=True)
    assert (fingerprint(trainer), log_lines(tmp_path)) == uninterrupted


NURSERY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
import torch._dynamo  # which every optimizer imports: once, for all who are born here
from training.test_resume import doomed
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        doomed(sys.argv[2], *line.split())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def doomed(directory, position, delay):
    """Train, with SIGKILL coming `delay` seconds after batch `position` was asked for, at the latest when five more were."""

    def kill():
        time.sleep(float(delay))
        os.kill(os.getpid(), signal.SIGKILL)

    calls = {int(position): threading.Thread(target=kill).start, int(position) + 5: lambda: time.sleep(60)}
    make_trainer(Path(directory), config=config().replace(checkpoint_every=2), stream=stream(calls=calls)).fit(resume=True)


def test_killed_at_two_random_moments_it_ends_in_the_same_bits(tmp_path):
    saving = config().replace(checkpoint_every=2)
    whole = make_trainer(tmp_path / "whole", config=saving, stream=stream())
    started = time.monotonic()
    whole.fit()
    five_steps = (time.monotonic() - started) / STEPS * 5
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")
    draw = random.Random(seed)
    directory = tmp_path / "killed"
    arguments = [sys.executable, "-W", "ignore", "-c", NURSERY, str(Path(__file__).parents[1]), str(directory)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        assert nursery.stdout.readline() == "ready\n"
        for position in (draw.randrange(0, 11), draw.randrange(16, 25)):
            print(position, draw.uniform(0.0, five_steps), file=nursery.stdin, flush=True)
            assert int(nursery.stdout.readline()) == -signal.SIGKILL
    trainer = make_trainer(directory, config=saving, stream=stream())
    trainer.fit(resume=True)
    assert fingerprint(trainer) == fingerprint(whole)
    assert log_lines(directory) == log_lines(tmp_path / "whole")
    kept, expected = (sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (directory, tmp_path / "whole"))
    assert kept == expected


def test_resume_without_a_checkpoint_begins_at_the_beginning(tmp_path, uninterrupted):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "kind": "train"}\n{"step": 5, "ki')
    trainer = make_trainer(tmp_path, config=config(), stream=stream())
    trainer.fit(resume=True)
    assert (fingerprint(trainer), log_lines(tmp_path)) == uninterrupted


def test_what_a_kill_left_of_a_small_file_is_removed(tmp_path):
    """Killed between a temporary file and its name; what is named otherwise is not ours."""
    leftover, other = tmp_path / ".metrics.jsonl.4711.tmp", tmp_path / ".notes.tmp"
    for path in (leftover, other):
        path.write_text("half")
    make_trainer(tmp_path, config=small_config(steps=1)).fit()
    assert not leftover.exists()
    assert other.exists()


def test_a_finished_run_resumes_to_its_summary(tmp_path):
    first = make_trainer(tmp_path, config=config(), stream=stream())
    expected = first.fit()
    pointer = tmp_path / "checkpoints" / "last"
    pointer.write_text("step-00000009\n")  # as a crash between the checkpoint and its pointer leaves it
    again = make_trainer(tmp_path, config=config(), stream=stream())
    found = again.fit(resume=True)
    assert {name: found[name] for name in ("steps", "loss", "validation_loss", "best", "skipped")} == {
        name: expected[name] for name in ("steps", "loss", "validation_loss", "best", "skipped")
    }
    assert fingerprint(again) == fingerprint(first)
    assert pointer.read_text() == f"step-{STEPS:08d}\n"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of five steps to be resumed by whoever may."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        make_trainer(directory, config=config(), stream=stream(calls={4: stop}), contract=contract(0.0)).fit()
    return directory


def contract(low):
    vector = Vector(names=("x",), units=("m",), low=(low,), high=(1.0,))
    embodiment = Embodiment(name="arm", rate_hz=10, cameras=(Camera(name="head", height=8, width=8),), state=vector, action=vector)
    return Contract(
        embodiment=embodiment, cameras=("head",), image_size=8, window=Window(), executed_steps=1, normalization="quantile",
        statistics_hash="s", tokenizer_hash="t", text_length=4, dataset_hash="data-1",
    )  # fmt: skip


def refusal(directory, error, *, allow_change=(), **changes):
    given = {"config": config(), "stream": stream(), "contract": contract(0.0), **changes}
    with pytest.raises(error) as caught:
        make_trainer(directory, **given).fit(resume=True, allow_change=allow_change)
    text = str(caught.value)
    assert "\n" not in text
    return text


@guards("training.resume.config")
def test_a_changed_config_is_refused_by_field(stopped):
    text = refusal(stopped, UsageError, config=config().replace(steps=40, clip_norm=2.0))
    assert "training.steps: expected 30, found 40; training.clip_norm: expected 1.0, found 2.0" in text


@guards("training.resume.data")
def test_changed_data_is_refused_naming_the_difference(stopped):
    assert 'dataset_hash: expected "data-1", found "data-2"' in refusal(stopped, DataError, dataset_hash="data-2")
    assert "contract.embodiment.state.low[0]: expected 0.0, found -1.0" in refusal(stopped, DataError, contract=contract(-1.0))


@pytest.fixture
def copied(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@guards("training.resume.allowed")
def test_a_named_field_may_change_and_no_other(copied):
    longer = config().replace(steps=40, clip_norm=2.0)
    assert "--allow-change training.clip_norm," in refusal(copied, UsageError, allow_change=["training.steps"], config=longer)
    for name, hint in (("training.stepz", "did you mean 'steps'?"), ("trainin", "did you mean 'training'?"), ("name.x", "known here")):
        assert hint in refusal(copied, UsageError, allow_change=[name], config=longer)
    trainer = make_trainer(copied, config=longer, stream=stream(calls={34: stop}), contract=contract(0.0))
    before = log_lines(copied)
    with pytest.raises(SystemExit):
        trainer.fit(resume=True, allow_change=["training"])
    assert log_lines(copied)[: len(before)] == before
    assert storage.read_json(copied / "run.json")["training"]["steps"] == 40
    # the same command again: the change is no change any more
    trainer = make_trainer(copied, config=longer, stream=stream(), contract=contract(0.0))
    assert trainer.fit(resume=True, allow_change=["training"])["steps"] == 40
    assert "training.steps: expected 40, found 30" in refusal(copied, UsageError)


@pytest.mark.parametrize("fits", [True, False])
def test_other_data_is_gone_on_with_when_it_is_named(copied, fits, capsys):
    class OtherLength(ToyStream):
        def load_state(self, state):
            raise DataError("the saved stream has windows 7, this one 8")

    given = {"config": config(), "contract": contract(-1.0), "dataset_hash": "data-2"}
    assert "--allow-change dataset" in refusal(copied, DataError, **given)
    assert "the data is not" in refusal(copied, DataError, allow_change=["training"], **given)
    other = (ToyStream if fits else OtherLength)(curriculum=True, calls={} if fits else {2: stop})
    trainer = make_trainer(copied, stream=other, **given)
    if fits:
        assert trainer.fit(resume=True, allow_change=["dataset"])["steps"] == STEPS
    else:
        with pytest.raises(SystemExit):
            trainer.fit(resume=True, allow_change=["dataset"])
        assert other.position == 3
        assert "it begins at its first sample" in capsys.readouterr().err
        trainer = make_trainer(copied, stream=ToyStream(curriculum=True), **given)
        assert trainer.fit(resume=True)["steps"] == STEPS


@guards("training.resume.fixed")
def test_another_precision_is_refused_and_other_threads_are_announced(stopped, capsys):
    names = {"name": "toy", "training": config().to_dict()}
    assert "precision: expected" in refusal(stopped, UsageError, config=config().replace(precision="bf16"), run_json=names)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        trainer = make_trainer(stopped, config=config(), stream=stream(calls={5: stop}), contract=contract(0.0))
        with pytest.raises(SystemExit):
            trainer.fit(resume=True)
    finally:
        torch.set_num_threads(before)
    assert "not bit for bit" in capsys.readouterr().err


def test_another_model_is_refused(stopped):
    wider = ToyObjective()
    wider.policy.extra = torch.nn.Linear(2, 2)
    assert "lacks 'policy.extra.bias'" in refusal(stopped, DataError, objective=wider)


@guards("training.update.average")
def test_a_checkpoint_with_half_of_its_weights_is_refused(copied):
    newest = max((copied / "checkpoints").glob("step-*"))
    about = storage.read_json(newest / storage.MANIFEST)
    (newest / "raw.safetensors").unlink()
    storage.write_manifest(newest, {name: value for name, value in about.items() if name != "files"})
    assert "lacks weights beside averaged ones" in refusal(copied, DataError)
