"""The growing files of a dataset that is being written: rows in parquet, frames in mp4. Each rolls at its size limit."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deftly.data import video
from deftly.data.schema import DATA_FILE_MB, DATA_PATH, VIDEO_FILE_MB, VIDEO_FILE_SECONDS, VIDEO_PATH, Feature, fill_path, next_file
from deftly.data.video import VideoClip, VideoWriter

PARQUET = {"compression": "snappy", "use_dictionary": True}


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Columns of the data files, with the metadata from which the `datasets` library knows vectors and images. Videos are not in it."""
    columns, described = [], {}
    for name, feature in features.items():
        if feature.dtype == "video":
            continue
        value = {"dtype": feature.dtype, "_type": "Value"}
        if feature.dtype == "image":
            columns.append(pa.field(name, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
            described[name] = {"_type": "Image"}
        elif len(feature.shape) > 1:
            kind = _value_type(feature.dtype)
            for _ in feature.shape:
                kind = pa.list_(kind)
            columns.append(pa.field(name, kind))
            described[name] = {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}
        elif feature.shape == (1,):
            columns.append(pa.field(name, _value_type(feature.dtype)))
            described[name] = value
        else:
            columns.append(pa.field(name, pa.list_(_value_type(feature.dtype), math.prod(feature.shape))))
            described[name] = {"feature": value, "length": math.prod(feature.shape), "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    return pa.schema(columns, metadata=metadata)


def _value_type(dtype: str) -> pa.DataType:
    return pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)


def arrow_table(schema: pa.Schema, columns: Mapping[str, np.ndarray | Sequence[str]], images: Mapping[str, Sequence[bytes]]) -> pa.Table:
    """Rows of one episode: numeric columns [T], [T d] or [T ...], texts, and encoded images."""
    arrays = []
    for item in schema:
        if item.name in images:
            arrays.append(pa.array([{"bytes": data, "path": None} for data in images[item.name]], type=item.type))
        elif pa.types.is_fixed_size_list(item.type):
            flat = pa.array(np.ascontiguousarray(columns[item.name]).reshape(-1), type=item.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=item.type))
        elif pa.types.is_string(item.type):
            arrays.append(pa.array(columns[item.name], type=item.type))
        elif pa.types.is_list(item.type):
            arrays.append(_nested(np.asarray(columns[item.name]), item.type))
        else:
            arrays.append(pa.array(np.asarray(columns[item.name]).reshape(-1), type=item.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _nested(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """An array [T ...] as lists of lists, one level per axis."""
    leaf = kind
    while pa.types.is_list(leaf):
        leaf = leaf.value_type
    array = pa.array(np.ascontiguousarray(values).reshape(-1), type=leaf)
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * values.shape[axis], array)
    return array


class DataFiles:
    """Parquet files of rows, one row group per episode."""

    def __init__(self, root: Path, schema: pa.Schema) -> None:
        self._root, self._schema = root, schema
        self._place = (0, 0)
        self._writer: pq.ParquetWriter | None = None
        self._path = root

    def add(self, table: pa.Table) -> dict[str, Any]:
        """Append the rows of an episode; returns where they are."""
        if self._writer is not None and self._path.stat().st_size + table.nbytes > DATA_FILE_MB << 20:
            self.close()
            self._place = next_file(*self._place)
        if self._writer is None:
            self._path = fill_path(self._root, DATA_PATH, {"chunk_index": self._place[0], "file_index": self._place[1]}, DATA_PATH)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, self._schema, **PARQUET)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return {"data/chunk_index": self._place[0], "data/file_index": self._place[1]}

    def close(self) -> None:
        """Write the footer without which the file cannot be read."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def abort(self) -> None:
        """Let go of the current file, whatever state it is in."""
        with contextlib.suppress(OSError):
            self.close()


class VideoFiles:
    """The mp4 files of one camera. A clip whose packets cannot follow the previous ones opens a new file, or is encoded anew."""

    def __init__(self, root: Path, key: str, fps: int, height: int, width: int) -> None:
        self._root, self.key, self._fps, self._size = root, key, fps, (height, width)
        self._place = (0, 0)
        self._current: VideoWriter | None = None
        self.info: dict[str, Any] | None = None  # of the first file
        self.num_encoded = 0  # clips that could not be copied

    def add(self, images: np.ndarray | VideoClip, length: int) -> dict[str, Any]:
        """Append an episode of `length` frames; returns where it is. `from_timestamp` is exactly its first frame's place / fps."""
        clip = images if isinstance(images, VideoClip) and video.probe(images.path, self._fps).on_grid else None
        num_bytes = clip.path.stat().st_size if clip is not None else 0
        if self._current is not None and not self._takes(self._current, clip, length, num_bytes):
            self.close()
            self._place = next_file(*self._place)
        if self._current is None:
            values = {"video_key": self.key, "chunk_index": self._place[0], "file_index": self._place[1]}
            path = fill_path(self._root, VIDEO_PATH, values, VIDEO_PATH)
            self._current = VideoWriter(path, self._fps, *self._size, like=clip)
            self.info = self.info or self._current.describe()
        if clip is not None:
            start = self._current.add_clip(clip)
        elif isinstance(images, VideoClip):
            self.num_encoded += 1
            start = self._current.add_frames(video.decode_all(images.path, *self._size, length))
        else:
            start = self._current.add_frames(images)
        prefix = f"videos/{self.key}/"
        return {
            f"{prefix}chunk_index": self._place[0],
            f"{prefix}file_index": self._place[1],
            f"{prefix}from_timestamp": start / self._fps,
            f"{prefix}to_timestamp": (start + length) / self._fps,
        }

    def _takes(self, current: VideoWriter, clip: VideoClip | None, length: int, num_bytes: int) -> bool:
        if (clip is None) != (current.info is None):
            return False
        if clip is not None and current.info is not None and not video.probe(clip.path, self._fps).fits(current.info):
            return False
        # What an encoder will need is unknown; the mean of this file so far is the guess.
        num_bytes = num_bytes or current.num_bytes * length // max(1, current.num_frames)
        return current.num_frames + length <= VIDEO_FILE_SECONDS * self._fps and current.num_bytes + num_bytes <= VIDEO_FILE_MB << 20

    def close(self) -> None:
        """Finish the current file."""
        if self._current is not None:
            current, self._current = self._current, None
            current.close()

    def abort(self) -> None:
        """Let go of the current file, whatever state it is in."""
        if self._current is not None:
            current, self._current = self._current, None
            current.abort()
