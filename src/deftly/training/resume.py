"""Is this still the same run? What resume compares before it touches anything."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deftly.contract import Contract, differences
from deftly.data.source import DataConfig
from deftly.foreign import printable
from deftly.training import distributed
from deftly.training.checkpoint import Snapshot
from deftly.training.config import TrainingConfig
from deftly.training.saved_state import check_state
from deftly.types import DataError, UsageError


@dataclass(frozen=True)
class Identity:
    """What makes a run the run that it is."""

    run: dict[str, Any]
    """The resolved config: kept in `run.json`."""
    dataset_hash: str
    contract: Contract | None
    environment: dict[str, Any]

    def fixed(self) -> dict[str, Any]:
        """`run` without the fields that cannot change a weight."""
        return {
            part: {name: value for name, value in values.items() if f"{part}.{name}" not in FREE} if isinstance(values, dict) else values
            for part, values in self.run.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The part that `trainer.json` holds."""
        contract = self.contract.to_dict() if self.contract is not None else None
        return {"dataset_hash": self.dataset_hash, "contract": contract, "environment": self.environment}


def environment(config: TrainingConfig, device: torch.device, code: dict[str, str]) -> dict[str, Any]:
    """What, besides the config, decides over bits; `code` are hashes of files of the user's own, by the class that they define."""
    return {
        **({"code": code} if code else {}),
        "precision": config.precision,
        "ranks": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


FREE = (*(f"training.{name}" for name in TrainingConfig.FREE), *(f"data.{name}" for name in DataConfig.FREE))  # where a run has them
MOST_SAID = 240  # characters of what somebody else may have written
MOST_NAMES = 8  # that are offered one by one; of more, the parts of the config that they are in


DATASET = "dataset"  # what `allowed` calls the data itself, as opposed to the config's fields
RANKS = "ranks"  # and the number of processes
START = "training.start"
NEVER = {
    "seed": "the seed decides which episodes are held out, and every draw",
    START: "a run that has begun begins with nothing else",
}
"""Fields that no resumed run may change, and why."""
NEW = "start a new run directory"
PREPARED = ("data", "executed_steps")  # what a contract follows from, beside the data itself
UNJUDGED = ("training", "name", "world")  # what does not change how a held-out episode is judged


class Changes(NamedTuple):
    """What differs, and was allowed to."""

    notes: list[str]
    """What is to be said of it."""
    other_samples: bool
    """The saved position may be one of another stream."""
    other_judge: bool
    """What was the best so far was judged otherwise."""


def require_same_run(
    ours: Identity, snapshot: Snapshot, where: Path, allowed: Sequence[str] = (), *, misfit: str | None = None, elsewhere: bool = False
) -> Changes:
    """Raise one line that names the differing fields and what can be done about them, or return what differs.

    `allowed` are fields that may have changed: `training.steps`, a whole part of the config such as `training`, `dataset`, or `ranks`.
    Those that cannot change a weight (`FREE`) always may. `misfit` says why the weights do not fit what was built from `ours`: then no
    change is offered, since it could not be gone on with. `elsewhere`: another run's checkpoint is gone on from, as `training.start` asks.
    """
    check_state(snapshot.trainer, where)
    check_allowed(allowed, snapshot.run, ours.run)
    state, mine = snapshot.trainer, ours.to_dict()
    config = [line for line in differences(snapshot.run, ours.run) if not _is_in(line, (*FREE, *((START,) if elsewhere else ())))]
    data = differences({"dataset_hash": state["dataset_hash"]}, {"dataset_hash": mine["dataset_hash"]})
    is_explained = not data and any(_is_in(line, PREPARED) for line in config)
    contract = differences({"contract": state["contract"]}, {"contract": mine["contract"]})
    then, now = state["environment"], mine["environment"]
    fixed = ("precision", RANKS)
    fixed = differences({name: then[name] for name in fixed}, {name: now[name] for name in fixed})
    changed = config + data + contract
    if any(_field(line) == "contract.tokenizer_hash" for line in contract):  # guard: training.resume.words
        misfit = misfit or "its words have other numbers"
    _refuse_what_cannot_be(where, changed, misfit, elsewhere)
    needed = [_field(line) for line in config]
    needed += [DATASET] if data or (contract and not is_explained) else []
    needed += [_name(line) for line in fixed]
    missing = [name for name in dict.fromkeys(needed) if not _is_in(name, allowed)]
    if missing:
        raise _refusal(where, allowed, missing, config, data + contract, fixed, elsewhere)
    notes = [f"changed from here on: {shortened(changed)}"] if changed else []
    if environment := differences(then, now):
        notes.append(f"WARNING: {shortened(environment)}: the run goes on, but not bit for bit as it would have")
    prepared = bool(data or contract) or any(_is_in(line, PREPARED) for line in config)
    return Changes(notes, prepared, prepared or any(not _is_in(line, UNJUDGED) for line in config))


def _elsewhere(where: Path) -> str:
    """What is left to who is in a new directory already."""
    return f"begin with its weights alone: --training.start.path {where} --training.start.weights REGEX"


def _refuse_what_cannot_be(where: Path, changed: list[str], misfit: str | None, elsewhere: bool) -> None:
    """Raise `UsageError` for a change that `--allow-change` could not make good, with what to do instead."""
    never = [line for line in changed if _is_in(line, tuple(NEVER))]
    if never:  # guard: training.resume.never
        why = next(why for name, why in NEVER.items() if _is_in(never[0], (name,)))
        raise UsageError(f"{where}: {shortened(never)}: {why}; change it back, or {_elsewhere(where) if elsewhere else NEW}")
    if changed and misfit is not None:  # guard: training.resume.misfit
        remedy = _elsewhere(where) if elsewhere else f"{NEW} with the weights that fit: {_elsewhere(where).partition(': ')[2]}"
        reason = f"what it saved is of no use to that ({printable(misfit[:MOST_SAID])})"
        raise UsageError(f"{where}: changed: {shortened(changed)}, and {reason}; change it back, or {remedy}")


def _refusal(
    where: Path, allowed: Sequence[str], missing: list[str], config: list[str], data: list[str], fixed: list[str], elsewhere: bool
) -> Exception:
    """Everything that differs and was not named, with all the names that it takes."""
    said = []
    unnamed = set(missing)
    config = [line for line in config if _field(line) in unnamed]
    if config:  # guard: training.resume.config
        said.append((f"the run's config has changed: {shortened(config)}", "change it back"))
    if DATASET in missing:  # guard: training.resume.data
        said.append((f"the data is not what the run began with: {shortened(data)}", "resume with that data"))
    fixed = [line for line in fixed if _name(line) in missing and not any(_field(other) == _name(line) for other in config)]
    if fixed:  # guard: training.resume.fixed
        said.append((shortened(fixed), "resume as the run began"))
    names = [*allowed, *missing]
    if len(names) > MOST_NAMES:
        names = [name.partition(".")[0] for name in names]
    flags = " ".join(f"--allow-change {printable(name[:MOST_SAID])}" for name in [*dict.fromkeys(names)][:MOST_NAMES])
    remedy = f"{said[0][1]}, go on with {flags}, or {_elsewhere(where) if elsewhere else NEW}"
    kind = DataError if missing == [DATASET] else UsageError
    return kind(f"{where}: {'; '.join(what for what, _ in said)}; {remedy}")


def check_allowed(allowed: Sequence[str], *runs: dict[str, Any]) -> None:
    """Every name must be a field of one of the runs, or a part of it: a typing error must not pass for a change that did not happen."""
    for name in allowed:
        unknown = [_unknown(name, run) for run in runs if name not in (DATASET, RANKS)]
        if unknown and all(unknown):  # guard: training.resume.allowed
            raise UsageError(f"--allow-change {name}: the run has no such field; {unknown[-1]}")


def _unknown(name: str, run: dict[str, Any]) -> str | None:
    """A hint where a run has no field of that name."""
    value: Any = run
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = sorted(value) if isinstance(value, dict) else []
            near = difflib.get_close_matches(part, known, n=1)
            return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join([*known, DATASET, RANKS])}"
        value = value[part]
    return None


def _field(line: str) -> str:
    """The field that a line of `differences` is about."""
    return line.partition(":")[0].partition("[")[0]


def _name(line: str) -> str:
    """What `allowed` calls a difference of environments."""
    return RANKS if _field(line) == RANKS else f"training.{_field(line)}"


def _is_in(line: str, names: Sequence[str]) -> bool:
    """Whether the field that a line is about is one of these, or a part of one."""
    return any(_field(line) == name or _field(line).startswith(f"{name}.") for name in names)


def shortened(lines: list[str], most: int = 3) -> str:
    lines = [printable(line[:MOST_SAID]) for line in lines]
    return "; ".join(lines[:most]) + (f" (+{len(lines) - most} more)" if len(lines) > most else "")
