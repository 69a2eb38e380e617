"""TFRecord files without TensorFlow: records with both of their checksums verified, and the `tf.train.Example` inside them.

A record is {length: uint64, masked crc32c of these 8 bytes: uint32, data, masked crc32c of the data: uint32}, all little-endian. The
parser of the protocol buffer reads the few message types that an Example is made of, never past the end of its message.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deftly.types import DataError

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bit-reversed
_LANE = 512  # bytes: a buffer is cut into lanes of this length whose checksums are computed side by side
MAX_RECORD_BYTES = 2 << 30
MAX_FEATURES = 10_000

Values = list[bytes] | np.ndarray


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@functools.cache
def _lane_shift() -> list[list[int]]:
    """What `_LANE` zero bytes make of a register, as one table of 256 for each of its four bytes (the register update is linear)."""
    registers = np.stack([np.arange(256, dtype=np.uint32) << np.uint32(8 * byte) for byte in range(4)])
    table = _table()
    for _ in range(_LANE):
        registers = table[registers & 0xFF] ^ (registers >> np.uint32(8))
    return registers.tolist()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720) of a buffer. Vectorised: many lanes at once, then joined by the linearity of the checksum."""
    table = _table()
    lanes = len(data) // _LANE
    register = 0xFFFFFFFF
    if lanes:
        columns = np.ascontiguousarray(np.frombuffer(data, dtype=np.uint8, count=lanes * _LANE).reshape(lanes, _LANE).T)
        registers = np.zeros(lanes, dtype=np.uint32)
        for column in columns:
            registers = table[(registers & 0xFF) ^ column] ^ (registers >> np.uint32(8))
        t0, t1, t2, t3 = _lane_shift()
        for lane in registers.tolist():
            shifted = t0[register & 0xFF] ^ t1[(register >> 8) & 0xFF] ^ t2[(register >> 16) & 0xFF] ^ t3[register >> 24]
            register = shifted ^ lane
    values = _table_list()
    for byte in data[lanes * _LANE :]:
        register = values[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


@functools.cache
def _table_list() -> list[int]:
    return _table().tolist()


def masked(crc: int) -> int:
    """The form in which TFRecord stores a checksum, so that a checksum of checksums stays strong."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file in order. Raises a one-line `DataError` with the number of the record that is damaged or cut off."""
    if not path.is_file():
        raise DataError(f"{path}: missing")
    size = path.stat().st_size
    with open(path, "rb") as file:
        number = 0
        while header := file.read(12):
            where = f"{path}: record {number}"
            if len(header) < 12:
                raise DataError(f"{where}: the file ends inside its header; it is truncated, copy it again")
            length, checksum = struct.unpack("<QI", header)
            if masked(crc32c(header[:8])) != checksum:
                raise DataError(f"{where}: wrong checksum of its length; the file is corrupt, copy it again")
            if length > MAX_RECORD_BYTES or length + 4 > size - file.tell():
                raise DataError(
                    f"{where}: claims {length} bytes, {max(0, size - file.tell() - 4)} are left; it is truncated, copy it again"
                )
            data, footer = file.read(length), file.read(4)
            if len(data) < length or len(footer) < 4:
                raise DataError(f"{where}: the file ends inside it; it is truncated, copy it again")
            if masked(crc32c(data)) != struct.unpack("<I", footer)[0]:
                raise DataError(f"{where}: wrong checksum; the file is corrupt, copy it again")
            yield data
            number += 1


def parse_example(data: bytes, where: str) -> dict[str, Values]:
    """The features of a serialised `tf.train.Example`: bytes as a list, floats as float32 [n], whole numbers as int64 [n].

    Raises a one-line `DataError` when the message is malformed.
    """
    view = memoryview(data)
    features: dict[str, Values] = {}
    for number, message in _messages(view, where):
        if number != 1:
            continue
        for inner, entry in _messages(message, where):
            if inner != 1:
                continue
            name, values = _entry(entry, where)
            if len(features) >= MAX_FEATURES:
                raise DataError(f"{where}: more than {MAX_FEATURES} features")
            features[name] = values
    return features


def _entry(entry: memoryview, where: str) -> tuple[str, Values]:
    name, values = "", []
    for number, content in _messages(entry, where):
        if number == 1:
            try:
                name = bytes(content).decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{where}: the name of a feature is not text") from None
        elif number == 2:
            for kind, items in _messages(content, where):
                values = _list(kind, items, f"{where}: {name!r}")
    return name, values


def _list(kind: int, content: memoryview, where: str) -> Values:
    """BytesList, FloatList or Int64List; the numeric ones packed or one by one."""
    if kind == 1:
        return [bytes(item) for number, item in _messages(content, where) if number == 1]
    if kind not in (2, 3):
        raise DataError(f"{where}: unknown kind of list {kind}")
    parts: list[np.ndarray] = []
    for number, wire, item in _fields(content, where):
        if number != 1:
            continue
        if isinstance(item, int):
            parts.append(np.array([item], dtype=np.uint64).view(np.int64))
        elif kind == 2:
            if len(item) % 4 or wire not in (2, 5):
                raise DataError(f"{where}: a list of floats with {len(item)} bytes")
            parts.append(np.frombuffer(item, dtype="<f4"))
        else:
            parts.append(_varints(item, where))
    empty = np.zeros(0, dtype=np.float32 if kind == 2 else np.int64)
    result = np.concatenate([empty, *parts])
    if result.dtype != empty.dtype:
        raise DataError(f"{where}: numbers of the wrong kind")
    return result


def _varints(content: memoryview, where: str) -> np.ndarray:
    """Packed variable-length integers as int64 [n], all at once: 7 bits per byte, the highest bit set on all but the last."""
    data = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if not len(data):
        return np.zeros(0, dtype=np.int64)
    lengths = np.diff(ends, prepend=-1)
    if not len(ends) or ends[-1] != len(data) - 1 or lengths.max() > 10:
        raise DataError(f"{where}: a malformed whole number")
    starts = ends - lengths + 1
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    bits = (data & np.uint8(0x7F)).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(bits, starts).view(np.int64)


def _messages(view: memoryview, where: str) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message; others are skipped."""
    for number, wire, content in _fields(view, where):
        if wire == 2 and not isinstance(content, int):
            yield number, content


def _fields(view: memoryview, where: str) -> Iterator[tuple[int, int, memoryview | int]]:
    """(field number, wire type, content) of every field of a message."""
    position = 0
    while position < len(view):
        tag, position = _varint(view, position, where)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(view, position, where)
            yield number, wire, value
            continue
        if wire == 2:
            length, position = _varint(view, position, where)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise DataError(f"{where}: not a tf.train.Example (wire type {wire})")
        if length > len(view) - position:
            raise DataError(f"{where}: not a tf.train.Example (a field of {length} bytes, {len(view) - position} are left)")
        yield number, wire, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while position < len(view) and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise DataError(f"{where}: not a tf.train.Example (a malformed number)")
