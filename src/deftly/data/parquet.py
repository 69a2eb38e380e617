"""Opening parquet files that a stranger wrote: what a file claims is held against what it can hold, before anything is decoded.

A small file can ask for any amount of memory: by a footer of a million columns, by a page that unpacks to gigabytes, by a run-length code
that makes one row of a billion numbers. The footer's size and its number of columns are read first, then the headers of the pages that
could do so. They are encoded as Apache Thrift's compact protocol, of which just enough is read here.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from deftly.types import DataError

MAX_FOOTER_BYTES = 128 << 20
MAX_COLUMNS = 20_000  # entries of the schema: a dataset of a hundred features with all their statistics has some four thousand
MAX_VALUES = 1 << 26  # in one column of one file, where nobody knows how many there should be
MAX_RATIO = 500  # decoded bytes per byte on disk; snappy reaches 21, and repeated rows are counted as written
FREE_BYTES = 64 << 20  # decoded bytes that need no justification
_MAGIC = b"PAR1"
# Codecs that cannot unpack to more than some twenty times their size, however a page lies about it.
_BOUNDED = ("UNCOMPRESSED", "SNAPPY")


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file; a one-line `DataError` when it is missing or broken, or when its footer is out of proportion."""
    if not path.is_file():
        raise DataError(f"{path}: missing")
    with open(path, "rb") as file:
        _check_footer(path, file)
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _broken(path, first_line(error)) from None


def _check_footer(path: Path, file: BinaryIO) -> None:
    size = path.stat().st_size
    file.seek(max(0, size - 8))
    tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != _MAGIC or footer > size - 12:
        raise _broken(path, "its footer is missing")
    if footer > MAX_FOOTER_BYTES:  # guard: data.parquet.footer
        raise DataError(f"{path}: its footer has {footer} bytes, at most {MAX_FOOTER_BYTES} are read; write larger row groups")
    file.seek(size - 8 - footer)
    count = _schema_size(_Thrift(file.read(32)))
    if count is None or count > MAX_COLUMNS:  # guard: data.parquet.columns
        raise DataError(f"{path}: its footer lists {count or 'an unknown number of'} columns, at most {MAX_COLUMNS} are read")


def _schema_size(thrift: _Thrift) -> int | None:
    """Entries of the schema, which is the second field of the footer after the version; None where that is not so."""
    try:
        if thrift.byte() != 0x15:  # field 1, a number
            return None
        thrift.number()
        if thrift.byte() != 0x19:  # field 2, a list
            return None
        head = thrift.byte()
        return thrift.number() if head >> 4 == 15 else head >> 4
    except IndexError:
        return None


def check_columns(path: Path, file: pq.ParquetFile, names: Sequence[str] | None, groups: Sequence[int], values: Mapping[str, int]) -> None:
    """Refuse columns that would decode to more than they may: in bytes per byte on disk, and in values (name -> per row, where known)."""
    metadata, size = file.metadata, path.stat().st_size
    wanted = []
    for i, parts in enumerate(leaf_paths(file)):
        # What pyarrow decodes for a name: the column of that name, and what lies at that path in a struct.
        if names is None or any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1)):
            wanted.append((i, parts[0], metadata.schema.column(i).max_repetition_level > 0))
    decoded, counts, rows = 0, dict[str, int](), 0
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in map(metadata.row_group, groups):
            rows += group.num_rows
            for i, name, is_repeated in wanted:
                chunk = group.column(i)
                decoded += chunk.total_uncompressed_size
                if is_repeated or chunk.compression not in _BOUNDED:
                    unpacked, count = _pages(path, data, chunk)
                    decoded += max(0, unpacked - chunk.total_uncompressed_size)
                    counts[name] = counts.get(name, 0) + count
    if decoded > FREE_BYTES and decoded > MAX_RATIO * size:  # guard: data.parquet.ratio
        raise DataError(f"{path}: {size} bytes that would unpack to {decoded}; it is no recording")
    for name, count in counts.items():
        most = rows * values[name] if name in values else MAX_VALUES
        if count > max(most, rows):  # guard: data.parquet.values
            raise DataError(f"{path}: {name} holds {count} values in {rows} rows, expected at most {most}")


def leaf_paths(file: pq.ParquetFile) -> list[tuple[str, ...]]:
    """Of every leaf of the schema, in the order of a row group's columns: its column, then the way to it through lists and structs.

    Joined by dots they do not say it: `action` and `action.original` can be two columns of one file.
    """
    return [tuple(parts) for parts in file.reader.column_paths]


def _pages(path: Path, data: mmap.mmap, chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """(bytes once unpacked, values) of a column chunk, by the headers of its pages."""
    if not chunk.num_values:  # of a table without rows: nothing is read of it, and its first page is said to be at 0
        return 0, 0
    begin = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        begin = min(begin, chunk.dictionary_page_offset)
    end, unpacked, values = begin + chunk.total_compressed_size, 0, 0
    if not 0 <= begin <= end <= len(data):
        raise _broken(path, f"{chunk.path_in_schema} is outside of it")
    try:
        while begin < end:
            thrift, page = _header(data, begin, end)
            unpacked += max(0, page.get(2, 0))
            values += max(0, page.get((5, 1), page.get((8, 1), 0)))
            begin += thrift.at + max(0, page.get(3, 0))
    except (IndexError, RecursionError):
        raise _broken(path, f"a page of {chunk.path_in_schema} has no header") from None
    return unpacked, values


_HEADER_BYTES = 64 << 10  # of a page header, which can hold the smallest and the largest value
_MOST_HEADERS = 256  # bytes of nearly all of them


def _header(data: mmap.mmap, begin: int, end: int) -> tuple[_Thrift, dict[int | tuple[int, int], int]]:
    """The header of a page, and how far it was read; IndexError where there is none."""
    try:
        thrift = _Thrift(data[begin : min(end, begin + _MOST_HEADERS)])
        return thrift, thrift.struct()
    except IndexError:
        thrift = _Thrift(data[begin : min(end, begin + _HEADER_BYTES)])
        return thrift, thrift.struct()


class _Thrift:
    """A reader of Thrift's compact protocol: numbers, and which field they are in."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """An unsigned number, seven bits a byte."""
        part = self.data[self.at]
        self.at += 1
        value, shift = part & 127, 7
        while part > 127:
            if shift > 63:
                raise IndexError
            part = self.data[self.at]
            self.at += 1
            value |= (part & 127) << shift
            shift += 7
        return value

    def struct(self, depth: int = 0) -> dict[int | tuple[int, int], int]:
        """The numbers of a struct by field, and those of the structs in it by (field, field); everything else is skipped."""
        found: dict[int | tuple[int, int], int] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            if head & 15 == 5:  # a number of 32 bits, as nearly all fields of a header are
                found[field] = self._signed()
                continue
            value = self._value(head & 15, depth)
            if isinstance(value, int):
                found[field] = value
            elif isinstance(value, dict):
                found |= {(field, key): number for key, number in value.items() if isinstance(key, int)}
        return found

    def _signed(self) -> int:
        value = self.number()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> int | dict[int | tuple[int, int], int] | None:
        if depth > 8:
            raise IndexError
        if kind in (1, 2):  # true and false, which are their own value
            return None
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self.byte()
            for _ in range(self.number() if head >> 4 == 15 else head >> 4):
                self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1)  # in a list, true and false take a byte
        elif kind == 8:
            size = self.number()
            self.at += size
        elif kind == 7:
            self.at += 8
        else:
            raise IndexError
        return None


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path}: not a parquet file ({what}); it is truncated or corrupt")
