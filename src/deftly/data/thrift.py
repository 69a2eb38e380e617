"""Thrift's compact encoding, in which parquet writes its page headers and its footer: just enough to read and write a structure.

A structure is {field number: (type, value)}; a list is (element type, values). What a value means is parquet's business, not ours.
"""

from __future__ import annotations

import struct
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 16
Struct = dict[int, tuple[int, Any]]


class Reader:
    """Reads from `place` on; a ValueError when the bytes are no such structure or end too early."""

    def __init__(self, content: bytes | memoryview, place: int = 0) -> None:
        self.content, self.place = content, place

    def structure(self, depth: int = 0) -> Struct:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = (kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth))
        return fields

    def _byte(self) -> int:
        if self.place >= len(self.content):
            raise ValueError("ends too early")
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _take(self, size: int) -> bytes:
        if size > len(self.content) - self.place:
            raise ValueError("ends too early")
        self.place += size
        return bytes(self.content[self.place - size : self.place])

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE):  # inside a list
            return self._byte() == TRUE
        if kind == BYTE:
            return self._byte()
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind == DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        if kind == BINARY:
            return self._take(self._varint())
        if kind in (LIST, SET):
            head = self._byte()
            size = head >> 4 if head >> 4 != 15 else self._varint()
            if size > len(self.content) - self.place:
                raise ValueError("ends too early")
            return head & 15, [self._value(head & 15, depth + 1) for _ in range(size)]
        if kind == STRUCT:
            return self.structure(depth + 1)
        raise ValueError(f"type {kind} is not known")


def write(fields: Struct) -> bytes:
    """The bytes of a structure."""
    parts, last = [], 0
    for number, (kind, value) in sorted(fields.items()):
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        step = number - last
        parts.append(bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _zigzag(number))
        if kind not in (TRUE, FALSE):
            parts.append(_value(kind, value))
        last = number
    return b"".join(parts) + b"\0"


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _value(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return bytes([TRUE if value else FALSE])
    if kind == BYTE:
        return bytes([value])
    if kind in (I16, I32, I64):
        return _zigzag(value)
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind in (LIST, SET):
        element, values = value
        head = bytes([len(values) << 4 | element]) if len(values) < 15 else bytes([0xF0 | element]) + _varint(len(values))
        return head + b"".join(_value(element, item) for item in values)
    return write(value)
