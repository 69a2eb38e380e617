"""`auto` is settled once, by the device."""

import pytest
import torch

from deftly.training import config as config_module
from deftly.training.config import TrainingConfig
from deftly.training.precision import autocast, make_deterministic, native_bf16
from deftly.types import UsageError


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
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert layer(torch.ones(1, 2)).dtype == dtype


def test_deterministic_algorithms_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append((mode, warn_only)))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert asked == [(True, True)]


def test_a_misspelt_field_names_the_right_one():
    with pytest.raises(UsageError, match="did you mean 'ema_decay'"):
        TrainingConfig.parse({"ema_deccay": 0.9}, "here")
    with pytest.raises(UsageError, match="keep_last"):
        TrainingConfig.parse({"keep_last": 1}, "here")
