"""Checkpoint files of objectives that are spread over ranks: each rank writes its rows, any number of ranks reads the rows that it wants.

```
one process       objective.safetensors
several ranks     objective-00000-of-00002.safetensors  objective-00001-of-00002.safetensors
```
A tensor is its pieces in the files' order, put together along the first axis; what every rank has (buffers, scalars) is in the first file.
The files of a checkpoint are committed together, by the manifest that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deftly import storage
from deftly.types import DataError

Piece = Callable[[str], slice | None]
"""The rows of a tensor that a rank holds, by the tensor's name; None: all of it."""


def everything(name: str) -> slice | None:
    return None


def name_of(name: str, rank: int, ranks: int) -> str:
    """The file of a rank: `objective.safetensors` where it is the only one."""
    stem, _, ending = name.rpartition(".")
    return name if ranks == 1 else f"{stem}-{rank:05d}-of-{ranks:05d}.{ending}"


def files_of(directory: Path, name: str, there: Iterable[str], check: bool = True) -> list[Path]:
    """The files that `name` is made of among those that are `there`, in order; none where there is none. `DataError` where they are not all
    of one set, unless `check` is off."""
    stem, _, ending = name.rpartition(".")
    pattern = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.{ending}")
    found = sorted(item for item in there if item == name or pattern.fullmatch(item))
    match = pattern.fullmatch(found[0]) if found else None
    ranks = int(match[1]) if match else 1
    is_whole = len(found) in (0, ranks) and all(item == name_of(name, rank, ranks) for rank, item in enumerate(found))
    if check and not is_whole:  # guard: training.shards.complete
        raise DataError(f"{directory / name}: of its parts there are {', '.join(found[:4])}, not one whole set; use an earlier one")
    return [directory / item for item in found]


def write(directory: Path, name: str, tensors: Mapping[str, Tensor], rank: int, ranks: int, is_shared: Callable[[str], bool]) -> Path:
    """Write this rank's part of `name`, and return its file. Only rank 0 writes what `is_shared`, and nobody writes empty pieces."""
    if ranks > 1:
        tensors = {key: value for key, value in tensors.items() if (rank == 0 if is_shared(key) or not value.ndim else value.numel())}
    file = directory / name_of(name, rank, ranks)
    safetensors.torch.save_file(dict(tensors), file)
    return file


def read(files: Sequence[Path], piece: Piece = everything) -> dict[str, Tensor]:
    """The tensors of `files_of` a name, or those rows of each that `piece` asks for, on the CPU. `DataError` in one line when they are
    broken."""
    for file in files:
        storage.check_header(file)
    try:
        with ExitStack() as held:
            opened = [held.enter_context(safetensors.safe_open(file, "pt")) for file in files]
            holders: dict[str, list[Any]] = {}
            for part in opened:
                for key in part.keys():  # noqa: SIM118  (not a mapping)
                    holders.setdefault(key, []).append(part)
            return {key: _rows(key, parts, piece(key)) for key, parts in holders.items()}
    except safetensors.SafetensorError as error:
        raise DataError(f"{files[0]}: not a safetensors file ({error})") from None
    except RuntimeError as error:
        raise DataError(f"{files[0]}: it and the other parts do not fit each other ({error})") from None


def _rows(name: str, parts: list[Any], wanted: slice | None) -> Tensor:
    """The wanted rows of a tensor out of the files that hold its pieces; only those are read."""
    if wanted is None or not parts[0].get_slice(name).get_shape():  # a number, such as the optimizer's count of steps
        pieces = [part.get_tensor(name) for part in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    pieces, begin = [], 0
    for part in parts:
        held = part.get_slice(name)
        end = begin + held.get_shape()[0]
        first, last = max(wanted.start, begin), min(wanted.stop, end)
        if first < last or (part is parts[-1] and not pieces):
            pieces.append(held[first - begin : max(first, last) - begin] if first < last else part.get_tensor(name)[:0])
        begin = end
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
