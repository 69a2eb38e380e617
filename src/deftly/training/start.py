"""Where a run's first weights come from: another run's checkpoint as a whole, or some of its weights, chosen by name.

Which of the ways is taken stands in `Trainer._begin`. Nothing is written to where the weights come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from deftly import storage
from deftly.config import Config
from deftly.data.tokenizer import PAD, UNKNOWN, TextTokenizer
from deftly.training import checkpoint
from deftly.training.checkpoint import Snapshot
from deftly.training.lora import without_adapters
from deftly.training.names import check_pattern, matching
from deftly.training.shards import Piece, everything
from deftly.training.state import saved_tensors
from deftly.types import DataError, Objective, UsageError

POLICY_WEIGHTS, POLICY_TOKENIZER = "model.safetensors", "tokenizer.json"


class StartConfig(Config):
    """What a run begins with. Once it has a checkpoint of its own it goes on from that."""

    path: Path | None = None
    """A run, a checkpoint, a policy directory or a safetensors file; null: fresh weights."""
    weights: tuple[str, ...] = ()
    """Fine-tune: regular expressions of whole parameter names (`policy\\.vision\\..*`); what matches is taken from `path`, everything else,
    moments and position included, is fresh. Empty: the run of `path` goes on, as it stands."""

    @pydantic.model_validator(mode="after")
    def check_fields(self) -> StartConfig:
        if self.weights and self.path is None:
            raise ValueError("start.weights chooses among the weights of start.path, which is not given")
        for pattern in self.weights:
            check_pattern(pattern)
        return self


class Source(NamedTuple):
    """Weights of somebody else."""

    tensors: dict[str, Tensor]
    """By the names that an objective gives them; averages where there are any."""
    words: tuple[str, ...] | None
    """The vocabulary in the order of its ids; None where it is not known."""
    where: Path
    sha256: str
    """Of the manifest, or of the file: what a checkpoint remembers it by."""


def find_checkpoint(path: Path, pointers: Sequence[str]) -> Path:
    """The checkpoint directory that `path` means: itself, or that of a run's first pointer of `pointers` that is there."""
    if (path / checkpoint.TRAINER).is_file():
        return path
    root = path / "checkpoints"
    for pointer in pointers:
        if (root / pointer).is_file():
            found = storage.inside(root, (root / pointer).read_text(encoding="utf-8", errors="replace")[:200].strip())
            if not (found / checkpoint.TRAINER).is_file():
                raise DataError(f"{root / pointer}: points to {found.name!r}, which is no checkpoint; name another one")
            return found
    if not path.exists():
        raise UsageError(f"training.start.path: {path}: no such file or directory")
    raise UsageError(f"training.start.path: {path}: no run with a checkpoint, no checkpoint, no policy and no safetensors file")


def check_there(start: StartConfig) -> None:
    """Raise `UsageError` where `start` names nothing to begin with: told before the run directory is touched."""
    if start.path is None:
        return
    if not (start.path.is_file() or (start.path / POLICY_WEIGHTS).is_file()):
        find_checkpoint(start.path, ("best", "last"))
    elif not start.weights:  # guard: training.start.only_weights
        raise UsageError(
            f"training.start.path: {start.path}: weights alone, which no run can go on from; "
            "begin anew with them: training.start.weights 'policy\\..*'"
        )


def read_whole(path: Path, piece: Piece = everything) -> tuple[Snapshot, Path]:
    """The newest checkpoint of a run, or the checkpoint that is named, verified, or the rows of it that `piece` says; raises `DataError` or
    `UsageError`."""
    found = find_checkpoint(path, ("last",))
    checkpoint.refuse(found)
    return checkpoint.read(found, piece), found


def read_source(path: Path) -> Source:
    """Verified weights of a run (its best checkpoint), a checkpoint, a policy directory, or a safetensors file as it is."""
    if path.is_file():
        return Source(checkpoint.read_tensors(path), None, path, storage.sha256(path))
    if (path / POLICY_WEIGHTS).is_file():
        policy, found = path, path
        storage.verify(path)
        tensors = {f"policy.{name}": tensor for name, tensor in checkpoint.read_tensors(path / POLICY_WEIGHTS).items()}
    else:
        found = find_checkpoint(path, ("best", "last"))
        policy = found / checkpoint.POLICY
        tensors = without_adapters(checkpoint.read(found).objective)
        # the policy as it acts, with adapters merged
        tensors |= {f"policy.{name}": tensor for name, tensor in checkpoint.read_tensors(policy / POLICY_WEIGHTS).items()}
    words = None
    if (policy / POLICY_TOKENIZER).is_file():
        words = (PAD, UNKNOWN, *TextTokenizer.load(policy / POLICY_TOKENIZER).words)
    return Source(tensors, words, found, storage.sha256(found / storage.MANIFEST))


def choose(patterns: Sequence[str], ours: Mapping[str, Tensor], source: Source) -> list[str]:
    """Our tensors that a pattern matches as a whole. `UsageError` for a pattern without any, `DataError` where the source lacks one."""
    chosen = set()
    for pattern in patterns:
        chosen.update(matching(pattern, ours, "training.start.weights", "parameter of the objective"))
    missing = sorted(chosen - source.tensors.keys())
    if missing:
        raise DataError(
            f"{source.where}: has no tensor {missing[0]!r} ({len(missing)} such); leave it out of training.start.weights"
            f" (there is, say, {min(source.tensors, default='nothing')!r})"
        )
    return [name for name in ours if name in chosen]


@torch.no_grad()
def take_weights(objective: Objective, patterns: Sequence[str], source: Source, words: Sequence[str] | None) -> list[str]:
    """Copy the chosen tensors into the objective and return their names; nothing is changed where one does not fit.

    Rows of the policy's `word_tables` go to the same word's row in our own vocabulary `words`; words that the source never saw keep their
    fresh row. Raises `UsageError` or `DataError` in one line.
    """
    if any(isinstance(parameter, DTensor) for parameter in objective.parameters()):  # guard: training.start.sharded
        raise UsageError(
            "training.start.weights cannot be put into a sharded objective: take the first step with training.parallel ddp, or in one "
            "process, and go on from its checkpoint with --allow-change training.parallel --allow-change ranks"
        )
    ours = without_adapters(saved_tensors(objective, objective.not_saved))
    names = choose(patterns, ours, source)
    tables = {f"policy.{name}" for name in objective.policy.word_tables} if words is not None and source.words is not None else set()
    values = {}
    for name in names:
        value = source.tensors[name]
        if not bool(torch.isfinite(value).all()) and isinstance(ours[name], torch.nn.Parameter):
            raise DataError(f"{source.where}: tensor {name!r} holds a non-finite number; use an earlier checkpoint")
        if name in tables:
            value = _rows_by_word(ours[name], value, tuple(words or ()), source.words or ())
        if value.shape != ours[name].shape:
            raise DataError(
                f"{source.where}: tensor {name!r} has shape {tuple(value.shape)}, here it is {tuple(ours[name].shape)}; "
                "leave it out of training.start.weights"
            )
        values[name] = value
    for name, value in values.items():
        ours[name].copy_(value)
    return names


def _rows_by_word(own: Tensor, value: Tensor, words: Sequence[str], theirs: Sequence[str]) -> Tensor:
    """`own` with the row of every word that both know taken from `value`; `value` as it is where it does not fit, to be refused."""
    if len(value) != len(theirs) or len(own) != len(words) or value.shape[1:] != own.shape[1:]:
        return value
    place = {word: index for index, word in enumerate(theirs)}
    rows = [(index, place[word]) for index, word in enumerate(words) if word in place]
    merged = own.detach().clone()
    ids = torch.tensor(rows, dtype=torch.int64)
    merged[ids[:, 0].to(own.device)] = value[ids[:, 1]].to(own)
    return merged


def origin(way: str, where: Path, sha256: str, tensors: int | None = None) -> dict[str, Any]:
    """What a checkpoint remembers of where its run began."""
    return {"way": way, "from": str(where.resolve()), "sha256": sha256, **({} if tensors is None else {"tensors": tensors})}
