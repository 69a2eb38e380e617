"""The batch stays what was asked for: the planner finds into how many parts it must be cut, and a run that runs out of memory goes on."""

import pytest
import torch

from deftly.cli.main import explain
from deftly.training import memory
from deftly.training.config import TrainingConfig
from deftly.training.guard import TrainingError
from training.test_trainer import plain
from training.toys import ToyObjective, ToyPolicy, ToyStream, TwoTerms, fingerprint, log_lines, make_trainer, small_config


def hungry(kind, limit, first_step=0, **policy):
    """An objective whose forward pass asks the real allocator for more than any machine has when it sees more than `limit` samples."""

    class Hungry(kind):
        def forward(self, batch, clock, counts):
            terms = super().forward(batch, clock, counts)  # changes running statistics before it fails
            if len(batch) > limit and clock.step >= first_step and torch.is_grad_enabled():
                torch.empty(2**60, dtype=torch.uint8)
            return terms

    torch.manual_seed(0)
    return Hungry(ToyPolicy(**policy))


@pytest.mark.parametrize(("limit", "parts"), [(8, 1), (7, 2), (4, 2), (3, 4), (1, 8)])
def test_the_planner_finds_the_largest_micro_batch_and_leaves_no_trace(tmp_path, capsys, limit, parts):
    config = small_config(validate_every=None)
    planned = make_trainer(
        tmp_path / "auto", objective=hungry(ToyObjective, limit, batch_norm=limit > 1), config=config.replace(accumulation="auto")
    )
    planned.fit()
    assert planned.update.accumulation == parts
    assert f"{8 // parts} samples at a time, {parts} times, make the batch of 8" in capsys.readouterr().err
    told = make_trainer(
        tmp_path / "told", objective=hungry(ToyObjective, 8, batch_norm=limit > 1), config=config.replace(accumulation=parts)
    )
    told.fit()
    ours, theirs = planned.snapshot(), told.snapshot()
    assert all(torch.equal(ours.raw[name], tensor) for name, tensor in theirs.raw.items())
    assert all(torch.equal(ours.optimizer[name], tensor) for name, tensor in theirs.optimizer.items())


def test_when_memory_runs_out_the_curve_stays_the_same(tmp_path, capsys):
    config = small_config(validate_every=None)
    streams = [ToyStream(dtype=torch.float64) for _ in range(2)]
    whole = make_trainer(tmp_path / "whole", objective=plain(TwoTerms), stream=streams[0], config=config, validation=None)
    whole.fit()
    objective = hungry(TwoTerms, 2, first_step=11, dropout=0.0, batch_norm=False).double()
    objective.load_state_dict(plain(TwoTerms).state_dict())
    short = make_trainer(tmp_path / "short", objective=objective, stream=streams[1], config=config, validation=None)
    short.fit()
    said = capsys.readouterr().err
    assert "step 12 ran out of memory; from here on 4 samples at a time, 2 times" in said
    assert "step 12 ran out of memory; from here on 2 samples at a time, 4 times" in said
    assert said.count("ran out of memory") == 2  # it never tries again what failed
    for name, tensor in whole.snapshot().raw.items():
        assert (short.snapshot().raw[name] - tensor).abs().max() < 1e-10, name
    for ours, theirs in zip(log_lines(tmp_path / "short"), log_lines(tmp_path / "whole"), strict=True):
        if ours["kind"] == "train":
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-10)


def test_a_run_that_ran_out_of_memory_resumes_to_the_same_bits(tmp_path):
    def run(name, stop=None):
        calls = {} if stop is None else {stop: lambda: (_ for _ in ()).throw(KeyError("killed"))}
        config = small_config(checkpoint_every=5, validate_every=None)
        return make_trainer(tmp_path / name, objective=hungry(ToyObjective, 4, first_step=3), stream=ToyStream(calls=calls), config=config)

    whole = run("whole")
    whole.fit()
    with pytest.raises(KeyError):
        run("killed", stop=17).fit()
    resumed = run("killed")
    assert resumed.update.accumulation == 1
    resumed.fit(resume=True)
    assert resumed.update.accumulation == 2
    assert fingerprint(resumed) == fingerprint(whole)


def test_a_named_change_of_accumulation_wins_over_what_was_found(tmp_path):
    config = small_config(checkpoint_every=5, validate_every=None, steps=10)
    make_trainer(tmp_path, objective=hungry(ToyObjective, 4), config=config).fit()
    changed = make_trainer(tmp_path, objective=hungry(ToyObjective, 4), config=config.replace(accumulation=8))
    changed.fit(resume=True, allow_change=["training.accumulation"])
    assert changed.update.accumulation == 8


def test_another_number_of_ranks_finds_anew_what_fits(tmp_path):
    config = small_config(checkpoint_every=5, validate_every=None, steps=10, accumulation="auto")
    trainer = make_trainer(tmp_path, objective=hungry(ToyObjective, 4), config=config)
    trainer.fit()
    state = trainer.snapshot().trainer
    for ranks, found in ((1, 2), (2, None)):
        fresh = make_trainer(tmp_path / str(ranks), config=config).update
        fresh.load(trainer.update.tensors(10), {**state, "environment": {**state["environment"], "ranks": ranks}}, "here")
        assert fresh.accumulation == found


@pytest.mark.parametrize("accumulation", [1, "auto"])
def test_what_cannot_be_cut_is_named(tmp_path, accumulation):
    class Whole(ToyObjective):
        decomposes = False

    config = small_config(accumulation=accumulation)
    with pytest.raises(TrainingError, match=r"step 1: out of memory with 8 samples.*Hungry does not decompose.*data\.batch_size"):
        make_trainer(tmp_path / "whole", objective=hungry(Whole, 4), config=config).fit()
    with pytest.raises(TrainingError, match=r"step 1: out of memory with 1 samples at a time; lower data\.batch_size"):
        make_trainer(tmp_path / "one", objective=hungry(ToyObjective, 0, batch_norm=False), config=config).fit()


def test_other_errors_are_not_taken_for_it(tmp_path):
    class Broken(ToyObjective):
        def forward(self, batch, clock, counts):
            raise RuntimeError("shapes do not match")

    for accumulation in (1, "auto"):
        with pytest.raises(RuntimeError, match="shapes do not match"):
            make_trainer(tmp_path / str(accumulation), objective=Broken(), config=small_config(accumulation=accumulation)).fit()
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.is_out_of_memory(MemoryError())


def test_every_form_in_which_cuda_refuses_memory_is_known(monkeypatch):
    for text in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory",
    ):
        assert memory.is_out_of_memory(RuntimeError(text))
    assert not memory.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    engine = RuntimeError("GET was unable to find an engine to execute this computation")
    assert not memory.is_out_of_memory(engine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for refused in (0, 1):
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda refused=refused: {"num_ooms": refused})
        assert memory.is_out_of_memory(engine) == bool(refused)


def test_a_device_that_tells_is_held_to_its_share(monkeypatch):
    gib = memory.GIB
    for name, value in (
        ("synchronize", None),
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("mem_get_info", (30 * gib, 80 * gib)),
        ("memory_reserved", 50 * gib),
        ("max_memory_reserved", 60 * gib),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    device = torch.device("cuda")
    assert memory.attempt(lambda: None, device, 10 * gib, 0.9) == (True, (70 * gib, 80 * gib))
    assert memory.attempt(lambda: None, device, 14 * gib, 0.9) == (False, (74 * gib, 80 * gib))
    assert memory.describe(64, 4, memory.Fit(70 * gib, 80 * gib)).endswith("a step takes 70.0 of 80.0 GiB")


def test_auto_is_a_word_of_the_config():
    assert TrainingConfig.parse({"accumulation": "auto"}, "run").accumulation == "auto"
    assert memory.parts_of(12, 1) == [1, 2, 3, 4, 6, 12]
    assert memory.parts_of(12, 5) == [6, 12]
    assert memory.parts_of(7, 2) == [7]


def narrow(limit):
    """Without gradients its forward pass asks for more memory than any machine has when it sees more than `limit` samples."""

    class Narrow(TwoTerms):
        def forward(self, batch, clock, counts):
            if len(batch) > limit and not torch.is_grad_enabled():
                torch.empty(2**60, dtype=torch.uint8)
            return super().forward(batch, clock, counts)

    torch.manual_seed(0)
    return Narrow(ToyPolicy(dropout=0.0, batch_norm=False)).double()


@pytest.mark.parametrize("limit", [3, 1])
def test_a_validation_that_runs_out_of_memory_measures_the_same_in_parts(tmp_path, capsys, limit):
    lines = {}
    for name, most in (("whole", 99), ("parts", limit)):
        held_out = [stream.next() for stream in [ToyStream(dtype=torch.float64)] for _ in range(2)]
        trainer = make_trainer(
            tmp_path / name,
            objective=narrow(most),
            stream=ToyStream(dtype=torch.float64),
            config=small_config(validate_every=4),
            validation=lambda batches=held_out: iter(batches),
        )
        trainer.fit()
        lines[name] = [line for line in log_lines(tmp_path / name) if line["kind"] == "validation"]
    assert len(lines["whole"]) > 1
    for ours, theirs in zip(lines["parts"], lines["whole"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-12)
        assert ours["is_best"] == theirs["is_best"]
    said = capsys.readouterr().err
    assert "validation ran out of memory; from here on at most 4 samples at a time" in said
    assert said.count("validation ran out of memory") == {3: 2, 1: 3}[limit], "what failed once is not tried again"


def test_a_validation_for_which_one_sample_is_too_many_ends_in_one_line(tmp_path):
    with pytest.raises(TrainingError, match="validation: out of memory with 1 samples at a time; choose a smaller policy"):
        make_trainer(tmp_path / "run", objective=narrow(0), stream=ToyStream(dtype=torch.float64)).fit()


def test_the_plan_names_the_batch_of_all_processes():
    assert memory.describe(4, 2, None, ranks=2) == "memory: 2 samples at a time on each of 2 processes, 2 times, make the batch of 8"
    assert memory.describe(8, 1, None) == "memory: 8 samples at a time, 1 times, make the batch of 8"


def test_what_does_not_fit_at_all_is_one_line():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()):
        text, code = explain(error)
        assert code == 70
        assert text.startswith("out of memory (")
        assert "choose a smaller policy" in text


def test_a_validation_whose_loss_is_none_over_parts_is_not_cut(tmp_path):
    objective = narrow(3)
    type(objective).decomposes = False
    with pytest.raises(TrainingError, match=r"validation: out of memory with 8 samples at a time; lower data\.batch_size"):
        make_trainer(tmp_path / "run", objective=objective, stream=ToyStream(dtype=torch.float64)).fit()
