"""Where the time of training goes, and how much of what the device can do is used; asking changes no bit."""

import math

import pytest
import torch
from torch import nn

from deftly import storage
from deftly.evaluation.learning import training
from deftly.training import flops, utilization
from deftly.training.flops import counted, reachable
from deftly.training.tracking import TimeSplit
from deftly.training.utilization import MOST_SPANS, Spans, Utilization
from deftly.types import Batch, Term
from training.toys import ToyObjective, ToyPolicy, ToyStream, fingerprint, log_lines, make_trainer, small_config

CPU = torch.device("cpu")
WIDTH, REPEATS = 256, 64


class Product(ToyObjective):
    """One matrix, and a loss whose only products are with it: twice that in the backward pass, but for what has no gradient."""

    def __init__(self) -> None:
        super().__init__(ToyPolicy(dropout=0.0, batch_norm=False).requires_grad_(False))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)

    def counts(self, batch: Batch):
        return {"mse": batch.weight.sum()}

    def forward(self, batch: Batch, clock, counts):
        given = torch.ones(len(batch) * REPEATS, WIDTH)
        return {"mse": Term((given @ self.matrix).square().mean() * batch.weight.sum() / counts["mse"])}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_flops_of_a_product_are_those_of_the_closed_form(tmp_path, capsys, accumulation):
    config = small_config(steps=4, validate_every=None, ema_decay=None, accumulation=accumulation)
    summary = make_trainer(tmp_path, objective=Product(), config=config).fit()
    found = summary["utilization"]
    assert found["flops_per_step"] == 2 * (2 * 8 * REPEATS * WIDTH * WIDTH), "forward, and backward to the matrix"
    assert found["peak_flops_per_s"] == reachable(CPU, torch.float32)
    assert 0 < found["mfu"] <= 1.5
    assert found["data"] + found["host"] + found["device"] == pytest.approx(1)
    said = capsys.readouterr().err
    assert "shares: data " in said
    assert "; MFU " in said
    assert "FLOP/s" in said


def test_shares_are_in_every_train_line_beside_the_times(tmp_path):
    make_trainer(tmp_path, config=small_config(steps=9)).fit()
    lines = [line for line in storage.read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    for line in lines:
        shares = line["time"]["utilization"]
        assert sum(shares[name] for name in ("data", "host", "device")) == pytest.approx(1)
        assert shares["mfu"] > 0
    page = training(tmp_path)
    assert page is not None
    assert "utilization" not in {part["label"] for part in page["time"]}


def test_counting_changes_no_bit(tmp_path):
    """Running statistics, dropout, accumulation, a plan for the memory: all of it is as if nobody had counted; in a resumed run too."""
    for name, changes in {"plain": {}, "cut": {"accumulation": 2}, "planned": {"accumulation": "auto"}}.items():
        prints, lines = [], []
        for counts in (True, False):
            where = tmp_path / f"{name}-{counts}"
            config = small_config(steps=9, count_flops=counts, checkpoint_every=4, **changes)
            with pytest.raises(KeyError):
                make_trainer(where, config=config, stream=ToyStream(calls={6: broken})).fit()
            trainer = make_trainer(where, config=config)
            summary = trainer.fit(resume=True)
            assert (summary["utilization"]["flops_per_step"] is not None) is counts
            prints.append(fingerprint(trainer))
            lines.append(log_lines(where))
        assert prints[0] == prints[1], name
        assert lines[0] == lines[1], name


def broken():
    raise KeyError("killed")


def test_what_cannot_be_counted_is_said_and_changes_no_bit(tmp_path, capsys, monkeypatch):
    config = small_config(steps=5)
    whole = make_trainer(tmp_path / "whole", config=config)
    whole.fit()

    def refusing(work):
        work()
        raise NotImplementedError("an operation without a formula")

    monkeypatch.setattr(utilization, "counted", refusing)
    trainer = make_trainer(tmp_path / "blind", config=config)
    found = trainer.fit()["utilization"]
    assert found["mfu"] is found["flops_per_step"] is found["peak_flops_per_s"] is None
    assert found["device"] > 0
    assert "MFU is not known: FLOPs could not be counted (NotImplementedError: an operation" in capsys.readouterr().err
    assert fingerprint(trainer) == fingerprint(whole)


def test_a_compiled_objective_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("deftly.training.update.cannot_compile", lambda device: "no compiler")
    assert make_trainer(tmp_path, config=small_config(steps=1, compile=True)).fit()["utilization"]["flops_per_step"] is None


def test_attention_on_the_cpu_is_counted():
    query, key = (torch.randn(2, 4, size, 8, requires_grad=True) for size in (16, 32))
    once = 2 * 2 * 4 * 16 * 32 * 8
    assert counted(lambda: nn.functional.scaled_dot_product_attention(query, key, key)) == 2 * once
    assert counted(lambda: nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()) == 7 * once


# -- the device --------------------------------------------------------------------------------------------------------------------------


class Event:
    """A CUDA event on a clock of the test's own, in milliseconds."""

    now = 0.0
    alive = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        Event.alive += 1
        self.is_over = False

    def __del__(self) -> None:
        Event.alive -= 1

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        self.is_over = True

    def elapsed_time(self, end: "Event") -> float:
        assert end.is_over, "asked before it is known to be over"
        return end.at - self.at


def test_on_a_gpu_the_device_has_its_own_clock(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    found = Utilization(TimeSplit(), torch.device("cuda"), "bf16")
    found.measure(100, None, 1)
    found.flops, found.peak = 8 * 10**9, 64e9
    for _ in range(4):
        found.begin()
        Event.now += 1500
        found.end()
        Event.now += 77  # between the spans
    split = {"data": 1.0, "forward_backward": 5.0, "optimizer": 2.0, "validation": 50.0, "checkpoint": 9.0, "other": 2.0}
    shares = found.line(split, 120)
    assert shares == {"data": 0.1, "host": pytest.approx(0.3), "device": pytest.approx(0.6), "mfu": pytest.approx(0.25)}
    assert found.describe(shares) == "data 10 %, host 30 %, device 60 %; MFU 25 % of 64 GFLOP/s"
    assert found.line(split, 140)["device"] == 0.0, "what was read is not read again"
    assert found.to_dict()["device"] == pytest.approx(0.3), "of the whole session"


def test_spans_of_a_gpu_are_bounded_however_seldom_they_are_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    spans = Spans()
    for _ in range(1000):
        spans.begin()
        Event.now += 2
        spans.end()
    assert Event.alive <= 2 * MOST_SPANS + 3
    assert spans.seconds() == pytest.approx(2.0)
    assert spans.seconds() == 0.0


def test_time_that_went_into_counting_is_nobodys(monkeypatch):
    now = 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr(utilization, "reachable", lambda device, dtype: 1e9)
    monkeypatch.setattr(utilization, "counted", lambda work: work())

    def replay() -> int:
        nonlocal now
        now += 30.0
        return 5 * 10**8

    split = TimeSplit()
    found = Utilization(split, CPU, "fp32")
    found.measure(0, replay, 2)
    for name, seconds in (("data", 1.0), ("forward_backward", 6.0), ("optimizer", 2.0), ("other", 1.0)):
        now += seconds
        split.lap(name)
    assert split.total["other"] == 31.0
    assert found.line(split.since_line(), 3) == pytest.approx({"data": 0.1, "host": 0.1, "device": 0.8, "mfu": 0.3})


def test_a_clock_that_was_set_back_gives_no_shares():
    found = Utilization(TimeSplit(), CPU, "fp32")
    shares = found.line({"data": -5.0, "forward_backward": 1.0, "optimizer": 0.0, "other": 0.0}, 1)
    assert set(shares.values()) == {None}
    assert found.describe(shares) == ""


def test_the_peak_is_measured_once_without_a_draw_and_where_memory_ends(monkeypatch):
    state = torch.get_rng_state()
    reachable.cache_clear()
    first = reachable(CPU, torch.float32)
    assert first is not None
    assert first > 1e8
    assert math.isfinite(first)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(flops, "peak_flops", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    assert reachable(CPU, torch.float32) == first
    assert reachable(CPU, torch.float64) is None
    reachable.cache_clear()


def test_a_toy_is_counted_by_its_samples(tmp_path):
    trainer = make_trainer(tmp_path, objective=ToyObjective(ToyPolicy(dropout=0.0, batch_norm=False)), config=small_config(steps=1))
    assert trainer.fit()["utilization"]["flops_per_step"] % 8 == 0
