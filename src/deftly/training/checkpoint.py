"""Checkpoints on disk: what is in one, how it appears whole, which one is read, which ones are kept.

```
checkpoints/step-00001000/   policy/ run.json objective.safetensors [raw.safetensors] optimizer.safetensors trainer.json manifest.json
checkpoints/last, best       text files with the name of a directory
```
`objective.safetensors` holds the averaged weights where there is an average, and `raw.safetensors` then the weights that training goes
on with. Nothing here is a pickle, and nothing is read before its sha256 has been checked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deftly import storage
from deftly.training import distributed, shards
from deftly.training.shards import Piece, everything
from deftly.types import DataError, UsageError

FORMAT_VERSION = 2  # 1: before runs remembered where they began, and what their guard had seen
POLICY, RUN, OBJECTIVE, RAW = "policy", "run.json", "objective.safetensors", "raw.safetensors"
OPTIMIZER, TRAINER = "optimizer.safetensors", "trainer.json"

SET_ASIDE = re.compile(r"(corrupt|incomplete)-step-\d{8,}")

WritePolicy = Callable[[Path, dict[str, Tensor]], None]


@dataclass(frozen=True)
class Rows:
    """Which of how many ranks' rows some tensors are."""

    rank: int = 0
    ranks: int = 1
    is_shared: Callable[[str], bool] = lambda name: True
    """Whether every rank has the same tensor of that name, and all of it."""


@dataclass(kw_only=True)
class Snapshot:
    """Everything that a run needs to go on: CPU tensors and plain data."""

    objective: dict[str, Tensor]
    """Averaged weights where there is an average, else the weights."""
    raw: dict[str, Tensor] | None
    """The weights that training goes on with, where they differ from `objective`."""
    optimizer: dict[str, Tensor]
    trainer: dict[str, Any]
    run: dict[str, Any]
    part: Rows = Rows()
    """Whether the tensors are one rank's rows."""

    @property
    def step(self) -> int:
        return self.trainer["step"]


def directory_name(step: int) -> str:
    return f"step-{step:08d}"


class Checkpoints:
    """The `checkpoints/` directory of a run."""

    def __init__(self, root: Path, keep_last: int, every: int | None = None, piece: Piece = everything) -> None:
        """`piece` says which rows of each tensor are read."""
        self.root, self.keep_last, self.every, self.piece = root, keep_last, every, piece

    def steps(self) -> list[int]:
        """Steps of which there is a directory, oldest first; not yet verified."""
        if not self.root.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d{8,})", item.name) for item in self.root.iterdir() if item.is_dir())
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step: int) -> Path:
        return self.root / directory_name(step)

    def save(self, snapshot: Snapshot, policy: dict[str, Tensor], write_policy: WritePolicy, best: int | None) -> Path:
        """Write a checkpoint, point `last` (and `best`, a step) at it, delete what is no longer kept. Raises OSError when the disk refuses.

        A crash at any moment leaves the one before or this one; pointers that lag behind are set right by `settle`.
        """
        path = self.path(snapshot.step)
        try:
            if snapshot.part.ranks == 1:
                storage.commit(path, lambda directory: fill(directory, snapshot, policy, write_policy), about())
            else:
                self._save_together(path, snapshot, policy, write_policy)
        except safetensors.SafetensorError as error:  # its name for a disk that refuses: it is no OSError
            raise OSError(str(error)) from None
        if snapshot.part.rank:
            return path
        self.settle(best)
        self.prune(best)
        return path

    def _save_together(self, path: Path, snapshot: Snapshot, policy: dict[str, Tensor], write_policy: WritePolicy) -> None:
        """Every rank writes its rows into the directory that rank 0 makes, and rank 0 commits it when all are there."""
        with distributed.Meeting() as meeting:
            if snapshot.part.rank:
                owner = meeting.agree()
                for file in write_tensors(path.with_name(f".{path.name}.{owner}.tmp"), snapshot):
                    storage.sync_file(file)
                meeting.agree()
                return

            def fill_together(directory: Path) -> None:
                meeting.agree(os.getpid())  # by which the others know the directory
                write_tensors(directory, snapshot)
                meeting.agree()
                found = shards.read(shards.files_of(directory, OBJECTIVE, os.listdir(directory)))  # the others' rows are there only
                whole = {name: found[f"policy.{name}"].to(tensor.dtype) for name, tensor in policy.items()}
                write_rest(directory, snapshot, whole, write_policy)

            storage.commit(path, fill_together, about())

    def settle(self, best: int | None) -> None:
        """Make `last` name the newest directory, and `best` the directory of step `best`, if it is there."""
        steps = self.steps()
        for name, step in (("last", steps[-1] if steps else None), ("best", best)):
            pointer = self.root / name
            if step in steps:
                storage.write_text(pointer, directory_name(step) + "\n")  # type: ignore[arg-type]
            elif pointer.exists():
                pointer.unlink()
                storage.sync_directory(self.root)  # before what it named is deleted

    def kept(self, best: int | None) -> set[int | None]:
        """The newest, the best, and the newest `keep_last` of those that `every` asks for: an interruption adds one and displaces none."""
        steps = self.steps()
        regular = [step for step in steps if self.every is not None and step % self.every == 0]
        return {*steps[-1:], *(regular if len(regular) >= self.keep_last else steps)[-self.keep_last :], *regular[-1:], best}

    def prune(self, best: int | None) -> None:
        """Delete what is not kept."""
        kept = self.kept(best)
        for step in self.steps():
            if step not in kept:
                # Renamed first, and durably, to a name that `sweep` knows: a half-deleted directory must not pass for a checkpoint.
                retired = self.path(step).with_name(f".{directory_name(step)}.{os.getpid()}.pruned")
                shutil.rmtree(retired, ignore_errors=True)
                os.replace(self.path(step), retired)
                storage.sync_directory(self.root)
                shutil.rmtree(retired)

    def sweep(self, say: Callable[[str], None]) -> None:
        """Delete the temporary directories and pointers that a crash left behind. Only for the holder of the run's lock.

        A checkpoint without its manifest is no work of ours: it is announced through `say` and set aside as `incomplete-<name>`.
        """
        for item in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if found := re.fullmatch(r"\.(step-\d{8,})\.\d+\.old", item.name):  # it was about to be replaced
                storage.recover(self.root / found[1])
            elif item.is_dir() and re.fullmatch(r"\.step-\d+\.\d+\.(tmp|pruned)", item.name):
                shutil.rmtree(item)
            elif item.is_file() and re.fullmatch(r"\.(last|best)\.\d+\.tmp", item.name):
                item.unlink()
            elif item.is_dir() and is_incomplete(item):
                aside = set_aside(item, "incomplete")
                say(f"WARNING: {item / storage.MANIFEST}: missing, the checkpoint is incomplete; set aside as {aside.name}")

    def require_space(self, size: int) -> None:
        """`UsageError` when the disk has no room for `size` bytes times every checkpoint that will be there at once."""
        at_once = self.keep_last + 3  # the best, that of an interruption, and the one that is being written
        free = shutil.disk_usage(self.root.parent).free
        if free < at_once * size:  # guard: training.checkpoint.space
            need = at_once * size / 2**20
            raise UsageError(f"{self.root}: {at_once} checkpoints need {need:.0f} MiB, the disk has {free / 2**20:.0f} MiB free; make room")

    def newest(self, say: Callable[[str], None]) -> Snapshot | None:
        """The newest checkpoint that verifies, or None where there never was one.

        One that is corrupt is announced through `say`, set aside as `corrupt-<name>`, and the one before is taken; when none is left but
        some were set aside, now or earlier, or when the optimizer's file is missing, or the format is newer than this program, a
        one-line `DataError`.
        """
        for step in reversed(self.steps()):
            path = self.path(step)
            refuse(path)
            try:
                snapshot = read(path, self.piece)
                if snapshot.step != step:  # guard: training.checkpoint.step
                    raise DataError(f"{path / TRAINER}: is of step {snapshot.step}, the directory of step {step}")
                return snapshot
            except DataError as error:
                aside = set_aside(path, "corrupt")
                say(f"{error}; set aside as {aside.name}, falling back to the checkpoint before")
        # Not the same as an empty directory: to begin at step 0 would overwrite the log of a run that was further.
        lost = sorted(item.name for item in self.root.iterdir() if SET_ASIDE.match(item.name)) if self.root.is_dir() else []
        if lost:  # guard: training.checkpoint.none_left
            raise DataError(
                f"{self.root}: no checkpoint that can be read is left ({', '.join(lost)}); remove {self.root.parent} to start over, "
                "or choose another directory"
            )
        return None


def about() -> dict[str, Any]:
    return {"kind": "checkpoint", "format_version": FORMAT_VERSION, "torch": torch.__version__}


def fill(directory: Path, snapshot: Snapshot, policy: dict[str, Tensor], write_policy: WritePolicy) -> None:
    """Write everything but the manifest into an existing directory."""
    write_rest(directory, snapshot, policy, write_policy)
    write_tensors(directory, snapshot)


def write_rest(directory: Path, snapshot: Snapshot, policy: dict[str, Tensor], write_policy: WritePolicy) -> None:
    """What a checkpoint holds once, however many ranks have written its tensors."""
    (directory / POLICY).mkdir()
    write_policy(directory / POLICY, policy)
    storage.write_json(directory / RUN, snapshot.run)
    storage.write_json(directory / TRAINER, snapshot.trainer)


def write_tensors(directory: Path, snapshot: Snapshot) -> list[Path]:
    """The files of this rank."""
    part, files = snapshot.part, {OBJECTIVE: snapshot.objective, RAW: snapshot.raw, OPTIMIZER: snapshot.optimizer}
    return [
        shards.write(directory, name, tensors, part.rank, part.ranks, part.is_shared)
        for name, tensors in files.items()
        if tensors is not None
    ]


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint to `<why>-<name>`, numbered where that is taken, so that it is no longer read; returns the new path."""
    aside, number = path.with_name(f"{why}-{path.name}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{why}-{path.name}-{number}")
    os.replace(path, aside)
    storage.sync_directory(path.parent)
    return aside


def is_incomplete(path: Path) -> bool:
    """Named as a checkpoint, but without the manifest that every checkpoint of ours has from the moment that it has its name."""
    return bool(re.fullmatch(r"step-\d{8,}", path.name)) and not (path / storage.MANIFEST).exists()


def refuse(path: Path) -> None:
    """What must not be answered by silently going back one checkpoint."""
    if not shards.files_of(path, OPTIMIZER, os.listdir(path), check=False):  # guard: training.checkpoint.optimizer
        raise DataError(
            f"{path / OPTIMIZER}: missing; going on without the optimizer's moments would be another run: put the file back, "
            f"or delete the directory {path.name} to resume from the checkpoint before"
        )
    manifest = path / storage.MANIFEST
    try:
        version = storage.read_json(manifest, storage.MAX_MANIFEST_BYTES).get("format_version") if manifest.exists() else None
    except (DataError, AttributeError):
        return  # corrupt: `verify` says so
    if isinstance(version, int) and version > FORMAT_VERSION:  # guard: training.checkpoint.format
        raise DataError(f"{manifest}: format {version} is newer than this deftly reads ({FORMAT_VERSION}); update deftly")
    if isinstance(version, int) and version < FORMAT_VERSION:  # guard: training.checkpoint.old_format
        raise DataError(
            f"{manifest}: format {version} is of an earlier deftly, this one goes on from {FORMAT_VERSION}: resume with the version that "
            "wrote it, or begin a new run with its weights (--training.start.path, --training.start.weights '.*')"
        )


def read(path: Path, piece: Piece = everything) -> Snapshot:
    """Verify a checkpoint directory and read it, or those rows of its tensors that `piece` says; a one-line `DataError` for what is not as
    it should be."""
    manifest = storage.verify(path)
    files = {name: shards.files_of(path, name, manifest["files"]) for name in (OBJECTIVE, RAW, OPTIMIZER)}
    missing = [name for name in (OBJECTIVE, OPTIMIZER) if not files[name]]
    storage.require_listed(path, manifest, (*missing, RUN, TRAINER))
    trainer, run = (storage.read_json(path / name, storage.MAX_MANIFEST_BYTES) for name in (TRAINER, RUN))
    is_state = isinstance(trainer, dict) and isinstance(trainer.get("step"), int)
    if not is_state or not isinstance(run, dict):  # guard: training.checkpoint.state
        raise DataError(f"{path / TRAINER}: not a trainer's state")
    return Snapshot(
        objective=shards.read(files[OBJECTIVE], piece),
        raw=shards.read(files[RAW], piece) if files[RAW] else None,
        optimizer=shards.read(files[OPTIMIZER], piece),
        trainer=trainer,
        run=run,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file on the CPU; a one-line `DataError` when it is missing or is something else."""
    if not path.is_file():  # guard: training.checkpoint.tensors
        raise DataError(f"{path}: missing; the checkpoint is incomplete")
    storage.check_header(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error})") from None
