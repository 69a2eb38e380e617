"""Distances beside the images: kept in millimetres, moved as the camera's image is moved, and never averaged.

    CACHE/depth/<key>/depth.bin        uint16 [frames size size], raw; 0 where nothing was measured
    CACHE/depth/<key>/manifest.json    what it holds; written last

The mean of two distances is a place where nothing is, so every pixel is the nearest one that was measured. A frame is fitted into a square
as images are (`images.py`), and what is outside of it was not measured. Letters: b batch, t frames, n frames, s side of a stored frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt16
from torch import Tensor

from deftly import storage
from deftly.contract import Contract, DepthCamera, Mirror, fingerprint
from deftly.data.augment import OFF
from deftly.data.columns import is_complete
from deftly.data.images import fit_inside
from deftly.data.mirror import draw_mirrored
from deftly.data.store import DECODED_AT_ONCE, announce
from deftly.data.warp import draw_maps
from deftly.types import DataError, UsageError

if TYPE_CHECKING:
    from deftly.data.dataset import Dataset

FORMAT = "depth-1"
FILE = "depth.bin"
PREFIX = "depth/"  # of a depth camera among the tensors that a worker sends back, whose cameras may have the same name
MM = 1000
MOST_MM = 65535


class DepthStore:
    """uint16 [N s s] millimetres per depth camera, row for row the dataset's frames. Pickles as paths."""

    def __init__(self, homes: dict[str, Path], num_frames: int, size: int) -> None:
        self.homes, self.num_frames, self.size = homes, num_frames, size
        self.frames: dict[str, np.ndarray] = {name: _map(home / FILE, (num_frames, size, size)) for name, home in homes.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return DepthStore, (self.homes, self.num_frames, self.size)

    @property
    def num_bytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())

    @classmethod
    def prepare(cls, dataset: Dataset, names: Sequence[str], size: int, cache_dir: Path, *, share: float) -> DepthStore:
        """Open the store of these depth cameras, decoding what is not there yet. Builders at the same time are safe.

        Raises:
            UsageError: what is missing would take more than `share` of the free disk space.
            DataError: a frame cannot be decoded.
        """
        one = dataset.num_frames * size * size * 2
        homes = {name: cache_dir / "depth" / fingerprint([FORMAT, dataset.hash, name, size])[:32] for name in names}
        if not all(is_complete(home, {FILE: one}) for home in homes.values()):
            with storage.lock(cache_dir / "depth" / ".lock", wait=True):
                missing = {name: home for name, home in homes.items() if not is_complete(home, {FILE: one})}
                if missing:
                    announce(len(missing) * one, cache_dir, list(missing), size, share)
                for name, home in missing.items():
                    about = {"format": FORMAT, "dataset_hash": dataset.hash, "camera": name, "image_size": size}
                    storage.recover(home)
                    storage.commit(home, lambda folder, name=name: _write(dataset, name, size, folder / FILE), about)
        return cls(homes, dataset.num_frames, size)


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not shape[0]:
        return np.zeros(shape, np.uint16)  # an empty file cannot be mapped
    return np.memmap(path, np.uint16, mode="r", shape=shape).view(np.ndarray)


def _write(dataset: Dataset, name: str, size: int, path: Path) -> None:
    with open(path, "wb") as file:
        for episode in range(dataset.num_episodes):
            length = int(dataset.episode_length[episode])
            for first in range(0, length, DECODED_AT_ONCE):
                indices = np.arange(first, min(first + DECODED_AT_ONCE, length))
                try:
                    depth = dataset.depth(episode, name, indices)
                except DataError as error:
                    raise DataError(f"{error}; `deftly data check {dataset.root}` lists every episode that cannot be used") from None
                file.write(fit(millimetres(depth), size).tobytes())


def millimetres(metres: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Whole millimetres; 0, not measured, beyond the 65 m that fit."""
    exact = np.rint(metres.astype(np.float64) * MM)
    return np.where(exact <= MOST_MM, exact, 0).astype(np.uint16)


def in_metres(depth: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return depth.astype(np.float32) * np.float32(1 / MM)


def fit(depth: UInt16[np.ndarray, "n h w"], size: int) -> UInt16[np.ndarray, "n {size} {size}"]:
    """Whole frames, aspect kept, in the middle of squares in which nothing else was measured: where `resize_with_pad` puts an image."""
    height, width = depth.shape[1:]
    new_height, new_width = fit_inside(height, width, size)
    down, across = (((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in ((new_height, height), (new_width, width)))
    square = np.zeros((len(depth), size, size), np.uint16)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[:, top : top + new_height, left : left + new_width] = depth[:, down[:, None], across]
    return square


def warp_depth(
    frames: UInt16[np.ndarray, "n s s"], rows: Int64[np.ndarray, "b t"], maps: Float32[np.ndarray, "b 2 3"], size: int
) -> UInt16[np.ndarray, "b t {size} {size}"]:
    """The frames of each window at the places that its map names (`warp.py`), the nearest pixel of each; the edge is repeated."""
    last = frames.shape[1] - 1
    pixel = np.arange(size)
    result = np.empty((*rows.shape, size, size), np.uint16)
    for moved, row, map_ in zip(result, rows, maps.astype(np.float64), strict=True):
        x, y = (part[0] * pixel + part[1] * pixel[:, None] + part[2] for part in map_)
        x, y = (np.clip(np.floor(part + 0.5 + 1e-6), 0, last).astype(np.int64) for part in (x, y))
        moved[:] = frames[row[:, None, None], y, x]
    return result


def moved_depth(
    frames: Mapping[str, UInt16[np.ndarray, "n s s"]],
    rows: Int64[np.ndarray, "b t"],
    key: Int64[Tensor, "b"],
    mirror: float,
    contract: Contract,
    maps: Float32[np.ndarray, "cameras b 2 3"],
) -> dict[str, Tensor]:
    """`PREFIX` and depth camera -> uint16 [b t h w] millimetres, under the maps of its camera; a mirrored sample sees its partner."""
    place = {name: i for i, name in enumerate(contract.recorded_cameras())}
    mirrored = draw_mirrored(key, mirror)
    found = {}
    for one in contract.depth:
        own = maps[place[one.camera]]
        depth = warp_depth(frames[one.name], rows, own, contract.image_size)
        other = partner(one, contract.depth, contract.embodiment.mirror)
        if mirrored.any() and other is not None and other != one.name:
            depth[mirrored] = warp_depth(frames[other], rows[mirrored], own[mirrored], contract.image_size)
        found[PREFIX + one.name] = torch.from_numpy(depth)
    return found


def still(contract: Contract, depth: UInt16[np.ndarray, "h w"]) -> UInt16[np.ndarray, "s s"]:
    """A frame as the policy sees it where nothing is augmented."""
    maps = draw_maps(torch.zeros(1, dtype=torch.int64), ["still"], ["scene"], OFF, contract.image_size, contract.frame_size)
    return warp_depth(fit(depth[None], contract.frame_size), np.zeros((1, 1), np.int64), maps[0], contract.image_size)[0, 0]


def observed(contract: Contract, given: Mapping[str, Shaped[np.ndarray, "h w"]]) -> dict[str, UInt16[np.ndarray, "s s"]]:
    """The policy's depth cameras at its size, from distances in metres; `DataError` for one that is missing or not what it was."""
    found = {}
    for one in contract.depth:
        what = f"observation: depth camera {one.name!r}"
        if one.name not in given:
            raise DataError(f"{what} is missing; it has {', '.join(given) or 'none'}")
        depth = np.asarray(given[one.name])
        if depth.dtype != np.float32 or depth.shape != (one.height, one.width):
            raise DataError(f"{what} is {depth.dtype} {list(depth.shape)}, the policy was trained on float32 [{one.height}, {one.width}]")
        if not (np.isfinite(depth).all() and depth.min() >= 0):
            raise DataError(f"{what} holds distances that are negative or not finite; give metres, and 0 where nothing was measured")
        found[one.name] = still(contract, millimetres(depth))
    return found


def depth_cameras(dataset: Dataset, names: Sequence[str], cameras: Sequence[str], mirror: Mirror | None) -> tuple[DepthCamera, ...]:
    """What the policy is told of each depth camera; `mirror` where samples are mirrored.

    Raises `UsageError` for one that the dataset does not have, whose camera the policy does not see, or without its mirrored partner.
    """
    if len(set(names)) != len(names):
        raise UsageError(f"depth: {', '.join(names)}: name each depth camera once")
    found = []
    for name in names:
        key = dataset.info.cameras(depth=True).get(name)
        if key is None:
            raise UsageError(f"{dataset.root}: no depth camera {name!r}; it has {', '.join(dataset.depth_cameras) or 'none'}")
        own = name.replace("depth", "").strip("._-/ ") if name not in cameras else name
        camera = cameras[0] if not own and len(cameras) == 1 else own
        if camera not in cameras:
            raise UsageError(
                f"{dataset.root}: depth camera {name!r} belongs to none of the policy's cameras {', '.join(cameras)}; it moves as its "
                "camera's image does: call it CAMERA_depth"
            )
        height, width = dataset.features[key].height_width(f"depth {name!r}")
        found.append(DepthCamera(name=name, camera=camera, height=height, width=width))
    for one in found:
        if mirror is not None and partner(one, found, mirror) is None:
            raise UsageError(f"augmentation.mirror: depth camera {one.name!r} has no partner among `depth`; add it, or set mirror to 0")
    return tuple(found)


def partner(one: DepthCamera, among: Sequence[DepthCamera], mirror: Mirror | None) -> str | None:
    """The depth camera that a mirrored sample sees in the place of this one: of several, the one whose name differs by the camera alone."""
    camera = one.camera if mirror is None else mirror.cameras.get(one.camera, one.camera)
    if camera == one.camera:
        return one.name  # what it measured itself, mirrored; another one of this camera is no mirror image of it
    there = [other for other in among if other.camera == camera]
    alike = [other for other in there if other.name.replace(other.camera, "", 1) == one.name.replace(one.camera, "", 1)]
    is_alone = len(there) == 1 and sum(other.camera == one.camera for other in among) == 1
    return next((other.name for other in (there if is_alone else alike)), None)
