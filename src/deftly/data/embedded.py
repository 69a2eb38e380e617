"""Images that are stored inside parquet files, row by row."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8

from deftly.data.images import decode_depth, decode_image
from deftly.data.rows import rows_of_episode
from deftly.data.schema import Feature
from deftly.data.tables import image_bytes
from deftly.types import DataError, EpisodeError


def read_images(
    path: Path, number: int, key: str, feature: Feature, indices: Int64[np.ndarray, "n"], where: str
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images of a feature of one episode (by its number in the folder). Raises `EpisodeError` for the first that is broken or missing."""
    height, width = feature.height_width(where)
    images = np.empty((len(indices), height, width, 3), np.uint8)
    for row, data, name in _encoded(path, number, key, indices, where):
        try:
            images[row] = decode_image(data, height, width, name)
        except DataError as error:
            raise EpisodeError(str(error), number, "image") from None
    return images


def read_depth(
    path: Path, number: int, key: str, feature: Feature, indices: Int64[np.ndarray, "n"], where: str
) -> Float32[np.ndarray, "n h w"]:
    """Depth in metres of a feature of one episode; 0 where nothing was measured. Errors as of `read_images`."""
    height, width, channels = feature.image_shape(where)
    if channels != 1:
        raise DataError(f"{where}: depth has one channel, its shape in info.json says {channels}")
    metres = np.float32(feature.metres_per_unit(where))
    depth = np.empty((len(indices), height, width), np.float32)
    for row, data, name in _encoded(path, number, key, indices, where):
        try:
            depth[row] = decode_depth(data, height, width, name) * metres
        except DataError as error:
            raise EpisodeError(str(error), number, "image") from None
    return depth


def _encoded(path: Path, number: int, key: str, indices: np.ndarray, where: str) -> Iterator[tuple[int, bytes | None, str]]:
    """(row, PNG or JPEG bytes, what to call it) for each index."""
    found = path.stat() if path.is_file() else None
    column = _column(path, number, key, found and (found.st_mtime_ns, found.st_size))
    for row, index in enumerate(indices.tolist()):
        if index >= len(column):
            raise EpisodeError(f"{where}: {path} holds {len(column)} rows of it, asked for frame {index}", number, "rows")
        yield row, image_bytes(column[index]), f"{where}: {path}: {key} frame {index}"


@functools.lru_cache(maxsize=2)  # an episode is asked for in several pieces, and by camera and depth in turn
def _column(path: Path, number: int, key: str, state: tuple[int, int] | None) -> pa.ChunkedArray:
    """The encoded images of one episode; `state` tells a file that was changed from the one that was read."""
    return rows_of_episode(path, number, [key]).column(key)
