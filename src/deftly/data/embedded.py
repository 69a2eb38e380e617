"""Images that are stored inside parquet files, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from deftly.data.images import decode_image
from deftly.data.rows import rows_of_episode
from deftly.types import DataError, EpisodeError


def read_images(
    path: Path, number: int, key: str, indices: Int64[np.ndarray, "n"], height: int, width: int, where: str
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images of a feature of one episode (by its number in the folder). Raises `EpisodeError` for the first that is broken or missing."""
    column = rows_of_episode(path, number, [key]).column(key)
    images = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    for i, index in enumerate(indices.tolist()):
        if index >= len(column):
            raise EpisodeError(f"{where}: {path} holds {len(column)} rows of it, asked for frame {index}", number, "rows")
        try:
            value = column[index].as_py()
            images[i] = decode_image(value.get("bytes") if isinstance(value, dict) else None, height, width, f"frame {index}")
        except DataError as error:
            raise EpisodeError(f"{where}: {path}: {key}: {error}", number, "image") from None
    return images
