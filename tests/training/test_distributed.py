"""Without ranks everything is the identity; two ranks train what one does, stop together, and end together."""

import os
import signal
from pathlib import Path

import pytest
import torch

from deftly import storage
from deftly.recipes import RECIPES
from deftly.run import check_shares, train
from deftly.training import distributed
from deftly.training.checkpoint import Checkpoints
from deftly.training.groups import Group
from deftly.training.guard import TrainingError
from deftly.training.lifetime import Interrupt
from deftly.types import Batch, DataError, UsageError
from guards import guards
from training.ranks import run_ranks
from training.toys import ToyObjective, ToyPolicy, ToyStream, TwoTerms, log_lines, make_trainer, small_config

CPU = torch.device("cpu")
LATER = Group(parameters=r"policy\.first\..*", start_fraction=0.5)
UNFREEZING = {"groups": (LATER, Group(parameters=r"policy\.task\..*", schedule=None), Group(parameters=".*"))}


class Shares(ToyStream):
    """Each rank is given its stretch of every batch of eight."""

    def __init__(self, **changes) -> None:
        super().__init__(dtype=torch.float64, **changes)

    def next(self) -> Batch:
        batch = super().next()
        ranks = distributed.world_size()
        return batch.split(ranks)[distributed.rank()] if ranks > 1 else batch


def trainer_of(directory: Path, calls=None, **changes):
    torch.manual_seed(0)
    objective = TwoTerms(ToyPolicy(dropout=0.0, batch_norm=False)).double()
    config = small_config(**{"steps": 10, "validate_every": None, "checkpoint_every": None, "log_every": 1, **changes})
    return make_trainer(directory, objective=objective, stream=Shares(calls=calls), config=config, validation=None)


def test_one_process_is_the_identity():
    value = torch.tensor([1.0, 2.0])
    assert distributed.sum_over_ranks(value) is value
    assert distributed.most_over_ranks(7) == 7
    assert distributed.highest_over_ranks(value) is value
    assert distributed.told_by_all({"a": 1}) == [{"a": 1}]
    assert distributed.device_of_rank("cuda:3") == "cuda:3"
    distributed.wait_for_all()
    with distributed.together(), distributed.first_alone(), distributed.process_group(CPU, 1.0):
        assert (distributed.active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)


@guards("training.distributed.variables")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_PORT", ""),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("RANK", "a"),
        ("RANK", "2"),
        ("LOCAL_RANK", "-1"),
        ("MASTER_PORT", "99999"),
    ],
)
def test_half_of_a_launchers_variables_is_refused(monkeypatch, name, value):
    for each, given in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1", name: value}.items():
        monkeypatch.setenv(each, given)
    with pytest.raises(UsageError, match=f"but {name} is not what a launcher sets"):
        distributed.launched()


@guards("training.distributed.one_device", "training.distributed.devices")
def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    for name, given in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.device_of_rank("auto") == "cuda:1"
    assert distributed.device_of_rank("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device cuda:0 for all of 2 processes"):
        distributed.device_of_rank("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes on a machine with 1 GPUs: start --nproc-per-node 1"):
        distributed.device_of_rank("auto")


@guards("training.distributed.available", "run.folds.ranks")
def test_what_several_processes_cannot_do_is_refused_before_they_meet(monkeypatch, tmp_path):
    for name, given in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, given)
    run = RECIPES["imitate"](True)
    with pytest.raises(UsageError, match="folds are trained one after the other"):
        train(run.replace(folds=2), tmp_path / "run", device="cpu")
    monkeypatch.setattr(distributed.dist, "is_available", lambda: False)
    with pytest.raises(UsageError, match="this build of torch cannot train with several processes"), distributed.process_group(CPU, 1.0):
        pass
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as silent:
        train(run.replace(folds=2), tmp_path / "run", device="cpu")
    assert silent.value.code == 2


@guards("run.shares.ranks", "run.shares.accumulation")
@pytest.mark.parametrize(
    ("ranks", "size", "cut", "message"),
    [
        (2, 9, 1, "data.batch_size 9 does not divide into 2 processes: take 8 or 10"),
        (4, 3, 1, "data.batch_size 3 does not divide into 4 processes: take 4"),
        (2, 12, 4, "2 processes 6 samples, .* training.accumulation 4: take accumulation 3 or 6, or batch_size 8 or 16"),
        (4, 8, 8, "each of 4 processes 2 samples, which do not divide into training.accumulation 8: take accumulation 2, or batch_size 32"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_before_processes_meet(monkeypatch, tmp_path, ranks, size, cut, message):
    for name, given in {"RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, given)
    run = RECIPES["imitate"](True)
    run = run.replace(data=run.data.replace(batch_size=size), training=run.training.replace(accumulation=cut, rank_timeout_s=1))
    with pytest.raises(UsageError, match=message):
        train(run, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    check_shares(run.replace(data=run.data.replace(batch_size=ranks * cut), training=run.training), ranks)


def test_a_signal_that_comes_twice_by_way_of_the_launcher_counts_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupt = Interrupt(is_launched=True)
    interrupt(signal.SIGTERM, None)
    interrupt(signal.SIGTERM, None)
    assert codes == []
    interrupt.since -= 60
    interrupt(signal.SIGTERM, None)
    assert codes == [143]
    interrupt.owner = -1
    interrupt(signal.SIGTERM, None)
    assert codes == [143], "a data worker goes on: its trainer may need another batch before all have agreed to stop"


def fail_together(error: Exception | None) -> None:
    with distributed.together():
        if error is not None:
            raise error


def several_things(folder: str) -> None:
    """What two ranks do, one after the other; rank 1 leaves what it saw beside what rank 0 writes."""
    root, seen = Path(folder), {}
    with distributed.process_group(CPU, 60.0):
        rank = distributed.rank()
        trainer_of(root / "two").fit()
        trainer_of(root / "accumulated", accumulation=2).fit()
        for way in ("ddp", "fsdp"):
            trainer_of(root / f"unfrozen {way}", parallel=way, **UNFREEZING).fit()

        asked = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)} if rank == 1 else {}
        with pytest.raises(SystemExit) as ended:
            trainer_of(root / "stopped", calls=asked).fit()
        seen["stopped"] = ended.value.code
        trainer_of(root / "stopped").fit(resume=True)

        for name, objective in {"does not decompose": ToyObjective, "policy.batch_norm normalises": ToyObjective}.items():
            made = objective(ToyPolicy(batch_norm="norm" in name))
            type(made).decomposes = "norm" in name
            with pytest.raises(UsageError, match=name):
                make_trainer(root / "refused", objective=made)
        with pytest.raises(SystemExit if rank else UsageError) as refused:
            trainer_of(root / "two").fit()
        seen["refused"] = getattr(refused.value, "code", None) if rank else str(refused.value)
        for failing, error in ((0, DataError("no such file")), (1, UsageError("no such field"))):
            with pytest.raises((SystemExit, UsageError)) as ended:
                fail_together(error if rank == failing else None)
            seen[f"failed on {failing}"] = ended.value.code if isinstance(ended.value, SystemExit) else str(ended.value)
    storage.write_json(root / f"rank-{rank}.json", seen)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    codes, error = run_ranks("training.test_distributed:several_things", root)
    assert codes == [0, 0], error
    return root


def newest(directory: Path):
    found = Checkpoints(directory / "checkpoints", 2).newest(pytest.fail)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["two", "accumulated", "unfrozen ddp", "unfrozen fsdp", "stopped"])
def test_two_ranks_train_what_one_does(done, tmp_path, name):
    whole = trainer_of(tmp_path / "one", **(UNFREEZING if "unfrozen" in name else {}))
    expected = whole.fit()
    found, wanted = newest(done / name), whole.snapshot()
    assert found.raw is not None
    assert wanted.raw is not None
    for one, other in ((found.raw, wanted.raw), (found.objective, wanted.objective), (found.optimizer, wanted.optimizer)):
        assert one.keys() == other.keys()
        assert all((one[key] - other[key]).abs().max() < 1e-10 for key in one)
    assert found.trainer["samples"] == expected["samples"] == 80
    assert found.trainer["last"]["loss"] == pytest.approx(expected["loss"], abs=1e-10)
    steps = [line["step"] for line in log_lines(done / name) if line["kind"] == "train"]
    assert steps == list(range(1, 11)), "one rank writes the log"


def test_a_signal_to_one_rank_stops_both_after_one_checkpoint(done):
    seen = [storage.read_json(done / f"rank-{rank}.json") for rank in range(2)]
    assert [one["stopped"] for one in seen] == [143, 143]
    assert (done / "stopped" / "checkpoints" / "step-00000006").is_dir()


@guards("training.parallel.decomposes", "training.parallel.batch_norm")
def test_what_does_not_come_apart_is_refused_by_name(done):
    assert not (done / "refused" / "run.json").exists()


def test_a_failure_on_one_rank_ends_all_and_is_said_once(done):
    first, second = (storage.read_json(done / f"rank-{rank}.json") for rank in range(2))
    assert "holds a run at step 10" in first["refused"]
    assert second["refused"] == 2
    assert (first["failed on 0"], second["failed on 0"]) == ("no such file", 65)
    assert (first["failed on 1"], second["failed on 1"]) == (2, "no such field")


def one_dies(folder: str) -> None:
    """Rank 1 is killed in its fifth step."""
    die = {4: lambda: os.kill(os.getpid(), signal.SIGKILL)}
    with distributed.process_group(CPU, 600.0):
        trainer_of(Path(folder) / "run", calls=die if distributed.rank() else None, checkpoint_every=2).fit()


def test_a_rank_that_dies_ends_the_others_soon_and_with_one_line(tmp_path):
    codes, error = run_ranks("training.test_distributed:one_dies", tmp_path, timeout=280)  # the others' patience is 600 s
    assert codes == [1, -signal.SIGKILL]
    assert "TrainingError: another process of this training ended or no longer answers" in error
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-00000004\n"


@pytest.mark.parametrize(("local_rank", "ends_with"), [("0", TrainingError), ("1", SystemExit)])
def test_a_machine_to_which_rank_0_does_not_come_says_so_once(monkeypatch, local_rank, ends_with):
    for name, value in {
        "WORLD_SIZE": "16",
        "RANK": f"{8 + int(local_rank)}",
        "LOCAL_RANK": local_rank,
        "MASTER_ADDR": "other",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ends_with) as ended, distributed.stopping_with_the_others(True):
        raise RuntimeError("wait timeout after 600000ms: timed out")
    assert ends_with is SystemExit or "another process of this training ended or no longer answers" in str(ended.value)
    monkeypatch.setattr(distributed, "active", lambda: True)
    with pytest.raises(SystemExit), distributed.stopping_with_the_others():  # once they have met, rank 0 is there to say it
        raise RuntimeError("wait timeout after 600000ms: timed out")


@guards("training.distributed.available")
def test_a_torch_that_knows_no_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(UsageError, match="cannot train with several processes"), distributed.process_group(CPU, 1.0):
        pass


def test_what_asks_for_the_current_device_is_told_the_runs(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    for name in ("cpu", "cuda", "cuda:1"):
        with distributed.process_group(torch.device(name), 1.0):
            pass
    assert told == [torch.device("cuda:1")]
