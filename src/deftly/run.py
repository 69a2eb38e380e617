"""A training run as data, and what carries it out: the only file that knows every part.

```
Run ─> data.build ─> contract ─> policy.build ─> objective.build ─> Trainer.fit ─> offline error on the held-out episodes
```
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deftly import __version__, storage
from deftly.agent import save_policy
from deftly.config import Config
from deftly.contract import require_same
from deftly.data import quarantine
from deftly.data.mixup import check_mixup
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig
from deftly.data.split import fold_episodes
from deftly.data.tokenizer import PAD, UNKNOWN
from deftly.evaluation.offline import l1_per_spread
from deftly.models.act import ACTConfig, ACTPolicy
from deftly.models.policies import AnyPolicyConfig
from deftly.models.policy import PolicyConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.own_code import OrOwn, classes_in, hashes
from deftly.randomness import seed_global
from deftly.sim.tabletop import TabletopConfig
from deftly.training import distributed
from deftly.training.config import TrainingConfig
from deftly.training.rollback import FAILURE_FILE
from deftly.training.tracking import plain
from deftly.training.trainer import Trainer
from deftly.types import DataError, Objective, Policy, UsageError

RUN_FILE, DATA_FILE, SUMMARY_FILE, OFFLINE_FILE, FOLDS_FILE = "run.json", "data.json", "summary.json", "offline.json", "folds.json"


class Run(Config):
    """Everything a training run is. A recipe is a function that returns one."""

    name: str
    seed: int = 0
    data: DataConfig
    policy: AnyPolicyConfig = PolicyConfig()
    objective: Annotated[ImitationConfig, OrOwn(("policy",))] = ImitationConfig()
    training: TrainingConfig = TrainingConfig()
    executed_steps: int = pydantic.Field(default=4, ge=1)
    """How many actions of a chunk are played before the next inference."""
    world: TabletopConfig | None = None
    """Where the policy is judged in closed loop; null: offline only."""
    folds: int | None = pydantic.Field(default=None, ge=2)
    """Cross-validation: train this many policies, each without one share of the episodes, and report the mean offline error."""

    @pydantic.model_validator(mode="after")
    def check_fields(self) -> Run:
        if self.executed_steps > self.data.window.chunk:
            raise ValueError(f"executed_steps {self.executed_steps} is more than the chunk of {self.data.window.chunk} actions")
        cut = self.training.accumulation
        if cut != "auto" and self.data.batch_size % cut:  # guard: run.accumulation.divides
            raise ValueError(f"data.batch_size {self.data.batch_size} does not divide into training.accumulation {cut} equal parts")
        if self.folds is not None and self.world is not None:
            raise ValueError("a run with folds is judged offline: set world to null, or leave folds out")
        if self.data.depth and self.world is not None:
            raise ValueError("this world shows no depth, which the policy would ask for: set world to null, or leave data.depth out")
        if self.folds is not None and self.training.start.path is not None and not self.training.start.weights:
            raise ValueError("a run that goes on elsewhere cannot become several folds: leave folds out, or name training.start.weights")
        if self.folds is not None and self.data.mixture:
            raise ValueError("folds are of a single dataset: leave data.mixture out, or folds")
        return self


def choose_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one. Raises `UsageError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps", name):  # guard: run.device.name
        raise UsageError(f"device {name!r}: give auto, cpu, cuda, or cuda:0 and so on")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: this torch sees no CUDA device; use --device cpu, or install a CUDA build of torch")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():  # guard: run.device.count
        raise UsageError(f"device {name!r}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def train(run: Run, directory: Path, *, resume: bool = False, device: str = "auto", allow_change: Sequence[str] = ()) -> dict[str, Any]:
    """Carry out a run in `directory` and return its summary, which is also written there.

    `allow_change` names fields that may differ from what a resumed run began with (`training.steps`, `training`, `dataset`).
    Started by torchrun, every process calls this; rank 0 alone writes and prints.
    Raises `UsageError` or `DataError`, one line, before the first step when something does not fit.
    """
    with distributed.said_once():
        chosen = choose_device(distributed.device_of_rank(device))
        check_shares(run, distributed.launched())
        check_directory(run, directory)
    if run.folds is None:
        if any(directory.glob("fold-*/checkpoints")):  # guard: run.folds.begun
            raise UsageError(f"{directory}: holds the folds of a cross-validation; choose another directory, or set folds as it began")
        with distributed.process_group(chosen, run.training.rank_timeout_s):
            return _train_one(run, directory, resume=resume, device=chosen, allow_change=allow_change)
    if allow_change:
        raise UsageError("a run with folds is one measurement: nothing of it may change halfway; choose another directory")
    with distributed.said_once():
        if distributed.launched() > 1:  # guard: run.folds.ranks
            raise UsageError("folds are trained one after the other by a single process: start one, or leave folds out")
    return _train_folds(run, run.folds, directory, resume=resume, device=chosen)


def check_directory(run: Run, directory: Path) -> None:
    """A dataset is left as it is: a run has a directory of its own. Raises `UsageError`."""
    place = directory.resolve()
    for path in (run.data.path, *(source.path for source in run.data.mixture)):
        if path.resolve() in (place, *place.parents):  # guard: run.directory.data
            raise UsageError(f"--out {directory}: in the dataset {path}, which a run does not write into; choose another directory")


def check_shares(run: Run, ranks: int) -> None:
    """The batch must divide into the shares of `ranks` processes, and each share into micro-batches. Raises `UsageError`."""
    size, cut = run.data.batch_size, run.training.accumulation
    if size % ranks:  # guard: run.shares.ranks
        raise UsageError(f"data.batch_size {size} does not divide into {ranks} processes: take {nearest(size, ranks)}")
    share = size // ranks
    if cut != "auto" and share % cut:  # guard: run.shares.accumulation
        cuts = [count for count in range(1, share + 1) if share % count == 0]
        below, above = max(count for count in cuts if count < cut), [count for count in cuts if count > cut][:1]
        raise UsageError(
            f"data.batch_size {size} gives each of {ranks} processes {share} samples, which do not divide into training.accumulation "
            f"{cut}: take accumulation {' or '.join(map(str, [below, *above]))}, or batch_size {nearest(size, ranks * cut)}"
        )


def nearest(number: int, unit: int) -> str:
    """The multiples of `unit` below and above a number that is none."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def _train_one(
    run: Run, directory: Path, *, resume: bool, device: torch.device, split: Any = None, allow_change: Sequence[str] = ()
) -> dict[str, Any]:
    run = run.replace(training=run.training.resolve(device))
    share = distributed.rank(), distributed.world_size()
    with distributed.first_alone(per_machine=True):  # it decodes, measures and checks what the others then find
        data = run.data.build(seed=run.seed, device=device, executed_steps=run.executed_steps, episodes=split, share=share)
    try:
        with distributed.together():
            trainer = build_trainer(run, data, directory, device)
            if trainer.is_main:
                print_plan(run, data, trainer.plan(), directory)
        summary = trainer.fit(resume=resume, allow_change=allow_change)
        if not trainer.is_main:
            return summary
        storage.write_json(directory / SUMMARY_FILE, plain(summary))
        if data.validation is not None:
            summary = {**summary, "offline": offline(directory, data, device, classes_in(run))}
        return summary
    finally:
        data.close()


def build_trainer(run: Run, data: TrainingData, directory: Path, device: torch.device) -> Trainer:
    """The trainer of a run on its data, with fresh weights. Raises `UsageError` where the parts do not fit each other."""
    if run.world is not None:
        remedy = "generate the dataset with this world, or change the run's world"
        ours, theirs = (robot.replace(mirror=None) for robot in (run.world.embodiment(), data.dataset.embodiment))
        require_same(ours, theirs, f"the dataset {run.data.path} and the run's world", remedy)
    policy = build_policy(run, data)
    objective = run.objective.build(policy)
    check_mixup(run.data.augmentation, objective)
    check_depth(run.data.depth, objective)
    return Trainer(
        objective,
        data.train,
        run.training,
        directory=directory,
        seed=run.seed,
        device=device,
        write_policy=lambda folder, state: write_policy(folder, state, run, data),
        run_json=run.to_dict(),
        dataset_hash=data.contract.dataset_hash,
        contract=data.contract,
        validation=data.held_out if data.validation is not None else None,
        words=(PAD, UNKNOWN, *data.tokenizer.words),
        code=hashes(classes_in(run)),
        began=lambda: record_data(data, directory),
        title=run.name,
    )


def record_data(data: TrainingData, directory: Path) -> None:
    """What a run trains on, written as it begins or goes on; what its last session came to holds no more."""
    for name in (SUMMARY_FILE, OFFLINE_FILE, FAILURE_FILE):
        (directory / name).unlink(missing_ok=True)
    quarantine.write(directory / quarantine.QUARANTINE_FILE, data.findings)
    storage.write_json(directory / DATA_FILE, data.summary())


def check_depth(depth: Sequence[str], objective: Objective) -> None:
    """Depth is given exactly to who reads it: a policy would ask a robot for what it never looks at. Raises `UsageError`."""
    kind = type(objective.policy).__name__
    if objective.policy.reads_depth and not depth:
        raise UsageError(f"{kind} reads depth: name its depth cameras in data.depth")
    reads = objective.policy.reads_depth or any(name.partition(".")[0] == "depth" for name in objective.reads)
    if depth and not reads:
        raise UsageError(
            f"neither {kind} nor {type(objective).__name__} reads depth: leave data.depth out, or let your policy say `reads_depth = True`"
        )


def build_policy(run: Run, data: TrainingData) -> Policy:
    """The run's policy with fresh weights, a function of the run's seed, and the pretrained ones that its config names."""
    seed_global("initial weights", run.seed)
    policy = run.policy.build(data.contract, data.tokenizer.size)
    if isinstance(policy, ACTPolicy) and isinstance(run.policy, ACTConfig) and run.policy.pretrained is not None:
        policy.vision.load_torchvision(read_weights(run.policy.pretrained), str(run.policy.pretrained))
    return policy


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `UsageError` where there is none, `DataError` where it is no such file."""
    if not path.is_file():  # guard: run.read_weights.there
        raise UsageError(f"policy.pretrained: {path} is not there; give a safetensors file of weights, or null to start from scratch")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}); save the weights with safetensors.torch.save_file") from None


def write_policy(folder: Path, state: dict[str, Tensor], run: Run, data: TrainingData) -> None:
    """Fill a `policy/` directory: everything that is needed to act."""
    about = {"run": run.name, "seed": run.seed, "dataset": data.contract.dataset_hash, "deftly": __version__, "torch": torch.__version__}
    first, *others = ((encoder.contract, encoder.statistics) for encoder in data.robots)
    save_policy(folder, *first, data.tokenizer, run.policy, state, about, robots=others)


def offline(directory: Path, data: TrainingData, device: torch.device, own: Sequence[type[Config]] = ()) -> dict[str, Any]:
    """Offline error of the policy that this run would act with, on the held-out episodes; written to `offline.json`.

    Mean and spread are those of each dataset's own training episodes as recorded, so that runs with and without a mirror can be compared.
    Of a mixture it is the mean over its datasets, each in its own robot's units, and each one's own are in `offline_datasets.json`.
    """
    from deftly.agent import load

    agent = load(directory, device=str(device), own=own)
    results = {}
    for part in data.parts:
        if part.validation is not None:
            mean, spread = (torch.tensor(part.own_statistics["action"][name]) for name in ("mean", "std"))
            names, batches = part.contract.embodiment.action.names, part.validation.batches()
            found = l1_per_spread(agent.policy, batches, mean=mean, spread=spread, names=names, units=part.encoder)
            results[str(part.dataset.root)] = found
    first = next(iter(results.values()))
    if len(results) > 1:
        storage.write_json(directory / "offline_datasets.json", plain(results))
    mean_of = {name: sum(result[name]["l1_per_spread"] for result in results.values()) / len(results) for name in first}
    result = first if len(results) == 1 else {name: {"l1_per_spread": value} for name, value in mean_of.items()}
    storage.write_json(directory / OFFLINE_FILE, plain(result))
    return result


def _train_folds(run: Run, folds: int, directory: Path, *, resume: bool, device: torch.device) -> dict[str, Any]:
    """One run per fold below `directory`; a finished fold is kept, so the same command goes on where it was killed."""
    splits = fold_episodes(quarantine.open_sound(run.data.path, run.data.check)[0], folds, run.seed)
    single = run.replace(folds=None)
    if directory.exists() and not resume and any(directory.glob("fold-*")):
        raise UsageError(f"{directory}: holds folds already; pass --resume to go on, or choose another directory")
    if (directory / RUN_FILE).exists():
        require_same(
            Run.load(directory / RUN_FILE, classes_in(run)),
            run,
            f"the run in {directory}",
            "repeat its own settings, or choose another directory",
        )
    storage.write_json(directory / RUN_FILE, run.to_dict())
    results = []
    for index, split in enumerate(splits):
        part = directory / f"fold-{index}"
        started = (part / "checkpoints").exists()
        summary = _train_one(single.replace(name=f"{run.name} fold {index}"), part, resume=started, device=device, split=split)
        results.append(summary["offline"])
    means = {name: sum(result[name]["l1_per_spread"] for result in results) / folds for name in results[0]}
    wins = all(means["policy"] < means[name] for name in means if name != "policy")
    table = {
        "folds": [{name: result[name]["l1_per_spread"] for name in result} for result in results],
        "mean": means,
        "policy_beats_both_baselines": wins,
        "unit": "L1 per spread of each action dimension over valid steps",
    }
    storage.write_json(directory / FOLDS_FILE, plain(table))
    return table


def print_plan(run: Run, data: TrainingData, plan: dict[str, Any], directory: Path) -> None:
    """What is about to happen, on stderr, before the first step. `plan` is the trainer's own."""
    windows, steps, size = len(data.train), plan["steps"], run.data.batch_size
    epochs = steps * size / max(windows, 1)
    contract, parts = data.contract, [part.summary() for part in data.parts]
    left_out = sum(len(seen["left_out"]) for seen in parts)
    lines = {
        "run": f"{run.name} -> {directory} (seed {run.seed})",
        "data": "\n           ".join(
            f"{seen['path']}: {seen['frames']} frames at {seen['rate_hz']:g} Hz, {seen['training_episodes']} episodes to train on and "
            f"{seen['validation_episodes']} held out, {seen['instructions']} instructions of {seen['vocabulary']} words"
            + (f"; {seen['samples_per_batch']} of each {size} samples{_counting(factor)}" if len(parts) > 1 else "")
            for seen, factor in zip(parts, data.sample_factors, strict=True)
        ),
        **({"left out": f"{left_out} broken episodes, see {quarantine.QUARANTINE_FILE}"} if left_out else {}),
        "policy": f"{plan['parameters']:,} parameters"
        + (f" that learn, {plan['parameters_frozen']:,} frozen" if plan["parameters_frozen"] else "")
        + (f", low-rank adapters in {plan['adapted']} layers" if plan["adapted"] else "")
        + f", cameras {', '.join(contract.cameras)} at {contract.image_size} px",
        **({"learning": "\n           ".join(_group(entry) for entry in plan["groups"])} if len(plan["groups"]) > 1 else {}),
        "training": f"{steps} steps of {size}{_cut(plan['accumulation'])}, {epochs:.1f} epochs of {windows} windows, "
        f"{plan['precision']} on {plan['device']}, {plan['checkpoint_bytes'] / 2**20:.0f} MiB per checkpoint",
        "adjusted": "; ".join(line for encoder in data.robots for line in encoder.adjusted) or "no dimension needed a floor",
        **({"augment": "; ".join(data.notes)} if data.notes else {}),
    }
    for name, text in lines.items():
        print(f"{name:>9}  {text}", file=sys.stderr)


def _cut(accumulation: int | str) -> str:
    """How a batch is cut, where it is."""
    if accumulation == "auto":
        return " (in as many parts as memory asks for)"
    return f" in {accumulation} parts" if accumulation != 1 else ""


def _counting(factor: float) -> str:
    """What a sample weighs, where whole samples in a batch are far from the dataset's share."""
    return "" if 0.9 < factor < 1.1 else f", each weighing {factor:.2g} to make up its share"


def _group(entry: dict[str, Any]) -> str:
    """One group of parameters in the plan: who, how many, how fast, from when on."""
    if entry["schedule"] is None:
        how = "frozen"
    else:
        how = f"{entry['schedule']}, rate x {entry['rate_factor']:g}" + (f", from step {entry['start']} on" if entry["start"] else "")
        how += f", layer decay {entry['layer_decay']:g}" if entry["layer_decay"] is not None else ""
    return f"{entry['parameters']}: {entry['number']:,} parameters, {how}"
