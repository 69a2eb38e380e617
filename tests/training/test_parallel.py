"""One process, two with all of the objective each (DDP), two with half of it each (FSDP2), accumulation: the same weights."""

import itertools
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from batches import build_policy, random_batch
from deftly import randomness, storage
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.objectives.imitation import Imitation
from deftly.training import distributed, shards
from deftly.training.checkpoint import Checkpoints, Snapshot
from deftly.training.measures import MeasuresConfig
from deftly.training.noise import estimate
from deftly.training.start import StartConfig
from deftly.training.stopping import EarlyStopConfig
from deftly.training.trainer import Trainer
from deftly.types import Batch, Clock, Stream, UsageError
from guards import guards
from training.faulty import skip
from training.ranks import run_ranks
from training.toys import Adversarial, Distilled, StackedPolicy, ToyStream, TwoTerms, log_lines, make_trainer, small_config

STEPS, SIZE = 20, 8
CPU = torch.device("cpu")


class Pictures(Stream):
    """Batches for a real policy, with padding, another one each time."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> Batch:
        batch = random_batch(SIZE, seed=self.position)
        length = randomness.integers(batch.key, "length", 1, 7)
        is_pad = torch.arange(6)[None] >= length[:, None]
        self.position += 1
        batch = replace(batch, action_is_pad=is_pad, weight=randomness.uniform(batch.key, "weight") + 0.5)
        return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def state(self):
        return {"position": self.position}

    def load_state(self, state):
        self.position = state["position"]


class Share(Stream):
    """This rank's stretch of every batch."""

    def __init__(self, whole: Stream) -> None:
        self.whole = whole

    def next(self) -> Batch:
        return self.whole.next().split(distributed.world_size())[distributed.rank()]

    def state(self):
        return self.whole.state()

    def load_state(self, state):
        self.whole.load_state(state)


def imitation() -> Imitation:
    vision = CNNConfig(stem_stride=8, widths=(8, 8), keypoints=3)
    head = FlowMatchingConfig(width=8, blocks=2, draws=2)
    return Imitation(build_policy(PolicyConfig(vision=vision, width=8, depth=1, head=head)))


OBJECTIVES = {
    "imitation": imitation,
    "two terms": lambda: TwoTerms(StackedPolicy()),
    "discriminator": Adversarial,
    "teacher": Distilled,
}


def trainer_of(name: str, directory: Path, *, calls=None, held_out=True, **changes) -> Trainer:
    torch.manual_seed(1)
    objective = OBJECTIVES[name]().double()
    whole = Pictures() if name == "imitation" else ToyStream(SIZE, torch.float64, calls=calls)
    given = {"steps": STEPS, "checkpoint_every": 10, "validate_every": None, "log_every": 5, "clip_norm": 0.5, **changes}
    fields = {"validation": lambda: held_out_of(type(whole)())} if held_out else {"validation": None}
    return make_trainer(directory, objective=objective, stream=Share(whole), config=small_config(**given), **fields)


def held_out_of(stream: Stream) -> Iterator[Batch]:
    """Batches that come out even, that do not, and that have fewer samples than there are ranks."""
    for size in (8, 3, 1):
        yield stream.next().map(_double).stretch(0, size)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def every_way(folder: str, *names: str) -> None:
    """Objectives in both ways; then a checkpoint that one rank cannot write, and what is refused."""
    root = Path(folder)
    with distributed.process_group(CPU, 60.0):
        for name in names:
            for way in ("ddp", "fsdp"):
                trainer_of(name, root / f"{name} {way}", parallel=way).fit()
        for way in ("ddp", "fsdp"):
            trainer = trainer_of("imitation", root / f"measured {way}", parallel=way, **MEASURED)
            trainer.fit()
            state = {"best": trainer.best, "early stop": trainer.early_stop.state()}
            storage.write_json(root / f"decided {way}-{distributed.rank()}.json", state)
        for way, fault in itertools.product(("ddp", "fsdp"), ("nan", "inf")):
            skipped = skip(root / "skipped", fault, parallel=way, accumulation=2)
            storage.write_json(root / f"skipped {way} {fault}-{distributed.rank()}.json", skipped)
        with pytest.MonkeyPatch.context() as patch:
            if distributed.rank() == 1:
                patch.setattr(shards, "write", full_once(shards.write))
            summary = trainer_of("teacher", root / "full", parallel="fsdp", steps=15).fit()
        storage.write_json(root / f"full-{distributed.rank()}.json", summary)
        with pytest.raises(UsageError, match=r"training\.parallel fsdp cuts parameters into rows"):
            trainer_of("teacher", root / "refused", parallel="fsdp", channels_last=True)
        with pytest.raises(UsageError, match=r"training\.accumulation auto tries until memory runs out, after which FSDP"):
            trainer_of("teacher", root / "refused", parallel="fsdp", accumulation="auto")
        save_file({"policy.scale": torch.ones(()).double()}, root / "weights.safetensors")
        start = StartConfig(path=root / "weights.safetensors", weights=("policy.scale",))
        with pytest.raises(UsageError if distributed.rank() == 0 else SystemExit, match=r"sharded objective|2"):
            trainer_of("teacher", root / "refused", parallel="fsdp", start=start).fit()


def full_once(write):
    """A disk that is full for this rank's first file."""
    failed = []

    def refusing(*words):
        if not failed:
            failed.append(True)
            raise OSError(28, "No space left on device")
        return write(*words)

    return refusing


def other_half(folder: str) -> None:
    """Two ranks go on where one has stopped."""
    with distributed.process_group(CPU, 60.0):
        for way in ("ddp", "fsdp"):
            trainer_of("discriminator", Path(folder) / way, parallel=way, accumulation=2).fit(
                resume=True, allow_change=["ranks", "training.parallel", "training.accumulation"]
            )


MEASURED = {
    "steps": 3,
    "validate_every": 1,
    "log_every": 1,
    "checkpoint_every": None,
    "measures": MeasuresConfig(every_batch=1, action_tolerance=0.5),
    "early_stop": EarlyStopConfig(metric="action_accuracy", patience=3),
}
FAST, SLOW = ("discriminator", "teacher"), ("imitation", "two terms")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("two")
    codes, error = run_ranks("training.test_parallel:every_way", root, *FAST)
    assert codes == [0, 0], error
    return root


@pytest.fixture(scope="module")
def two_more(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("two_more")
    codes, error = run_ranks("training.test_parallel:every_way", root, *SLOW)
    assert codes == [0, 0], error
    return root


def newest(directory: Path) -> Snapshot:
    found = Checkpoints(directory / "checkpoints", 2).newest(pytest.fail)
    assert found is not None
    return found


def assert_near(one: Snapshot, other: Snapshot, within: float = 1e-10) -> None:
    for mine, theirs in ((one.raw, other.raw), (one.objective, other.objective), (one.optimizer, other.optimizer)):
        assert mine is not None
        assert theirs is not None
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert tensor.shape == theirs[key].shape, key
            assert (tensor - theirs[key]).abs().max() <= within, key


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_way_ends_in_the_same_weights(request, tmp_path, name):
    two = request.getfixturevalue("two" if name in FAST else "two_more")
    alone = trainer_of(name, tmp_path / "one")
    summary = alone.fit()
    wanted = newest(tmp_path / "one")
    before = trainer_of(name, tmp_path / "fresh").snapshot()
    assert before.raw is not None
    assert wanted.raw is not None
    assert sum((before.raw[key] - wanted.raw[key]).abs().max() > 1e-3 for key in wanted.raw) > 0.8 * len(wanted.raw), "it has learnt"
    assert_near(wanted, newest(two / f"{name} ddp"))
    assert_near(wanted, newest(two / f"{name} fsdp"))
    trainer_of(name, tmp_path / "cut", accumulation=4).fit()
    assert_near(wanted, newest(tmp_path / "cut"))
    for way in ("ddp", "fsdp"):
        lines = list(storage.read_lines(two / f"{name} {way}" / "metrics.jsonl"))
        mine = list(storage.read_lines(tmp_path / "one" / "metrics.jsonl"))
        assert [line["kind"] for line in lines] == [line["kind"] for line in mine]
        for one, other in zip(lines, mine, strict=True):
            if "loss" in one:
                assert one["loss"] == pytest.approx(other["loss"], abs=1e-10)
        assert newest(two / f"{name} {way}").trainer["best"]["loss"] == pytest.approx(summary["best"]["loss"], abs=1e-10)
    assert not any(key.startswith(("teacher", "module", "objective")) for key in newest(two / f"{name} fsdp").objective)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_held_out_samples_are_shared_out_and_give_the_same_figures(two, tmp_path, way):
    alone = trainer_of("imitation", tmp_path, **MEASURED)
    alone.fit()
    mine, theirs = (
        [line for line in log_lines(folder) if line["kind"] in ("validation", "detail")] for folder in (tmp_path, two / f"measured {way}")
    )
    assert [line["kind"] for line in mine] == ["validation", "detail"] * 3
    assert {"action", "action_accuracy", "language_alignment"} <= mine[0]["terms"].keys()
    assert mine[1]["samples"] == 8 + 3 + 1
    assert {"dimension", "spread", "horizon", "task", "standard_error", "mismatched"} <= mine[1]["terms"]["action"].keys()
    for one, other in zip(mine, theirs, strict=True):
        assert_alike(one, other)
    decided = [storage.read_json(two / f"decided {way}-{rank}.json") for rank in (0, 1)]
    assert decided[0] == decided[1], "to the last bit"
    assert alone.best is not None
    assert decided[0]["best"]["step"] == alone.best["step"]
    assert decided[0]["early stop"]["waited"] == alone.early_stop.waited


@pytest.mark.parametrize("fault", ["nan", "inf"])
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_fault_in_one_ranks_share_is_skipped_by_all_and_named(two, tmp_path, way, fault):
    first, second = (storage.read_json(two / f"skipped {way} {fault}-{rank}.json") for rank in (0, 1))
    assert first == second
    alone = skip(tmp_path, fault, accumulation=4)
    assert alone["origin"]["keys"] == [alone["keys"][5]]
    assert alone["origin"]["ranks"] == []
    assert (first["accepted"], first["unchanged"], first["skipped"]) == (False, True, 1)
    assert first["keys"] == alone["keys"], "the log names the samples of all"
    assert first["origin"] == {**alone["origin"], "ranks": [1]}
    assert first["said"].endswith("in the share of rank 1")
    assert (first["loss"] == "nan") == (fault == "nan")
    assert first["origin"]["inputs"] == (["state"] if fault == "nan" else [])


def assert_alike(one: object, other: object, within: float = 1e-10) -> None:
    """The same plain data, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name], within)
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs, within)
    elif isinstance(one, float) and isinstance(other, float):
        assert abs(one - other) <= within
    else:
        assert one == other


def test_two_ranks_see_how_much_of_a_gradient_is_chance_and_rows_of_it_do_not(two, tmp_path):
    """By hand: each rank's gradient is that of its half of the batch."""
    trainer = trainer_of("teacher", tmp_path)
    batch, clock, squares = trainer.stream.whole.next(), Clock(0, STEPS), []  # type: ignore[attr-defined]
    counts = trainer.objective.counts(batch)
    for part in (batch, *batch.split(2)):
        trainer.objective.zero_grad(set_to_none=True)
        trainer.update.parallel.loss(part, clock, counts)[0].backward()
        gradients = [parameter.grad for parameter in trainer.objective.parameters() if parameter.grad is not None]
        squares.append(torch.nn.utils.get_total_norm(gradients).item() ** 2)
    expected = estimate(squares[0], 4 * (squares[1] + squares[2]) / 2, SIZE, 2)
    lines = [line for line in storage.read_lines(two / "teacher ddp" / "metrics.jsonl") if line["kind"] == "modules"]
    assert lines[0]["noise"] == pytest.approx(expected, rel=1e-9)
    assert all(line["noise"]["samples"] == SIZE for line in lines)
    assert not any("noise" in line for line in storage.read_lines(two / "teacher fsdp" / "metrics.jsonl"))


def test_a_sharded_checkpoint_is_in_parts_and_its_policy_is_whole(two):
    path = next((two / "discriminator fsdp" / "checkpoints").glob("step-*20"))
    names = {item.name for item in path.iterdir()}
    assert {f"{stem}-0000{rank}-of-00002.safetensors" for stem in ("objective", "raw", "optimizer") for rank in (0, 1)} <= names
    assert "objective.safetensors" not in names
    storage.verify(path)
    sizes = [(path / f"optimizer-0000{rank}-of-00002.safetensors").stat().st_size for rank in (0, 1)]
    assert sizes[1] > 0.5 * sizes[0]
    whole = (two / "discriminator ddp" / "checkpoints" / path.name / "policy" / "model.safetensors").stat().st_size
    assert (path / "policy" / "model.safetensors").stat().st_size == whole


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped(two, tmp_path, way):
    trainer_of("discriminator", tmp_path / "one").fit()
    halfway = tmp_path / "halfway"
    (halfway / "checkpoints").mkdir(parents=True)
    source = two / f"discriminator {way}" / "checkpoints" / "step-00000010"
    source.rename(halfway / "checkpoints" / source.name)
    trainer_of("discriminator", halfway).fit(resume=True, allow_change=["ranks", "training.parallel"])
    source_again = halfway / "checkpoints" / source.name
    source_again.rename(source)
    assert_near(newest(tmp_path / "one"), newest(halfway))


@pytest.mark.slow
def test_two_go_on_where_one_stopped(tmp_path):
    trainer_of("discriminator", tmp_path / "one").fit()
    for way in ("ddp", "fsdp"):
        trainer_of("discriminator", tmp_path / way).fit()
        for item in (tmp_path / way / "checkpoints").glob("step-*20"):
            item.rename(tmp_path / f"{way} {item.name}")
    codes, error = run_ranks("training.test_parallel:other_half", tmp_path)
    assert codes == [0, 0], error
    for way in ("ddp", "fsdp"):
        assert_near(newest(tmp_path / "one"), newest(tmp_path / way))


def test_a_checkpoint_that_one_rank_cannot_write_does_not_end_training(two):
    ends = [storage.read_json(two / f"full-{rank}.json") for rank in (0, 1)]
    assert [end["failed_saves"] for end in ends] == [1, 1]
    assert sorted(item.name for item in (two / "full" / "checkpoints").glob("*step*")) == ["step-00000015"]
    storage.verify(two / "full" / "checkpoints" / "step-00000015")


@guards("training.parallel.channels_last", "training.start.sharded", "training.update.auto_sharded")
def test_what_cannot_be_sharded_is_refused(two):
    assert not (two / "refused" / "checkpoints").exists()


def one_is_killed(folder: str, way: str, step: str, in_save: str) -> None:
    """Rank 1 is killed before a step, or in the middle of writing a checkpoint; without a step it goes on to the end."""
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    with distributed.process_group(CPU, 60.0), pytest.MonkeyPatch.context() as patch:
        is_victim = distributed.rank() == 1 and int(step) >= 0
        if is_victim and int(in_save):
            patch.setattr(shards, "write", lambda *words: die() if words[1] == "raw.safetensors" else None)
        calls = {int(step): die} if is_victim and not int(in_save) else None
        trainer = trainer_of("discriminator", Path(folder), calls=calls, parallel=way, checkpoint_every=3)
        trainer.fit(resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_rank_that_was_killed_at_a_random_moment_costs_no_bit(tmp_path, way):
    draw = random.Random()
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_ranks("training.test_parallel:one_is_killed", whole, way, "-1", "0")[0] == [0, 0]
    for step in sorted(draw.sample(range(STEPS), 2)):
        codes, _ = run_ranks("training.test_parallel:one_is_killed", torn, way, str(step), "0")
        assert codes[1] == -signal.SIGKILL
        assert codes[0] == 1
    if way == "fsdp":
        checkpoints = Checkpoints(torn / "checkpoints", 2)
        before = checkpoints.steps()  # `last` may lag behind: rank 1 may have died while rank 0 committed
        codes, _ = run_ranks("training.test_parallel:one_is_killed", torn, way, "0", "1")
        assert codes == [1, -signal.SIGKILL]
        assert before == checkpoints.steps(), "what a rank left half-written is no checkpoint"
    codes, error = run_ranks("training.test_parallel:one_is_killed", torn, way, "-1", "0")
    assert codes == [0, 0], error
    assert_near(newest(whole), newest(torn), within=0.0)


@guards("training.parallel.lora")
def test_adapters_are_not_sharded():
    with pytest.raises(UsageError, match="adapters cannot be merged"):
        small_config(parallel="fsdp", lora={"modules": ".*"})
