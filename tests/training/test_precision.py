"""`auto` is settled once, by the device; half formats compute, float32 remembers; the loss scale is part of the run."""

import os
import signal

import pytest
import torch

from deftly.training import config as config_module
from deftly.training.config import TrainingConfig
from deftly.training.precision import (
    LossScaler,
    autocast,
    compute_exactly,
    determinism_explained,
    make_deterministic,
    native_bf16,
    warning,
)
from deftly.types import Clock, Term, UsageError
from training.toys import ToyObjective, ToyPolicy, ToyStream, fingerprint, log_lines, make_trainer, small_config


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_the_device_computes_it(monkeypatch, native, expected):
    monkeypatch.setattr(config_module, "native_bf16", lambda device: native)
    resolved = TrainingConfig(precision="auto").resolve("cpu")
    assert resolved.precision == expected
    assert resolved.resolve("cpu") is resolved
    assert TrainingConfig(precision="bf16").resolve("cpu").precision == "bf16"


def test_native_bf16_is_a_fact_about_the_device(monkeypatch):
    assert isinstance(native_bf16(torch.device("cpu")), bool)
    assert not native_bf16(torch.device("meta"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert native_bf16(torch.device("cuda"))


def test_autocast_computes_in_the_named_format():
    layer = torch.nn.Linear(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(torch.device("cpu"), precision):
            assert layer(torch.ones(1, 2)).dtype == dtype


def test_deterministic_algorithms_are_asked_for(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled(), "fused attention would stay as it is"
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_that_is_not_deterministic_is_told_in_one_line(tmp_path, monkeypatch):
    class Puts(ToyObjective):
        def forward(self, batch, clock, counts):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
            return super().forward(batch, clock, counts)

    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UsageError, match=r"^put_: cannot give the same bits .*; set training\.deterministic to false$"):
            make_trainer(tmp_path, objective=Puts()).fit()
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(RuntimeError, match="shapes"), determinism_explained():
        raise RuntimeError("shapes do not match")


def test_fp32_is_float32_on_cuda_too(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for precision, allowed in (("fp32", False), ("bf16", True)):
        compute_exactly(precision)
        assert torch.backends.cudnn.allow_tf32 is allowed


def test_a_misspelt_field_names_the_right_one():
    with pytest.raises(UsageError, match="did you mean 'ema_decay'"):
        TrainingConfig.parse({"ema_deccay": 0.9}, "here")
    with pytest.raises(UsageError, match="keep_last"):
        TrainingConfig.parse({"keep_last": 1}, "here")


# -- float16 -----------------------------------------------------------------------------------------------------------------------------


def test_the_loss_scale_goes_where_torchs_own_goes(monkeypatch):
    monkeypatch.setattr(LossScaler, "INTERVAL", 3)
    ours, theirs = LossScaler(), torch.amp.GradScaler("cpu", init_scale=LossScaler.FIRST, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for is_inf in (False, True, True, False, False, False, False, True, False, False, False, False):
        weight.grad = torch.full((2,), float("inf") if is_inf else 8.0)
        theirs.scale(torch.zeros(1))
        theirs.unscale_(optimizer)
        theirs_unscaled = weight.grad.clone()
        weight.grad = torch.full((2,), float("inf") if is_inf else 8.0)
        ours.unscale([weight])
        assert torch.equal(weight.grad, theirs_unscaled)
        assert ours.overflowed(1.0, weight.grad.norm().item()) == is_inf
        theirs.step(optimizer)
        theirs.update()
        assert ours.scale == theirs.get_scale()
    assert ours.overflows == 3


def test_what_no_scale_can_mend_is_left_to_the_guard():
    scaler = LossScaler()
    assert not scaler.overflowed(float("nan"), float("nan"))
    assert scaler.scale == LossScaler.FIRST
    scaler.scale = LossScaler.LEAST
    assert not scaler.overflowed(1.0, float("inf"))


HALF = {"precision": "fp16", "checkpoint_every": None, "validate_every": None, "steps": 12}


def watched(trainer):
    """Dtypes of everything that lives longer than a step."""
    state = [tensor for entry in trainer.update.optimizer.state.values() for tensor in entry.values()]
    gradients = [parameter.grad for parameter in trainer.update.parameters]
    return {
        tensor.dtype
        for tensor in (*trainer.update.parameters, *gradients, *state, *trainer.update.ema.average.values())
        if tensor.is_floating_point()
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_gradients_moments_and_averages_stay_float32(tmp_path, precision):
    trainer = make_trainer(tmp_path, config=small_config(**{**HALF, "precision": precision}))
    seen = []
    trainer.objective.policy.last.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    taken = trainer.update(trainer.stream.next(), Clock(0, 12))
    assert taken.accepted
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert watched(trainer) == {torch.float32}


def test_small_gradients_survive_float16_and_have_the_scale_of_float32(tmp_path):
    norms = {}
    for precision, scale in (("fp32", None), ("fp16", LossScaler.FIRST), ("fp16", 1.0)):
        config = small_config(**{**HALF, "precision": precision, "clip_norm": None})
        torch.manual_seed(1)
        trainer = make_trainer(tmp_path, objective=Faint(ToyPolicy(dropout=0.0, batch_norm=False)), config=config)
        if scale is not None:
            trainer.update.scaler.scale = scale
        norms[scale] = trainer.update(trainer.stream.next(), Clock(0, 12)).numbers["gradient_norm"]
    assert norms[LossScaler.FIRST] == pytest.approx(norms[None], rel=0.02)
    assert norms[1.0] < 0.5 * norms[None]


class Faint(ToyObjective):
    """A loss so small that its gradients need the scale."""

    def forward(self, batch, clock, counts):
        return {name: Term(term.value * 1e-8) for name, term in super().forward(batch, clock, counts).items()}


def test_an_overflow_is_skipped_without_a_trace_and_is_no_bad_step(tmp_path, capsys):
    config = small_config(**HALF, max_bad_steps=1)
    trainer = make_trainer(tmp_path, config=config)
    trainer.update.scaler.scale = 2.0**40
    before = {name: tensor.clone() for name, tensor in trainer.objective.state_dict().items()}
    taken = trainer.update(trainer.stream.next(), Clock(0, 12))
    assert not taken.accepted
    assert taken.loss_scale == 2.0**39
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.objective.state_dict().items()), "running statistics too"
    assert not trainer.update.optimizer.state
    assert trainer.update.ema.updates == trainer.update.guard.skipped == 0
    trainer.update.scaler.scale = 2.0**26
    summary = trainer.fit()
    assert summary["skipped"] == 0
    assert 0 < summary["overflows"] < 12
    lines = log_lines(tmp_path)
    assert next(line["loss_scale"] for line in lines if line["kind"] == "overflow") == 2.0**25
    assert "overflowed float16" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_a_bad_step_in_float16_too(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(**HALF), stream=ToyStream(poison={3: float("nan")}))
    summary = trainer.fit()
    assert (summary["skipped"], summary["overflows"]) == (1, 0)


@pytest.mark.parametrize("first", [2, 5])
def test_the_scaler_resumes_to_the_same_bits(tmp_path, first, monkeypatch):
    monkeypatch.setattr(LossScaler, "INTERVAL", 2)
    monkeypatch.setattr(LossScaler, "FIRST", 2.0**24)

    def run(name, resume=False, **changes):
        trainer = make_trainer(tmp_path / name, config=small_config(**HALF, accumulation=2), stream=ToyStream(**changes))
        trainer.fit(resume=resume)
        assert trainer.update.scaler.overflows > 1
        return fingerprint(trainer), log_lines(tmp_path / name)

    with pytest.raises(SystemExit):
        run("stopped", calls={first - 1: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert run("stopped", resume=True) == run("whole")


def test_a_format_without_arithmetic_units_is_said(monkeypatch):
    assert warning(torch.device("cpu"), "fp32") is None
    assert "no arithmetic units for fp16" in str(warning(torch.device("cpu"), "fp16"))
    assert warning(torch.device("cuda"), "fp16") is None


@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (False, True), (True, True)])
def test_bf16_is_warned_of_only_where_it_is_slower(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    said = warning(torch.device("cpu"), "bf16")
    assert (said is None) is (amx or avx512)
    assert TrainingConfig(precision="auto").resolve("cpu").precision == ("bf16" if amx else "fp32")
