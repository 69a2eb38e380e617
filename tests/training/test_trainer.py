"""The loop: what it minimises, what it refuses, what it leaves alone."""

import math

import pytest
import torch
from torch import nn

from deftly import randomness, storage
from deftly.training.checkpoint import read_tensors
from deftly.training.guard import TrainingError
from deftly.training.step import check_batch, clip, total_counts
from deftly.training.validation import evaluating, validate
from deftly.types import Clock, DataError, UsageError
from guards import guards
from training.toys import (
    ToyObjective,
    ToyPolicy,
    ToyStream,
    TwoTerms,
    fingerprint,
    held_out,
    log_lines,
    make_batch,
    make_trainer,
    small_config,
)

SILENT = {"validate_every": None, "checkpoint_every": None}


def batch_of(size, dtype=torch.float32, epoch=0):
    return make_batch(randomness.sample_keys(0, torch.full((size,), epoch), torch.arange(size)), dtype)


def plain(objective_class, dtype=torch.float64):
    torch.manual_seed(0)
    return objective_class(ToyPolicy(dropout=0.0, batch_norm=False)).to(dtype)


# -- what is minimised -------------------------------------------------------------------------------------------------------------------


def test_training_learns_and_the_run_directory_is_complete(tmp_path):
    config = small_config(steps=150, log_every=10, validate_every=50, checkpoint_every=None)
    trainer = make_trainer(tmp_path, objective=ToyObjective(ToyPolicy(dropout=0.0, batch_norm=False)), config=config)
    summary = trainer.fit()
    lines = log_lines(tmp_path)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert summary["steps"] == 150
    assert summary["validation_loss"] == [line for line in lines if line["kind"] == "validation"][-1]["loss"]
    assert summary["best"]["loss"] == min(line["loss"] for line in lines if line["kind"] == "validation")
    newest = tmp_path / "checkpoints" / "step-00000150"
    storage.verify(newest)
    assert {path.name for path in newest.iterdir()} == {
        "policy", "run.json", "objective.safetensors", "raw.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"
    }  # fmt: skip
    assert (tmp_path / "checkpoints" / "last").read_text().strip() == newest.name
    assert storage.read_json(tmp_path / "run.json")["name"] == "toy"
    time = [line["time"] for line in storage.read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert set(time[0]) == {"data", "forward_backward", "optimizer", "validation", "checkpoint", "other", "utilization", "elapsed"}
    assert math.isclose(
        sum(value for name, value in summary["seconds"].items() if name != "total"), summary["seconds"]["total"], abs_tol=0.01
    )


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_terms_with_different_masks_have_the_gradient_of_the_whole_batch(tmp_path, accumulation):
    batch = batch_of(16, torch.float64)
    whole = plain(TwoTerms)
    terms = whole(batch, Clock(0, 30), whole.counts(batch))
    (terms["mse"].value + 0.3 * terms["sign"].value).backward()
    trainer = make_trainer(tmp_path, objective=plain(TwoTerms), config=small_config(accumulation=accumulation, clip_norm=None))
    report, accepted, *_ = trainer.update(batch, Clock(0, 30))
    assert accepted
    for name, term in terms.items():
        assert report[name] == pytest.approx(term.value.item(), abs=1e-10)
    for (name, ours), theirs in zip(trainer.objective.named_parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).abs().max() < 1e-10, name
    # The masks do differ: averaging the micro-batches' own means would be another gradient.
    naive = plain(TwoTerms)
    for part in batch.split(2):
        own = naive(part, Clock(0, 30), naive.counts(part))
        (0.5 * (own["mse"].value + 0.3 * own["sign"].value)).backward()
    assert (naive.sign.weight.grad - whole.sign.weight.grad).abs().max() > 1e-3


def test_accumulation_gives_the_same_run(tmp_path):
    weights = []
    for accumulation in (1, 2, 4):
        config = small_config(accumulation=accumulation, **SILENT)
        stream = ToyStream(dtype=torch.float64)
        trainer = make_trainer(tmp_path / str(accumulation), objective=plain(TwoTerms), stream=stream, config=config, validation=None)
        trainer.fit()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.objective.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-10
    assert (weights[0] - weights[2]).abs().max() < 1e-10


def test_counts_are_summed_over_micro_batches():
    parts = [{"a": torch.tensor(2.0), "b": torch.tensor(0.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}]
    assert total_counts(parts) == {"a": torch.tensor(5.0), "b": torch.tensor(1.0)}
    assert total_counts(parts[:1]) == parts[0]
    assert total_counts([{}, {}]) == {}


def test_clipping_measures_and_limits_the_whole_gradient():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for most, expected in ((None, 5.0), (1.0, 1.0), (9.0, 5.0)):
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert clip(parameters, most).item() == pytest.approx(5.0)
        after = torch.cat([parameters[0].grad, parameters[1].grad]).norm().item()
        assert after == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_of_each_step_is_the_schedules(tmp_path):
    config = small_config(log_every=1, **SILENT)
    make_trainer(tmp_path, config=config, validation=None).fit()
    peak = config.optimizer.learning_rate
    assert [line["learning_rate"] for line in log_lines(tmp_path) if line["kind"] == "train"] == [
        peak * config.schedule.factor(step, 30) for step in range(30)
    ]


def test_bf16_trains_with_float32_weights(tmp_path):
    config = small_config(precision="bf16", **SILENT)
    trainer = make_trainer(tmp_path, config=config)
    summary = trainer.fit()
    assert summary["precision"] == "bf16"
    assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
    assert math.isfinite(summary["validation_loss"])


def test_channels_last_reaches_the_kernels(tmp_path):
    objective = ToyObjective()
    objective.policy.conv = nn.Conv2d(3, 4, 3)
    make_trainer(tmp_path, objective=objective, config=small_config(channels_last=True))
    assert objective.policy.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_threads_are_set_and_recorded(tmp_path):
    before = torch.get_num_threads()
    try:
        trainer = make_trainer(tmp_path, config=small_config(threads=2, **SILENT))
        assert torch.get_num_threads() == 2
        assert trainer.plan()["threads"] == 2
        assert trainer.snapshot().trainer["environment"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


# -- what is refused ---------------------------------------------------------------------------------------------------------------------


def test_objectives_that_do_not_decompose_refuse_accumulation(tmp_path):
    class Contrastive(ToyObjective):
        decomposes = False

    make_trainer(tmp_path, objective=Contrastive())
    with pytest.raises(UsageError, match="Contrastive does not decompose"):
        make_trainer(tmp_path, objective=Contrastive(), config=small_config(accumulation=2))


def test_what_the_objective_reads_must_be_there_before_the_first_step(tmp_path):
    class Grasps(ToyObjective):
        reads = ("labels.grasp",)

    with pytest.raises(UsageError, match=r"Grasps reads 'labels.grasp', which the data does not give \(there is sign, sign_is_valid\)"):
        make_trainer(tmp_path, objective=Grasps()).fit()
    acting = batch_of(2)
    acting.actions = None
    with pytest.raises(UsageError, match="ToyObjective reads 'actions'"):
        check_batch(ToyObjective(), acting, 1)


def test_a_batch_must_divide_into_its_micro_batches(tmp_path):
    with pytest.raises(UsageError, match="a batch of 8 samples does not divide"):
        make_trainer(tmp_path, config=small_config(accumulation=3)).fit()


def test_a_run_is_not_overwritten(tmp_path):
    make_trainer(tmp_path, config=small_config(steps=2)).fit()
    with pytest.raises(UsageError, match="holds a run at step 2; pass --resume"):
        make_trainer(tmp_path, config=small_config(steps=2)).fit()


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "plan", lambda: {"checkpoint_bytes": 1 << 60})
    with pytest.raises(UsageError, match="make room"):
        trainer.fit()


# -- what it leaves alone ----------------------------------------------------------------------------------------------------------------


def test_looking_saving_and_logging_never_change_the_weights(tmp_path):
    def run(name, **changes):
        given = {"validate_every": None, "checkpoint_every": None, "log_every": 1000, **changes}
        trainer = make_trainer(tmp_path / name, config=small_config(steps=20, **given))
        trainer.fit()
        snapshot = trainer.snapshot()
        return {**snapshot.objective, **{f"raw {name}": tensor for name, tensor in (snapshot.raw or {}).items()}, **snapshot.optimizer}

    expected = run("silent")
    for name, changes in (("log", {"log_every": 1}), ("validate", {"validate_every": 1}), ("save", {"checkpoint_every": 3})):
        found = run(name, **changes)
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_a_step_with_a_non_finite_loss_leaves_no_trace(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(steps=6, **SILENT), stream=ToyStream(poison={5: math.nan}))
    stopped = make_trainer(tmp_path / "good", config=small_config(steps=6, **SILENT), stream=ToyStream())
    for _ in range(5):
        for each in (trainer, stopped):
            each.update(each.stream.next(), Clock(each.step, 6))
            each.step += 1
    before = fingerprint(stopped)
    report, accepted, *_ = trainer.update(trainer.stream.next(), Clock(5, 6))
    assert not accepted
    assert math.isnan(report["loss"])
    trainer.update.guard.load_state(stopped.update.guard.state())
    trainer.stream.position = 5
    assert fingerprint(trainer) == before  # weights, averages, moments, running statistics


def test_a_non_finite_gradient_behind_a_finite_loss_is_caught(tmp_path):
    class Steep(ToyObjective):
        def forward(self, batch, clock, counts):
            from deftly.types import Term

            weight = self.policy.first.weight  # type: ignore[union-attr]
            return {"steep": Term((weight - weight.detach()).abs().sqrt().sum())}  # loss 0, slope infinite

    trainer = make_trainer(tmp_path, objective=Steep())
    report, accepted, *_ = trainer.update(batch_of(4), Clock(0, 30))
    assert report["loss"] == 0.0
    assert not math.isfinite(report["gradient_norm"])
    assert not accepted
    assert not trainer.update.optimizer.state


def test_bad_steps_are_counted_and_logged_and_training_goes_on(tmp_path, capsys):
    stream = ToyStream(curriculum=True, poison={3: math.nan, 4: math.inf, 9: math.nan})
    summary = make_trainer(tmp_path, stream=stream).fit()
    assert summary["skipped"] == 3
    assert math.isfinite(stream.difficulty)  # a curriculum never hears of a bad step
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "skipped"] == [4, 5, 10]
    assert [line for line in lines if line["kind"] == "train"][-1]["skipped"] == 3
    assert "WARNING: step 4 skipped" in capsys.readouterr().err
    for path in tmp_path.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in read_tensors(path).values())


def test_too_many_bad_steps_end_training_naming_step_and_episodes(tmp_path):
    stream = ToyStream(poison=dict.fromkeys(range(8, 30), math.nan))
    with pytest.raises(TrainingError, match=r"step 11: 3 steps in a row .*episodes \d"):
        make_trainer(tmp_path, stream=stream, config=small_config(max_bad_steps=3, max_rollbacks=0)).fit()
    last = tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "last").read_text().strip()
    storage.verify(last)
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(last / "raw.safetensors").values())


@guards("training.update.finite")
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.objective.policy.first.weight[0, 0] = torch.inf  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match=r"policy\.first\.weight is no longer finite"):
        trainer.snapshot()


def test_dropout_is_drawn_anew_for_every_step_and_micro_batch(tmp_path):
    seen = []

    class Recording(ToyObjective):
        def forward(self, batch, clock, counts):
            seen.append(torch.rand(1).item())
            return super().forward(batch, clock, counts)

    make_trainer(
        tmp_path, objective=Recording(), config=small_config(steps=5, accumulation=2, count_flops=False, **SILENT), validation=None
    ).fit()
    assert len(set(seen)) == len(seen) == 10
    first = list(seen)
    seen.clear()
    torch.rand(7)
    make_trainer(
        tmp_path / "b", objective=Recording(), config=small_config(steps=5, accumulation=2, count_flops=False, **SILENT), validation=None
    ).fit()
    assert seen == first


# -- validation --------------------------------------------------------------------------------------------------------------------------


def test_validation_is_the_masked_mean_over_all_held_out_samples():
    objective = plain(TwoTerms)
    parts = [batch_of(4, torch.float64, epoch=1), batch_of(12, torch.float64, epoch=2)]
    loss, terms = validate(objective, parts, 30, torch.no_grad(), torch.device("cpu"))
    errors = [((objective.policy(part) - part.actions).square() * part.valid_actions()).sum() for part in parts]
    assert terms["mse"] == pytest.approx((sum(errors) / sum(part.valid_actions().sum() for part in parts)).item())
    assert loss == pytest.approx(terms["mse"] + 0.3 * terms["sign"])  # what is only reported does not count


def test_validation_leaves_every_mode_as_it_was():
    policy = ToyPolicy()
    policy.batch_norm.eval()
    with evaluating(policy):
        assert not any(part.training for part in policy.modules())
    assert policy.dropout.training
    assert not policy.batch_norm.training


def test_validation_without_a_sample_is_an_error():
    with pytest.raises(DataError, match="validation_fraction"):
        validate(ToyObjective(), [], 30, torch.no_grad(), torch.device("cpu"))


def test_averaged_weights_are_validated_and_shipped(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    newest = tmp_path / "checkpoints" / "step-00000030"
    averages, raw = read_tensors(newest / "objective.safetensors"), read_tensors(newest / "raw.safetensors")
    shipped = read_tensors(newest / "policy" / "model.safetensors")
    assert all(torch.equal(averages[f"policy.{name}"], tensor) for name, tensor in shipped.items())
    assert not torch.equal(averages["policy.first.weight"], raw["policy.first.weight"])
    assert torch.equal(raw["policy.first.weight"], trainer.objective.policy.first.weight)  # type: ignore[union-attr]
    averaged = ToyObjective()
    averaged.load_state_dict(averages)
    loss, _ = validate(averaged, held_out(), 30, torch.no_grad(), torch.device("cpu"))
    assert loss == trainer.journal.last["validation_loss"]


def test_without_an_average_the_weights_themselves_are_shipped(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(steps=3, ema_decay=None))
    trainer.fit()
    newest = tmp_path / "checkpoints" / "step-00000003"
    assert not (newest / "raw.safetensors").exists()
    shipped = read_tensors(newest / "policy" / "model.safetensors")
    assert torch.equal(shipped["first.weight"], trainer.objective.policy.first.weight)  # type: ignore[union-attr]


def with_validation_losses(trainer, losses):
    """The trainer's validation, moved so that its losses fall and rise as `losses` do."""
    moves = iter(losses)

    def moved():
        batch = next(held_out())
        batch.actions = batch.actions + 10 * next(moves)  # type: ignore[operator]
        yield batch

    trainer.validation.batches = moved
    return trainer


@pytest.mark.parametrize(("every", "kept"), [(5, [10, 25, 30]), (None, [10, 30])])
def test_the_best_checkpoint_is_kept_beside_the_last_ones(tmp_path, every, kept):
    trainer = make_trainer(tmp_path, config=small_config(steps=30, validate_every=5, checkpoint_every=every))
    with_validation_losses(trainer, [3.0, 1.0, 2.0, 2.5, 2.6, 2.7]).fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "last", *(f"step-{step:08d}" for step in kept)]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000010\n"


def test_a_best_that_could_not_be_saved_does_not_displace_one_that_was(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, config=small_config(steps=30, validate_every=5, checkpoint_every=5))
    real = trainer.checkpoints.save

    def save(snapshot, *rest):
        if snapshot.step == 15:
            raise OSError("full")
        return real(snapshot, *rest)

    monkeypatch.setattr(trainer.checkpoints, "save", save)
    with_validation_losses(trainer, [3.0, 2.0, 1.0, 2.5, 2.6, 2.7]).fit()
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000010\n"
    assert trainer.best is not None
    assert trainer.best["step"] == 10


def test_a_frozen_teacher_stays_out_of_every_file(tmp_path):
    class Taught(ToyObjective):
        not_saved = ("teacher",)

        def __init__(self):
            super().__init__()
            self.teacher = ToyPolicy().requires_grad_(False)

    make_trainer(tmp_path, objective=Taught(), config=small_config(steps=2)).fit()
    for path in tmp_path.rglob("*.safetensors"):
        assert not any("teacher" in name for name in read_tensors(path))
