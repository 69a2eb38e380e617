"""A run begins with nothing, with chosen weights, or where another one stands; what does not fit is refused before anything is changed."""

import pytest
import safetensors.torch
import torch

from deftly import storage
from deftly.data.tokenizer import PAD, UNKNOWN, TextTokenizer
from deftly.training.start import Source, StartConfig, read_source, take_weights
from deftly.types import DataError, UsageError
from guards import guards
from training.toys import ToyObjective, ToyPolicy, ToyStream, fingerprint, log_lines, make_trainer, small_config, write_policy

CONSTANT = {"kind": "constant", "warmup_fraction": 0.0}  # the same rates, however many steps are to come


def trained(directory, **changes):
    config = small_config(steps=10, checkpoint_every=5, validate_every=None, **changes)
    trainer = make_trainer(directory, config=config)
    trainer.fit()
    return trainer


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def start(path, *weights, **changes):
    return small_config(validate_every=None, checkpoint_every=5, start=StartConfig(path=path, weights=weights), **changes)


def test_a_run_that_continues_elsewhere_ends_as_if_it_had_stayed(tmp_path):
    config = small_config(steps=10, checkpoint_every=5, validate_every=None)
    whole = make_trainer(tmp_path / "whole", config=config.replace(steps=20, schedule=CONSTANT))
    whole.fit()
    trained(tmp_path / "first", schedule=CONSTANT)
    before = files(tmp_path / "first")
    moved = make_trainer(tmp_path / "moved", config=start(tmp_path / "first", steps=20, schedule=CONSTANT))
    with pytest.raises(UsageError, match=r"training\.steps"):
        moved.fit()
    moved.fit(allow_change=["training.steps"])
    weights, expected = (each.snapshot() for each in (moved, whole))
    for name, tensor in expected.raw.items():
        assert torch.equal(weights.raw[name], tensor), name
    for name, tensor in expected.optimizer.items():
        assert torch.equal(weights.optimizer[name], tensor), name
    assert weights.trainer["samples"] == expected.trainer["samples"]
    # the first run, which ended at step 10, told its means then: the lines are the same from the next whole interval on
    lines = [[line for line in log_lines(tmp_path / name) if line["step"] >= 16] for name in ("moved", "whole")]
    assert lines[0] == lines[1]
    origin = storage.read_json(tmp_path / "moved" / "checkpoints" / "step-00000020" / "trainer.json")["origin"]
    assert origin["way"] == "continued"
    assert origin["sha256"] == storage.sha256(tmp_path / "first" / "checkpoints" / "step-00000010" / storage.MANIFEST)
    assert files(tmp_path / "first") == before


@guards("training.start.over")
def test_a_run_with_nothing_left_to_do_is_not_continued_elsewhere(tmp_path):
    trained(tmp_path / "first")
    with pytest.raises(UsageError, match=r"is at step 10 of 10, nothing is left; raise training\.steps"):
        make_trainer(tmp_path / "moved", config=start(tmp_path / "first", steps=10)).fit()
    assert not (tmp_path / "moved" / "run.json").exists()


def test_a_moved_run_that_is_stopped_resumes_from_its_own_checkpoint(tmp_path):
    trained(tmp_path / "first", schedule=CONSTANT)
    config = start(tmp_path / "first", steps=20, schedule=CONSTANT)
    whole = make_trainer(tmp_path / "whole", config=config)
    whole.fit(allow_change=["training.steps"])
    stopped = make_trainer(tmp_path / "moved", config=config, stream=ToyStream(calls={17: lambda: (_ for _ in ()).throw(KeyError("x"))}))
    with pytest.raises(KeyError):
        stopped.fit(allow_change=["training.steps"])
    resumed = make_trainer(tmp_path / "moved", config=config)
    resumed.fit(resume=True, allow_change=["training.steps"])
    assert fingerprint(resumed) == fingerprint(whole)


def test_fine_tuning_takes_what_the_names_match_and_nothing_else(tmp_path):
    source = trained(tmp_path / "source")
    saved = source.snapshot().objective
    trainer = make_trainer(tmp_path / "tuned", config=start(tmp_path / "source", r"policy\.(first|norm)\..*", steps=10))
    fresh = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    trainer.directory.mkdir()
    trainer._begin(False, ())
    taken = {"policy.first.weight", "policy.first.bias", "policy.norm.weight", "policy.norm.bias"}
    for name, value in trainer.objective.state_dict().items():
        assert torch.equal(value, saved[name] if name in taken else fresh[name]), name
        assert torch.equal(trainer.update.ema.average[name], value), name  # the average begins with them too
    assert not trainer.update.optimizer.state
    assert trainer.step == 0
    trainer.fit(resume=True)
    assert trainer.snapshot().trainer["origin"]["tensors"] == 4


@pytest.mark.parametrize("kind", ["run", "checkpoint", "policy", "file"])
def test_weights_come_from_runs_checkpoints_policies_and_files(tmp_path, kind):
    trainer = trained(tmp_path / "source")
    checkpoint = tmp_path / "source" / "checkpoints" / "step-00000010"
    path = {"run": tmp_path / "source", "checkpoint": checkpoint, "policy": checkpoint / "policy"}.get(kind)
    if path is None:
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file({"policy.first.weight": trainer.snapshot().objective["policy.first.weight"]}, path)
    objective = ToyObjective()
    assert take_weights(objective, (r"policy\.first\.weight",), read_source(path), None) == ["policy.first.weight"]
    assert torch.equal(objective.policy.first.weight, trainer.snapshot().objective["policy.first.weight"])


@pytest.mark.parametrize(
    ("patterns", "change", "error", "words"),
    [
        ((r"policy\.frist\..*",), {}, UsageError, r"matches the whole name of no parameter.*policy\.first"),
        ((r"policy\.fir",), {}, UsageError, "matches the whole name of no parameter"),
        ((".*",), {"policy.last.bias": None}, DataError, r"no tensor 'policy\.last\.bias'.*leave it out"),
        ((".*",), {"policy.last.bias": torch.zeros(5)}, DataError, r"'policy\.last\.bias' has shape \(5,\), here it is \(12,\)"),
        ((".*",), {"policy.last.bias": torch.full((12,), torch.nan)}, DataError, r"'policy\.last\.bias' holds a non-finite number"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, patterns, change, error, words):
    objective = ToyObjective()
    tensors = {name: torch.rand_like(value, dtype=torch.float32).to(value.dtype) for name, value in objective.state_dict().items()}
    source = Source({name: value for name, value in {**tensors, **change}.items() if value is not None}, None, tmp_path, "")
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(error, match=words) as caught:
        take_weights(objective, patterns, source, None)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_words_keep_their_meaning_in_another_vocabulary(tmp_path):
    class Reader(ToyPolicy):
        word_tables = ("task.weight",)

        def __init__(self, words: int) -> None:
            super().__init__()
            self.task = torch.nn.Embedding(words, 16)

    theirs, ours = TextTokenizer(["blue", "cup", "red"]), TextTokenizer(["ball", "blue", "red"])
    source = Reader(theirs.size)

    def with_words(directory, state):
        theirs.save(directory / "tokenizer.json")
        write_policy(directory, state)

    config = small_config(steps=2, validate_every=None, ema_decay=None)
    make_trainer(tmp_path, objective=ToyObjective(source), config=config, write_policy=with_words).fit()
    target = Reader(ours.size)
    fresh = target.task.weight.detach().clone()
    found = read_source(tmp_path)
    take_weights(ToyObjective(target), (r"policy\.task\..*",), found, (PAD, UNKNOWN, *ours.words))
    saved = found.tensors["policy.task.weight"]
    expected = torch.stack([saved[0], saved[1], fresh[2], saved[2], saved[4]])  # [PAD] [UNK] ball blue red
    assert torch.equal(target.task.weight, expected)


@guards("training.start.only_weights")
@pytest.mark.parametrize("what", ["nothing", "empty", "weights", "corrupt"])
def test_a_start_that_is_not_there_is_refused_before_anything_is_written(tmp_path, what):
    path = tmp_path / "source"
    if what == "empty":
        path.mkdir()
    elif what == "weights":
        path.mkdir()
        write_policy(path, {"first.weight": torch.zeros(2)})
    elif what == "corrupt":
        trained(path)
        file = path / "checkpoints" / "step-00000010" / "objective.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    words = {"corrupt": "sha256", "weights": "weights alone"}.get(what, r"start\.path")
    for weights in ((),) if what == "weights" else ((), (".*",)):
        with pytest.raises(DataError if what == "corrupt" else UsageError, match=words):
            make_trainer(tmp_path / "new", config=start(path, *weights, steps=10)).fit()
        assert not (tmp_path / "new" / "run.json").exists()
        assert what == "corrupt" or not (tmp_path / "new").exists()
    if what == "corrupt":  # another's directory is left as it is
        assert (path / "checkpoints" / "step-00000010").is_dir()


def test_mistakes_in_the_config_are_one_line():
    with pytest.raises(UsageError, match=r"start\.path, which is not given"):
        StartConfig.parse({"weights": ["a"]}, "run")
    with pytest.raises(UsageError, match="no regular expression"):
        StartConfig.parse({"path": "x", "weights": ["("]}, "run")
